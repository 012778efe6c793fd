//! All groups of one process: one store, one accept queue.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use fabric_quic::{Fabric, FabricError, Protocol};
use fabric_types::NodeId;
use openraft::Raft;
use raft_placement::Machine;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::GroupName;
use crate::group::Group;
use crate::keys::Keys;
use crate::lead::Lead;
use crate::log::LogStore;
use crate::member::GroupMember;
use crate::metrics::watch_leader;
use crate::network::Network;
use crate::peers::{Peers, Resolver};
use crate::service::{Groups, serve};
use crate::snapshot::Snapshots;
use crate::state_machine::{Published, StateMachine};
use crate::store::{Store, StoreError, StoreHealth, StoreKind};
use crate::timing::GroupOptions;
use crate::types::RaftNode;

/// How long the store's files may take to close once every group has ended.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// What a host of groups needs.
pub struct RaftHostConfig {
    /// The folder for the store; a folder of its own is made in it.
    pub data_dir: PathBuf,
    /// Which store. It can't be changed while there is a store of the other kind: a member must not forget its votes.
    pub store: StoreKind,
    /// The fabric; its node is the member of every group here, and its raft streams are taken.
    pub fabric: Arc<dyn Fabric>,
    /// Where nodes listen now. Where it knows none, the address in the membership is used.
    pub resolve: Resolver,
}

impl RaftHostConfig {
    /// Resolves nothing: every node is where the membership says.
    pub fn resolve_nothing() -> Resolver {
        Arc::new(|_: &NodeId| -> Option<SocketAddr> { None })
    }
}

/// Why a host or a group could not be opened.
#[derive(Debug, Error)]
pub enum HostError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder holds a store of the other kind.
    #[error("{folder} holds a {other} store; a node can't go over to {wanted} without losing its votes", folder = folder.display())]
    OtherStore {
        /// The folder.
        folder: PathBuf,
        /// What it holds.
        other: StoreKind,
        /// What was configured.
        wanted: StoreKind,
    },
    /// The fabric.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// A group of this name is open.
    #[error("group {0} is open already")]
    Open(GroupName),
    /// Timings that contradict each other.
    #[error("the options of group {group} are impossible: {cause}")]
    Options {
        /// The group.
        group: GroupName,
        /// What is wrong.
        cause: String,
    },
    /// The group's log or snapshot could not be recovered.
    #[error("group {group} can't start: {cause}")]
    Start {
        /// The group.
        group: GroupName,
        /// Why.
        cause: String,
    },
}

/// The groups of one process.
pub struct RaftHost {
    node: NodeId,
    store: Store,
    peers: Peers,
    groups: Groups,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl RaftHost {
    /// Opens the store and begins to answer the other members' calls.
    pub async fn start(config: RaftHostConfig) -> Result<Self, HostError> {
        let RaftHostConfig { data_dir, store: kind, fabric, resolve } = config;
        let (path, owner) = (store_path(&data_dir, kind)?, fabric.node().clone());
        let opening = tokio::task::spawn_blocking(move || Store::open(kind, &path, &owner));
        let store = opening.await.map_err(|error| StoreError::open(kind, &data_dir, &error))??;
        Self::over(store, fabric, resolve)
    }

    /// The same, with a store that is open already and belongs to the fabric's node. Must be called in a runtime.
    pub fn over(store: Store, fabric: Arc<dyn Fabric>, resolve: Resolver) -> Result<Self, HostError> {
        let node = fabric.node().clone();
        let streams = fabric.accept(Protocol::Raft)?;
        let (groups, stop, tasks) = (Groups::default(), CancellationToken::new(), TaskTracker::new());
        tasks.spawn(serve(streams, groups.clone(), stop.clone()));
        Ok(Self { node, store, peers: Peers::new(fabric, resolve), groups, stop, tasks })
    }

    /// Opens a group: this node is the member of it that its log says, or none yet. A new group has to be begun by
    /// its first voters with [`Group::initialize`]; every other member is added by the leader.
    pub async fn open_group<M: Machine>(&self, name: GroupName, options: GroupOptions) -> Result<Group<M>, HostError> {
        if self.groups.contains(&name) {
            return Err(HostError::Open(name));
        }
        let config = options
            .config(&name)
            .map_err(|error| HostError::Options { group: name.clone(), cause: error.to_string() })?;
        let keys = Keys::of(&name);
        let published = Published { state: watch::Sender::new(Arc::default()), applied_end: watch::Sender::new(0) };
        let (state, applied_end) = (published.state.subscribe(), published.applied_end.subscribe());
        let machine = StateMachine::<M>::open(Snapshots::new(self.store.clone(), keys.clone()), published)?;
        let node = RaftNode(self.node.clone());
        let network = Network {
            peers: self.peers.clone(),
            group: name.clone(),
            node: node.clone(),
            append_deadline: Duration::from_millis(options.timing.election_max_ms),
        };
        let log = LogStore::<M>::new(self.store.clone(), keys);
        let raft = Raft::new(node, Arc::new(config), network, log, machine)
            .await
            .map_err(|fatal| HostError::Start { group: name.clone(), cause: fatal.to_string() })?;

        let (tell_leader, leader) = watch::channel(None);
        let lead = Lead { raft, peers: self.peers.clone(), group: name.clone(), node: self.node.clone(), leader };
        if !self.groups.add(name.clone(), Arc::new(GroupMember(lead.clone()))) {
            drop(lead.raft.shutdown().await);
            return Err(HostError::Open(name));
        }
        let stop = self.stop.child_token();
        self.tasks.spawn(watch_leader::<M>(name, lead.raft.metrics(), tell_leader, stop.clone()));
        let groups = self.groups.clone();
        Ok(Group { lead, state, applied_end, groups, stop })
    }

    /// Whether the store can be trusted. Poisoned, every group here has stopped voting.
    pub fn store_health(&self) -> watch::Receiver<StoreHealth> {
        self.store.health()
    }

    /// Stops answering and closes the store. Groups are shut down before, each by its owner.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let alive = self.store.alive();
        drop(self.store);
        let closed = tokio::time::timeout(CLOSE_DEADLINE, async {
            while Weak::strong_count(&alive) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        if closed.await.is_err() {
            tracing::warn!(node = %self.node, "the raft store is still in use: a group was not shut down");
        }
    }
}

/// The folder of a store, if it can't be mistaken for one of the other kind.
fn store_path(data_dir: &Path, kind: StoreKind) -> Result<PathBuf, HostError> {
    let path = |kind: StoreKind| data_dir.join(format!("raft-{kind}"));
    let other = match kind {
        StoreKind::Sled => StoreKind::Redb,
        StoreKind::Redb => StoreKind::Sled,
    };
    if path(other).exists() {
        return Err(HostError::OtherStore { folder: data_dir.to_owned(), other, wanted: kind });
    }
    std::fs::create_dir_all(data_dir).map_err(|error| StoreError::open(kind, data_dir, &error))?;
    Ok(path(kind))
}
