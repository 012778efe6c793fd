//! What a sandbox is meant to be: the part of it that consensus keeps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Generation, Labels, Minutes, Name, NetworkPolicy, SandboxId, Shape, UnixMillis};

/// The organization that a sandbox or key belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OrganizationId(pub String);

/// What a sandbox starts from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum Source {
    /// A warm clone of a template.
    Template {
        /// The template's name.
        template: Name,
    },
    /// A snapshot: memory, processes and disk as they were.
    Snapshot {
        /// The manifest's digest.
        manifest: Digest,
    },
    /// A running sandbox of the same node, forked: memory, processes and disk as they were at that moment.
    Fork {
        /// Which.
        parent: SandboxId,
        /// The placement that the parent ran under.
        generation: Generation,
    },
}

/// What is done to an idle or stopped sandbox by itself. `None` is never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intervals {
    /// Stop after this long without a request.
    pub auto_stop: Option<Minutes>,
    /// Pause after this long without a request: memory is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_pause: Option<Minutes>,
    /// Archive after this long stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_archive: Option<Minutes>,
    /// Delete after this long stopped; 0 is at once.
    pub auto_delete: Option<Minutes>,
    /// Delete this long after it was created, whatever it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Minutes>,
}

/// What a sandbox is meant to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSpec {
    /// Its id, which names its home region.
    pub id: SandboxId,
    /// Its name, unique among the live sandboxes of its organization; its id where the client gave none.
    pub name: String,
    /// Who owns it.
    pub organization: OrganizationId,
    /// What it starts from.
    pub source: Source,
    /// vCPU, memory, disk.
    pub shape: Shape,
    /// The client's labels.
    pub labels: Labels,
    /// Environment of every command in it.
    pub env: BTreeMap<String, String>,
    /// The user that the client named for its commands, shown back to it.
    pub user: String,
    /// Whether its ports may be reached without a key.
    pub public: bool,
    /// What the guest may reach.
    pub network: NetworkPolicy,
    /// What is done to it by itself.
    pub intervals: Intervals,
    /// When it was asked for.
    pub created_at: UnixMillis,
}

/// Where a sandbox is meant to be in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// Running.
    Running,
    /// Paused, memory kept.
    Paused,
    /// Stopped, disk kept.
    Stopped,
    /// Stopped, its disk in the snapshot store alone.
    Archived,
}
