//! Snapshots: taken by the owner into its store, made known by the catalog, pulled by whoever restores one.

use std::time::Duration;

use fabric_api::node::{
    Action, NodeAnswer, NodeCall, NodeReply, NodeRequest, ReplicaView, SandboxKey, SnapshotTaken, SnapshotView,
};
use fabric_api::{ApiError, ErrorCode};
use fabric_quic::Peer;
use fabric_types::{Digest, Name, NodeId, OrganizationId, SnapshotId, Source};
use node_snapshot::{PullProgress, Puller};
use raft_placement::catalog::{Command, ReplicaState, Snapshot, State, durable};
use raft_placement::region::Record;
use tokio::sync::watch;

use super::{Service, errors, pass};
use crate::node::clock::now;

/// How long a read waits for this node's copy of the catalog to be as new as its leader's.
const BARRIER_LIMIT: Duration = Duration::from_secs(5);
/// The catalog is told of a new replica beside the answer; it is tried so often, once a second.
const REPLICA_TRIES_MAX: u32 = 30;

impl Service {
    pub(super) async fn take_snapshot(&self, call: &NodeCall, key: &SandboxKey, name: Option<Name>) -> NodeAnswer {
        let record = self.record(key)?;
        let id = SnapshotId::new(rand::random());
        let name = match name {
            Some(name) => name,
            None => id.as_str().parse().map_err(|_| pass::unexpected("a snapshot id that is no name"))?,
        };
        if let Some(holder) = self.catalog_state().snapshot_named(&key.organization, &name) {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("a snapshot named '{name}' exists already ({}); choose another name", holder.id),
            ));
        }
        let action = Action::Snapshot { id: id.clone(), name: name.clone() };
        let act = NodeRequest::Act { id: record.spec.id.clone(), generation: record.generation, action };
        let NodeReply::Taken(taken) = self.at(&record.node, call, act).await? else {
            return Err(pass::unexpected("snapshot"));
        };
        let snapshot = self.entry(&record, id, name, *taken);
        self.commit_catalog(Command::PutSnapshot { snapshot: Box::new(snapshot.clone()) }).await?;
        self.wait_catalog(|state| state.snapshots().contains_key(&snapshot.id)).await;
        Ok(NodeReply::Snapshot(Box::new(view(&snapshot))))
    }

    fn entry(&self, record: &Record, id: SnapshotId, name: Name, taken: SnapshotTaken) -> Snapshot {
        let spec = &record.spec;
        let template = match &spec.source {
            Source::Template { template } => template.clone(),
            Source::Fork { .. } => self.template.clone(),
            // A snapshot of a restored sandbox stands on the template that its own snapshot stood on.
            Source::Snapshot { manifest } => by_manifest(&self.catalog_state(), manifest)
                .map_or_else(|| self.template.clone(), |parent| parent.template.clone()),
        };
        Snapshot {
            id,
            name,
            sandbox: spec.id.clone(),
            organization: spec.organization.clone(),
            region: self.region.clone(),
            manifest: taken.manifest,
            size_bytes: taken.size_bytes,
            stored_bytes: taken.stored_bytes,
            stop_us: taken.stop_us,
            created_at: now(),
            template,
            shape: spec.shape,
            fit: taken.fit,
            env: spec.env.clone(),
            labels: spec.labels.clone(),
            user: spec.user.clone(),
            network: spec.network.clone(),
            replicas: [(record.node.clone(), ReplicaState::Complete)].into(),
        }
    }

    pub(super) fn snapshots_of(&self, organization: &OrganizationId) -> Vec<SnapshotView> {
        let state = self.catalog_state();
        state.snapshots().values().filter(|snapshot| snapshot.organization == *organization).map(view).collect()
    }

    pub(super) async fn delete_snapshot(&self, key: &str, organization: &OrganizationId) -> NodeAnswer {
        let snapshot = self.snapshot_by_key(key, organization).await?;
        self.commit_catalog(Command::DeleteSnapshot { id: snapshot.id.clone() }).await?;
        self.wait_catalog(|state| !state.snapshots().contains_key(&snapshot.id)).await;
        Ok(NodeReply::Snapshot(Box::new(view(&snapshot))))
    }

    /// A snapshot by id or name; this node's copy of the catalog is brought up to date before it is said to be missing.
    pub(super) async fn snapshot_by_key(&self, key: &str, organization: &OrganizationId) -> Result<Snapshot, ApiError> {
        if let Some(found) = by_key(&self.catalog_state(), key, organization) {
            return Ok(found);
        }
        self.catalog.read_barrier(BARRIER_LIMIT).await.map_err(|error| errors::group(&error))?;
        by_key(&self.catalog_state(), key, organization).ok_or_else(|| {
            ApiError::new(ErrorCode::NotFound, format!("there is no template or snapshot '{key}' in the mesh"))
        })
    }

    /// Brings a snapshot's manifest and chunks into this node's store.
    pub(super) async fn pull(&self, manifest: &Digest, holders: &[NodeId]) -> Result<(), ApiError> {
        let others = holders.iter().filter(|holder| **holder != self.node);
        let peers: Vec<Peer> = others.filter_map(|holder| self.peer(holder).ok()).collect();
        let (progress, _) = watch::channel(PullProgress::default());
        let puller = Puller::new(self.store.clone(), self.fabric.clone());
        let stats = puller.pull(*manifest, &peers, &progress).await.map_err(|error| {
            ApiError::new(ErrorCode::Unavailable, format!("the snapshot could not be copied to {}: {error}", self.node))
        })?;
        tracing::info!(%manifest, ?stats, "a snapshot is local");
        Ok(())
    }

    /// Tells the catalog that a node has a copy, beside whatever goes on.
    pub(super) fn add_replica(&self, snapshot: SnapshotId, node: NodeId, state: ReplicaState) {
        let catalog = self.catalog.clone();
        tokio::spawn(async move {
            for _ in 0..REPLICA_TRIES_MAX {
                let command = Command::AddReplica { snapshot: snapshot.clone(), node: node.clone(), state };
                match catalog.propose(command, BARRIER_LIMIT).await {
                    Ok(_) => return,
                    Err(error) if errors::refusal(&error).is_some() => {
                        tracing::info!(%snapshot, %node, %error, "the catalog refuses a replica");
                        return;
                    }
                    Err(error) => tracing::debug!(%snapshot, %node, %error, "the catalog can't take a replica now"),
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            tracing::warn!(%snapshot, %node, "the catalog was not told of a replica; the snapshot counts as less durable");
        });
    }
}

fn by_key(state: &State, key: &str, organization: &OrganizationId) -> Option<Snapshot> {
    let by_id = key.parse::<SnapshotId>().ok().and_then(|id| state.snapshots().get(&id));
    let by_id = by_id.filter(|snapshot| snapshot.organization == *organization);
    by_id.or_else(|| state.snapshot_named(organization, &key.parse().ok()?)).cloned()
}

fn by_manifest(state: &State, manifest: &Digest) -> Option<Snapshot> {
    state.snapshots().values().find(|snapshot| snapshot.manifest == *manifest).cloned()
}

fn view(snapshot: &Snapshot) -> SnapshotView {
    let replica = |(node, state): (&NodeId, &ReplicaState)| ReplicaView {
        region: node.region(),
        node: node.clone(),
        state: state.as_str().to_owned(),
    };
    SnapshotView {
        id: snapshot.id.clone(),
        name: snapshot.name.clone(),
        organization: snapshot.organization.clone(),
        sandbox: snapshot.sandbox.clone(),
        region: snapshot.region.clone(),
        manifest: snapshot.manifest,
        size_bytes: snapshot.size_bytes,
        stored_bytes: snapshot.stored_bytes,
        stop_us: snapshot.stop_us,
        created_at: snapshot.created_at,
        shape: snapshot.shape,
        durable: durable(snapshot),
        replicas: snapshot.replicas.iter().map(replica).collect(),
    }
}
