//! What a group must withstand: lost leaders, restarts, lagging members, partitions.

mod support;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fabric_types::{
    Generation, Intervals, NetworkPolicy, OrganizationId, SandboxId, SandboxSpec, Shape, Source, UnixMillis,
};
use raft_consensus::{GroupError, GroupMetrics, GroupName, GroupOptions, ProposeError, Role, StoreKind, Timing};
use raft_placement::catalog::{self, Catalog};
use raft_placement::region::{Command, Refusal};
use tokio::time::sleep;

use support::{Cluster, OPTIONS, PATIENCE, command, node, until};

/// Snapshots soon, and keeps nothing behind them.
const SNAPSHOTS: GroupOptions = GroupOptions { snapshot_every: 20, entries_kept: 0, ..OPTIONS };

/// For tests of who goes on leading: a machine that pauses for six seconds elects nobody.
const STEADY: GroupOptions =
    GroupOptions { timing: Timing { heartbeat_ms: 100, election_min_ms: 3000, election_max_ms: 4000 }, ..OPTIONS };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_no_acknowledged_write_is_lost() {
    let mut cluster = Cluster::begin(3, STEADY).await;
    let first = cluster.leader().await;
    let writer = (1..=3).find(|number| *number != first).expect("a follower");
    let group = cluster.group(writer).clone();
    let (acknowledge, mut acknowledged) = tokio::sync::mpsc::unbounded_channel();
    let writing = tokio::spawn(async move {
        for number in 1..=150 {
            if group.propose(command(number), PATIENCE).await.is_ok() {
                acknowledge.send(number).expect("the test goes on");
            }
        }
    });
    let mut written = BTreeSet::new();
    while written.len() < 30 {
        written.insert(acknowledged.recv().await.expect("the writer goes on"));
    }
    cluster.kill(first).await;
    writing.await.expect("no panic");
    while let Some(number) = acknowledged.recv().await {
        written.insert(number);
    }
    let second = cluster.leader().await;
    assert_ne!(second, first);
    assert_eq!(written.len(), 150, "the writer was stopped by the lost leader");
    cluster.group(writer).read_barrier(PATIENCE).await.expect("a read");
    let state = Arc::clone(&cluster.group(writer).state().borrow());
    assert!(written.iter().all(|number| state.nodes().contains_key(&node(*number))));

    cluster.start(first).await;
    cluster.holds(first, 1..=150).await;
    assert_eq!(cluster.leader().await, second, "the one that came back follows");
}

