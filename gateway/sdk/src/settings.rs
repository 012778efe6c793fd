//! Where the mesh is and with which key: given, from variables, or from the file that `atoll dev` writes.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use url::Url;

/// The variable with the endpoints: `fra=http://127.0.0.1:7080,iad=...`, or one URL.
pub const ENV_ENDPOINTS: &str = "ATOLL_ENDPOINTS";
/// The variable with the API key.
pub const ENV_API_KEY: &str = "ATOLL_API_KEY";
/// Where `atoll dev` writes both, under the folder that it was started in.
const DEV_ENV_FILE: &str = ".atoll/dev/env";
/// Largest env file that is read: it has four short lines.
const ENV_FILE_BYTES_MAX: u64 = 64 << 10;
/// A sandbox id is its region's code and this many characters.
const ID_RANDOM_CHARS: usize = 16;

/// Endpoints or key that are missing or malformed.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// No endpoint anywhere.
    #[error(
        "no mesh to talk to: start one here with `atoll dev`, give --endpoint URL, or set {ENV_ENDPOINTS} (looked for {DEV_ENV_FILE} from {looked_from} upwards)"
    )]
    NoEndpoint {
        /// The folder that the search began in.
        looked_from: String,
    },
    /// Endpoints, but no key for them.
    #[error("no API key for {endpoint}: give --api-key KEY or set {ENV_API_KEY}")]
    NoKey {
        /// The first endpoint.
        endpoint: String,
    },
    /// A key that can't stand in a header.
    #[error("the API key holds characters that no key has: only visible ASCII is possible")]
    Key,
    /// An endpoint that is no URL.
    #[error("'{text}' is not an endpoint: {why}")]
    Endpoint {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A region that none of the endpoints has.
    #[error("no endpoint of a region '{region}' is known (known: {known})")]
    UnknownRegion {
        /// What was asked for.
        region: String,
        /// The codes that are known.
        known: String,
    },
    /// The env file can't be read.
    #[error("{path} can't be read")]
    EnvFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The HTTP client can't be built: the machine's certificates can't be loaded.
    #[error("no HTTP client can be made on this machine")]
    Http {
        /// Why.
        #[source]
        source: reqwest::Error,
    },
}

/// An API key. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key from its text, which must be able to stand in a header.
    pub fn new(text: impl Into<String>) -> Result<Self, SettingsError> {
        let text = text.into().trim().to_owned();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SettingsError::Key);
        }
        Ok(Self(text))
    }

    /// The key itself: for the header, and for whoever hands it on.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

/// A gateway's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The region's code, where it is known.
    pub region: Option<String>,
    /// Scheme, host and port.
    pub url: Url,
}

impl Endpoint {
    /// An endpoint from `URL` or `REGION=URL`.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let refused = |why: String| SettingsError::Endpoint { text: text.to_owned(), why };
        let (region, address) = match text.split_once('=') {
            Some((region, address)) if !region.contains("://") => (Some(region.trim().to_owned()), address.trim()),
            _ => (None, text.trim()),
        };
        let url = Url::parse(address).map_err(|error| refused(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(refused("it must begin with http:// or https:// and name a host".to_owned()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("a user or password has no place in it".to_owned()));
        }
        Ok(Self { region, url })
    }

    /// The URL as text, without the slash at its end.
    pub fn as_str(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }
}

/// The gateways that a client knows, the preferred one first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints(Vec<Endpoint>);

impl Endpoints {
    /// Endpoints from `fra=http://...,iad=http://...` or from one URL.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let list = parts.map(Endpoint::parse).collect::<Result<Vec<_>, _>>()?;
        if list.is_empty() {
            return Err(SettingsError::Endpoint { text: text.to_owned(), why: "it is empty".to_owned() });
        }
        Ok(Self(list))
    }

    /// One endpoint alone.
    pub fn one(endpoint: Endpoint) -> Self {
        Self(vec![endpoint])
    }

