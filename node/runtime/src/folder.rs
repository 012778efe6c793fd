//! What lies on disk: homes and their records.
//!
//! ```text
//! <node>/sandboxes/<sandbox id>/   home of a sandbox that was booted, restored or cloned on demand
//! <node>/pool/<clone id>/          home of a warm clone, and of the sandbox that it becomes
//! <node>/snapshots/<snapshot id>/  files of a snapshot on their way into the store; never outlives its call
//! <node>/snapshots/fork-<id>/      files of a parent until the last child of a fork is made; likewise
//!
//! in a home:  sandbox.json   the sandbox's record: its presence makes the home a sandbox's
//!             clone.json     a warm clone's record, until then
//!             disk           the machine's own disk
//!             vm/            the driver's files
//!             swap/          memory of a sandbox that was paused for long; means nothing unless the record says so
//! <run>/m<8 characters>/           a machine's sockets; records refer to it, nothing is ever renamed
//! ```
//! A home without a readable record is half-made: whatever runs in it is ended, and it is removed. Everything in this
//! file blocks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fabric_types::{Digest, FailReason, Generation, SandboxId, SandboxSpec, Shape, UnixMillis};
use node_hypervisor::VmFolder;
use node_network::Port;
use serde::{Deserialize, Serialize};

use crate::durable::{self, At};
use crate::{RuntimeConfig, RuntimeError};

/// Newest schema of both records that this version reads, and the one that it writes.
pub(crate) const SCHEMA: u32 = 2;
/// Characters of a clone's id and of a machine's run folder: 36^8, short because socket paths end at 107 bytes.
const SHORT_CHARS: usize = 8;

/// A sandbox's record. Its rename into place is what makes a sandbox survive this process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SandboxRecord {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// What the sandbox is meant to be.
    pub(crate) spec: SandboxSpec,
    /// The generation that it runs under.
    pub(crate) generation: Generation,
    /// Where it was when the record was written.
    pub(crate) life: Life,
    /// Where a machine of it may live.
    pub(crate) machine: Option<VmFolder>,
    /// What that machine's network card is plugged into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<Port>,
    /// The folder name of the template that its memory and disk began from.
    pub(crate) template: String,
    /// Its machine id: it keeps it through stop and start.
    pub(crate) machine_id: String,
    /// Its disk has grown since its file system last did: that grows at the next start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) disk_grew: bool,
    /// When it was asked for here.
    pub(crate) begun_at: UnixMillis,
    /// When it last changed or was used, as of this record.
    pub(crate) last_activity: UnixMillis,
}

/// Where a recorded sandbox was in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub(crate) enum Life {
    /// Being made for the first time: nobody was told of it, so it is removed.
    Making,
    /// Running, or about to answer that it is.
    Running,
    /// Paused.
    Paused,
    /// Paused, its memory in files of its home: what machine there is has no meaning. Since schema 2.
    Swapped,
    /// Stopped, or being started or stopped: what machine there is has no meaning.
    Stopped,
    /// Stopped, its disk in the snapshot store: what disk there is has no meaning. Since schema 2.
    Archived {
        /// The disk's manifest.
        manifest: Digest,
    },
    /// Being removed.
    Deleting,
    /// Failed.
    Failed {
        /// Why.
        reason: FailReason,
    },
}

impl Life {
    /// Where the disk lies of one that is archived.
    pub(crate) fn archive(&self) -> Option<Digest> {
        match self {
            Self::Archived { manifest } => Some(*manifest),
            Self::Making
            | Self::Running
            | Self::Paused
            | Self::Swapped
            | Self::Stopped
            | Self::Deleting
            | Self::Failed { .. } => None,
        }
    }
}

/// A warm clone's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CloneRecord {
    /// [`SCHEMA`].
    pub(crate) schema: u32,
    /// Where its machine lives.
    pub(crate) machine: VmFolder,
    /// What its network card is plugged into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<Port>,
    /// Its template's folder name.
    pub(crate) template: String,
    /// Its shape; records of the first version were all of the default one.
    #[serde(default = "default_shape")]
    pub(crate) shape: Shape,
    /// Whether it was exercised and paused.
    pub(crate) ready: bool,
}

fn default_shape() -> Shape {
    Shape::DEFAULT
}

/// A folder with a machine's disk and files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Home {
    dir: PathBuf,
}

