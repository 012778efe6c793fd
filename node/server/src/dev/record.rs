//! `DIR/dev.json`: what a development mesh was made with, so that the next start goes on with the same keys.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use fabric_types::{KeyId, RegionCode};
use node_hypervisor::atomic_files;
use serde::{Deserialize, Serialize};

use crate::key_text;

const SCHEMA: u32 = 1;

/// What lasts of a development mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    schema: u32,
    /// In the order of `--regions`.
    pub(crate) regions: Vec<RegionCode>,
    pub(crate) nodes_per_region: u32,
    pub(crate) api_key: String,
    pub(crate) key_id: KeyId,
    /// The short folder for sockets.
    pub(crate) run: PathBuf,
}

impl Record {
    /// The record of a folder; none if it has no mesh yet.
    pub(crate) fn load(data: &Path) -> anyhow::Result<Option<Self>> {
        let path = data.join("dev.json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
        };
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let broken = || format!("{} is damaged; move the folder away and start again", path.display());
        let version: Version = serde_json::from_str(&text).with_context(broken)?;
        if version.schema > SCHEMA {
            bail!(
                "{} has schema version {}; this version of atoll reads up to {SCHEMA}",
                path.display(),
                version.schema
            );
        }
        Ok(Some(serde_json::from_str(&text).with_context(broken)?))
    }

    /// The record of this folder: the one that is there, if it fits what is asked, or a new one.
    pub(crate) fn load_or_make(data: &Path, regions: &[RegionCode], nodes_per_region: u32) -> anyhow::Result<Self> {
        if let Some(found) = Self::load(data)? {
            if found.regions != regions || found.nodes_per_region != nodes_per_region {
                bail!(
                    "{} holds a mesh of --regions {} --nodes-per-region {}; start it with the same, or give another --data",
                    data.display(),
                    found.regions.iter().map(RegionCode::as_str).collect::<Vec<_>>().join(","),
                    found.nodes_per_region
                );
            }
            return Ok(found);
        }
        let record = Self {
            schema: SCHEMA,
            regions: regions.to_vec(),
            nodes_per_region,
            api_key: key_text::new(),
            key_id: KeyId::new(rand::random()),
            run: run_folder(data),
        };
        record.save(data)?;
        Ok(record)
    }

    fn save(&self, data: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self).context("can't write dev.json")?;
        Ok(atomic_files::replace(&data.join("dev.json"), &text, 0o600)?)
    }
}

/// A folder whose socket paths stay under 107 bytes wherever the data folder lies, and that no other mesh uses.
fn run_folder(data: &Path) -> PathBuf {
    let hash = blake3::hash(data.as_os_str().as_encoded_bytes()).to_hex();
    let tag = &hash.as_str()[..8];
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from(format!("/run/atoll-{tag}"));
    }
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_dir()) {
        Some(folder) if folder.as_os_str().len() <= 32 => folder.join(format!("atoll-{tag}")),
        _ => std::env::temp_dir().join(format!("atoll-{}-{tag}", nix::unistd::geteuid())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_start_finds_the_same_keys_and_refuses_another_shape_of_mesh() {
        let folder = tempfile::tempdir().expect("a folder");
        let codes: Vec<RegionCode> = ["fra", "iad"].iter().map(|code| code.parse().expect("a code")).collect();
        let first = Record::load_or_make(folder.path(), &codes, 1).expect("a record");
        assert_eq!(first.api_key.len(), 44);
        assert_eq!(Record::load_or_make(folder.path(), &codes, 1).expect("the record"), first);
        let error = Record::load_or_make(folder.path(), &codes, 2).expect_err("another mesh");
        assert!(error.to_string().contains("--regions fra,iad --nodes-per-region 1"), "{error}");
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("dev.json"), br#"{"schema":99,"novel":true}"#).expect("written");
        let error = Record::load(folder.path()).expect_err("newer");
        assert!(error.to_string().contains("schema version 99"), "{error}");
    }
}
