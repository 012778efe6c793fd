//! The trait, what a machine is made from, and errors.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use fabric_types::{Fit, Isolation, Shape};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::UnixStream;

/// Where a machine's files lie. Every path in it is the machine's own; nothing else is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFolder {
    /// The persistent folder: keeper state (`vm.json`), console log, device state. Private to the machine.
    pub dir: PathBuf,
    /// The short run folder for its sockets (`k` keeper, `q` monitor, `c` guest channel): a full path ends at 107
    /// bytes.
    pub run: PathBuf,
}

/// The image that every machine starts from, read-only and shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePaths {
    /// The kernel (bzImage).
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initramfs: PathBuf,
    /// The EROFS root file system.
    pub root: PathBuf,
}

/// What the machine's memory starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum MemorySource {
    /// Kernel and initramfs; memory private to the machine.
    Boot,
    /// Kernel and initramfs, with memory in a file that `save_template` completes.
    BootTemplate {
        /// The folder that becomes the template.
        template: PathBuf,
    },
    /// Kernel and initramfs, over a template's memory mapped privately: what a boot finds in its memory it reads as
    /// nothing, and what it wrote are the private pages that tell it from the template. So it can be snapshotted, and its
    /// snapshots restored over the same template. Any template of the shape serves, a blank one too
    /// ([`crate::make_blank_template`]).
    BootOver {
        /// The template's folder.
        template: PathBuf,
    },
    /// A clone of a saved template: its memory mapped privately, its device state loaded; it is paused until `resume`.
    Clone {
        /// The template's folder.
        template: PathBuf,
    },
    /// A snapshot: the template's memory, the private pages laid over it, the snapshot's device state; paused until
    /// `resume`.
    Restore {
        /// The template's folder.
        template: PathBuf,
        /// The snapshot as `snapshot` wrote it, or as it was put together again from chunks.
        snapshot: SnapshotFiles,
    },
}

/// A machine's specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// For logs and process titles: a sandbox, pool or template id.
    pub label: String,
    /// Its files.
    pub folder: VmFolder,
    /// vCPU and memory. (The disk's size is the file's.)
    pub shape: Shape,
    /// Kernel, initramfs and root file system.
    pub image: ImagePaths,
    /// The machine's own writable disk: raw, sparse, already made.
    pub disk: PathBuf,
    /// Where memory comes from.
    pub memory: MemorySource,
    /// Where a checkpoint lies that the machine is a copy of ([`Vm::checkpoint`]): a machine with its whole monitor, what
    /// that had translated and readied included. It costs no load, and what the copy doesn't write it shares with every
    /// other copy; it is paused until `resume`, with its channel closed. `memory` is `Clone` then, of the template that
    /// the machine's memory began from, and `network` of the kind that it had. Nothing but the same program on the same
    /// boot of the same host can take it up ([`crate::checkpoint_is_current`]); else the error is `Unsupported`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
    /// What its network card is plugged into. Every machine has the card, so that templates fit everywhere.
    #[serde(default)]
    pub network: NetworkDevice,
    /// What the host lets the monitor use.
    #[serde(default)]
    pub limits: MachineLimits,
}

/// What a machine's network card is plugged into.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum NetworkDevice {
    /// Nothing: what the card sends goes nowhere.
    #[default]
    None,
    /// A persistent tap device, opened by the keeper before it gives up its rights and handed on as a descriptor.
    Tap {
        /// The device's name.
        name: String,
        /// The network namespace that it lies in, as a path that setns(2) takes; the keeper's own if none is given.
        netns: Option<PathBuf>,
    },
    /// A `passt` process of the machine's own, started and ended by its keeper, connected by a socket pair.
    Passt {
        /// The program.
        program: PathBuf,
        /// Its arguments, but for `--fd`, which the keeper adds. `--foreground` must be among them, or the keeper can't
        /// end it before the monitor does.
        arguments: Vec<String>,
    },
}

/// What the host lets a monitor use. Cgroups where the node may make them, else rlimits; what can't be had is in
/// `Isolation::seal`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineLimits {
    /// Memory of keeper and monitor together, bytes; none for no limit.
    pub memory_bytes: Option<u64>,
    /// Share of the processors against other machines: 100 for each vCPU.
    pub cpu_weight: Option<u32>,
    /// Most processor time a second, in thousandths of a processor.
    pub cpu_millis: Option<u32>,
    /// Processes and threads of keeper and monitor together.
    pub pids: Option<u32>,
    /// Reads and writes a second on the host's disk, each, bytes.
    pub io_bytes_per_second: Option<u64>,
}

