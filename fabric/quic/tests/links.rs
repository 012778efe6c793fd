//! The in-memory double: links that are cut, healed and delayed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fabric_quic::{Fabric, FabricError, MemoryFabric, MemoryNetwork, Peer, Protocol};
use fabric_types::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(10);

fn node(id: &str) -> NodeId {
    id.parse().expect("a node id")
}

fn peer(fabric: &MemoryFabric) -> Peer {
    Peer { address: fabric.local_address(), node: Some(fabric.node().clone()) }
}

fn three() -> (MemoryNetwork, [Arc<MemoryFabric>; 3]) {
    let network = MemoryNetwork::new();
    let nodes = ["fra-1", "iad-1", "sin-1"].map(|id| network.join(node(id)));
    (network, nodes)
}

#[tokio::test]
async fn a_cut_breaks_open_streams_on_both_sides_and_refuses_new_ones() {
    let (network, [fra, iad, sin]) = three();
    let mut streams = iad.accept(Protocol::Raft).expect("first");
    let mut near = fra.open(&peer(&iad), Protocol::Raft).await.expect("opens");
    let mut far = streams.recv().await.expect("a stream");
    network.cut(fra.node(), iad.node());
    let mut byte = [0];
    assert!(near.recv.read(&mut byte).await.is_err());
    assert!(far.recv.read(&mut byte).await.is_err());
    assert!(near.send.write(&byte).await.is_err());
    assert!(matches!(fra.open(&peer(&iad), Protocol::Raft).await, Err(FabricError::Unreachable { .. })));
    assert_eq!(fra.rtt(&peer(&iad)), None);
    assert!(fra.open(&peer(&sin), Protocol::Raft).await.is_ok(), "the other link is whole");
    network.heal(fra.node(), iad.node());
    assert!(fra.open(&peer(&iad), Protocol::Raft).await.is_ok());
    assert!(near.recv.read(&mut byte).await.is_err(), "what broke stays broken");
}

#[tokio::test]
async fn a_reader_that_waits_is_woken_by_the_cut() {
    let (network, [fra, iad, _]) = three();
    let mut near = fra.open(&peer(&iad), Protocol::Raft).await.expect("opens");
    let waiting = tokio::spawn(async move { near.recv.read_u8().await });
    tokio::task::yield_now().await;
    network.cut(iad.node(), fra.node());
    assert!(timeout(PATIENCE, waiting).await.expect("woken").expect("no panic").is_err());
}

#[tokio::test]
async fn an_isolated_node_reaches_itself_and_nobody_else() {
    let (network, [fra, iad, sin]) = three();
    network.isolate(fra.node());
    for other in [&iad, &sin] {
        assert!(fra.open(&peer(other), Protocol::Raft).await.is_err());
        assert!(other.open(&peer(&fra), Protocol::Raft).await.is_err());
    }
    assert!(fra.open(&peer(&fra), Protocol::Raft).await.is_ok());
    assert!(iad.open(&peer(&sin), Protocol::Raft).await.is_ok());
    network.heal_all();
    assert!(fra.open(&peer(&iad), Protocol::Raft).await.is_ok());
}

#[tokio::test]
async fn a_node_that_crashed_comes_back_at_its_address_and_its_old_self_is_dead() {
    let (network, [fra, iad, _]) = three();
    let mut near = fra.open(&peer(&iad), Protocol::Raft).await.expect("opens");
    network.leave(iad.node());
    assert!(near.recv.read_u8().await.is_err());
    assert!(fra.open(&peer(&iad), Protocol::Raft).await.is_err());
    let again = network.join(iad.node().clone());
    assert_eq!(again.local_address(), iad.local_address());
    assert!(fra.open(&peer(&again), Protocol::Raft).await.is_ok());
    assert!(iad.open(&peer(&fra), Protocol::Raft).await.is_err(), "the process is gone");
    iad.close().await;
    assert!(fra.open(&peer(&again), Protocol::Raft).await.is_ok(), "its close doesn't touch its successor");
}

#[tokio::test]
async fn a_delayed_link_delays_bytes_ends_and_messages() {
    let (network, [fra, iad, _]) = three();
    let delay = Duration::from_millis(80);
    network.delay(fra.node(), iad.node(), delay);
    assert_eq!(fra.rtt(&peer(&iad)), Some(2 * delay));
    let (mut streams, mut messages) = (iad.accept(Protocol::Raft).expect("first"), iad.messages().expect("first"));
    let begun = Instant::now();
    let mut near = fra.open(&peer(&iad), Protocol::Raft).await.expect("opens");
    near.send.write_all(b"late").await.expect("writes");
    near.send.shutdown().await.expect("ends");
    let mut text = String::new();
    streams.recv().await.expect("a stream").recv.read_to_string(&mut text).await.expect("reads");
    assert_eq!(text, "late");
    assert!(begun.elapsed() >= delay, "{:?}", begun.elapsed());
    let begun = Instant::now();
    fra.send_message(iad.local_address(), Bytes::from_static(b"late")).expect("sent");
    messages.recv().await.expect("a message");
    assert!(begun.elapsed() >= delay, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn messages_over_a_cut_are_lost_without_a_word() {
    let (network, [fra, iad, _]) = three();
    let mut messages = iad.messages().expect("first");
    network.cut(fra.node(), iad.node());
    fra.send_message(iad.local_address(), Bytes::from_static(b"lost")).expect("no error");
    network.heal(fra.node(), iad.node());
    fra.send_message(iad.local_address(), Bytes::from_static(b"heard")).expect("sent");
    assert_eq!(&messages.recv().await.expect("a message").bytes[..], b"heard");
}
