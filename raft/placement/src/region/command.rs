//! What the leader of a placement group may decide.

use std::fmt;

use fabric_types::{Desired, Generation, Intervals, Labels, NetworkPolicy, NodeId, NodeLimits, SandboxId, SandboxSpec};
use serde::{Deserialize, Serialize};

use crate::Schema;

/// A decision of a placement group. Its written form is a contract: a change means a new [`Schema::VERSION`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", rename_all_fields = "camelCase", tag = "command", deny_unknown_fields)]
pub enum Command {
    /// A node joins, or says its limits again. Refused if they are below what is reserved on it.
    RegisterNode {
        /// The node.
        node: NodeId,
        /// What it can hold.
        limits: NodeLimits,
    },
    /// Whether a node takes new sandboxes: false drains it.
    SetAdmitted {
        /// The node.
        node: NodeId,
        /// Whether it does.
        admitted: bool,
    },
    /// A node leaves. Refused while it holds sandboxes.
    RemoveNode {
        /// The node.
        node: NodeId,
    },
    /// A sandbox begins, on a node, and reserves its shape there.
    Place {
        /// What it is meant to be.
        spec: Box<SandboxSpec>,
        /// Where.
        node: NodeId,
        /// As which placement: above every one that the sandbox has had.
        generation: Generation,
    },
    /// Where the sandbox is meant to be in its life.
    SetDesired {
        /// The sandbox.
        id: SandboxId,
        /// The placement that this was decided for.
        generation: Generation,
        /// The new intent.
        desired: Desired,
    },
    /// A sandbox goes to another node (or to the same one again) under a higher generation.
    Move {
        /// The sandbox.
        id: SandboxId,
        /// The placement that it leaves.
        from: Generation,
        /// Where to.
        node: NodeId,
        /// The placement that begins, above `from`.
        generation: Generation,
    },
    /// New labels.
    SetLabels {
        /// The sandbox.
        id: SandboxId,
        /// All of its labels.
        labels: Labels,
    },
    /// New intervals.
    SetIntervals {
        /// The sandbox.
        id: SandboxId,
        /// All of its intervals.
        intervals: Intervals,
    },
    /// A new network policy.
    SetNetwork {
        /// The sandbox.
        id: SandboxId,
        /// The policy.
        network: NetworkPolicy,
    },
    /// Whether its ports may be reached without a key.
    SetPublic {
        /// The sandbox.
        id: SandboxId,
        /// Whether they may.
        public: bool,
    },
    /// A placement failed for good: recorded, and shown until the sandbox is moved or deleted.
    Fail {
        /// The sandbox.
        id: SandboxId,
        /// The placement that failed.
        generation: Generation,
        /// Why, as one sentence.
        reason: String,
    },
    /// A sandbox ends, and its reservation with it.
    Delete {
        /// The sandbox.
        id: SandboxId,
        /// Only if its placement is this one; any if none is given.
        generation: Option<Generation>,
    },
}

impl Schema for Command {
    const WHAT: &'static str = "placement command";
    const VERSION: u32 = 1;
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegisterNode { node, .. } => write!(f, "register {node}"),
            Self::SetAdmitted { node, admitted: true } => write!(f, "admit {node}"),
            Self::SetAdmitted { node, admitted: false } => write!(f, "drain {node}"),
            Self::RemoveNode { node } => write!(f, "remove {node}"),
            Self::Place { spec, node, generation } => write!(f, "place {} on {node} as {generation}", spec.id),
            Self::SetDesired { id, generation, desired } => write!(f, "{id} ({generation}) should be {desired:?}"),
            Self::Move { id, from, node, generation } => {
                write!(f, "move {id} from {from} to {node} as {generation}")
            }
            Self::SetLabels { id, .. } => write!(f, "label {id}"),
            Self::SetIntervals { id, .. } => write!(f, "set intervals of {id}"),
            Self::SetNetwork { id, .. } => write!(f, "set network of {id}"),
            Self::SetPublic { id, public } => write!(f, "make {id} {}", if *public { "public" } else { "private" }),
            Self::Fail { id, generation, reason } => write!(f, "{id} ({generation}) failed: {reason}"),
            Self::Delete { id, .. } => write!(f, "delete {id}"),
        }
    }
}
