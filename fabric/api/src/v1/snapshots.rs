//! Snapshots on `/v1`, and sandboxes made from them.

use serde::{Deserialize, Serialize};

use crate::millis::Millis;

/// Ask for a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CreateSnapshot {
    /// A name, unique among the organization's snapshots; its id if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Of which sandbox.
    pub sandbox: String,
    /// Where it was taken.
    pub region: String,
    /// The manifest's name: a BLAKE3 hash.
    pub digest: String,
    /// Bytes of memory and disk that it stands for.
    pub size_bytes: u64,
    /// Bytes that its chunks take.
    pub stored_bytes: u64,
    /// Milliseconds that the sandbox stood still.
    pub stop_ms: Millis,
    /// Whether complete replicas stand in two regions.
    pub durable: bool,
    /// Who has it.
    pub replicas: Vec<Replica>,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// One replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    /// Its region.
    pub region: String,
    /// Its node.
    pub node: String,
    /// `complete` or `pulling`.
    pub state: String,
}

/// Snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotList {
    /// The snapshots.
    pub items: Vec<Snapshot>,
}

/// Ask for a sandbox from a snapshot. Its guest may reach what that of the snapshot might.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RestoreSnapshot {
    /// The region; the gateway's own if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The new sandbox's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A sandbox made from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// The new sandbox.
    pub id: String,
    /// The same.
    pub sandbox: String,
    /// From which snapshot.
    pub snapshot: String,
    /// Where it lives.
    pub region: String,
    /// As in [`Sandbox`](super::Sandbox).
    pub state: String,
    /// Its generation.
    pub generation: u64,
}
