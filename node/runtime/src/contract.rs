//! What the runtime is given and what it shows: the types at its door.

use std::path::PathBuf;
use std::time::Duration;

use fabric_types::{
    Desired, Digest, Fit, Generation, Name, NodeId, Phase, SandboxId, SandboxSpec, Shape, SnapshotId, UnixMillis,
};
pub use guest_proto::surface::GuestLimits;
use node_hypervisor::{Counters, DeviceCounters, ImagePaths, MachineLimits, VmError};
use node_network::NetworkFault;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where the runtime keeps things and how much it keeps warm.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// This node.
    pub node: NodeId,
    /// The node's own folder; the runtime writes under `sandboxes/`, `pool/` and `snapshots/` only.
    pub dir: PathBuf,
    /// The short run folder for sockets, already made.
    pub run: PathBuf,
    /// Templates, shared by all nodes of the host (guarded by a file lock).
    pub templates: PathBuf,
    /// The guest image.
    pub image: ImagePaths,
    /// The image's digest: part of a template's identity.
    pub image_digest: String,
    /// The contract number of the image's agent.
    pub agent_protocol: u32,
    /// The name of the default template.
    pub template: Name,
    /// Warm clones of the default shape.
    pub pool: PoolLimits,
    /// What the host lets each machine use.
    pub limits: MachineDefaults,
    /// What a guest's commands may use together.
    pub guest_limits: GuestLimits,
    /// Bytes of the disk under `dir` that stay free: below it new work is refused. See
    /// [`min_free_disk_bytes`](crate::min_free_disk_bytes).
    pub min_free_disk_bytes: u64,
    /// Bytes of the host's memory that stay available: a machine that would take of them is refused. See
    /// [`min_free_memory_bytes`](crate::min_free_memory_bytes).
    pub min_free_memory_bytes: u64,
    /// How long a sandbox may stay paused before its memory goes to disk and its machine ends; it stays `Paused`, and its
    /// next resume brings it back. `None` is never; see [`SWAP_AFTER_DEFAULT`].
    pub swap_after: Option<Duration>,
}

/// A sandbox that nobody resumed for ten minutes is waited for by nobody: its memory is worth more than the third of a
/// second that a restore takes.
pub const SWAP_AFTER_DEFAULT: Duration = Duration::from_secs(600);

/// Most children of one fork: each takes a home, a port and a machine in the same moment.
pub const FORK_CHILDREN_MAX: usize = 16;

/// How many warm clones a pool keeps: as many as demand asks for, between these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    /// Kept even when nobody creates anything.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// Memory that warm clones may have to themselves together, MiB.
    pub memory_mib: u64,
    /// Monitors started ahead, without a guest yet, for creates that meet an empty pool.
    pub spares: u32,
}

impl PoolLimits {
    /// Always `count` of them, and no spares.
    pub const fn fixed(count: u32) -> Self {
        Self { min: count, max: count, memory_mib: u64::MAX >> 20, spares: 0 }
    }
}

/// What the host lets each machine use, by its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineDefaults {
    /// Memory of keeper and monitor beside the guest's own, MiB.
    pub overhead_mib: u64,
    /// Share of the processors for each vCPU; 100 is one among equals.
    pub cpu_weight_per_vcpu: u32,
    /// Processes and threads of keeper and monitor together.
    pub pids: u32,
    /// Reads and writes a second on the host's disk, each, bytes; none for no limit.
    pub io_bytes_per_second: Option<u64>,
}

impl Default for MachineDefaults {
    /// 256 MiB hold QEMU's own 22 MiB, its translation cache (tens of MiB under TCG) and the page tables of its guest;
    /// QEMU runs some ten threads, and each guest request in flight may take another of 64.
    fn default() -> Self {
        Self { overhead_mib: 256, cpu_weight_per_vcpu: 100, pids: 128, io_bytes_per_second: None }
    }
}

impl MachineDefaults {
    /// The limits of a machine of this shape.
    pub fn of(&self, shape: Shape) -> MachineLimits {
        let memory_mib = u64::from(shape.memory().0).saturating_add(self.overhead_mib);
        MachineLimits {
            memory_bytes: Some(memory_mib.saturating_mul(1 << 20)),
            cpu_weight: Some(self.cpu_weight_per_vcpu.saturating_mul(shape.vcpus().0)),
            cpu_millis: None,
            pids: Some(self.pids),
            io_bytes_per_second: self.io_bytes_per_second,
        }
    }
}

/// Bring a sandbox to life.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRequest {
    /// The spec.
    pub spec: SandboxSpec,
    /// The placement's generation.
    pub generation: Generation,
}

/// Change where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Start a stopped one: boots from its disk.
    Start,
    /// Stop; the disk stays.
    Stop {
        /// Without asking the guest.
        force: bool,
    },
    /// Stop its processors, keep memory.
    Pause,
    /// Let them run again.
    Resume,
    /// Move a stopped one's disk into the snapshot store.
    Archive,
    /// Remove everything. Of an unknown sandbox it is a success: nothing is left.
    Delete,
}

/// What consensus wants of this node: everything it wants, at once. A sandbox that isn't in it is removed, unless a
/// `run` for it began less than [`UNCOMMITTED_GRACE_MS`] ago.
#[derive(Debug, Clone, PartialEq)]
pub struct Intent {
    /// The spec, with its labels and intervals as they are now.
    pub spec: SandboxSpec,
    /// The placement's generation.
    pub generation: Generation,
    /// Where it is meant to be.
    pub desired: Desired,
}

