//! The ledger of a region: what its commands have built.
//!
//! Written down are nodes, sandboxes and tombstones; the index of names and the reservations follow from them, are
//! rebuilt when a state is read, and a state that contradicts itself is refused.

use fabric_types::{Capacity, Desired, Generation, NodeId, NodeLimits, OrganizationId, Quota, SandboxId, SandboxSpec};
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

    /// Whether it holds as many sandboxes as it may.
    pub fn is_full(&self) -> bool {
        self.limits.sandboxes.is_some_and(|limit| self.sandboxes >= limit)
    }
}

/// What an organization has in the region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sandboxes, archived ones among them.
    pub sandboxes: u32,
    /// What they reserve together.
    pub reserved: Capacity,
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

impl Record {
    /// What it reserves on its node: its shape, or nothing while it is archived. A paused or stopped sandbox keeps
    /// its reservation, so that it can always go on.
    pub fn held(&self) -> Capacity {
        match self.desired {
            Desired::Running | Desired::Paused | Desired::Stopped => Capacity::of(self.spec.shape),
            Desired::Archived => Capacity::default(),
        }
    }
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
    /// What organizations have; those that have nothing are left out.
    pub(super) usage: CowMap<OrganizationId, Usage>,
    /// What organizations without a quota of their own may have.
    pub(super) quota: Quota,
    pub(super) quotas: CowMap<OrganizationId, Quota>,
}

impl Schema for State {
    const WHAT: &'static str = "placement state";
    const VERSION: u32 = 2;
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

    /// What an organization has in the region.
    pub fn usage(&self, organization: &OrganizationId) -> Usage {
        self.usage.get(organization).copied().unwrap_or_default()
    }

    /// What an organization may have in the region.
    pub fn quota(&self, organization: &OrganizationId) -> Quota {
        self.quotas.get(organization).copied().unwrap_or(self.quota)
    }

    /// What organizations without a quota of their own may have.
    pub fn default_quota(&self) -> Quota {
        self.quota
    }

    /// Takes a sandbox's name and reservation; the caller has checked that both are free.
    pub(super) fn admit(&mut self, record: Record) {
        let spec = &record.spec;
        self.names.insert((spec.organization.clone(), spec.name.clone()), spec.id.clone());
        self.count(&record, 1);
        self.exchange(&record.node, &spec.organization, Capacity::default(), record.held());
        self.sandboxes.insert(spec.id.clone(), record);
    }

    /// Gives a sandbox's name and reservation back.
    pub(super) fn dismiss(&mut self, id: &SandboxId) {
        let Some(record) = self.sandboxes.get(id).cloned() else { return };
        self.sandboxes.remove(id);
        self.exchange(&record.node, &record.spec.organization, record.held(), Capacity::default());
        self.count(&record, -1);
        self.names.remove(&(record.spec.organization, record.spec.name));
    }

    /// Replaces what a sandbox reserves on its node.
    pub(super) fn exchange(&mut self, node: &NodeId, organization: &OrganizationId, old: Capacity, new: Capacity) {
        self.nodes.update(node, |node| node.reserved = node.reserved.minus(old).plus(new));
        self.usage.update(organization, |usage| usage.reserved = usage.reserved.minus(old).plus(new));
    }

    /// Moves a sandbox's reservation to another node.
    pub(super) fn relocate(&mut self, from: &NodeId, to: &NodeId, held: Capacity) {
        self.nodes.update(from, |node| {
            node.reserved = node.reserved.minus(held);
            node.sandboxes -= 1;
        });
        self.nodes.update(to, |node| {
            node.reserved = node.reserved.plus(held);
            node.sandboxes += 1;
        });
    }

    /// Counts a sandbox in (1) or out (-1), at its node and its organization.
    fn count(&mut self, record: &Record, change: i32) {
        self.nodes.update(&record.node, |node| node.sandboxes = node.sandboxes.saturating_add_signed(change));
        let organization = &record.spec.organization;
        if !self.usage.contains_key(organization) {
            self.usage.insert(organization.clone(), Usage::default());
        }
        self.usage.update(organization, |usage| usage.sandboxes = usage.sandboxes.saturating_add_signed(change));
        if self.usage(organization).sandboxes == 0 {
            self.usage.remove(organization);
        }
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
    /// Since version 2, as are `quotas`.
    #[serde(default)]
    quota: Quota,
    #[serde(default)]
    quotas: CowMap<OrganizationId, Quota>,
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
            quota: state.quota,
            quotas: state.quotas,
        }
    }
}

impl TryFrom<Stored> for State {
    type Error = Contradiction;

    fn try_from(stored: Stored) -> Result<Self, Contradiction> {
        let mut state =
            State { revision: stored.revision, quota: stored.quota, quotas: stored.quotas, ..State::default() };
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
