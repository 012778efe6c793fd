//! The catalog: what its commands have built. The indexes of key hashes and of snapshot names are rebuilt when a
//! state is read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use fabric_types::{
    Digest, Fit, KeyId, Labels, Name, NetworkPolicy, NodeId, OrganizationId, RegionCode, SandboxId, Shape, SnapshotId,
    UnixMillis,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::DURABLE_REGIONS;
use crate::{CowMap, Schema};

/// A region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Region {
    /// Its name for people.
    pub name: String,
    /// The URL at which clients reach it, as in `http://127.0.0.1:7080`.
    pub endpoint: String,
}

/// A node that belongs to the mesh. Its region is in its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Where its fabric listens.
    pub fabric: SocketAddr,
    /// The URL of its HTTP port.
    pub http: String,
}

/// An API key, without the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApiKey {
    /// Its name for people.
    pub name: String,
    /// The BLAKE3 hash of the key's text.
    pub hash: Digest,
    /// Whose sandboxes it reaches.
    pub organization: OrganizationId,
    /// When it was made.
    pub created_at: UnixMillis,
    /// The key's first characters, to know it by.
    pub shown: String,
}

/// A template: what sandboxes start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Template {
    /// The guest image's digest.
    pub image: Digest,
    /// The shape of its first instance.
    pub shape: Shape,
    /// When it was made.
    pub created_at: UnixMillis,
}

/// How far a node's copy of a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// The node is fetching it.
    Pulling,
    /// The node has all of it, verified and on disk.
    Complete,
}

impl ReplicaState {
    /// The name in API and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pulling => "pulling",
            Self::Complete => "complete",
        }
    }
}

/// A snapshot: what it is of, what a restore needs to know, and who has a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its name, unique in its organization; its id where the client gave none.
    pub name: Name,
    /// The sandbox that was frozen.
    pub sandbox: SandboxId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// Where it was taken.
    pub region: RegionCode,
    /// The manifest's digest.
    pub manifest: Digest,
    /// Bytes of memory and disk that it restores.
    pub size_bytes: u64,
    /// Bytes that it added to the store.
    pub stored_bytes: u64,
    /// How long the sandbox stood still, microseconds.
    pub stop_us: u64,
    /// When it was taken.
    pub created_at: UnixMillis,
    /// The template under it.
    pub template: Name,
    /// vCPU, memory, disk.
    pub shape: Shape,
    /// Where it can be resumed.
    pub fit: Fit,
    /// Environment of its commands.
    pub env: BTreeMap<String, String>,
    /// The sandbox's labels.
    pub labels: Labels,
    /// The sandbox's user.
    pub user: String,
    /// What the sandbox's guest might reach: what is restored may reach no more unless its creator says so. Everything public
    /// in entries of version 1.
    #[serde(default)]
    pub network: NetworkPolicy,
    /// Who has a copy, and how far it is.
    pub replicas: BTreeMap<NodeId, ReplicaState>,
}

/// Whether losing any one region leaves a complete copy.
pub fn durable(snapshot: &Snapshot) -> bool {
    let complete = snapshot.replicas.iter().filter(|(_, state)| **state == ReplicaState::Complete);
    complete.map(|(node, _)| node.region()).collect::<BTreeSet<_>>().len() >= DURABLE_REGIONS
}

/// The catalog.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct State {
    pub(super) revision: u64,
    pub(super) regions: CowMap<RegionCode, Region>,
    pub(super) nodes: CowMap<NodeId, Node>,
    pub(super) keys: CowMap<KeyId, ApiKey>,
    pub(super) templates: CowMap<Name, Template>,
    pub(super) snapshots: CowMap<SnapshotId, Snapshot>,
    pub(super) hashes: CowMap<Digest, KeyId>,
    pub(super) names: CowMap<(OrganizationId, Name), SnapshotId>,
}

impl Schema for State {
    const WHAT: &'static str = "catalog state";
    const VERSION: u32 = 2;
}

