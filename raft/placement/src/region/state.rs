//! The ledger of a region: what its commands have built.
//!
//! Written down are nodes, sandboxes and tombstones; the index of names and the reservations follow from them, are
//! rebuilt when a state is read, and a state that contradicts itself is refused.

use fabric_types::{Capacity, Desired, Generation, NodeId, NodeLimits, OrganizationId, SandboxId, SandboxSpec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::TOMBSTONES_MAX;
use crate::{CowMap, Schema};

/// A node of the region, and what is reserved on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it can hold.
    pub limits: NodeLimits,
    /// Whether it takes new sandboxes.
    pub admitted: bool,
    /// What its sandboxes reserve together: never above `limits.reservable()`.
    pub reserved: Capacity,
    /// How many it holds.
    pub sandboxes: u32,
}

impl Node {
    /// What may still be reserved.
    pub fn free(&self) -> Capacity {
        self.limits.reservable().minus(self.reserved)
    }
}

/// A sandbox of the region, and where it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// What it is meant to be.
    pub spec: SandboxSpec,
    /// Where it lives.
    pub node: NodeId,
    /// As which placement.
    pub generation: Generation,
    /// Where it is meant to be in its life.
    pub desired: Desired,
    /// Why this placement failed for good, if it did.
    pub failed: Option<String>,
    /// The state's revision when this record last changed.
    pub revision: u64,
}

/// A region's ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct State {
    pub(super) revision: u64,
    pub(super) nodes: CowMap<NodeId, Node>,
    pub(super) sandboxes: CowMap<SandboxId, Record>,
    pub(super) names: CowMap<(OrganizationId, String), SandboxId>,
    pub(super) deleted: CowMap<SandboxId, Generation>,
    /// Deletions by the revision that made them, oldest first.
    pub(super) deletions: CowMap<u64, SandboxId>,
}

impl Schema for State {
    const WHAT: &'static str = "placement state";
    const VERSION: u32 = 1;
}

impl State {
    /// Grows by one with every command that changed something.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The nodes, by id.
    pub fn nodes(&self) -> &CowMap<NodeId, Node> {
        &self.nodes
    }

    /// The sandboxes, by id.
    pub fn sandboxes(&self) -> &CowMap<SandboxId, Record> {
        &self.sandboxes
    }

    /// The live sandbox that has a name in an organization.
    pub fn named(&self, organization: &OrganizationId, name: &str) -> Option<&Record> {
        let id = self.names.get(&(organization.clone(), name.to_owned()))?;
        self.sandboxes.get(id)
    }

    /// The sandboxes that live on a node.
    pub fn on_node<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = &'a Record> {
        self.sandboxes.values().filter(move |record| record.node == *node)
    }

    /// Takes a sandbox's name and reservation; the caller has checked that both are free.
    pub(super) fn admit(&mut self, record: Record) {
        let spec = &record.spec;
        self.names.insert((spec.organization.clone(), spec.name.clone()), spec.id.clone());
        self.reserve(&record.node, Capacity::of(spec.shape));
        self.sandboxes.insert(spec.id.clone(), record);
    }

    /// Adds a sandbox to a node's reservation.
    pub(super) fn reserve(&mut self, node: &NodeId, needed: Capacity) {
        self.nodes.update(node, |node| {
            node.reserved = node.reserved.plus(needed);
            node.sandboxes += 1;
        });
    }

    /// Takes a sandbox from a node's reservation.
    pub(super) fn release(&mut self, node: &NodeId, held: Capacity) {
        self.nodes.update(node, |node| {
            node.reserved = node.reserved.minus(held);
            node.sandboxes -= 1;
        });
    }

    /// Remembers a deleted sandbox's generation, and forgets the oldest past the limit.
    pub(super) fn bury(&mut self, revision: u64, id: SandboxId, generation: Generation) {
        if self.deletions.len() >= TOMBSTONES_MAX
            && let Some((oldest, forgotten)) = self.deletions.first().map(|(at, id)| (*at, id.clone()))
        {
            self.deletions.remove(&oldest);
            self.deleted.remove(&forgotten);
        }
        self.deletions.insert(revision, id.clone());
        self.deleted.insert(id, generation);
    }

    /// Lets a sandbox that was deleted live again, under a generation above its last.
    pub(super) fn unbury(&mut self, id: &SandboxId) {
        if !self.deleted.remove(id) {
            return;
        }
        let at = self.deletions.iter().find(|(_, buried)| *buried == id).map(|(at, _)| *at);
        if let Some(at) = at {
            self.deletions.remove(&at);
        }
    }
}

/// The written form.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    revision: u64,
    nodes: CowMap<NodeId, StoredNode>,
    sandboxes: CowMap<SandboxId, Record>,
    tombstones: Vec<Tombstone>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StoredNode {
    limits: NodeLimits,
    admitted: bool,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tombstone {
    revision: u64,
    id: SandboxId,
    generation: Generation,
}

/// A written state that contradicts itself.
#[derive(Debug, Error)]
enum Contradiction {
    #[error("sandbox {id} is filed under {key}")]
    Misfiled { key: SandboxId, id: SandboxId },
    #[error("sandbox {id} lives on {node}, which is not registered")]
    Homeless { id: SandboxId, node: NodeId },
    #[error("sandboxes {one} and {other} share a name")]
    SharedName { one: SandboxId, other: SandboxId },
    #[error("node {node} is oversold")]
    Oversold { node: NodeId },
}

impl From<State> for Stored {
    fn from(state: State) -> Self {
        let nodes = state.nodes.iter();
        let tombstones = state.deletions.iter().filter_map(|(revision, id)| {
            let generation = *state.deleted.get(id)?;
            Some(Tombstone { revision: *revision, id: id.clone(), generation })
        });
        Self {
            revision: state.revision,
            nodes: nodes
                .map(|(id, node)| (id.clone(), StoredNode { limits: node.limits, admitted: node.admitted }))
                .collect(),
            tombstones: tombstones.collect(),
            sandboxes: state.sandboxes,
        }
    }
}

impl TryFrom<Stored> for State {
    type Error = Contradiction;

    fn try_from(stored: Stored) -> Result<Self, Contradiction> {
        let mut state = State { revision: stored.revision, ..State::default() };
        for (id, node) in stored.nodes.iter() {
            let StoredNode { limits, admitted } = *node;
            state.nodes.insert(id.clone(), Node { limits, admitted, reserved: Capacity::default(), sandboxes: 0 });
        }
        for (key, record) in stored.sandboxes.iter() {
            let (id, node) = (record.spec.id.clone(), record.node.clone());
            if *key != id {
                return Err(Contradiction::Misfiled { key: key.clone(), id });
            }
            if !state.nodes.contains_key(&node) {
                return Err(Contradiction::Homeless { id, node });
            }
            if let Some(other) = state.named(&record.spec.organization, &record.spec.name) {
                return Err(Contradiction::SharedName { one: id, other: other.spec.id.clone() });
            }
            state.admit(record.clone());
        }
        if let Some((id, _)) = state.nodes.iter().find(|(_, node)| !node.reserved.fits(node.limits.reservable())) {
            return Err(Contradiction::Oversold { node: id.clone() });
        }
        for Tombstone { revision, id, generation } in stored.tombstones {
            state.deletions.insert(revision, id.clone());
            state.deleted.insert(id, generation);
        }
        Ok(state)
    }
}
