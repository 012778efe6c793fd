//! Meshes of several nodes in one process: over the in-memory double, where links break on command, and over real QUIC.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fabric_gossip::{ClusterView, Gossip, GossipConfig, GossipError, GossipHandle, NodeReport, PoolReport};
use fabric_quic::{Authority, Fabric, FabricError, MemoryNetwork, NodeIdentity, QuicConfig, QuicFabric};
use fabric_types::{
    Accelerator, Capacity, Fit, GuestNetwork, HypervisorKind, Isolation, NodeId, NodeLimits, Overcommit, Shape,
    UnixMillis,
};
use tokio::time::{Instant, sleep, timeout};

/// Whatever takes longer will not happen. Generous: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(40);
const INTERVAL: Duration = Duration::from_millis(100);

struct Member {
    fabric: Arc<dyn Fabric>,
    gossip: GossipHandle,
}

fn node(id: &str) -> NodeId {
    id.parse().expect("a node id")
}

fn issue(mesh: &Authority, id: &str) -> NodeIdentity {
    mesh.issue(&node(id), UnixMillis(4_000_000_000_000)).expect("an identity")
}

fn report(fabric: &Arc<dyn Fabric>, sandboxes: u32, pools: u32) -> NodeReport {
    let (hypervisor, accelerator) = (HypervisorKind::Qemu, Accelerator::Tcg);
    let pool = |number: u32| PoolReport {
        template: format!("template-{number}").parse().expect("a name"),
        shape: Shape::DEFAULT,
        warm: number,
        target: number,
    };
    NodeReport {
        node: fabric.node().clone(),
        region: fabric.node().region(),
        fabric_address: fabric.local_address(),
        http_endpoint: format!("http://{}", fabric.local_address().ip()),
        limits: NodeLimits {
            physical: Capacity { vcpus: 2, memory_mib: 8192, disk_gib: 50 },
            overcommit: Overcommit::default(),
            sandboxes: None,
        },
        reserved: Capacity::default(),
        sandboxes,
        pools: (0..pools).map(pool).collect(),
        fit: Fit {
            hypervisor,
            version: "7.2".into(),
            machine: "pc-q35-7.2".into(),
            accelerator,
            cpu_model: "max".into(),
            cpu_features: Vec::new(),
        },
        isolation: Isolation {
            hypervisor,
            accelerator,
            reason: "asked for".into(),
            guest_address_randomization: false,
            network: GuestNetwork::None,
            seal: fabric_types::Seal::default(),
        },
        hypervisor,
        version: "0.1.0".into(),
        protocols: Vec::new(),
        leads: Vec::new(),
        votes: Vec::new(),
        draining: false,
        started_at: UnixMillis(1),
    }
}

async fn join(fabric: Arc<dyn Fabric>, identity: NodeIdentity, incarnation: u64, seeds: &[SocketAddr]) -> Member {
    let config = GossipConfig { interval: INTERVAL, seeds: seeds.to_vec(), incarnation };
    let gossip = Gossip::start(config, Arc::clone(&fabric), identity).await.expect("starts");
    gossip.publish(report(&fabric, 0, 1));
    Member { fabric, gossip }
}