    /// All of them, the preferred one first.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.0.iter()
    }

    /// The preferred one.
    pub fn first(&self) -> &Endpoint {
        self.0.first().expect("never empty: checked by parse and one")
    }

    /// The endpoint of a region.
    pub fn of_region(&self, region: &str) -> Result<&Endpoint, SettingsError> {
        self.0.iter().find(|endpoint| endpoint.region.as_deref() == Some(region)).ok_or_else(|| {
            let known: Vec<&str> = self.0.iter().filter_map(|endpoint| endpoint.region.as_deref()).collect();
            SettingsError::UnknownRegion { region: region.to_owned(), known: known.join(", ") }
        })
    }

    /// The same endpoints with this one first.
    #[must_use]
    pub fn preferring(&self, first: Endpoint) -> Self {
        let rest = self.0.iter().filter(|endpoint| endpoint.url != first.url).cloned();
        Self(std::iter::once(first.clone()).chain(rest).collect())
    }

    /// The order in which to try them for a region's code or a sandbox's id: its own region's first. Any gateway
    /// serves any sandbox, so the others follow.
    pub(crate) fn ordered_for(&self, hint: Option<&str>) -> Vec<&Endpoint> {
        let is_near = |endpoint: &Endpoint| {
            let (Some(region), Some(hint)) = (endpoint.region.as_deref(), hint) else { return false };
            hint == region || (hint.len() == region.len() + ID_RANDOM_CHARS && hint.starts_with(region))
        };
        let (near, far): (Vec<_>, Vec<_>) = self.0.iter().partition(|endpoint| is_near(endpoint));
        near.into_iter().chain(far).collect()
    }
}

/// What was given by hand and wins over variables and files.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `URL` or `REGION=URL`, or several with commas.
    pub endpoint: Option<String>,
    /// The key.
    pub api_key: Option<String>,
}

/// Where the mesh is and with which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The gateways.
    pub endpoints: Endpoints,
    /// The key.
    pub key: ApiKey,
}

impl Settings {
    /// Settings of this process: overrides, then variables, then the env file of the nearest `atoll dev`.
    pub fn discover(overrides: Overrides) -> Result<Self, SettingsError> {
        let folder = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        Self::resolve(overrides, |name| std::env::var(name).ok(), &folder)
    }

    /// The same with variables and folder as arguments. The env file's key is only ever used for endpoints that the
    /// same file names: a local key never travels to a stranger.
    pub fn resolve(
        overrides: Overrides,
        variable: impl Fn(&str) -> Option<String>,
        folder: &Path,
    ) -> Result<Self, SettingsError> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let file = match find_env_file(folder) {
            Some(path) => read_env_file(&path)?,
            None => EnvFile::default(),
        };
        let text = overrides.endpoint.or_else(|| set(ENV_ENDPOINTS)).or_else(|| file.endpoints.clone());
        let Some(text) = text else {
            return Err(SettingsError::NoEndpoint { looked_from: folder.display().to_string() });
        };
        let endpoints = Endpoints::parse(&text)?;
        let key = overrides.api_key.or_else(|| set(ENV_API_KEY)).or_else(|| file.key_for(&endpoints));
        let Some(key) = key else {
            return Err(SettingsError::NoKey { endpoint: endpoints.first().as_str().to_owned() });
        };
        Ok(Self { endpoints, key: ApiKey::new(key)? })
    }
}

/// What an env file says.
#[derive(Default)]
struct EnvFile {
    endpoints: Option<String>,
    key: Option<String>,
}

impl EnvFile {
    fn parse(text: &str) -> Self {
        let mut file = Self::default();
        for line in text.lines() {
            let line = line.trim();
            let Some((name, value)) = line.strip_prefix("export ").unwrap_or(line).split_once('=') else { continue };
            let value = value.trim().trim_matches(['"', '\'']).to_owned();
            match name.trim() {
                ENV_ENDPOINTS => file.endpoints = Some(value),
                ENV_API_KEY => file.key = Some(value),
                _ => {}
            }
        }
        file
    }

    fn key_for(&self, endpoints: &Endpoints) -> Option<String> {
        let own = Endpoints::parse(self.endpoints.as_deref()?).ok()?;
        let is_own = |endpoint: &Endpoint| own.iter().any(|known| known.url == endpoint.url);
        if endpoints.iter().all(is_own) { self.key.clone() } else { None }
    }
}

fn find_env_file(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().map(|ancestor| ancestor.join(DEV_ENV_FILE)).find(|path| path.is_file())
}