/// How long a running sandbox may wait for its placement's commit: a create runs beside it.
pub const UNCOMMITTED_GRACE_MS: u64 = 60_000;

/// What the runtime sees of a sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// Which.
    pub id: SandboxId,
    /// The generation that it runs under.
    pub generation: Generation,
    /// Where it is in its life.
    pub phase: Phase,
    /// When a request last touched it, or it last changed.
    pub last_activity: UnixMillis,
}

/// What a sandbox's machine uses and what its guest has moved. Counts begin with its monitor: a start, or a resume from a
/// snapshot, begins anew, and a warm clone brings those of its making along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Of the host's processor and memory.
    pub machine: Counters,
    /// Through its devices.
    pub devices: DeviceCounters,
}

/// A warm pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// The template.
    pub template: Name,
    /// The shape.
    pub shape: Shape,
    /// Clones that are exercised and paused.
    pub warm: u32,
    /// Clones wanted.
    pub target: u32,
    /// What is being done now, for people: `booting template`, `filling`, `full`, or the last error.
    pub doing: String,
}

/// Something that a sandbox's intervals ask for. Whoever keeps its placement must commit it; the runtime only says so,
/// and goes on saying so until the sandbox's phase or activity changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoAction {
    /// Which.
    pub id: SandboxId,
    /// The generation that it runs under.
    pub generation: Generation,
    /// What is due.
    pub verb: AutoVerb,
}

/// What intervals can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoVerb {
    /// Stop: no request for as long as the sandbox's `auto_stop`.
    Stop,
    /// Pause: no request for as long as its `auto_pause`.
    Pause,
    /// Archive: stopped for as long as its `auto_archive`.
    Archive,
    /// Delete: stopped or archived for as long as its `auto_delete`, or older than its `ttl`.
    Delete,
}

/// What became of a fork.
#[derive(Debug)]
pub struct ForkOutcome {
    /// Microseconds that the parent stood still; 0 for one whose memory was on disk already.
    pub stop_us: u64,
    /// Each child, in the order asked for. Of one that failed nothing is left.
    pub children: Vec<Result<Observed, RuntimeError>>,
}

/// A snapshot in the local store.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotOutcome {
    /// Its id.
    pub id: SnapshotId,
    /// The manifest's name.
    pub manifest: Digest,
    /// Bytes of memory and disk that it stands for.
    pub size_bytes: u64,
    /// Bytes of the chunks that were new in the store.
    pub stored_bytes: u64,
    /// Microseconds that the sandbox stood still.
    pub stop_us: u64,
    /// What a node must have to resume it.
    pub fit: Fit,
}

/// Why the runtime refused or failed.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// Not on this node.
    #[error("sandbox {0} is not on this node")]
    Unknown(SandboxId),
    /// A lower generation than the runtime has.
    #[error("sandbox {id} is at generation {have}; a call for {asked} is stale")]
    Stale {
        /// Which.
        id: SandboxId,
        /// The runtime's.
        have: Generation,
        /// The caller's.
        asked: Generation,
    },
    /// The phase doesn't allow it.
    #[error("sandbox {id} is {phase}: it can't {verb}", phase = phase.as_str())]
    Phase {
        /// Which.
        id: SandboxId,
        /// Its phase.
        phase: Phase,
        /// What was asked.
        verb: &'static str,
    },
    /// What was asked for can't be had this way; the sentence says what to do.
    #[error("sandbox {id} can't {verb}: {why}")]
    Refused {
        /// Which.
        id: SandboxId,
        /// What was asked.
        verb: &'static str,
        /// Why, and what to do.
        why: String,
    },
    /// Its queue is full.
    #[error("sandbox {0} has too many requests waiting; try again later")]
    Busy(SandboxId),
    /// The template isn't known.
    #[error("this node has no template '{0}'")]
    NoTemplate(Name),
    /// The snapshot can't be resumed here.
    #[error("snapshot {manifest} needs {needs}; this node has {has}")]
    Unfit {
        /// Which.
        manifest: Digest,
        /// What it needs.
        needs: String,
        /// What is here.
        has: String,
    },
    /// The snapshot store.
    #[error("snapshot {what}: {cause}")]
    Snapshot {
        /// What was tried.
        what: String,
        /// How it failed.
        cause: String,
    },
    /// The machine.
    #[error("sandbox machine: {0}")]
    Machine(#[from] VmError),
    /// The guest didn't answer as it should.
    #[error("the guest of {id} failed to {action}: {cause}")]
    Guest {
        /// Which.
        id: String,
        /// What was tried.
        action: &'static str,
        /// How it failed.
        cause: String,
    },
    /// A file.
    #[error("can't {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
    /// As many sandboxes as a node may hold.
    #[error("this node holds {limit} sandboxes, as many as it may")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// The host's disk is too full for new work.
    #[error(
        "this node's disk has {free} bytes free of the {needed} that it keeps free: no new work until there is room"
    )]
    HostDisk {
        /// Bytes that are free.
        free: u64,
        /// Bytes that must be.
        needed: u64,
    },
    /// The host's memory is too full for one more machine.
    #[error("this node has {available} bytes of memory available; with one more machine it would need {needed}")]
    HostMemory {
        /// Bytes that are available.
        available: u64,
        /// Bytes that must be.
        needed: u64,
    },
    /// The guests' network.
    #[error(transparent)]
    Network(#[from] NetworkFault),
    /// A record on disk has a schema that this version doesn't know.
    #[error("{path} has schema version {found}; this version reads up to {known}")]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// The runtime is draining or has stopped.
    #[error("this node is stopping and takes no new work")]
    Stopping,
}
