//! Why a placement group refuses a command.

use fabric_types::{Capacity, Desired, Generation, NodeId, SandboxId, Shape};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a command was refused. The state is as it was.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", rename_all_fields = "camelCase", tag = "refusal")]
pub enum Refusal {
    /// No such node.
    #[error("node {node} is not registered in this region")]
    UnknownNode {
        /// The node.
        node: NodeId,
    },
    /// No such sandbox.
    #[error("sandbox {id} does not exist in this region")]
    UnknownSandbox {
        /// The sandbox.
        id: SandboxId,
    },
    /// The node is draining.
    #[error("node {node} is draining and takes no sandbox")]
    NotAdmitted {
        /// The node.
        node: NodeId,
    },
    /// The node can't leave yet.
    #[error("node {node} still holds {sandboxes} sandboxes")]
    NodeHolds {
        /// The node.
        node: NodeId,
        /// How many.
        sandboxes: u32,
    },
    /// The decision would oversell the node.
    #[error(
        "node {node} has no room: {} vCPU, {} MiB and {} GiB are needed, {} vCPU, {} MiB and {} GiB are free",
        needed.vcpus, needed.memory_mib, needed.disk_gib, free.vcpus, free.memory_mib, free.disk_gib
    )]
    NoRoom {
        /// The node.
        node: NodeId,
        /// What the sandbox reserves.
        needed: Capacity,
        /// What the ledger has left there.
        free: Capacity,
    },
    /// The node holds as many sandboxes as it may.
    #[error("node {node} holds {limit} sandboxes, as many as it may")]
    NodeFull {
        /// The node.
        node: NodeId,
        /// How many it may hold.
        limit: u32,
    },
    /// The organization would have more than it may.
    #[error(
        "organization '{organization}' may have {limit} {unit} in this region: it has {held}, and {asked} more are \
         asked for; delete or archive sandboxes, or have the quota raised"
    )]
    QuotaReached {
        /// Whose quota.
        organization: String,
        /// Of what.
        unit: String,
        /// How much it may have.
        limit: u64,
        /// How much it has.
        held: u64,
        /// How much more was asked for.
        asked: u64,
    },
    /// The sandbox is meant to be elsewhere in its life than the decision needs.
    #[error("sandbox {id} is meant to be {}; for this it must be {needs} first", word(*desired))]
    WrongIntent {
        /// The sandbox.
        id: SandboxId,
        /// Where it is meant to be.
        desired: Desired,
        /// Where it would have to be.
        needs: String,
    },
    /// The sandbox has another shape than the decision was made from.
    #[error("sandbox {id} has the shape {current} by now, no longer {from}; look again")]
    ShapeChanged {
        /// The sandbox.
        id: SandboxId,
        /// What the command says.
        from: Shape,
        /// What it has.
        current: Shape,
    },
    /// A fork without children, with too many, or with one twice.
    #[error("{children} children are no fork: 1 to {limit}, each once")]
    Children {
        /// How many.
        children: usize,
        /// The most.
        limit: usize,
    },
    /// The node's new limits are below what is reserved on it.
    #[error(
        "node {node} can't be lowered to {} vCPU, {} MiB and {} GiB: {} vCPU, {} MiB and {} GiB are reserved on it",
        reservable.vcpus, reservable.memory_mib, reservable.disk_gib,
        reserved.vcpus, reserved.memory_mib, reserved.disk_gib
    )]
    LimitsBelowReserved {
        /// The node.
        node: NodeId,
        /// What the new limits would allow.
        reservable: Capacity,
        /// What is reserved.
        reserved: Capacity,
    },
    /// Another sandbox of the organization has the name.
    #[error("the name '{name}' is taken by sandbox {holder}")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: SandboxId,
    },
    /// The id is in use by another placement.
    #[error("sandbox {id} exists already, on {node} as generation {generation}")]
    Exists {
        /// The sandbox.
        id: SandboxId,
        /// Where it is.
        node: NodeId,
        /// Its placement.
        generation: Generation,
    },
    /// The decision was made for a placement that is over.
    #[error("generation {given} of sandbox {id} is stale: {current} is the latest")]
    Stale {
        /// The sandbox.
        id: SandboxId,
        /// What the command says.
        given: Generation,
        /// The latest that the ledger has seen.
        current: Generation,
    },
    /// The group holds as many as it may.
    #[error("this region holds {limit} {what} already, the most that it may")]
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

fn word(desired: Desired) -> &'static str {
    match desired {
        Desired::Running => "running",
        Desired::Paused => "paused",
        Desired::Stopped => "stopped",
        Desired::Archived => "archived",
    }
}
