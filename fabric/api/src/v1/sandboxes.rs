//! Sandboxes on `/v1`: what is asked for, what is shown, and what is changed about one.

use std::collections::BTreeMap;

use fabric_types::Isolation;
use serde::{Deserialize, Serialize};

use crate::millis::Millis;

/// Ask for a sandbox. Everything may be left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CreateSandbox {
    /// A name, unique among the organization's sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The region; the gateway's nearest if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// vCPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<i64>,
    /// Memory, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
    /// Disk, GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_gib: Option<i64>,
    /// A template's name, or a snapshot's id or name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Stop after so many idle minutes; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_stop_minutes: Option<i64>,
    /// Delete after so many stopped minutes; 0 is at once, -1 never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_delete_minutes: Option<i64>,
    /// Pause after so many idle minutes; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_pause_minutes: Option<i64>,
    /// Archive after so many stopped minutes; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_archive_minutes: Option<i64>,
    /// Delete so many minutes after the creation; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_minutes: Option<i64>,
    /// Whether its ports may be reached without a key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub public: bool,
    /// No network at all: the same as `network.blockAll`.
    pub network_block_all: bool,
    /// What its guest may reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
}

/// What a guest may reach. Whatever it says, a guest never reaches its host, the mesh, other sandboxes, or private,
/// link-local and metadata addresses. With anything allowed only that is reached; a denial wins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Network {
    /// Nothing at all.
    pub block_all: bool,
    /// Ranges that may be reached, as `203.0.113.0/24` or one address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Ranges that may not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    /// Domains that may be reached, as `example.com` or `*.example.com`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_domains: Vec<String>,
    /// Domains that may not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny_domains: Vec<String>,
}

/// What is done to a sandbox by itself. In an answer what isn't there is never; in a request it stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Intervals {
    /// Stop after so many idle minutes; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_stop_minutes: Option<i64>,
    /// Pause after so many idle minutes; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_pause_minutes: Option<i64>,
    /// Archive after so many stopped minutes; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_archive_minutes: Option<i64>,
    /// Delete after so many stopped minutes; 0 is at once, -1 never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_delete_minutes: Option<i64>,
    /// Delete so many minutes after the creation; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_minutes: Option<i64>,
}

/// Ask for children of a running sandbox, all from one moment of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Fork {
    /// How many; as many as names if not given, and 1 without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i64>,
    /// Their names, at most as many as children; the others are named by their ids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// The children, all of them running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Forked {
    /// Milliseconds that the parent stood still.
    pub stop_ms: Millis,
    /// The children.
    pub items: Vec<Sandbox>,
}

/// What a sandbox's machine uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// The sandbox's id.
    pub id: String,
    /// How much; null while it has no machine: stopped, archived, or paused for so long that its memory is on disk.
    pub machine: Option<MachineUsage>,
}

/// Use of the host, and what the guest has moved through its devices, both since its machine began: a start or a resume
/// from disk begins anew, and a warm clone brings along what its making took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineUsage {
    /// Processor time of the host, ms.
    pub cpu_ms: u64,
    /// Host memory that no other sandbox shares, bytes.
    pub memory_private_bytes: u64,
    /// Host memory with what it shares with others, bytes.
    pub memory_resident_bytes: u64,
    /// Bytes that the guest read from its disks.
    pub disk_read_bytes: u64,
    /// Bytes that it wrote.
    pub disk_written_bytes: u64,
    /// Its reads.
    pub disk_reads: u64,
    /// Its writes.
    pub disk_writes: u64,
    /// Bytes that it received; left out where its monitor doesn't count them (QEMU).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_received_bytes: Option<u64>,
    /// Bytes that it sent, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_sent_bytes: Option<u64>,
}

/// Another shape; what isn't given stays. The disk only grows, live; the rest changes while the sandbox is stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Resize {
    /// vCPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<i64>,
    /// Memory, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
    /// Disk, GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_gib: Option<i64>,
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub region: String,
    /// On which node.
    pub node: String,
    /// As on the client wires: started, stopped, paused, starting, stopping, snapshotting, archiving, archived,
    /// destroying, destroyed, error.
    pub state: String,
    /// The placement's generation.
    pub generation: u64,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// vCPU.
    pub cpu: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Disk, GiB.
    pub disk_gib: u32,
    /// The endpoint of its region: the right one for what follows.
    pub endpoint: String,
    /// The base URL of its toolbox.
    pub toolbox_proxy_url: String,
    /// Why it is in `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    /// How its guest reaches networks: `tap`, `passt`, `none`, or `unknown` while its node isn't heard of.
    pub network: String,
    /// What its guest may reach.
    #[serde(default)]
    pub network_policy: Network,
    /// What is done to it by itself.
    #[serde(default)]
    pub intervals: Intervals,
    /// Whether its ports may be reached without a key.
    #[serde(default)]
    pub public: bool,
    /// Whose fork it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The isolation in force on its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// True where its region couldn't be asked and this is the last known copy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

/// Sandboxes, mesh-wide.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxList {
    /// The sandboxes.
    pub items: Vec<Sandbox>,
    /// Regions that did not answer in time.
    pub unreachable_regions: Vec<String>,
}