async fn restarts_with_what_it_had(store: StoreKind) {
    let mut cluster = Cluster::open(1, SNAPSHOTS, store).await;
    cluster.initialize(1..=1).await;
    for number in 1..=90 {
        cluster.propose(1, number).await.expect("written");
    }
    until("a snapshot is written and the log before it dropped", || async {
        let metrics = cluster.metrics(1);
        (metrics.snapshot.is_some_and(|at| at > 60) && metrics.purged.is_some()).then_some(())
    })
    .await;
    let before = Arc::clone(&cluster.group(1).state().borrow());

    cluster.kill(1).await;
    cluster.start(1).await;
    cluster.holds(1, 1..=90).await;
    cluster.group(1).read_barrier(PATIENCE).await.expect("it leads again");
    assert_eq!(*cluster.group(1).state().borrow(), before);
    cluster.initialize(1..=1).await;
    cluster.propose(1, 91).await.expect("written after the restart");
    assert_eq!(cluster.group(1).state().borrow().revision(), 91, "no command was applied twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_on_sled_restarts_from_snapshot_and_log() {
    restarts_with_what_it_had(StoreKind::Sled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_on_redb_restarts_from_snapshot_and_log() {
    restarts_with_what_it_had(StoreKind::Redb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_learner_is_sent_a_snapshot_and_can_propose() {
    let cluster = Cluster::open(2, SNAPSHOTS, StoreKind::Sled).await;
    cluster.initialize(1..=1).await;
    for number in 1..=70 {
        cluster.propose(1, number).await.expect("written");
    }
    until("the log's begin is dropped", || async { cluster.metrics(1).purged }).await;
    cluster.group(1).add_learner(node(2), cluster.address(2), PATIENCE).await.expect("added");
    cluster.holds(2, 1..=70).await;
    let learners = BTreeSet::from([node(2)]);
    let metrics = until("the learner has its snapshot and knows that it is one", || async {
        Some(cluster.metrics(2)).filter(|metrics| metrics.snapshot.is_some() && metrics.learners == learners)
    })
    .await;
    assert_eq!(metrics.role, Role::Learner);

    cluster.propose(2, 71).await.expect("a learner proposes");
    assert!(cluster.group(2).state().borrow().nodes().contains_key(&node(71)), "it sees its own write at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_lagged_behind_is_caught_up_by_a_snapshot() {
    let cluster = Cluster::begin(3, SNAPSHOTS).await;
    let leader = cluster.leader().await;
    let lagging = (1..=3).find(|number| *number != leader).expect("a follower");
    cluster.propose(leader, 1).await.expect("written");
    cluster.holds(lagging, 1..=1).await;
    cluster.network.isolate(&node(lagging));
    for number in 2..=80 {
        cluster.propose(leader, number).await.expect("two of three suffice");
    }
    until("the entries that it lacks are dropped", || async {
        cluster.metrics(leader).purged.filter(|purged| *purged > 20)
    })
    .await;
    assert!(!cluster.group(lagging).state().borrow().nodes().contains_key(&node(2)));
    cluster.network.heal_all();
    cluster.holds(lagging, 1..=80).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voter_becomes_three_and_then_survives_losing_the_first() {
    let mut cluster = Cluster::open(3, OPTIONS, StoreKind::Sled).await;
    cluster.initialize(1..=1).await;
    cluster.propose(1, 1).await.expect("written");
    for number in 2..=3 {
        cluster.group(1).add_learner(node(number), cluster.address(number), PATIENCE).await.expect("added");
    }
    cluster.holds(2, 1..=1).await;
    cluster.holds(3, 1..=1).await;
    let voters = BTreeSet::from([node(1), node(2), node(3)]);
    // Asked of a member that doesn't lead.
    cluster.group(2).change_voters(voters.clone(), PATIENCE).await.expect("changed");
    until("all know the voters", || async {
        (1..=3).all(|number| cluster.metrics(number).voters == voters).then_some(())
    })
    .await;

    cluster.kill(1).await;
    assert_ne!(cluster.leader().await, 1);
    cluster.propose(3, 2).await.expect("two of three suffice");

    let left = BTreeSet::from([node(2), node(3)]);
    cluster.group(3).change_voters(left.clone(), PATIENCE).await.expect("the lost one votes no more");
    cluster.group(3).remove_learner(node(1), PATIENCE).await.expect("and is a member no more");
    // Whoever leads now has committed it; the other learns of it with the next entries or heartbeat.
    until("both know that it is gone", || async {
        let gone = |metrics: GroupMetrics| metrics.voters == left && metrics.learners.is_empty();
        (2..=3).all(|number| gone(cluster.metrics(number))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_cut_off_comes_back_without_a_new_term() {
    let cluster = Cluster::begin(3, STEADY).await;
    let leader = cluster.leader().await;
    cluster.propose(leader, 1).await.expect("written");
    let term = cluster.metrics(leader).term;
    let cut = (1..=3).find(|number| *number != leader).expect("a follower");
    cluster.network.isolate(&node(cut));
    // Several election timeouts: without a question before the vote, each would raise its term.
    sleep(Duration::from_millis(5 * STEADY.timing.election_max_ms)).await;
    assert_eq!(cluster.metrics(cut).term, term, "it raised its term alone");
    cluster.network.heal_all();
    cluster.propose(cut, 2).await.expect("it is back");
    assert_eq!(cluster.leader().await, leader);
    assert_eq!((1..=3).map(|number| cluster.metrics(number).term).max(), Some(term));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_cut_off_acknowledges_nothing() {
    let cluster = Cluster::begin(3, OPTIONS).await;
    let first = cluster.leader().await;
    let others: Vec<u32> = (1..=3).filter(|number| *number != first).collect();
    cluster.network.isolate(&node(first));
    let alone = cluster.group(first).propose(command(1), Duration::from_secs(2)).await;
    assert!(matches!(alone, Err(ProposeError::Unknown { .. } | ProposeError::NoLeader { .. })), "{alone:?}");
    let read = cluster.group(first).read_barrier(Duration::from_millis(1500)).await;
    assert!(matches!(read, Err(GroupError::Late { .. })), "{read:?}");

    let second = cluster.leader_among(|member| *member != node(first)).await;
    assert!(others.contains(&second));
    cluster.propose(others[0], 2).await.expect("the majority goes on");
    cluster.network.heal_all();
    cluster.holds(first, 2..=2).await;
    cluster.propose(first, 3).await.expect("it is back");
}

fn sandbox() -> SandboxId {
    SandboxId::new(&"fra".parse().expect("a region"), [3; 16])
}

fn place(at: u32) -> Command {
    let spec = Box::new(SandboxSpec {
        id: sandbox(),
        name: "box".into(),
        organization: OrganizationId("main".into()),
        source: Source::Template { template: "default".parse().expect("a name") },
        shape: Shape::DEFAULT,
        labels: Default::default(),
        env: Default::default(),
        user: "root".into(),
        public: false,
        network: NetworkPolicy::default(),
        intervals: Intervals::default(),
        created_at: UnixMillis(1),
    });
    Command::Place { spec, node: node(at), generation: Generation::FIRST }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_decisions_from_one_generation_the_second_is_refused_as_stale() {
    let cluster = Cluster::begin(3, OPTIONS).await;
    for number in 1..=3 {
        cluster.propose(number, number).await.expect("registered");
    }
    cluster.group(1).propose(place(1), PATIENCE).await.expect("placed");
    let to = |at| Command::Move { id: sandbox(), from: Generation(1), node: node(at), generation: Generation(2) };
    let (one, other) =
        tokio::join!(cluster.group(2).propose(to(2), PATIENCE), cluster.group(3).propose(to(3), PATIENCE));
    let (won, refused) = if one.is_ok() { (2, other) } else { (3, one) };
    let stale = Refusal::Stale { id: sandbox(), given: Generation(1), current: Generation(2) };
    assert_eq!(refused, Err(ProposeError::Refused(stale)));
    cluster.group(1).read_barrier(PATIENCE).await.expect("a read");
    let state = Arc::clone(&cluster.group(1).state().borrow());
    assert_eq!(state.sandboxes().get(&sandbox()).map(|record| record.node.clone()), Some(node(won)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_behind_a_barrier_sees_what_any_member_wrote_before() {
    let cluster = Cluster::begin(3, OPTIONS).await;
    for number in 1..=30 {
        let (writer, reader) = (1 + number % 3, 1 + (number + 1) % 3);
        cluster.propose(writer, number).await.expect("written");
        cluster.group(reader).read_barrier(PATIENCE).await.expect("a read");
        assert!(cluster.group(reader).state().borrow().nodes().contains_key(&node(number)), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_disk_does_not_begin_the_group_anew() {
    let mut cluster = Cluster::begin(3, STEADY).await;
    cluster.propose(1, 1).await.expect("written");
    let leader = cluster.leader().await;
    let lost = (1..=3).find(|number| *number != leader).expect("a follower");
    cluster.kill(lost).await;
    cluster.wipe(lost);
    cluster.start(lost).await;
    cluster.initialize(1..=3).await;
    cluster.holds(lost, 1..=1).await;
    assert_eq!(cluster.leader().await, leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_a_proposal_ends_at_its_deadline() {
    let cluster = Cluster::open(1, OPTIONS, StoreKind::Sled).await;
    until("it is said that nobody leads", || async {
        let begun = tokio::time::Instant::now();
        let refused = cluster.group(1).propose(command(1), Duration::from_millis(300)).await;
        assert!(begun.elapsed() >= Duration::from_millis(300) && begun.elapsed() < Duration::from_secs(5));
        match refused {
            Err(ProposeError::NoLeader { .. }) => Some(()),
            // The last try was cut short by the deadline before this busy member answered it.
            Err(ProposeError::Unknown { .. }) => None,
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_is_handed_over_without_a_gap() {
    let cluster = Cluster::begin(3, OPTIONS).await;
    let first = cluster.leader().await;
    cluster.propose(first, 1).await.expect("written");
    let next = (1..=3).find(|number| *number != first).expect("a follower");
    // Who lacks an entry doesn't take the lead.
    cluster.holds(next, 1..=1).await;
    cluster.group(first).transfer_leader(node(next)).await.expect("asked");
    let asked = Cell::new(first);
    until("the other leads", || async {
        let leader = cluster.leader().await;
        if leader != asked.get() && leader != next {
            // The question came too late, and a third was elected meanwhile.
            asked.set(leader);
            cluster.group(leader).transfer_leader(node(next)).await.expect("asked");
        }
        (leader == next).then_some(())
    })
    .await;
    cluster.propose(first, 2).await.expect("written at the new leader");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_different_machines_share_a_host() {
    let cluster = Cluster::begin(3, OPTIONS).await;
    let mut catalogs = Vec::new();
    for running in cluster.running.values() {
        catalogs.push(running.host.open_group::<Catalog>(GroupName::catalog(), OPTIONS).await.expect("a group"));
    }
    let voters = (1..=3).map(|number| (node(number), cluster.address(number))).collect::<BTreeMap<_, _>>();
    catalogs[0].initialize(voters).await.expect("begun");
    let entry = catalog::Region { name: "Frankfurt".into(), endpoint: "http://127.0.0.1:7080".into() };
    let set = catalog::Command::UpsertRegion { code: node(1).region(), region: entry };
    catalogs[2].propose(set, PATIENCE).await.expect("written");
    cluster.propose(2, 1).await.expect("written");
    assert_eq!(catalogs[2].state().borrow().regions().len(), 1);
    assert_eq!(cluster.group(2).state().borrow().nodes().len(), 1);

    let host = &cluster.running[&node(1)].host;
    let twice = host.open_group::<Catalog>(GroupName::catalog(), OPTIONS).await;
    assert_eq!(twice.err().map(|error| error.to_string()).as_deref(), Some("group catalog is open already"));
    for catalog in catalogs {
        catalog.shutdown().await;
    }
    cluster.propose(3, 2).await.expect("the other group goes on");
}