/// What one stop of a machine left on disk. `pages` is the machine's private memory: runs of changed pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFiles {
    /// Device state, opaque to all but the driver.
    pub device_state: PathBuf,
    /// A sparse file as long as guest memory; only `runs` are meaningful.
    pub pages: PathBuf,
    /// The ranges of `pages` that differ from the template, as (offset, length) in bytes, 4 KiB aligned, ascending,
    /// disjoint.
    pub runs: Vec<(u64, u64)>,
    /// The disk as it was at the same moment.
    pub disk: PathBuf,
}

/// What a monitor says of its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// The monitor's process.
    pub vmm_pid: u32,
    /// Its keeper.
    pub keeper_pid: u32,
    /// Resident memory of the monitor, KiB.
    pub rss_kib: u64,
    /// Memory private to the monitor (not shared with the template), KiB.
    pub private_kib: u64,
    /// Processor time used, ms.
    pub cpu_ms: u64,
}

/// What a guest has moved through its devices, as its monitor counts it. A copy of a checkpoint counts on from where its
/// original was: what a warm clone did before it was a sandbox's is in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceCounters {
    /// Bytes read from both disks.
    pub disk_read_bytes: u64,
    /// Bytes written to its own disk.
    pub disk_written_bytes: u64,
    /// Reads from both disks.
    pub disk_reads: u64,
    /// Writes to its own disk.
    pub disk_writes: u64,
    /// What passed its network card; none where it has none, or its monitor doesn't count that (QEMU).
    pub network: Option<NetworkCounters>,
}

/// What has passed a network card.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkCounters {
    /// Bytes that the guest received.
    pub received_bytes: u64,
    /// Bytes that it sent.
    pub sent_bytes: u64,
}

/// A point of the host's CLOCK_BOOTTIME, in milliseconds: it goes on while the host sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BoottimeMs(pub u64);

/// Whether a machine's processors run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// They run.
    Running,
    /// They are stopped, memory is kept.
    Paused,
    /// The monitor has ended.
    Ended,
}

/// A driver. `create` and `adopt` are its only ways to a machine.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// What must be equal where a template or snapshot of this driver is resumed.
    fn fit(&self) -> &Fit;
    /// The isolation in force.
    fn isolation(&self) -> &Isolation;
    /// Whether its machines can be copied with their monitors ([`Vm::checkpoint`]), as far as is known before one is tried.
    fn makes_checkpoints(&self) -> bool {
        false
    }
    /// Starts a keeper and its monitor and prepares the machine, paused: `Boot*` at its first instruction, `Clone` and
    /// `Restore` where they were saved. On an error nothing is left behind.
    async fn create(&self, spec: VmSpec) -> Result<Box<dyn Vm>, VmError>;
    /// Takes over a machine that an earlier process of this node created, by the `vm.json` in its folder.
    async fn adopt(&self, folder: &VmFolder) -> Result<Box<dyn Vm>, VmError>;
    /// Starts the monitor of a clone ahead of its use: all is done but the loading of its memory. Only for `Clone`.
    async fn spare(&self, spec: VmSpec) -> Result<Box<dyn Spare>, VmError> {
        Err(VmError::Unsupported { verb: "spare", why: format!("this driver starts nothing ahead ({})", spec.label) })
    }
}

/// A monitor that waits for its memory. Dropping it ends the monitor and removes its files.
#[async_trait]
pub trait Spare: Send + Sync + 'static {
    /// The specification it was started for.
    fn spec(&self) -> &VmSpec;
    /// Loads the template: from now on it is a machine, paused where the template was saved. On an error nothing is
    /// left behind.
    async fn load(self: Box<Self>) -> Result<Box<dyn Vm>, VmError>;
    /// Makes it a machine restored from a snapshot over the same template instead, paused where that was taken. Its disk
    /// becomes a copy of the snapshot's: the file that the specification names is filled anew. On an error nothing but
    /// that file is left behind.
    async fn restore(self: Box<Self>, snapshot: SnapshotFiles) -> Result<Box<dyn Vm>, VmError> {
        self.discard().await;
        let why = format!("this driver's spares take no snapshot ({})", snapshot.pages.display());
        Err(VmError::Unsupported { verb: "restore a spare", why })
    }
    /// Ends it and removes its files.
    async fn discard(self: Box<Self>);
}

