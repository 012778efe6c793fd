//! What an image is made from, and the digest that names it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bootstrap::{DPKG_OPTIONS, RECIPE};
use crate::error::ImageError;
use crate::modules::WANTED;

/// Version of the recipe: raised by any change of what the build does that isn't in the other inputs.
const RECIPE_VERSION: u32 = 1;
/// Packages of the guest's root file system. No npm: it multiplies the build's time by ten. esbuild takes the types out of
/// TypeScript: one small program, where node-typescript is 40 MiB that node has to read.
const PACKAGES: &[&str] =
    &["python3", "nodejs", "esbuild", "git", "curl", "ca-certificates", "procps", "iproute2", "openssh-client"];
/// Hexadecimal digits of an inputs digest: 128 bits, enough to tell apart all images that one host ever sees.
const DIGEST_DIGITS: usize = 32;

/// What an image is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInputs {
    /// The agent's binary, statically linked.
    pub agent: PathBuf,
    /// The distribution and suite to take packages from.
    pub distribution: Distribution,
    /// Names of the packages in the root file system.
    pub packages: Vec<String>,
}

/// A distribution that packages can be taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// Which.
    pub kind: DistributionKind,
    /// The suite's code name.
    pub suite: String,
}

/// Which distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DistributionKind {
    /// Debian: `linux-image-cloud-amd64`.
    Debian,
    /// Ubuntu: `linux-image-virtual`.
    Ubuntu,
}

impl DistributionKind {
    /// The package that depends on the newest kernel for virtual machines.
    pub(crate) fn kernel_package(self) -> &'static str {
        match self {
            Self::Debian => "linux-image-cloud-amd64",
            Self::Ubuntu => "linux-image-virtual",
        }
    }
}

impl ImageInputs {
    /// The usual image with this agent, from the packages of the host's own distribution.
    ///
    /// # Errors
    /// When the host is neither Debian nor Ubuntu.
    pub fn new(agent: impl Into<PathBuf>) -> Result<Self, ImageError> {
        let path = Path::new("/etc/os-release");
        let text = fs::read_to_string(path).map_err(ImageError::file("read", path))?;
        Ok(Self {
            agent: agent.into(),
            distribution: parse_os_release(&text)?,
            packages: PACKAGES.iter().map(|&name| name.to_owned()).collect(),
        })
    }
}

/// The digest that names the image: of the agent's bytes, the packages, the distribution and the recipe.
///
/// # Errors
/// When the agent can't be read.
pub fn digest(inputs: &ImageInputs) -> Result<String, ImageError> {
    let agent = fs::read(&inputs.agent).map_err(ImageError::file("read", &inputs.agent))?;
    Ok(shortened(&format!("agent {}\nbase {}\n", blake3::hash(&agent).to_hex(), base_digest(inputs))))
}

/// The digest of all but the agent.
pub(crate) fn base_digest(inputs: &ImageInputs) -> String {
    let mut text = format!(
        "recipe {RECIPE_VERSION}\nsuite {} {}\nscript {}\n",
        inputs.distribution.kind.kernel_package(),
        inputs.distribution.suite,
        blake3::hash(RECIPE.as_bytes()).to_hex(),
    );
    for option in DPKG_OPTIONS {
        text.push_str(&format!("option {option}\n"));
    }
    for package in &inputs.packages {
        text.push_str(&format!("package {package}\n"));
    }
    for (module, when) in WANTED {
        text.push_str(&format!("module {module} {when:?}\n"));
    }
    shortened(&text)
}

fn shortened(text: &str) -> String {
    let mut digits = blake3::hash(text.as_bytes()).to_hex().to_string();
    digits.truncate(DIGEST_DIGITS);
    digits
}

/// Reads `ID` and `VERSION_CODENAME` (os-release(5)).
fn parse_os_release(text: &str) -> Result<Distribution, ImageError> {
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.trim().split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.trim_matches(['"', '\'']).to_owned())
    };
    let kind = match field("ID").as_deref() {
        Some("debian") => Some(DistributionKind::Debian),
        Some("ubuntu") => Some(DistributionKind::Ubuntu),
        _ => None,
    };
    match (kind, field("VERSION_CODENAME")) {
        (Some(kind), Some(suite)) if !suite.is_empty() => Ok(Distribution { kind, suite }),
        _ => Err(ImageError::UnknownHost { found: field("PRETTY_NAME").unwrap_or_else(|| "nothing".to_owned()) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_tells_the_distribution() {
        let debian =
            parse_os_release("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_CODENAME=bookworm\n").unwrap();
        assert_eq!(debian, Distribution { kind: DistributionKind::Debian, suite: "bookworm".to_owned() });
        let ubuntu = parse_os_release("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=\"noble\"\n").unwrap();
        assert_eq!(ubuntu.kind.kernel_package(), "linux-image-virtual");
        let error = parse_os_release("ID=fedora\nPRETTY_NAME=\"Fedora Linux 41\"\n").unwrap_err();
        assert!(error.to_string().contains("Fedora Linux 41"), "{error}");
    }

    #[test]
    fn the_digest_changes_with_every_input() {
        let folder = tempfile::tempdir().unwrap();
        let agent = folder.path().join("agent");
        fs::write(&agent, b"one").unwrap();
        let distribution = Distribution { kind: DistributionKind::Debian, suite: "bookworm".to_owned() };
        let inputs = ImageInputs { agent: agent.clone(), distribution, packages: vec!["git".to_owned()] };
        let first = digest(&inputs).unwrap();
        assert_eq!(first, digest(&inputs).unwrap());
        assert_eq!(first.len(), DIGEST_DIGITS);

        let more = ImageInputs { packages: vec!["git".to_owned(), "curl".to_owned()], ..inputs.clone() };
        assert_ne!(first, digest(&more).unwrap());
        let mut other = inputs.clone();
        other.distribution.suite = "trixie".to_owned();
        assert_ne!(first, digest(&other).unwrap());
        fs::write(&agent, b"two").unwrap();
        assert_ne!(first, digest(&inputs).unwrap());
    }
}