impl Home {
    /// The folder itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The machine's own disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// Where a snapshot is put together again before it is resumed.
    pub(crate) fn restore(&self) -> PathBuf {
        self.dir.join("restore")
    }

    /// Where the memory of a sandbox lies that was paused for long.
    pub(crate) fn swap(&self) -> PathBuf {
        self.dir.join("swap")
    }

    /// Where the driver keeps its files, with a run folder for the sockets.
    pub(crate) fn machine(&self, run: PathBuf) -> VmFolder {
        VmFolder { dir: self.dir.join("vm"), run }
    }

    /// Makes the home durable, so that a record in it needs to sync nothing above it.
    pub(crate) fn make(&self) -> Result<(), RuntimeError> {
        durable::make_folder(&self.dir)?;
        let parent = self.dir.parent().unwrap_or(&self.dir);
        fs::File::open(parent).and_then(|folder| folder.sync_all()).at("sync", parent)
    }

    /// Writes the sandbox's record: from here on the home is this sandbox's.
    pub(crate) fn write_sandbox(&self, record: &SandboxRecord) -> Result<(), RuntimeError> {
        durable::write(&self.dir.join("sandbox.json"), record)
    }

    /// Writes the clone's record.
    pub(crate) fn write_clone(&self, record: &CloneRecord) -> Result<(), RuntimeError> {
        durable::write(&self.dir.join("clone.json"), record)
    }

    /// Removes everything: the run folder first, the home last, so that a half-done removal is found again.
    pub(crate) fn remove(&self, machine: Option<&VmFolder>) -> Result<(), RuntimeError> {
        if let Some(machine) = machine {
            durable::remove_folder(&machine.run)?;
        }
        durable::remove_folder(&self.dir)
    }
}

/// The homes and folders of one node.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    sandboxes: PathBuf,
    pool: PathBuf,
    snapshots: PathBuf,
    run: PathBuf,
}

/// What stands in a home.
#[derive(Debug)]
pub(crate) enum Found {
    /// A sandbox.
    Sandbox(Home, Box<SandboxRecord>),
    /// A warm clone.
    Clone(Home, CloneRecord),
    /// Nothing that was finished.
    HalfMade(Home),
    /// A record that can't be read; it was set aside under this name for a person to look at.
    Damaged(PathBuf, RuntimeError),
}

impl Found {
    /// The network port that its record names.
    pub(crate) fn port(&self) -> Option<&Port> {
        match self {
            Self::Sandbox(_, record) => record.port.as_ref(),
            Self::Clone(_, record) => record.port.as_ref(),
            Self::HalfMade(_) | Self::Damaged(..) => None,
        }
    }
}

impl Folders {
    /// Makes the folders that aren't there.
    pub(crate) fn make(config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let folders = Self {
            sandboxes: config.dir.join("sandboxes"),
            pool: config.dir.join("pool"),
            snapshots: config.dir.join("snapshots"),
            run: config.run.clone(),
        };
        for folder in [&folders.sandboxes, &folders.pool, &folders.snapshots, &folders.run] {
            durable::make_folder(folder)?;
        }
        Ok(folders)
    }

    /// The home of a sandbox that doesn't come from the pool.
    pub(crate) fn sandbox(&self, id: &SandboxId) -> Home {
        Home { dir: self.sandboxes.join(id.as_str()) }
    }

    /// The home of a new clone.
    pub(crate) fn clone_home(&self, chance: [u8; SHORT_CHARS]) -> Home {
        Home { dir: self.pool.join(short("c", chance)) }
    }

    /// A new machine's run folder.
    pub(crate) fn run(&self, chance: [u8; SHORT_CHARS]) -> PathBuf {
        self.run.join(short("m", chance))
    }

    /// Where a snapshot's files lie on their way into the store.
    pub(crate) fn snapshot(&self, id: &fabric_types::SnapshotId) -> PathBuf {
        self.snapshots.join(id.as_str())
    }

    /// Where a fork's files lie until its last child is made.
    pub(crate) fn fork(&self, chance: [u8; SHORT_CHARS]) -> PathBuf {
        self.snapshots.join(short("fork-", chance))
    }

