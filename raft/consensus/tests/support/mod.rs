//! Several members of one group in this process, over the fabric's in-memory double.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use fabric_quic::MemoryNetwork;
use fabric_types::{Capacity, NodeId, NodeLimits, Overcommit};
use raft_consensus::{
    Group, GroupMetrics, GroupName, GroupOptions, ProposeError, RaftHost, RaftHostConfig, Store, StoreKind, Timing,
};
use raft_placement::region::{Command, Placement, Refusal};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// Generous: a loaded machine may take seconds for what takes milliseconds elsewhere.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Faster than a region's, and still far above what a loaded machine needs for a heartbeat.
pub(crate) const OPTIONS: GroupOptions = GroupOptions {
    timing: Timing { heartbeat_ms: 100, election_min_ms: 500, election_max_ms: 1000 },
    snapshot_every: 1000,
    entries_kept: 500,
};

/// A member that runs.
pub(crate) struct Running {
    pub(crate) host: RaftHost,
    pub(crate) group: Group<Placement>,
}

/// A group's members and the network between them.
pub(crate) struct Cluster {
    pub(crate) network: MemoryNetwork,
    pub(crate) running: BTreeMap<NodeId, Running>,
    folder: TempDir,
    options: GroupOptions,
    store: StoreKind,
}

pub(crate) fn node(number: u32) -> NodeId {
    format!("fra-{number}").parse().expect("a node id")
}

/// A command that can be told from every other by its number.
pub(crate) fn command(number: u32) -> Command {
    let physical = Capacity { vcpus: 4, memory_mib: 8192, disk_gib: 100 };
    Command::RegisterNode {
        node: node(number),
        limits: NodeLimits { physical, overcommit: Overcommit::default(), sandboxes: None },
    }
}

impl Cluster {
    /// Members that are open and haven't begun.
    pub(crate) async fn open(members: u32, options: GroupOptions, store: StoreKind) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut cluster = Self { network: MemoryNetwork::new(), running: BTreeMap::new(), folder, options, store };
        for number in 1..=members {
            cluster.start(number).await;
        }
        cluster
    }

    /// A group of voters that has a leader.
    pub(crate) async fn begin(voters: u32, options: GroupOptions) -> Self {
        let cluster = Self::open(voters, options, StoreKind::Sled).await;
        cluster.initialize(1..=voters).await;
        cluster.leader().await;
        cluster
    }

    /// Opens a member, as new or from what it left on disk.
    pub(crate) async fn start(&mut self, number: u32) {
        let node = node(number);
        let config = RaftHostConfig {
            data_dir: self.folder.path().join(node.as_str()),
            store: self.store,
            fabric: self.network.join(node.clone()),
            resolve: RaftHostConfig::resolve_nothing(),
        };
        let host = RaftHost::start(config).await.expect("a host");
        self.run(host, node).await;
    }

    /// Opens a member on a store of the caller's.
    pub(crate) async fn start_over(&mut self, number: u32, store: Store) {
        let node = node(number);
        let host = RaftHost::over(store, self.network.join(node.clone()), RaftHostConfig::resolve_nothing());
        self.run(host.expect("a host"), node).await;
    }

    async fn run(&mut self, host: RaftHost, node: NodeId) {
        let name = GroupName::placement(&node.region());
        let group = host.open_group::<Placement>(name, self.options).await.expect("a group");
        self.running.insert(node, Running { host, group });
    }

    /// Ends a member as a crash does, as far as the others can tell.
    pub(crate) async fn kill(&mut self, number: u32) {
        self.network.leave(&node(number));
        let Running { host, group } = self.running.remove(&node(number)).expect("it runs");
        group.shutdown().await;
        drop(group);
        host.shutdown().await;
    }

    /// Takes a member's disk away.
    pub(crate) fn wipe(&self, number: u32) {
        std::fs::remove_dir_all(self.folder.path().join(node(number).as_str())).expect("it had a folder");
    }

    /// Every given member calls it, as each node does when it starts.
    pub(crate) async fn initialize(&self, voters: impl Iterator<Item = u32> + Clone) {
        let members = voters.clone().map(|number| (node(number), self.address(number))).collect::<BTreeMap<_, _>>();
        for number in voters {
            self.group(number).initialize(members.clone()).await.expect("begun");
        }
    }

    pub(crate) fn address(&self, number: u32) -> std::net::SocketAddr {
        // A join gives the same address again, but would replace the node: so the address is computed.
        ([127, 1, 0, u8::try_from(number).expect("few nodes")], 7).into()
    }

    pub(crate) fn group(&self, number: u32) -> &Group<Placement> {
        &self.running[&node(number)].group
    }

    pub(crate) fn metrics(&self, number: u32) -> GroupMetrics {
        self.group(number).metrics()
    }

    /// The number of the member that leads, once all that run agree on one that runs.
    pub(crate) async fn leader(&self) -> u32 {
        self.leader_among(|_| true).await
    }

    /// The same, of some members.
    pub(crate) async fn leader_among(&self, counts: impl Fn(&NodeId) -> bool) -> u32 {
        let agreed = || {
            let leaders: BTreeSet<_> = self
                .running
                .iter()
                .filter(|(node, _)| counts(node))
                .map(|(_, running)| running.group.leader().borrow().clone())
                .collect();
            match leaders.into_iter().collect::<Vec<_>>().as_slice() {
                [Some(leader)] if counts(leader) && self.running.contains_key(leader) => Some(leader.clone()),
                _ => None,
            }
        };
        let leader = until("the members agree on a leader", || async { agreed() }).await;
        (1..100).find(|number| node(*number) == leader).expect("a number")
    }

    /// Waits until a member's state holds the effect of commands.
    pub(crate) async fn holds(&self, number: u32, commands: impl Iterator<Item = u32> + Clone) {
        let state = self.group(number).state();
        until(&format!("member {number} holds every command"), || {
            let state = Arc::clone(&state.borrow());
            let mut commands = commands.clone();
            async move { commands.all(|number| state.nodes().contains_key(&node(number))).then_some(()) }
        })
        .await;
    }

    pub(crate) async fn propose(&self, at: u32, number: u32) -> Result<(), ProposeError<Refusal>> {
        self.group(at).propose(command(number), PATIENCE).await.map(drop)
    }
}

/// Polls until there is a value.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
