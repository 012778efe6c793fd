//! Why the catalog refuses a command.

use fabric_types::{KeyId, NodeId, RegionCode, SnapshotId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a command was refused. The state is as it was.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", rename_all_fields = "camelCase", tag = "refusal")]
pub enum Refusal {
    /// No such region.
    #[error("region {code} is not in the catalog")]
    UnknownRegion {
        /// Its code.
        code: RegionCode,
    },
    /// The region can't go yet.
    #[error("region {code} still has node {node}")]
    RegionHolds {
        /// Its code.
        code: RegionCode,
        /// One of its nodes.
        node: NodeId,
    },
    /// No such node.
    #[error("node {node} is not in the catalog")]
    UnknownNode {
        /// The node.
        node: NodeId,
    },
    /// No such snapshot.
    #[error("snapshot {id} is not in the catalog")]
    UnknownSnapshot {
        /// The snapshot.
        id: SnapshotId,
    },
    /// The id is another key's.
    #[error("{id} is in use by another key")]
    KeyExists {
        /// The id.
        id: KeyId,
    },
    /// The same key is there under another id.
    #[error("this key is known already, as {holder}")]
    SameKey {
        /// The other id.
        holder: KeyId,
    },
    /// The id is another snapshot's.
    #[error("{id} is in use by another snapshot")]
    SnapshotExists {
        /// The id.
        id: SnapshotId,
    },
    /// Another snapshot of the organization has the name.
    #[error("the name '{name}' is taken by {holder}")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: SnapshotId,
    },
    /// The catalog holds as many as it may.
    #[error("the catalog holds {limit} {what} already, the most that it may")]
    Full {
        /// Of what.
        what: String,
        /// How many.
        limit: usize,
    },
    /// A text is too long.
    #[error("the {what} has {bytes} bytes of text; {limit} are the most")]
    TooLarge {
        /// Which.
        what: String,
        /// How long.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
}