    /// Every home, with what stands in it.
    ///
    /// # Errors
    /// [`RuntimeError::Schema`] when a record is newer than this version: then nothing is touched.
    pub(crate) fn scan(&self) -> Result<Vec<Found>, RuntimeError> {
        let mut found = Vec::new();
        for parent in [&self.sandboxes, &self.pool] {
            for dir in subfolders(parent)? {
                if dir.extension().is_some_and(|extension| extension == "damaged") {
                    continue;
                }
                found.push(look(Home { dir })?);
            }
        }
        Ok(found)
    }

    /// Removes files of snapshots that were cut off, and run folders that no record names.
    pub(crate) fn clear_leftovers(&self, in_use: &[&Path]) -> Result<(), RuntimeError> {
        for dir in subfolders(&self.snapshots)? {
            durable::remove_folder(&dir)?;
        }
        for dir in subfolders(&self.run)? {
            let ours = dir.file_name().and_then(|name| name.to_str()).is_some_and(is_machine_run);
            if ours && !in_use.contains(&dir.as_path()) {
                durable::remove_folder(&dir)?;
            }
        }
        Ok(())
    }
}

fn look(home: Home) -> Result<Found, RuntimeError> {
    let sandbox = durable::read::<SandboxRecord>(&home.dir.join("sandbox.json"), SCHEMA);
    let record = match sandbox {
        Ok(Some(record)) => return Ok(Found::Sandbox(home, Box::new(record))),
        Ok(None) => durable::read::<CloneRecord>(&home.dir.join("clone.json"), SCHEMA),
        Err(error) => Err(error),
    };
    match record {
        Ok(Some(record)) => Ok(Found::Clone(home, record)),
        Ok(None) => Ok(Found::HalfMade(home)),
        Err(error @ RuntimeError::Schema { .. }) => Err(error),
        Err(error) => {
            let aside = home.dir.with_extension("damaged");
            fs::rename(&home.dir, &aside).at("set aside", &home.dir)?;
            Ok(Found::Damaged(aside, error))
        }
    }
}

fn subfolders(parent: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
        folders.sort();
        Ok(folders)
    };
    list().at("list", parent)
}

fn short(prefix: &str, chance: [u8; SHORT_CHARS]) -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let chars = chance.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
    prefix.chars().chain(chars).collect()
}

