//! What the leader of the catalog group may decide.

use std::fmt;

use fabric_types::{KeyId, Name, NodeId, RegionCode, SnapshotId};
use serde::{Deserialize, Serialize};

use super::{ApiKey, Node, Region, ReplicaState, Snapshot, Template};
use crate::Schema;

/// A decision of the catalog. Its written form is a contract: a change means a new [`Schema::VERSION`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", rename_all_fields = "camelCase", tag = "command", deny_unknown_fields)]
pub enum Command {
    /// A region is there, or has changed.
    UpsertRegion {
        /// Its code.
        code: RegionCode,
        /// All of it.
        region: Region,
    },
    /// A region goes. Refused while it has nodes.
    RemoveRegion {
        /// Its code.
        code: RegionCode,
    },
    /// A node is there, or has other addresses. Its region must be known.
    UpsertNode {
        /// The node.
        node: NodeId,
        /// Its addresses.
        entry: Node,
    },
    /// A node goes, and every copy that it held with it.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// A new API key.
    PutKey {
        /// Its id.
        id: KeyId,
        /// What is kept of it: not the key.
        key: ApiKey,
    },
    /// An API key ends.
    RemoveKey {
        /// Its id.
        id: KeyId,
    },
    /// A template is there, or is another from now on.
    UpsertTemplate {
        /// Its name.
        name: Name,
        /// All of it.
        template: Template,
    },
    /// A template goes.
    RemoveTemplate {
        /// Its name.
        name: Name,
    },
    /// A new snapshot, with the copies that there are.
    PutSnapshot {
        /// All of it.
        snapshot: Box<Snapshot>,
    },
    /// A snapshot goes.
    DeleteSnapshot {
        /// Its id.
        id: SnapshotId,
    },
    /// A node pulls a copy, or has all of it. A complete copy stays complete until it is removed.
    AddReplica {
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// Where.
        node: NodeId,
        /// How far.
        state: ReplicaState,
    },
    /// A node has no copy any more.
    RemoveReplica {
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// Where.
        node: NodeId,
    },
}

impl Schema for Command {
    const WHAT: &'static str = "catalog command";
    const VERSION: u32 = 2;
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UpsertRegion { code, .. } => write!(f, "set region {code}"),
            Self::RemoveRegion { code } => write!(f, "remove region {code}"),
            Self::UpsertNode { node, .. } => write!(f, "set node {node}"),
            Self::RemoveNode { node } => write!(f, "remove node {node}"),
            Self::PutKey { id, .. } => write!(f, "add {id}"),
            Self::RemoveKey { id } => write!(f, "remove {id}"),
            Self::UpsertTemplate { name, .. } => write!(f, "set template {name}"),
            Self::RemoveTemplate { name } => write!(f, "remove template {name}"),
            Self::PutSnapshot { snapshot } => write!(f, "add {}", snapshot.id),
            Self::DeleteSnapshot { id } => write!(f, "delete {id}"),
            Self::AddReplica { snapshot, node, state } => write!(f, "{snapshot} is {} on {node}", state.as_str()),
            Self::RemoveReplica { snapshot, node } => write!(f, "{snapshot} is gone from {node}"),
        }
    }
}