/// Binds, once the port of a fabric that was closed a moment ago is free.
async fn quic(identity: &NodeIdentity, listen: Option<SocketAddr>) -> Arc<dyn Fabric> {
    let listen = listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let binding = async {
        loop {
            match QuicFabric::bind(QuicConfig { listen, identity: identity.clone() }) {
                Ok(fabric) => return fabric,
                Err(FabricError::Bind { .. }) => sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(PATIENCE, binding).await.expect("the port becomes free")
}

async fn sees(member: &Member, what: &str, holds: impl Fn(&ClusterView) -> bool) {
    let mut view = member.gossip.view();
    let found = timeout(PATIENCE, view.wait_for(|view| holds(view))).await;
    if found.is_err() {
        let shown = member.gossip.view().borrow().clone();
        panic!("{} never sees {what}; it sees {shown:#?}", member.fabric.node());
    }
}

fn live_ids(view: &ClusterView) -> Vec<String> {
    view.live_nodes().map(|view| view.report.node.to_string()).collect()
}

async fn all_see_all(members: &[&Member]) {
    let mut ids: Vec<String> = members.iter().map(|member| member.fabric.node().to_string()).collect();
    ids.sort();
    for member in members {
        sees(member, "everyone", |view| live_ids(view) == ids).await;
    }
}

const FIVE: [&str; 5] = ["fra-1", "fra-2", "iad-1", "sin-1", "sin-2"];

/// Five nodes over memory, the first of them everyone's seed.
async fn five_in_memory(network: &MemoryNetwork, mesh: &Authority) -> Vec<Member> {
    let mut members: Vec<Member> = Vec::new();
    for id in FIVE {
        let seeds: Vec<SocketAddr> = members.iter().take(1).map(|seed| seed.fabric.local_address()).collect();
        members.push(join(network.join(node(id)), issue(mesh, id), 1, &seeds).await);
    }
    all_see_all(&members.iter().collect::<Vec<_>>()).await;
    members
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_find_each_other_and_changes_reach_all() {
    let (network, mesh) = (MemoryNetwork::new(), Authority::generate().expect("an authority"));
    let members = five_in_memory(&network, &mesh).await;
    let mut changed = report(&members[3].fabric, 7, 2);
    changed.draining = true;
    changed.leads = vec!["placement-sin".into()];
    members[3].gossip.publish(changed.clone());
    for member in &members {
        // All in one view: a node that was silent for a moment is shown as dead in the next.
        sees(member, "the change", |view| {
            view.live(&node("sin-1")) == Some(&changed)
                && view.leader("placement-sin") == Some(&changed)
                && view.live_in(&"fra".parse().expect("a code")).count() == 2
                && view.regions().len() == 3
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_noticed_and_a_restart_at_its_address_is_seen_again() {
    let (network, mesh) = (MemoryNetwork::new(), Authority::generate().expect("an authority"));
    let mut members = five_in_memory(&network, &mesh).await;
    let dead = members.pop().expect("five");
    let id = dead.fabric.node().clone();
    network.leave(&id);
    let begun = Instant::now();
    for member in &members {
        sees(member, "the death", |view| view.node(&id).is_some_and(|view| !view.live)).await;
    }
    println!("noticed by all after {:?} at an interval of {INTERVAL:?}", begun.elapsed());
    drop(dead);
    let seeds = [members[1].fabric.local_address()];
    let again = join(network.join(id.clone()), issue(&mesh, id.as_str()), 2, &seeds).await;
    for member in members.iter().chain([&again]) {
        sees(member, "the restart", |view| view.node(&id).is_some_and(|view| view.live && view.incarnation == 2)).await;
    }
    all_see_all(&members.iter().chain([&again]).collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_is_cut_off_sees_itself_and_comes_back_when_the_links_heal() {
    let (network, mesh) = (MemoryNetwork::new(), Authority::generate().expect("an authority"));
    let members = five_in_memory(&network, &mesh).await;
    for far in ["fra-1", "fra-2", "iad-1"] {
        for near in ["sin-1", "sin-2"] {
            network.cut(&node(far), &node(near));
        }
    }
    sees(&members[0], "the rest", |view| live_ids(view) == ["fra-1", "fra-2", "iad-1"]).await;
    sees(&members[4], "its region", |view| live_ids(view) == ["sin-1", "sin-2"]).await;
    // What happens on one side meanwhile is learned by the other afterwards.
    members[0].gossip.publish(report(&members[0].fabric, 9, 1));
    network.heal_all();
    all_see_all(&members.iter().collect::<Vec<_>>()).await;
    sees(&members[4], "what it missed", |view| view.live(&node("fra-1")).is_some_and(|report| report.sandboxes == 9))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_quic_nodes_find_each_other_measure_their_distance_and_notice_a_death() {
    let mesh = Authority::generate().expect("an authority");
    let mut members: Vec<Member> = Vec::new();
    let mut begun = Instant::now();
    for id in ["fra-1", "iad-1", "sin-1"] {
        let identity = issue(&mesh, id);
        let seeds: Vec<SocketAddr> = members.iter().map(|seed| seed.fabric.local_address()).collect();
        members.push(join(quic(&identity, None).await, identity, 1, &seeds).await);
    }
    all_see_all(&members.iter().collect::<Vec<_>>()).await;
    println!("converged after {:?}", begun.elapsed());
    sees(&members[0], "round trips", |view| view.nodes.values().all(|view| view.rtt_ms.is_some())).await;

    let dead = members.pop().expect("three");
    let (id, address) = (dead.fabric.node().clone(), dead.fabric.local_address());
    dead.gossip.shutdown().await;
    dead.fabric.close().await;
    drop(dead);
    begun = Instant::now();
    for member in &members {
        sees(member, "the death", |view| view.live(&id).is_none()).await;
    }
    println!("noticed by all after {:?} at an interval of {INTERVAL:?}", begun.elapsed());

    let identity = issue(&mesh, id.as_str());
    begun = Instant::now();
    let again = join(quic(&identity, Some(address)).await, identity, 2, &[members[0].fabric.local_address()]).await;
    all_see_all(&members.iter().chain([&again]).collect::<Vec<_>>()).await;
    println!("seen again after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_larger_than_a_packet_arrive_over_quic() {
    let mesh = Authority::generate().expect("an authority");
    let mut members: Vec<Member> = Vec::new();
    for id in ["fra-1", "iad-1", "sin-1", "sin-2"] {
        let identity = issue(&mesh, id);
        let seeds: Vec<SocketAddr> = members.iter().take(1).map(|seed| seed.fabric.local_address()).collect();
        members.push(join(quic(&identity, None).await, identity, 1, &seeds).await);
        let newest = members.last().expect("just pushed");
        newest.gossip.publish(report(&newest.fabric, 1, 60));
    }
    for member in &members {
        sees(member, "every pool of everyone", |view| {
            view.nodes.len() == 4 && view.live_nodes().all(|view| view.report.pools.len() == 60)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_mesh_sees_nobody_and_nobody_sees_it() {
    let (mesh, other) = (Authority::generate().expect("an authority"), Authority::generate().expect("another"));
    let (ours, second, foreign) = (issue(&mesh, "fra-1"), issue(&mesh, "iad-1"), issue(&other, "sin-1"));
    let fra = join(quic(&ours, None).await, ours, 1, &[]).await;
    let seeds = [fra.fabric.local_address()];
    let stranger = join(quic(&foreign, None).await, foreign, 1, &seeds).await;
    let iad = join(quic(&second, None).await, second, 1, &seeds).await;
    all_see_all(&[&fra, &iad]).await;
    sees(&stranger, "itself", |view| live_ids(view) == ["sin-1"]).await;
    // A few rounds more than the others needed.
    sleep(10 * INTERVAL).await;
    assert_eq!(live_ids(&stranger.gossip.view().borrow()), ["sin-1"]);
    assert_eq!(fra.gossip.view().borrow().nodes.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_signs_with_another_key_is_not_shown() {
    // The double checks no certificates: the impostor gets as far as gossip, as a member gone bad would.
    let (network, mesh) = (MemoryNetwork::new(), Authority::generate().expect("an authority"));
    let (fra, iad) = (network.join(node("fra-1")), network.join(node("iad-1")));
    let seeds = [fra.local_address()];
    let fra = join(fra, issue(&mesh, "fra-1"), 1, &[]).await;
    let other = Authority::generate().expect("another");
    let _impostor = join(iad, issue(&other, "iad-1"), 1, &seeds).await;
    let honest = join(network.join(node("sin-1")), issue(&mesh, "sin-1"), 1, &seeds).await;
    all_see_all(&[&fra, &honest]).await;
    sleep(10 * INTERVAL).await;
    assert_eq!(fra.gossip.view().borrow().nodes.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_starts_once_per_fabric_and_ends_on_request_or_with_its_last_handle() {
    let (network, mesh) = (MemoryNetwork::new(), Authority::generate().expect("an authority"));
    let fabric: Arc<dyn Fabric> = network.join(node("fra-1"));
    let member = join(Arc::clone(&fabric), issue(&mesh, "fra-1"), 1, &[]).await;
    sees(&member, "itself", |view| live_ids(view) == ["fra-1"]).await;
    let config = GossipConfig { interval: INTERVAL, seeds: Vec::new(), incarnation: 2 };
    let second = Gossip::start(config, fabric, issue(&mesh, "fra-1")).await.err().expect("taken");
    assert!(matches!(second, GossipError::Messages(_)), "{second}");
    timeout(PATIENCE, member.gossip.shutdown()).await.expect("ends");
    assert!(member.gossip.ended().await.is_ok());

    let Member { gossip, .. } = join(network.join(node("iad-1")), issue(&mesh, "iad-1"), 1, &[]).await;
    let mut view = gossip.view();
    let clone = gossip.clone();
    drop(gossip);
    assert!(view.has_changed().is_ok(), "a clone keeps it going");
    drop(clone);
    let closes = async { while view.changed().await.is_ok() {} };
    timeout(PATIENCE, closes).await.expect("ends with the last handle");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_says_when_its_fabric_is_gone() {
    let (network, mesh) = (MemoryNetwork::new(), Authority::generate().expect("an authority"));
    let lost = join(network.join(node("iad-1")), issue(&mesh, "iad-1"), 1, &[]).await;
    network.leave(&node("iad-1"));
    let ended = timeout(PATIENCE, lost.gossip.ended()).await.expect("ends");
    assert!(matches!(ended, Err(GossipError::Ended(_))), "{ended:?}");
}
