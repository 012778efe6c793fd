//! A machine's device state on disk: the monitor's two files, configuration and state, in one of ours. Its memory is
//! the template's and the snapshot's affair.
//!
//! The monitor's folder, in its own words (docs/snapshot_restore.md):
//!
//! ```text
//! config.json      the machine's configuration
//! state.json       state of processors and devices; `memory-manager` in it lists the ranges that are in memory-ranges
//! memory-ranges    memory, unless the monitor maps it from a file that is kept anyway
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use nix::fcntl::OFlag;

use super::config::{channel_folder, monitor_folder};
use crate::atomic_files::remove_folder;
use crate::{VmError, VmFolder};

/// Newest schema that this version reads and the one it writes.
const SCHEMA: u32 = 1;
/// Longest device state, bytes: 32 KiB a vCPU, and as much for all devices.
const STATE_BYTES_MAX: u64 = 16 << 20;

/// Who may read what this node keeps.
const OURS: u32 = 0o600;
/// Who may read what lies in a monitor's folder, which only its user and this node can enter.
const FOR_THE_MONITOR: u32 = 0o644;

/// Configuration and state as one value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedState {
    schema: u32,
    pub(super) config: Value,
    state: Value,
}

impl SavedState {
    /// Takes what the monitor has written into its folder.
    pub(super) fn take(folder: &Path) -> Result<Self, VmError> {
        let state = read_value(&state_file(folder))?;
        memory_manager(&state).ok_or_else(|| invalid(&state_file(folder), "it holds no memory manager"))?;
        Ok(Self { schema: SCHEMA, config: read_value(&config_file(folder))?, state })
    }

    /// Reads one of ours.
    pub(super) fn read(path: &Path) -> Result<Self, VmError> {
        let value = read_value(path)?;
        let found = value["schema"].as_u64().and_then(|schema| u32::try_from(schema).ok());
        match found {
            Some(found) if found > SCHEMA => Err(VmError::Schema { path: path.to_owned(), found, known: SCHEMA }),
            _ => serde_json::from_value(value).map_err(|error| invalid(path, &error.to_string())),
        }
    }

    /// Writes it as one of ours; an existing file is replaced.
    pub(super) fn write(&self, path: &Path) -> Result<(), VmError> {
        write_value(path, self, OURS)
    }

    /// Writes the monitor's two files, for a machine of this configuration. `filled` says that memory comes from a file
    /// `memory-ranges`: all of it, in the order of the template's file.
    pub(super) fn unpack(&self, folder: &Path, config: &Value, filled: bool) -> Result<(), VmError> {
        write_value(&config_file(folder), config, FOR_THE_MONITOR)?;
        let mut state = self.state.clone();
        set_ranges(&mut state, filled).ok_or_else(|| invalid(folder, "the state's memory manager isn't as known"))?;
        write_value(&state_file(folder), &state, FOR_THE_MONITOR)
    }
}

/// Makes the two folders that a monitor writes in anew, private to the machine; answers the one for its files.
pub(super) fn make_folders(folder: &VmFolder) -> Result<PathBuf, VmError> {
    remove_folders(folder)?;
    for path in [monitor_folder(folder), channel_folder(folder)] {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|source| VmError::File { action: "make", path: path.clone(), source })?;
    }
    Ok(monitor_folder(folder))
}

/// Removes them and all in them.
pub(super) fn remove_folders(folder: &VmFolder) -> Result<(), VmError> {
    remove_folder(&monitor_folder(folder))?;
    Ok(remove_folder(&channel_folder(folder))?)
}

/// Removes all files of the folder: the monitor writes none over an older one.
pub(super) fn empty_folder(folder: &Path) -> Result<(), VmError> {
    [config_file(folder), state_file(folder), memory_ranges(folder)]
        .iter()
        .try_for_each(|path| crate::durable::remove_file(path))
}

/// What the monitor calls its configuration.
pub(super) fn config_file(folder: &Path) -> PathBuf {
    folder.join("config.json")
}

/// What it calls the state of processors and devices.
pub(super) fn state_file(folder: &Path) -> PathBuf {
    folder.join("state.json")
}

/// What it calls a memory.
pub(super) fn memory_ranges(folder: &Path) -> PathBuf {
    folder.join("memory-ranges")
}

/// The memory manager's state, which is JSON in a string.
fn memory_manager(state: &Value) -> Option<&str> {
    state["snapshots"]["memory-manager"]["snapshot_data"]["state"].as_str()
}

/// Lists all of guest memory among the ranges to be filled from `memory-ranges`, or nothing.
fn set_ranges(state: &mut Value, filled: bool) -> Option<()> {
    let mut manager: Value = serde_json::from_str(memory_manager(state)?).ok()?;
    let mut ranges = Vec::new();
    if filled {
        let mut mappings: Vec<(u64, Value)> = Vec::new();
        for mapping in manager["guest_ram_mappings"].as_array()? {
            let range = json!({ "gpa": mapping["gpa"].as_u64()?, "length": mapping["size"].as_u64()? });
            mappings.push((mapping["file_offset"].as_u64()?, range));
        }
        mappings.sort_by_key(|(offset, _)| *offset);
        ranges.extend(mappings.into_iter().map(|(_, range)| range));
    }
    *manager.get_mut("memory_ranges")? = json!({ "data": ranges });
    state["snapshots"]["memory-manager"]["snapshot_data"]["state"] = Value::String(manager.to_string());
    Some(())
}

