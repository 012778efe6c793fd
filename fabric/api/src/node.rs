//! What nodes ask of each other. One request and one reply a stream, as JSON in a frame with the wire's version.
//!
//! A request about a sandbox goes to any node of its home region: that node answers from its own copy of the region's
//! placement state, or passes it on (one hop, marked by `NodeCall::hops`) to the group's leader or the sandbox's node.

use fabric_types::{
    Desired, Digest, Fit, Generation, Intervals, KeyId, Labels, Name, NetworkPolicy, NodeId, OrganizationId, Phase,
    RegionCode, SandboxId, SandboxSpec, Shape, SnapshotId, UnixMillis,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::ApiError;
use crate::v1::Usage;

/// A request with what every call carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCall {
    /// The request id of the client's request, for logs on every hop.
    pub request_id: String,
    /// How often it was passed on; more than [`HOPS_MAX`] is refused, so that no loop lives.
    pub hops: u8,
    /// The milliseconds that the caller will still wait.
    pub deadline_ms: u64,
    /// What is asked.
    pub request: NodeRequest,
}

/// A call is passed on at most this often: to the leader, and from there to the owner.
pub const HOPS_MAX: u8 = 3;

/// The answer to a [`NodeCall`].
pub type NodeAnswer = Result<NodeReply, ApiError>;

/// The ask for a new sandbox, checked at the edge; its id isn't known yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    /// The name, where the client gave one.
    pub name: Option<Name>,
    /// The owner.
    pub organization: OrganizationId,
    /// What it starts from.
    pub origin: Origin,
    /// vCPU, memory, disk; of the snapshot or template where the client gave none.
    pub shape: Option<Shape>,
    /// Labels.
    pub labels: Labels,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// The client's user, shown back to it.
    pub user: Option<String>,
    /// Whether ports are public.
    pub public: bool,
    /// Network policy; that of the snapshot, else everything public, where the client said nothing.
    pub network: Option<NetworkPolicy>,
    /// Intervals.
    pub intervals: Intervals,
}

/// What a new sandbox starts from, as the client named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "key")]
pub enum Origin {
    /// The mesh's default template.
    Default,
    /// A template's name, or a snapshot's id or name.
    Named(String),
    /// A snapshot for certain: its id or name.
    Snapshot(String),
}

/// Which sandbox, by id or by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxKey {
    /// The id or the name.
    pub key: String,
    /// Whose; another organization's is not found.
    pub organization: OrganizationId,
}

/// Most children of one fork: they all start at once, on one node.
pub const FORK_CHILDREN_MAX: usize = 16;

