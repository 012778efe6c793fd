//! The host's own apt sources, as far as they serve the distribution's packages.
//!
//! The image comes from where the host's packages come from: its mirror, its proxy, its keys. Other repositories on
//! the host (vendors', backports) are left out. Parsing is pure; [`host_sources`] reads the files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::ImageError;

/// The component that all of the guest's packages are in on Debian, and that marks a distribution's own archive.
const MAIN: &str = "main";
const SOURCES_LIST: &str = "/etc/apt/sources.list";
const SOURCES_FOLDER: &str = "/etc/apt/sources.list.d";

/// Sources in the two forms of sources.list(5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    /// One-line entries.
    pub(crate) list: String,
    /// deb822 paragraphs.
    pub(crate) deb822: String,
}

/// The host's sources for `suite`, its updates and its security fixes.
pub(crate) fn host_sources(suite: &str) -> Result<Sources, ImageError> {
    let mut sources = Sources::default();
    let mut files = vec![PathBuf::from(SOURCES_LIST)];
    let folder = Path::new(SOURCES_FOLDER);
    match fs::read_dir(folder) {
        Ok(entries) => files.extend(entries.flatten().map(|entry| entry.path())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(ImageError::file("list", folder)(error)),
    }
    files.sort();
    for path in files {
        let select: fn(&str, &str) -> String = match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => select_lines,
            Some("sources") => select_paragraphs,
            _ => continue,
        };
        match fs::read_to_string(&path) {
            Ok(text) => {
                let selected = resolve_mirror_lists(&select(&text, suite), |list| fs::read_to_string(list).ok());
                if path.extension().is_some_and(|extension| extension == "list") {
                    sources.list.push_str(&selected);
                } else {
                    sources.deb822.push_str(&selected);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(ImageError::file("read", &path)(error)),
        }
    }
    if sources.list.is_empty() && sources.deb822.is_empty() {
        let looked_in = format!("{SOURCES_LIST} and {SOURCES_FOLDER}");
        return Err(ImageError::NoSources { suite: suite.to_owned(), looked_in });
    }
    Ok(sources)
}

/// Whether a suite is the release itself, its updates or its security fixes.
fn serves(suite: &str, name: &str) -> bool {
    let name = name.trim_end_matches('/');
    name.strip_prefix(suite).is_some_and(|rest| matches!(rest, "" | "-updates" | "-security" | "/updates"))
}

/// The one-line entries (`deb [options] uri suite component...`) that serve the distribution.
fn select_lines(text: &str, suite: &str) -> String {
    let mut selected = String::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let rest = rest.trim_start();
        let fields = match rest.strip_prefix('[').and_then(|options| options.split_once(']')) {
            Some((_, fields)) => fields,
            None => rest,
        };
        let mut words = fields.split_whitespace().take_while(|word| !word.starts_with('#'));
        let (Some(uri), Some(name)) = (words.next(), words.next()) else { continue };
        if !uri.starts_with("cdrom:") && serves(suite, name) && words.any(|word| word == MAIN) {
            selected.push_str(line.trim());
            selected.push('\n');
        }
    }
    selected
}

/// The deb822 paragraphs that serve the distribution, with other suites taken out.
fn select_paragraphs(text: &str, suite: &str) -> String {
    let mut selected = String::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for paragraph in lines.split(|line| line.trim().is_empty()) {
        let field = |name: &str| {
            paragraph.iter().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let has = |name: &str, word: &str| field(name).is_some_and(|value| value.split_whitespace().any(|w| w == word));
        let suites: Vec<&str> =
            field("Suites").unwrap_or("").split_whitespace().filter(|name| serves(suite, name)).collect();
        let disabled = field("Enabled").is_some_and(|value| matches!(value, "no" | "false" | "0"));
        if disabled || suites.is_empty() || !has("Types", "deb") || !has("Components", MAIN) {
            continue;
        }
        for line in paragraph {
            let key = line.split_once(':').map_or("", |(key, _)| key);
            if key.eq_ignore_ascii_case("Suites") {
                selected.push_str(&format!("Suites: {}\n", suites.join(" ")));
            } else if key.eq_ignore_ascii_case("Types") {
                selected.push_str("Types: deb\n");
            } else {
                selected.push_str(line);
                selected.push('\n');
            }
        }
        selected.push('\n');
    }
    selected
}

/// Puts the first mirror of each `mirror+file:/path` in its place: the path means nothing inside the new root.
fn resolve_mirror_lists(text: &str, read: impl Fn(&str) -> Option<String>) -> String {
    const SCHEME: &str = "mirror+file:";
    let mut resolved = String::new();
    for line in text.split_inclusive('\n') {
        let found = line.split_once(SCHEME).and_then(|(before, rest)| {
            let path_end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            let (path, after) = rest.split_at(path_end);
            let mirrors = read(path)?;
            let mirror = mirrors.split_whitespace().find(|word| word.contains("://"))?.to_owned();
            Some(format!("{before}{mirror}{after}"))
        });
        resolved.push_str(found.as_deref().unwrap_or(line));
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_entries_of_other_archives_are_left_out() {
        let text = "# deb http://old.example/debian bookworm main\n\
            deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib\n\
            deb http://mirror.example/debian bookworm-updates main # comment\n\
            deb http://mirror.example/debian bookworm-backports main\n\
            deb http://vendor.example/debian bookworm stable\n\
            deb cdrom:[Debian]/ bookworm main\n\
            deb-src http://mirror.example/debian bookworm main\n";
        assert_eq!(
            select_lines(text, "bookworm"),
            "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib\n\
             deb http://mirror.example/debian bookworm-updates main # comment\n"
        );
    }

    #[test]
    fn paragraphs_keep_their_keys_and_lose_other_suites() {
        let text = "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian\n\
            Suites: bookworm bookworm-backports bookworm-updates\nComponents: main\nSigned-By:\n -----BEGIN-----\n .\n\n\
            Types: deb\nURIs: http://vendor.example\nSuites: nodistro\nComponents: main\n\n\
            Enabled: no\nTypes: deb\nURIs: http://off.example\nSuites: bookworm\nComponents: main\n";
        assert_eq!(
            select_paragraphs(text, "bookworm"),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\
             Signed-By:\n -----BEGIN-----\n .\n\n"
        );
    }

    #[test]
    fn a_mirror_list_gives_its_first_mirror() {
        let read =
            |path: &str| (path == "/etc/apt/mirrors/debian.list").then(|| "https://mirror.example/debian\n".to_owned());
        let text = "URIs: mirror+file:/etc/apt/mirrors/debian.list\nSuites: x\n";
        assert_eq!(resolve_mirror_lists(text, read), "URIs: https://mirror.example/debian\nSuites: x\n");
        let unknown = "URIs: mirror+file:/elsewhere\n";
        assert_eq!(resolve_mirror_lists(unknown, read), unknown);
    }

    #[test]
    fn another_release_with_the_same_beginning_is_another() {
        assert!(serves("noble", "noble-security"));
        assert!(serves("buster", "buster/updates"));
        assert!(!serves("trixie", "trixie-proposed-updates"));
        assert!(!serves("noble", "noblesse"));
    }
}
