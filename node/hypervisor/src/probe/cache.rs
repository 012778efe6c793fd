//! Findings since the host started, in one file that the nodes of the host share; one of them tries at a time.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use fabric_types::{Accelerator, Digest, HypervisorKind};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::VmError;
use crate::durable::{read_json, write_json};
use crate::process::boot_id;

/// Newest schema of `probe.json` that this version reads and the one it writes.
const SCHEMA: u32 = 1;

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) hypervisor: HypervisorKind,
    pub(super) accelerator: Accelerator,
    /// The monitor's version.
    pub(super) version: String,
    /// BLAKE3 of kernel and initramfs.
    pub(super) kernel: Digest,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    #[serde(flatten)]
    key: Key,
    pub(super) works: bool,
    /// Milliseconds that the trial took.
    pub(super) took_ms: u64,
    /// Why it doesn't work; empty if it does.
    pub(super) why: String,
}

impl Entry {
    pub(super) fn new(key: Key, outcome: Result<u64, String>) -> Self {
        match outcome {
            Ok(took_ms) => Self { key, works: true, took_ms, why: String::new() },
            Err(why) => Self { key, works: false, took_ms: 0, why },
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    schema: u32,
    boot_id: String,
    entries: Vec<Entry>,
}

/// The open cache. While it is open, no other node of the host tries.
#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
    content: Content,
    _lock: Flock<File>,
}

impl Cache {
    /// Opens it, waiting for others. Blocks as long as another node's trial takes. Findings of another boot, or that
    /// can't be read, count as none.
    pub(super) fn open(folder: &Path) -> Result<Self, VmError> {
        let path = folder.join("probe.json");
        let lock_path = folder.join("probe.lock");
        let failed = |source| VmError::File { action: "lock", path: lock_path.clone(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let file = OpenOptions::new().create(true).append(true).open(&lock_path).map_err(failed)?;
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| failed(error.into()))?;
        let boot_id = boot_id().map_err(failed)?;
        let none = Content { schema: SCHEMA, boot_id: boot_id.clone(), entries: Vec::new() };
        let content = match read_json::<Content>(&path, SCHEMA) {
            Ok(content) if content.boot_id == boot_id => content,
            Err(error @ VmError::Schema { .. }) => return Err(error),
            _ => none,
        };
        Ok(Self { path, content, _lock: lock })
    }

    pub(super) fn find(&self, key: &Key) -> Option<&Entry> {
        self.content.entries.iter().find(|entry| entry.key == *key)
    }

    pub(super) fn add(&mut self, entry: Entry) -> Result<(), VmError> {
        self.content.entries.retain(|known| known.key != entry.key);
        self.content.entries.push(entry);
        write_json(&self.path, &self.content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(version: &str) -> Key {
        Key {
            hypervisor: HypervisorKind::Qemu,
            accelerator: Accelerator::Kvm,
            version: version.into(),
            kernel: Digest::from_bytes([7; 32]),
        }
    }

    #[test]
    fn findings_are_found_again_under_their_own_key_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut cache = Cache::open(folder.path()).expect("opened");
        assert_eq!(cache.find(&key("7.2")), None);
        cache.add(Entry::new(key("7.2"), Err("it hangs".into()))).expect("added");
        drop(cache);
        let cache = Cache::open(folder.path()).expect("opened again");
        assert!(cache.find(&key("7.2")).is_some_and(|entry| !entry.works && entry.why == "it hangs"));
        assert_eq!(cache.find(&key("8.0")), None);
        let other_kernel = Key { kernel: Digest::from_bytes([8; 32]), ..key("7.2") };
        assert_eq!(cache.find(&other_kernel), None);
    }

    #[test]
    fn another_boot_knows_nothing_and_a_newer_schema_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("probe.json");
        let entries = vec![Entry::new(key("7.2"), Ok(900))];
        let content = Content { schema: SCHEMA, boot_id: "another".into(), entries };
        write_json(&path, &content).expect("written");
        assert_eq!(Cache::open(folder.path()).expect("opened").find(&key("7.2")), None);
        write_json(&path, &Content { schema: SCHEMA + 1, ..content }).expect("written");
        assert!(matches!(Cache::open(folder.path()), Err(VmError::Schema { .. })));
    }
}