/// What is asked of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum NodeRequest {
    /// Create a sandbox in the asked node's region -> [`NodeReply::Sandbox`], running.
    Create {
        /// What is wanted.
        new: Box<NewSandbox>,
    },
    /// One sandbox of the region -> [`NodeReply::Sandbox`].
    Get {
        /// Which.
        key: SandboxKey,
    },
    /// All sandboxes of the region -> [`NodeReply::Sandboxes`].
    List {
        /// Whose.
        organization: OrganizationId,
    },
    /// Change where a sandbox is in its life, and wait until it is there -> [`NodeReply::Sandbox`].
    SetDesired {
        /// Which.
        key: SandboxKey,
        /// What is wanted.
        desired: Desired,
        /// Stop without asking the guest.
        force: bool,
    },
    /// Delete, and wait until nothing is left -> [`NodeReply::Sandbox`] as it last was.
    Delete {
        /// Which.
        key: SandboxKey,
    },
    /// Replace the labels -> [`NodeReply::Sandbox`].
    SetLabels {
        /// Which.
        key: SandboxKey,
        /// The new labels.
        labels: Labels,
    },
    /// Replace the intervals that are given -> [`NodeReply::Sandbox`].
    SetIntervals {
        /// Which.
        key: SandboxKey,
        /// The new intervals.
        intervals: Intervals,
    },
    /// Replace the network policy, at once and in mid-flow -> [`NodeReply::Sandbox`].
    SetNetwork {
        /// Which.
        key: SandboxKey,
        /// The new policy.
        network: NetworkPolicy,
    },
    /// Whether its ports may be reached without a key -> [`NodeReply::Sandbox`].
    SetPublic {
        /// Which.
        key: SandboxKey,
        /// Whether they may.
        public: bool,
    },
    /// Give it another shape: the disk only grows, live; processors and memory change only while it is stopped ->
    /// [`NodeReply::Sandbox`].
    Resize {
        /// Which.
        key: SandboxKey,
        /// The new shape.
        shape: Shape,
    },
    /// Fork a running sandbox into children of their own identity, in one stop, all or none -> [`NodeReply::Fork`].
    Fork {
        /// Which.
        key: SandboxKey,
        /// The children's names, where the client gave any: as many entries as children, at most [`FORK_CHILDREN_MAX`].
        names: Vec<Option<Name>>,
    },
    /// Snapshot a running sandbox -> [`NodeReply::Snapshot`].
    Snapshot {
        /// Which.
        key: SandboxKey,
        /// The snapshot's name, where the client gave one.
        name: Option<Name>,
    },
    /// The mesh's snapshots, from the asked node's copy of the catalog -> [`NodeReply::Snapshots`].
    ListSnapshots {
        /// Whose.
        organization: OrganizationId,
    },
    /// Delete a snapshot by id or name -> [`NodeReply::Snapshot`] as it was.
    DeleteSnapshot {
        /// Which.
        key: String,
        /// Whose.
        organization: OrganizationId,
    },
    /// The mesh's templates -> [`NodeReply::Templates`].
    ListTemplates,
    /// Make an API key -> [`NodeReply::NewKey`]. A catalog write.
    CreateKey {
        /// Its name.
        name: Name,
        /// Whose.
        organization: OrganizationId,
    },
    /// The keys of an organization, without the keys themselves -> [`NodeReply::Keys`].
    ListKeys {
        /// Whose.
        organization: OrganizationId,
    },
    /// Revoke a key by id or name -> [`NodeReply::Done`]. A catalog write.
    RemoveKey {
        /// Id or name.
        key: String,
        /// Whose.
        organization: OrganizationId,
    },
    /// What the node knows of its groups -> [`NodeReply::Status`].
    Status,

    /// To an owner: what it sees of these sandboxes -> [`NodeReply::ObservedMany`]; those that it hasn't are left out.
    Observe {
        /// Which.
        ids: Vec<SandboxId>,
    },
    /// What a sandbox's machine uses -> [`NodeReply::Usage`].
    Usage {
        /// Which.
        key: SandboxKey,
    },
    /// To an owner: the same of a sandbox that lives there -> [`NodeReply::Usage`].
    Measure {
        /// Which.
        id: SandboxId,
        /// The placement's generation.
        generation: Generation,
    },
    /// From a leader to the owner: bring this sandbox to life -> [`NodeReply::Observed`].
    Run {
        /// The spec.
        spec: Box<SandboxSpec>,
        /// The placement's generation.
        generation: Generation,
        /// Who must have the snapshot's chunks, where it starts from one.
        holders: Vec<NodeId>,
    },
    /// From a leader to the owner: act on a committed change -> [`NodeReply::Observed`].
    Act {
        /// Which.
        id: SandboxId,
        /// The placement's generation.
        generation: Generation,
        /// What.
        action: Action,
    },
}

/// What a leader tells the owner to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Action {
    /// Start a stopped one.
    Start,
    /// Stop, the disk stays.
    Stop {
        /// Without asking the guest.
        force: bool,
    },
    /// Stop its processors.
    Pause,
    /// Let them run.
    Resume,
    /// Move a stopped one's disk into the snapshot store.
    Archive,
    /// Take the spec as it was committed: labels, intervals, network, shape.
    Update {
        /// All of it.
        spec: Box<SandboxSpec>,
    },
    /// Fork it into these, in one stop.
    Fork {
        /// Each child's spec and generation.
        children: Vec<(SandboxSpec, Generation)>,
    },
    /// Remove everything of it.
    Delete,
    /// Take a snapshot into the local store.
    Snapshot {
        /// Its id.
        id: SnapshotId,
        /// Its name.
        name: Name,
    },
}

