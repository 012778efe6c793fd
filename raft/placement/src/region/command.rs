//! What the leader of a placement group may decide.

use std::fmt;

use fabric_types::{
    Desired, Generation, Intervals, Labels, NetworkPolicy, NodeId, NodeLimits, OrganizationId, Quota, SandboxId,
    SandboxSpec, Shape, UnixMillis,
};
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
    /// Children of a sandbox begin on its node, all or none, each with the parent's spec under an id and name of its
    /// own. Since version 2.
    Fork {
        /// Whom they are forked from: one that is meant to run or to be paused.
        parent: SandboxId,
        /// The placement that this was decided for.
        from: Generation,
        /// The children, at most [`super::CHILDREN_MAX`].
        children: Vec<Child>,
        /// When they were asked for.
        created_at: UnixMillis,
    },
    /// Where the sandbox is meant to be in its life. Only a stopped one is archived; an archived one reserves nothing,
    /// and what it needs again must be free when it is to start.
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
    /// A new shape, if its node has room for it. Processors and memory change only while the sandbox is meant to be
    /// stopped; that disks never shrink is for whoever decides to know, for an undo makes one small again. Since
    /// version 2.
    SetShape {
        /// The sandbox.
        id: SandboxId,
        /// The placement that this was decided for.
        generation: Generation,
        /// The shape that this was decided from.
        from: Shape,
        /// The new shape.
        shape: Shape,
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
    /// What an organization may have in this region. What it has already stays. Since version 2.
    SetQuota {
        /// Whose; of everyone who has no quota of their own if none is given.
        organization: Option<OrganizationId>,
        /// How much.
        quota: Quota,
    },
}

/// A child of a fork: what it doesn't have from its parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Child {
    /// Its id.
    pub id: SandboxId,
    /// Its name.
    pub name: String,
    /// As which placement: above every one that this id has had.
    pub generation: Generation,
}

impl Schema for Command {
    const WHAT: &'static str = "placement command";
    const VERSION: u32 = 2;
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegisterNode { node, .. } => write!(f, "register {node}"),
            Self::SetAdmitted { node, admitted: true } => write!(f, "admit {node}"),
            Self::SetAdmitted { node, admitted: false } => write!(f, "drain {node}"),
            Self::RemoveNode { node } => write!(f, "remove {node}"),
            Self::Place { spec, node, generation } => write!(f, "place {} on {node} as {generation}", spec.id),
            Self::Fork { parent, from, children, .. } => write!(f, "fork {parent} ({from}) into {}", children.len()),
            Self::SetShape { id, generation, shape, .. } => write!(f, "{id} ({generation}) should be {shape}"),
            Self::SetQuota { organization: Some(organization), .. } => write!(f, "set quota of {}", organization.0),
            Self::SetQuota { organization: None, .. } => f.write_str("set quota"),
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