fn read_env_file(path: &Path) -> Result<EnvFile, SettingsError> {
    use std::io::Read as _;
    let failed = |source| SettingsError::EnvFile { path: path.to_owned(), source };
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(ENV_FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(EnvFile::parse(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "export DAYTONA_API_URL=http://127.0.0.1:7080/api\nexport DAYTONA_API_KEY=e2b_dev\n\
        export ATOLL_ENDPOINTS=fra=http://127.0.0.1:7080,iad=http://127.0.0.1:7081\nexport ATOLL_API_KEY=e2b_dev\n";

    fn dev_folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join(".atoll/dev")).expect("folders");
        std::fs::create_dir_all(folder.path().join("deep/er")).expect("folders");
        std::fs::write(folder.path().join(DEV_ENV_FILE), DEV).expect("the env file");
        folder
    }

    fn no_variables(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn the_env_file_is_found_from_a_folder_below() {
        let folder = dev_folder();
        let settings =
            Settings::resolve(Overrides::default(), no_variables, &folder.path().join("deep/er")).expect("settings");
        assert_eq!(settings.endpoints.of_region("iad").expect("iad").as_str(), "http://127.0.0.1:7081");
        assert_eq!(settings.key.expose(), "e2b_dev");
    }

    #[test]
    fn variables_win_over_the_file_and_flags_over_both() {
        let folder = dev_folder();
        let variables = |name: &str| match name {
            ENV_ENDPOINTS => Some("http://10.0.0.1:1".to_owned()),
            ENV_API_KEY => Some("from_variable".to_owned()),
            _ => None,
        };
        let settings = Settings::resolve(Overrides::default(), variables, folder.path()).expect("settings");
        assert_eq!(settings.endpoints.first().as_str(), "http://10.0.0.1:1");
        let overrides = Overrides { endpoint: Some("http://10.0.0.2:2".into()), api_key: Some("flag".into()) };
        let settings = Settings::resolve(overrides, variables, folder.path()).expect("settings");
        assert_eq!((settings.endpoints.first().as_str(), settings.key.expose()), ("http://10.0.0.2:2", "flag"));
    }

    #[test]
    fn a_local_key_never_travels_to_a_stranger() {
        let folder = dev_folder();
        let to = |url: &str| Overrides { endpoint: Some(url.into()), api_key: None };
        let refused = Settings::resolve(to("https://example.org"), no_variables, folder.path());
        assert!(matches!(refused, Err(SettingsError::NoKey { .. })));
        let own = Settings::resolve(to("http://127.0.0.1:7081/"), no_variables, folder.path()).expect("its own");
        assert_eq!(own.key.expose(), "e2b_dev");
    }

    #[test]
    fn nothing_found_says_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = Settings::resolve(Overrides::default(), no_variables, folder.path()).expect_err("nothing there");
        assert!(error.to_string().contains("atoll dev"), "{error}");
    }

    #[test]
    fn malformed_endpoints_are_refused() {
        for text in ["", ",", "fra", "fra=", "ftp://a", "fra=http://", "http://user:secret@host"] {
            assert!(Endpoints::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_sandbox_id_goes_to_its_region_first() {
        let endpoints = Endpoints::parse("fra=http://a,iad=http://b,sin=http://c").expect("endpoints");
        let order = |hint| endpoints.ordered_for(hint).iter().map(|e| e.url.host_str()).collect::<Vec<_>>();
        assert_eq!(order(Some("iad0123456789abcdef")), [Some("b"), Some("a"), Some("c")]);
        assert_eq!(order(Some("sin")), [Some("c"), Some("a"), Some("b")]);
        assert_eq!(order(Some("iadx")), [Some("a"), Some("b"), Some("c")], "a name that begins like a region");
        assert_eq!(order(None), [Some("a"), Some("b"), Some("c")]);
    }

    #[test]
    fn keys_do_not_show_in_debug() {
        let settings = Settings {
            endpoints: Endpoints::parse("http://a").expect("one"),
            key: ApiKey::new("e2b_secret").expect("k"),
        };
        assert!(!format!("{settings:?}").contains("secret"));
        assert!(ApiKey::new("with space").is_err());
        assert!(ApiKey::new("").is_err());
    }
}