fn is_machine_run(name: &str) -> bool {
    name.len() == SHORT_CHARS + 1
        && name.starts_with('m')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn folders(root: &Path) -> Folders {
        Folders::make(&testing::config(root)).expect("made")
    }

    fn record(number: u8, life: Life) -> SandboxRecord {
        SandboxRecord {
            schema: SCHEMA,
            spec: testing::spec(number),
            generation: Generation(3),
            life,
            machine: None,
            port: None,
            template: "t".to_owned(),
            machine_id: "0".repeat(32),
            disk_grew: false,
            begun_at: UnixMillis(1),
            last_activity: UnixMillis(2),
        }
    }

    #[test]
    fn a_scan_tells_sandboxes_clones_and_half_made_homes_apart() {
        let root = tempfile::tempdir().expect("a folder");
        let folders = folders(root.path());
        let sandbox = folders.sandbox(&testing::spec(1).id);
        sandbox.make().expect("made");
        sandbox.write_sandbox(&record(1, Life::Running)).expect("written");
        let claimed = folders.clone_home([1; 8]);
        claimed.make().expect("made");
        let machine = claimed.machine(folders.run([1; 8]));
        let clone = CloneRecord {
            schema: SCHEMA,
            machine,
            port: None,
            template: "t".to_owned(),
            shape: Shape::DEFAULT,
            ready: true,
        };
        claimed.write_clone(&clone).expect("written");
        claimed.write_sandbox(&record(2, Life::Running)).expect("written");
        let warm = folders.clone_home([2; 8]);
        warm.make().expect("made");
        warm.write_clone(&clone).expect("written");
        folders.clone_home([3; 8]).make().expect("made");

        let mut kinds: Vec<_> = folders
            .scan()
            .expect("scanned")
            .into_iter()
            .map(|found| match found {
                Found::Sandbox(_, record) => format!("sandbox {}", record.spec.id),
                Found::Clone(_, record) => format!("clone {}", record.ready),
                Found::HalfMade(_) => "half-made".to_owned(),
                Found::Damaged(..) => "damaged".to_owned(),
            })
            .collect();
        kinds.sort();
        let (first, second) = (testing::spec(1).id, testing::spec(2).id);
        assert_eq!(kinds, ["clone true", "half-made", &format!("sandbox {first}"), &format!("sandbox {second}")]);
    }

    #[test]
    fn a_damaged_record_is_set_aside_once_and_a_newer_one_stops_the_node() {
        let root = tempfile::tempdir().expect("a folder");
        let folders = folders(root.path());
        let home = folders.sandbox(&testing::spec(1).id);
        home.make().expect("made");
        fs::write(home.dir().join("sandbox.json"), "{").expect("written");
        assert!(matches!(folders.scan().expect("scanned").as_slice(), [Found::Damaged(..)]));
        assert!(folders.scan().expect("scanned").is_empty());
        home.make().expect("made");
        fs::write(home.dir().join("sandbox.json"), r#"{"schema": 7}"#).expect("written");
        assert!(matches!(folders.scan(), Err(RuntimeError::Schema { found: 7, .. })));
        assert!(home.dir().exists());
    }

    #[test]
    fn leftovers_go_and_what_is_in_use_or_not_ours_stays() {
        let root = tempfile::tempdir().expect("a folder");
        let folders = folders(root.path());
        let (used, unused) = (folders.run([1; 8]), folders.run([2; 8]));
        let foreign = root.path().join("run").join("node");
        for dir in [&used, &unused, &foreign] {
            fs::create_dir_all(dir).expect("made");
        }
        folders.clear_leftovers(&[&used]).expect("cleared");
        assert!(used.exists() && foreign.exists() && !unused.exists());
    }

    #[test]
    fn records_from_before_ports_and_shapes_still_read() {
        let clone = r#"{"schema":1,"machine":{"dir":"/n/pool/c1/vm","run":"/r/m1"},"template":"t","ready":true}"#;
        let clone: CloneRecord = serde_json::from_str(clone).expect("read");
        assert_eq!((clone.port, clone.shape, clone.ready), (None, Shape::DEFAULT, true));
        let mut sandbox = serde_json::to_value(record(1, Life::Running)).expect("written");
        assert!(sandbox.get("port").is_none(), "one without a port keeps its bytes");
        sandbox["machine"] = serde_json::json!({ "dir": "/n/sandboxes/x/vm", "run": "/r/m1" });
        let sandbox: SandboxRecord = serde_json::from_value(sandbox).expect("read");
        assert!(sandbox.machine.is_some() && sandbox.port.is_none());
    }

    #[test]
    fn a_record_keeps_its_bytes() {
        let text = serde_json::to_string(&record(1, Life::Failed { reason: FailReason::Storage("x".to_owned()) }))
            .expect("written");
        let expected = concat!(
            r#"{"schema":2,"spec":{"id":"frabbbbbbbbbbbbbbbb","name":"frabbbbbbbbbbbbbbbb","organization":"org","#,
            r#""source":{"from":"template","template":"default"},"shape":{"cpu":1,"memoryMib":1024,"diskGib":3},"#,
            r#""labels":{},"env":{},"user":"root","public":false,"network":{"blockAll":false},"#,
            r#""intervals":{"autoStop":null,"autoDelete":null},"createdAt":0},"generation":3,"#,
            r#""life":{"is":"failed","reason":{"kind":"storage","detail":"x"}},"machine":null,"template":"t","#,
            r#""machineId":"00000000000000000000000000000000","begunAt":1,"lastActivity":2}"#,
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_record_of_schema_1_is_read_and_each_life_reads_back() {
        let manifest = Digest::from_bytes([7; 32]);
        let failed = Life::Failed { reason: FailReason::Storage("x".to_owned()) };
        let text = serde_json::to_string(&record(1, failed.clone())).expect("written");
        let old: SandboxRecord = serde_json::from_str(&text.replacen("\"schema\":2", "\"schema\":1", 1)).expect("read");
        assert_eq!(old, SandboxRecord { schema: 1, ..record(1, failed) });
        for (life, bytes) in [
            (Life::Swapped, r#"{"is":"swapped"}"#.to_owned()),
            (Life::Archived { manifest }, format!(r#"{{"is":"archived","manifest":"{manifest}"}}"#)),
        ] {
            assert_eq!(serde_json::to_string(&life).expect("written"), bytes);
            assert_eq!(serde_json::from_str::<Life>(&bytes).expect("read"), life);
        }
    }
}