impl State {
    /// Grows by one with every command that changed something.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The regions, by code.
    pub fn regions(&self) -> &CowMap<RegionCode, Region> {
        &self.regions
    }

    /// The nodes, by id.
    pub fn nodes(&self) -> &CowMap<NodeId, Node> {
        &self.nodes
    }

    /// The API keys, by id.
    pub fn keys(&self) -> &CowMap<KeyId, ApiKey> {
        &self.keys
    }

    /// The key with this hash: how a request is authenticated.
    pub fn key_by_hash(&self, hash: &Digest) -> Option<(&KeyId, &ApiKey)> {
        let id = self.hashes.get(hash)?;
        self.keys.get(id).map(|key| (id, key))
    }

    /// The templates, by name.
    pub fn templates(&self) -> &CowMap<Name, Template> {
        &self.templates
    }

    /// The snapshots, by id.
    pub fn snapshots(&self) -> &CowMap<SnapshotId, Snapshot> {
        &self.snapshots
    }

    /// The snapshot that has a name in an organization.
    pub fn snapshot_named(&self, organization: &OrganizationId, name: &Name) -> Option<&Snapshot> {
        let id = self.names.get(&(organization.clone(), name.clone()))?;
        self.snapshots.get(id)
    }

    /// Files a key under its id and its hash; the caller has checked that both are free.
    pub(super) fn file_key(&mut self, id: KeyId, key: ApiKey) {
        self.hashes.insert(key.hash, id.clone());
        self.keys.insert(id, key);
    }

    /// Files a snapshot under its id and its name; the caller has checked that both are free.
    pub(super) fn file_snapshot(&mut self, snapshot: Snapshot) {
        self.names.insert((snapshot.organization.clone(), snapshot.name.clone()), snapshot.id.clone());
        self.snapshots.insert(snapshot.id.clone(), snapshot);
    }
}

/// The written form.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    revision: u64,
    regions: CowMap<RegionCode, Region>,
    nodes: CowMap<NodeId, Node>,
    keys: CowMap<KeyId, ApiKey>,
    templates: CowMap<Name, Template>,
    snapshots: CowMap<SnapshotId, Snapshot>,
}

/// A written catalog that contradicts itself.
#[derive(Debug, Error)]
enum Contradiction {
    #[error("{one} and {other} are one key")]
    SharedHash { one: KeyId, other: KeyId },
    #[error("snapshot {id} is filed under {key}")]
    Misfiled { key: SnapshotId, id: SnapshotId },
    #[error("snapshots {one} and {other} share a name")]
    SharedName { one: SnapshotId, other: SnapshotId },
}

impl From<State> for Stored {
    fn from(state: State) -> Self {
        let State { revision, regions, nodes, keys, templates, snapshots, hashes: _, names: _ } = state;
        Self { revision, regions, nodes, keys, templates, snapshots }
    }
}

impl TryFrom<Stored> for State {
    type Error = Contradiction;

    fn try_from(stored: Stored) -> Result<Self, Contradiction> {
        let Stored { revision, regions, nodes, keys, templates, snapshots } = stored;
        let mut state = Self { revision, regions, nodes, templates, ..Self::default() };
        for (id, key) in keys.iter() {
            if let Some((other, _)) = state.key_by_hash(&key.hash) {
                return Err(Contradiction::SharedHash { one: id.clone(), other: other.clone() });
            }
            state.file_key(id.clone(), key.clone());
        }
        for (key, snapshot) in snapshots.iter() {
            if *key != snapshot.id {
                return Err(Contradiction::Misfiled { key: key.clone(), id: snapshot.id.clone() });
            }
            if let Some(other) = state.snapshot_named(&snapshot.organization, &snapshot.name) {
                return Err(Contradiction::SharedName { one: snapshot.id.clone(), other: other.id.clone() });
            }
            state.file_snapshot(snapshot.clone());
        }
        Ok(state)
    }
}