/// A node's reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply", content = "body")]
pub enum NodeReply {
    /// One sandbox.
    Sandbox(Box<SandboxView>),
    /// Several.
    Sandboxes(Vec<SandboxView>),
    /// One snapshot.
    Snapshot(Box<SnapshotView>),
    /// Several.
    Snapshots(Vec<SnapshotView>),
    /// Templates.
    Templates(Vec<TemplateView>),
    /// A new key: the only time that the key itself is shown.
    NewKey {
        /// The key's record.
        view: KeyView,
        /// The key.
        key: String,
    },
    /// Keys.
    Keys(Vec<KeyView>),
    /// Groups.
    Status(Box<NodeStatus>),
    /// What the owner sees.
    Observed(Box<Observed>),
    /// What the owner sees of several.
    ObservedMany(Vec<Observed>),
    /// What a sandbox's machine uses, as clients are told.
    Usage(Usage),
    /// A snapshot was taken into the owner's store.
    Taken(Box<SnapshotTaken>),
    /// The children of a fork.
    Fork(Box<ForkView>),
    /// What an owner's fork came to.
    Forked {
        /// Microseconds that the parent stood still.
        stop_us: u64,
        /// Each child, in the order asked for. Of one that failed nothing is left.
        children: Vec<Result<Observed, ApiError>>,
    },
    /// Done.
    Done,
}

/// A sandbox as consensus and its owner know it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxView {
    /// What it is meant to be.
    pub spec: SandboxSpec,
    /// Where it lives.
    pub node: NodeId,
    /// Its placement's generation.
    pub generation: Generation,
    /// Where it is meant to be in its life.
    pub desired: Desired,
    /// Where it is, as its owner last said; `Placed` where nothing is known yet.
    pub phase: Phase,
    /// When it last changed or was used.
    pub last_activity: UnixMillis,
}

/// The children of a fork, running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForkView {
    /// Microseconds that the parent stood still.
    pub stop_us: u64,
    /// The children, in the order asked for.
    pub children: Vec<SandboxView>,
}

/// What the owner sees of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// Which.
    pub id: SandboxId,
    /// The generation that it runs under.
    pub generation: Generation,
    /// Where it is in its life.
    pub phase: Phase,
    /// When it last changed or was used.
    pub last_activity: UnixMillis,
}

/// A snapshot in the owner's store, before the catalog knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotTaken {
    /// The manifest's name.
    pub manifest: Digest,
    /// Bytes of memory and disk that it stands for.
    pub size_bytes: u64,
    /// Bytes of the chunks that it added to the store.
    pub stored_bytes: u64,
    /// Microseconds that the sandbox stood still.
    pub stop_us: u64,
    /// What a node must have to resume it.
    pub fit: Fit,
}

/// A snapshot as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotView {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: Name,
    /// Whose.
    pub organization: OrganizationId,
    /// Of which sandbox.
    pub sandbox: SandboxId,
    /// Where it was taken.
    pub region: RegionCode,
    /// The manifest's name.
    pub manifest: Digest,
    /// Bytes of memory and disk that it stands for.
    pub size_bytes: u64,
    /// Bytes that its chunks take.
    pub stored_bytes: u64,
    /// Microseconds that the sandbox stood still.
    pub stop_us: u64,
    /// When.
    pub created_at: UnixMillis,
    /// Its shape.
    pub shape: Shape,
    /// Whether the replicas that the policy asks for have confirmed it: complete ones in two regions.
    pub durable: bool,
    /// Who has it.
    pub replicas: Vec<ReplicaView>,
}

/// One replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaView {
    /// The node's region.
    pub region: RegionCode,
    /// The node.
    pub node: NodeId,
    /// `complete` or `pulling`.
    pub state: String,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateView {
    /// Its name.
    pub name: Name,
    /// Its image.
    pub image: String,
    /// Its default shape.
    pub shape: Shape,
    /// Since when.
    pub created_at: UnixMillis,
}

/// An API key, without the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyView {
    /// Its id.
    pub id: KeyId,
    /// Its name.
    pub name: Name,
    /// Whose.
    pub organization: OrganizationId,
    /// The first characters, to tell keys apart.
    pub shown: String,
    /// Since when.
    pub created_at: UnixMillis,
}

/// What a node knows of its consensus groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Each group that it is in.
    pub groups: Vec<GroupStatus>,
}

/// One consensus group, as one member sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// `catalog`, or `placement-<region>`.
    pub group: String,
    /// The leader, where one is known.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: u64,
    /// Voters.
    pub voters: Vec<NodeId>,
    /// Learners.
    pub learners: Vec<NodeId>,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Why this member no longer votes, if its store failed.
    pub poisoned: Option<String>,
}