/// One machine. Dropping the value leaves the machine running, for adoption; `shutdown` ends it.
#[async_trait]
pub trait Vm: Send + Sync + 'static {
    /// The specification it was created from.
    fn spec(&self) -> &VmSpec;
    /// Lets the processors run: a boot's first instruction, or on from where a clone, restore or pause stopped.
    async fn resume(&self) -> Result<(), VmError>;
    /// Stops the processors; memory is kept. Idempotent.
    async fn pause(&self) -> Result<(), VmError>;
    /// Whether it runs.
    async fn state(&self) -> Result<VmState, VmError>;
    /// Only for `BootTemplate`: pauses, saves device state and seals the template's folder. The machine ends.
    async fn save_template(&self) -> Result<(), VmError>;
    /// Stops, writes device state, private pages and disk under `into`, and goes on if it ran before. Only for machines
    /// made by `Clone`, `Restore` or `BootOver`: what differs from a template is what is written.
    async fn snapshot(&self, into: &Path) -> Result<SnapshotTaken, VmError>;
    /// Stops, writes the whole monitor and the disk under `into`, and goes on if it ran before. Only for machines made by
    /// `Clone` or `Restore`. Its monitor's connections are not part of it: a copy's channel is closed. An
    /// error of kind `Unsupported` where the driver or the host can't; then [`Vm::snapshot`] is the way.
    async fn checkpoint(&self, into: &Path, copies: Copies) -> Result<CheckpointTaken, VmError> {
        let _ = copies;
        let why = format!("this driver's monitors can't be copied (into {})", into.display());
        Err(VmError::Unsupported { verb: "checkpoint", why })
    }
    /// Tells a running or paused machine that its own disk's file has grown to `bytes`.
    async fn resize_disk(&self, bytes: u64) -> Result<(), VmError> {
        Err(VmError::Unsupported {
            verb: "resize_disk",
            why: format!("this driver can't grow a disk to {bytes} bytes"),
        })
    }
    /// Opens the byte channel to the agent. A newer connection replaces an older one.
    async fn channel(&self) -> Result<UnixStream, VmError>;
    /// What the monitor uses.
    async fn counters(&self) -> Result<Counters, VmError>;
    /// What the guest has moved through its devices.
    async fn device_counters(&self) -> Result<DeviceCounters, VmError>;
    /// Has the keeper kill the monitor when CLOCK_BOOTTIME reaches the deadline, whether this node lives or not; none
    /// takes it back. A machine starts without one.
    async fn set_deadline(&self, deadline: Option<BoottimeMs>) -> Result<(), VmError> {
        let why = format!("this driver keeps no deadline such as {deadline:?}");
        Err(VmError::Unsupported { verb: "set_deadline", why })
    }
    /// Resolves when the monitor has ended by itself or was ended, with the keeper's sentence on how. Cancel safe.
    async fn ended(&self) -> String;
    /// Ends the monitor and its keeper and removes sockets and `vm.json`. Idempotent; bounded (2 s, then SIGKILL).
    async fn shutdown(&self) -> Result<(), VmError>;
}

/// A finished `Vm::snapshot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    /// What was written.
    pub files: SnapshotFiles,
    /// Microseconds that the processors stood still.
    pub stop_us: u64,
}

/// How many machines a checkpoint is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// Some, soon: each is given the guest's private pages, as a snapshot's restore is.
    Few,
    /// Many: they share the guest's private pages as well. It costs a second, after the machine goes on, and a file as large as
    /// the template's memory.
    Many,
}

/// A finished `Vm::checkpoint`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointTaken {
    /// Microseconds that the processors stood still.
    pub stop_us: u64,
    /// Bytes of the monitor's own memory that its copies share.
    pub shared_bytes: u64,
}

/// Why a verb failed.
#[derive(Debug, Error)]
pub enum VmError {
    /// A program that is needed isn't there or doesn't run.
    #[error("can't run {program}: {source}; {advice}")]
    Program {
        /// The program.
        program: String,
        /// How it failed.
        source: std::io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// A file of the machine.
    #[error("can't {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
    /// The monitor answered with an error.
    #[error("{monitor} refused '{command}': {message}")]
    Refused {
        /// Which monitor.
        monitor: &'static str,
        /// The command.
        command: String,
        /// Its words.
        message: String,
    },
    /// The monitor or keeper ended.
    #[error("the machine '{label}' has ended: {how}")]
    Ended {
        /// Which machine.
        label: String,
        /// How.
        how: String,
    },
    /// No answer in time.
    #[error("no answer to '{command}' in {waited_ms} ms")]
    Timeout {
        /// The command.
        command: String,
        /// The limit that passed.
        waited_ms: u64,
    },
    /// The verb doesn't belong to this machine or driver.
    #[error("{verb} is not possible here: {why}")]
    Unsupported {
        /// The verb.
        verb: &'static str,
        /// Why.
        why: String,
    },
    /// A file on disk has a schema that this version doesn't know.
    #[error("{path} has schema version {found}; this version reads up to {known}")]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest known.
        known: u32,
    },
}