/// Opens what a monitor wrote: a plain file and no link, which a monitor that its guest has taken over could have put
/// there to have the node read another.
pub(crate) fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn read_value(path: &Path) -> Result<Value, VmError> {
    let mut bytes = Vec::new();
    let read = open_plain(path).and_then(|file| file.take(STATE_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|source| VmError::File { action: "read", path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|error| invalid(path, &error.to_string()))
}

fn write_value(path: &Path, value: &impl Serialize, mode: u32) -> Result<(), VmError> {
    let write = || -> io::Result<()> {
        let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(OURS).open(path)?;
        // Whatever this process's umask is.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(&bytes)
    };
    write().map_err(|source| VmError::File { action: "write", path: path.to_owned(), source })
}

fn invalid(path: &Path, why: &str) -> VmError {
    let source = io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    VmError::File { action: "read", path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> Value {
        let manager = json!({
            "memory_ranges": { "data": [] },
            "guest_ram_mappings": [
                { "slot": 1, "gpa": 4_u64 << 30, "size": 1 << 30, "zone_id": "memory", "file_offset": 3_u64 << 30 },
                { "slot": 0, "gpa": 0, "size": 3_u64 << 30, "zone_id": "memory", "file_offset": 0 },
            ],
            "boot_ram": u64::MAX,
        });
        json!({ "snapshots": { "memory-manager": { "snapshot_data": { "state": manager.to_string() } } } })
    }

    fn ranges(folder: &Path) -> Value {
        let state = read_value(&state_file(folder)).expect("read");
        let manager: Value = serde_json::from_str(memory_manager(&state).expect("there")).expect("JSON");
        assert_eq!(manager["boot_ram"], u64::MAX, "the rest is as it was");
        manager["memory_ranges"]["data"].clone()
    }

    #[test]
    fn what_was_taken_is_unpacked_with_the_memory_that_is_wanted() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        fs::write(config_file(folder), r#"{"cpus":{}}"#).expect("written");
        fs::write(state_file(folder), state().to_string()).expect("written");
        let ours = folder.join("state");
        SavedState::take(folder).expect("taken").write(&ours).expect("written");
        let saved = SavedState::read(&ours).expect("read");
        empty_folder(folder).expect("emptied");
        saved.unpack(folder, &json!({ "x": 1 }), false).expect("unpacked");
        assert_eq!(ranges(folder), json!([]));
        assert_eq!(read_value(&config_file(folder)).expect("read"), json!({ "x": 1 }));
        saved.unpack(folder, &json!({}), true).expect("unpacked");
        // As they lie in the file, one after the other.
        let all = json!([{ "gpa": 0, "length": 3_u64 << 30 }, { "gpa": 4_u64 << 30, "length": 1 << 30 }]);
        assert_eq!(ranges(folder), all);
    }

    #[test]
    fn what_is_half_written_or_newer_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        fs::write(config_file(folder), "{}").expect("written");
        for half in ["", "{", "{}", r#"{"snapshots": {"memory-manager": 7}}"#] {
            fs::write(state_file(folder), half).expect("written");
            assert!(SavedState::take(folder).is_err(), "{half}");
        }
        let newer = folder.join("newer");
        fs::write(&newer, r#"{"schema": 2, "all": "else"}"#).expect("written");
        assert!(matches!(SavedState::read(&newer), Err(VmError::Schema { found: 2, known: 1, .. })));
    }

    #[test]
    fn a_link_or_a_pipe_in_the_monitors_folder_is_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        fs::write(folder.join("secret"), state().to_string()).expect("written");
        fs::write(config_file(folder), "{}").expect("written");
        std::os::unix::fs::symlink(folder.join("secret"), state_file(folder)).expect("linked");
        assert!(SavedState::take(folder).is_err(), "a link was followed");
        fs::remove_file(state_file(folder)).expect("removed");
        nix::unistd::mkfifo(&state_file(folder), nix::sys::stat::Mode::S_IRWXU).expect("made");
        assert!(SavedState::take(folder).is_err(), "a pipe was read");
    }

    proptest! {
        #[test]
        fn any_memory_manager_is_understood_or_refused(text in ".{0,60}", gpa in any::<i64>(), odd in "[a-z_]{0,10}") {
            for manager in [text.clone(), json!({ "memory_ranges": 1, "guest_ram_mappings": [{ odd: gpa }] }).to_string()] {
                let mut state = state();
                state["snapshots"]["memory-manager"]["snapshot_data"]["state"] = json!(manager);
                let _ = set_ranges(&mut state, true);
            }
        }
    }
}
