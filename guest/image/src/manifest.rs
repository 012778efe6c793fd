//! `manifest.json`: what an image holds, with digests and sizes.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::ImageError;

/// Version of the manifest's form.
pub(crate) const SCHEMA: u32 = 1;
/// The manifest's file name.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// What an image holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of this form.
    pub schema: u32,
    /// The digest of the inputs, which is the folder's name.
    pub inputs: String,
    /// The agent's protocol number (`guest_proto::surface::PROTOCOL`).
    pub agent_protocol: u32,
    /// `uname -r` of the kernel.
    pub kernel_release: String,
    /// Distribution suite of the packages.
    pub suite: String,
    /// The kernel.
    pub kernel: FileEntry,
    /// The initramfs.
    pub initramfs: FileEntry,
    /// The root file system.
    pub root: FileEntry,
    /// Every package of the root file system and the kernel's, sorted by name.
    pub packages: Vec<PackageEntry>,
}

/// A file's size and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// Bytes.
    pub size: u64,
    /// BLAKE3, hexadecimal.
    pub blake3: String,
}

/// A package and its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageEntry {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl FileEntry {
    /// Measures a file.
    pub(crate) fn of(path: &Path) -> Result<Self, ImageError> {
        let file = fs::File::open(path).map_err(ImageError::file("open", path))?;
        let size = file.metadata().map_err(ImageError::file("measure", path))?.len();
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).map_err(ImageError::file("read", path))?;
        Ok(Self { size, blake3: hasher.finalize().to_hex().to_string() })
    }

    /// Compares a file's size with the entry.
    pub(crate) fn check_size(&self, path: &Path) -> Result<(), ImageError> {
        let size = fs::metadata(path).map_err(ImageError::file("measure", path))?.len();
        if size == self.size {
            return Ok(());
        }
        let what = format!("it has {size} bytes, its manifest says {}", self.size);
        Err(ImageError::Damaged { path: path.to_owned(), what })
    }

    /// Compares a file's bytes with the entry.
    pub(crate) fn check_digest(&self, path: &Path) -> Result<(), ImageError> {
        self.check_size(path)?;
        let found = Self::of(path)?;
        if found == *self {
            return Ok(());
        }
        let what = format!("its digest is {}, its manifest says {}", found.blake3, self.blake3);
        Err(ImageError::Damaged { path: path.to_owned(), what })
    }
}

impl Manifest {
    /// Reads the manifest of an image's folder.
    pub(crate) fn read(dir: &Path) -> Result<Self, ImageError> {
        read_versioned(&dir.join(MANIFEST_FILE), SCHEMA)
    }
}

/// Reads a JSON file that carries a schema version, which must not be newer than `known`.
pub(crate) fn read_versioned<T: DeserializeOwned>(path: &Path, known: u32) -> Result<T, ImageError> {
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let text = fs::read_to_string(path).map_err(ImageError::file("read", path))?;
    let damaged = |error: serde_json::Error| ImageError::Damaged { path: path.to_owned(), what: error.to_string() };
    let Version { schema } = serde_json::from_str(&text).map_err(damaged)?;
    if schema > known {
        return Err(ImageError::Schema { path: path.to_owned(), found: schema, known });
    }
    serde_json::from_str(&text).map_err(damaged)
}

/// Writes a JSON file for people to read as well.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ImageError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| ImageError::Damaged { path: path.to_owned(), what: error.to_string() })?;
    fs::write(path, text + "\n").map_err(ImageError::file("write", path))
}

/// Reads `name<TAB>version` lines, as the recipe writes them.
pub(crate) fn parse_packages(text: &str) -> Vec<PackageEntry> {
    let mut packages: Vec<PackageEntry> = text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(name, version)| PackageEntry { name: name.to_owned(), version: version.trim().to_owned() })
        .collect();
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_sorted() {
        let packages = parse_packages("python3\t3.11.2-1\ncurl\t7.88.1\nnonsense\n");
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["curl", "python3"]);
    }

    #[test]
    fn a_newer_schema_is_refused_with_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MANIFEST_FILE), r#"{"schema": 99, "unheard": true}"#).unwrap();
        let error = Manifest::read(folder.path()).unwrap_err();
        assert!(matches!(error, ImageError::Schema { found: 99, known: SCHEMA, .. }), "{error}");
    }

    #[test]
    fn a_changed_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        fs::write(&path, b"abc").unwrap();
        let entry = FileEntry::of(&path).unwrap();
        entry.check_digest(&path).unwrap();
        fs::write(&path, b"abd").unwrap();
        entry.check_size(&path).unwrap();
        assert!(matches!(entry.check_digest(&path), Err(ImageError::Damaged { .. })));
        fs::write(&path, b"ab").unwrap();
        assert!(matches!(entry.check_size(&path), Err(ImageError::Damaged { .. })));
    }
}
