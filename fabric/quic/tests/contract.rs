//! What every fabric must do, run against the real one and its double.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fabric_quic::{
    Authority, BiStream, Fabric, FabricError, MESSAGE_BYTES_MAX, MemoryNetwork, NodeIdentity, Peer, Protocol,
    QuicConfig, QuicFabric, STREAM_QUEUE_MAX, call, serve,
};
use fabric_types::{NodeId, UnixMillis};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Anything that takes longer hangs. Generous: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where nodes come from.
#[async_trait::async_trait]
trait Lab: Sync {
    async fn join(&self, id: &str, address: Option<SocketAddr>) -> Arc<dyn Fabric>;
}

struct Memory(MemoryNetwork);

#[async_trait::async_trait]
impl Lab for Memory {
    async fn join(&self, id: &str, _address: Option<SocketAddr>) -> Arc<dyn Fabric> {
        self.0.join(node(id))
    }
}

struct Quic(Authority);

#[async_trait::async_trait]
impl Lab for Quic {
    async fn join(&self, id: &str, address: Option<SocketAddr>) -> Arc<dyn Fabric> {
        let identity = self.0.issue(&node(id), UnixMillis(4_000_000_000_000)).expect("an identity");
        let listen = address.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        bind(listen, &identity).await
    }
}

/// Binds, once the port of a fabric that was closed a moment ago is free.
async fn bind(listen: SocketAddr, identity: &NodeIdentity) -> Arc<QuicFabric> {
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

fn node(id: &str) -> NodeId {
    id.parse().expect("a node id")
}

fn peer(fabric: &Arc<dyn Fabric>) -> Peer {
    Peer { address: fabric.local_address(), node: Some(fabric.node().clone()) }
}

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

async fn next(streams: &mut mpsc::Receiver<BiStream>) -> BiStream {
    soon("a stream", streams.recv()).await.expect("a stream")
}

/// Answers each stream with its own bytes until the fabric closes.
fn echo(mut streams: mpsc::Receiver<BiStream>) {
    tokio::spawn(async move {
        while let Some(mut stream) = streams.recv().await {
            tokio::spawn(async move {
                // A stream that breaks is what some of the tests are about.
                if tokio::io::copy(&mut stream.recv, &mut stream.send).await.is_ok() {
                    drop(stream.send.shutdown().await);
                }
            });
        }
    });
}

async fn exchange(fabric: &Arc<dyn Fabric>, to: &Peer, protocol: Protocol, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let exchange = async {
        let mut stream = fabric.open(to, protocol).await.map_err(|error| error.to_string())?;
        stream.send.write_all(bytes).await.map_err(|error| error.to_string())?;
        stream.send.shutdown().await.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        stream.recv.read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
        Ok(answer)
    };
    soon("an exchange", exchange).await
}

async fn a_stream_carries_bytes_both_ways_and_names_both_ends(lab: &dyn Lab) {
    let (fra, iad) = (lab.join("fra-1", None).await, lab.join("iad-1", None).await);
    let mut streams = iad.accept(Protocol::Relay).expect("first");
    let mut near = soon("opening", fra.open(&peer(&iad), Protocol::Relay)).await.expect("opens");
    assert_eq!(near.peer, node("iad-1"));
    assert_eq!(near.address, iad.local_address());
    near.send.write_all(b"question").await.expect("writes");
    near.send.flush().await.expect("flushes");
    let mut far = next(&mut streams).await;
    assert_eq!(far.peer, node("fra-1"));
    assert_eq!(far.address, fra.local_address());
    let mut question = [0; 8];
    soon("the question", far.recv.read_exact(&mut question)).await.expect("reads");
    assert_eq!(&question, b"question");
    far.send.write_all(b"answer").await.expect("writes");
    far.send.shutdown().await.expect("ends");
    let mut answer = String::new();
    soon("the answer", near.recv.read_to_string(&mut answer)).await.expect("reads to the end");
    assert_eq!(answer, "answer");
}

async fn dropping_the_sending_half_ends_the_stream(lab: &dyn Lab) {
    let (fra, iad) = (lab.join("fra-1", None).await, lab.join("iad-1", None).await);
    let mut streams = iad.accept(Protocol::Relay).expect("first");
    let mut near = soon("opening", fra.open(&peer(&iad), Protocol::Relay)).await.expect("opens");
    near.send.write_all(b"all there is").await.expect("writes");
    drop(near.send);
    let mut far = next(&mut streams).await;
    let mut text = String::new();
    soon("the end", far.recv.read_to_string(&mut text)).await.expect("reads to the end");
    assert_eq!(text, "all there is");
}

async fn megabytes_and_many_streams_at_once_arrive_whole(lab: &dyn Lab) {
    let (fra, iad) = (lab.join("fra-1", None).await, lab.join("iad-1", None).await);
    echo(iad.accept(Protocol::Chunks).expect("first"));
    let to = peer(&iad);
    let large: Vec<u8> = (0..3_000_000_u32).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    // The echo writes while we still write: reading and writing must go on side by side.
    let stream = soon("opening", fra.open(&to, Protocol::Chunks)).await.expect("opens");
    let (mut send, mut recv, sent) = (stream.send, stream.recv, large.clone());
    let writing = tokio::spawn(async move {
        send.write_all(&sent).await.expect("writes");
        send.shutdown().await.expect("ends");
    });
    let mut back = Vec::new();
    soon("the echo", recv.read_to_end(&mut back)).await.expect("reads");
    writing.await.expect("no panic");
    assert!(back == large, "the bytes differ");
    let many = (0..150_u32).map(|number| {
        let (fra, to) = (Arc::clone(&fra), to.clone());
        tokio::spawn(async move { exchange(&fra, &to, Protocol::Chunks, &number.to_be_bytes()).await })
    });
    for (number, answer) in futures::future::join_all(many).await.into_iter().enumerate() {
        let answer = answer.expect("no panic").expect("answered");
        assert_eq!(answer, u32::try_from(number).expect("small").to_be_bytes());
    }
}

async fn protocols_do_not_mix_and_each_is_taken_once(lab: &dyn Lab) {
    let (fra, iad) = (lab.join("fra-1", None).await, lab.join("iad-1", None).await);
    let mut raft = iad.accept(Protocol::Raft).expect("first");
    let mut chunks = iad.accept(Protocol::Chunks).expect("first");
    assert!(matches!(iad.accept(Protocol::Raft), Err(FabricError::State(_))));
    drop(iad.messages().expect("first"));
    assert!(matches!(iad.messages(), Err(FabricError::State(_))));
    for (protocol, queue, word) in [(Protocol::Chunks, &mut chunks, "chunk"), (Protocol::Raft, &mut raft, "vote")] {
        let mut near = soon("opening", fra.open(&peer(&iad), protocol)).await.expect("opens");
        near.send.write_all(word.as_bytes()).await.expect("writes");
        near.send.shutdown().await.expect("ends");
        let mut text = String::new();
        soon("the word", next(queue).await.recv.read_to_string(&mut text)).await.expect("reads");
        assert_eq!(text, word);
    }
}

async fn a_node_reaches_itself(lab: &dyn Lab) {
    let fra = lab.join("fra-1", None).await;
    echo(fra.accept(Protocol::NodeApi).expect("first"));
    let answer = exchange(&fra, &peer(&fra), Protocol::NodeApi, b"me").await;
    assert_eq!(answer.as_deref(), Ok(&b"me"[..]));
}

async fn another_node_than_expected_is_named(lab: &dyn Lab) {
    let (fra, iad) = (lab.join("fra-1", None).await, lab.join("iad-1", None).await);
    let wrong = Peer { address: iad.local_address(), node: Some(node("sin-1")) };
    let error = soon("opening", fra.open(&wrong, Protocol::NodeApi)).await.err().expect("refused");
    let sentence = format!("at {} answers iad-1, not sin-1", iad.local_address());
    assert_eq!(error.to_string(), sentence);
    let any = Peer { address: iad.local_address(), node: None };
    assert_eq!(soon("opening", fra.open(&any, Protocol::NodeApi)).await.expect("any will do").peer, node("iad-1"));
}

async fn an_address_where_nothing_listens_is_unreachable_in_bounded_time(lab: &dyn Lab) {
    let (fra, gone) = (lab.join("fra-1", None).await, lab.join("iad-1", None).await);
    let to = peer(&gone);
    gone.close().await;
    drop(gone);
    let begun = Instant::now();
    let error = soon("opening", fra.open(&to, Protocol::Raft)).await.err().expect("nobody there");
    assert!(matches!(error, FabricError::Unreachable { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    assert_eq!(fra.rtt(&to), None);
}

async fn a_full_queue_refuses_the_stream(lab: &dyn Lab) {
    let (fra, iad) = (lab.join("fra-1", None).await, lab.join("iad-1", None).await);
    let to = peer(&iad);
    let mut held = Vec::new();
    for _ in 0..STREAM_QUEUE_MAX {
        let mut stream = soon("opening", fra.open(&to, Protocol::Relay)).await.expect("opens");
        stream.send.write_all(b"?").await.expect("writes");
        held.push(stream);
    }
    let over = exchange(&fra, &to, Protocol::Relay, b"one too many").await;
    assert!(over.is_err(), "{over:?}");
    // What was queued is whole, and there is room again once it is taken.
    let mut streams = iad.accept(Protocol::Relay).expect("first");
    for _ in 0..STREAM_QUEUE_MAX {
        let mut mark = [0];
        soon("the mark", next(&mut streams).await.recv.read_exact(&mut mark)).await.expect("reads");
    }
    echo(streams);
    let again = exchange(&fra, &to, Protocol::Relay, b"room").await;
    assert_eq!(again.as_deref(), Ok(&b"room"[..]));
}

async fn messages_arrive_small_and_large_with_their_sender(lab: &dyn Lab) {
    let (fra, iad) = (lab.join("fra-1", None).await, lab.join("iad-1", None).await);
    let (mut to_fra, mut to_iad) = (fra.messages().expect("first"), iad.messages().expect("first"));
    for bytes in [1, 900, 1_300, 1_500, 20_000, MESSAGE_BYTES_MAX] {
        let body = Bytes::from(vec![u8::try_from(bytes % 251).expect("a byte"); bytes]);
        // A message may be lost, so it is said again.
        let mut received = None;
        for _ in 0..40 {
            fra.send_message(iad.local_address(), body.clone()).expect("queued");
            let wait = timeout(Duration::from_millis(500), async {
                loop {
                    let message = to_iad.recv().await.expect("open");
                    if message.bytes.len() == bytes {
                        return message;
                    }
                }
            });
            if let Ok(message) = wait.await {
                received = Some(message);
                break;
            }
        }
        let message = received.unwrap_or_else(|| panic!("a message of {bytes} bytes never came"));
        assert_eq!(message.from, fra.local_address());
        assert_eq!(message.bytes, body);
        // The answer goes to where the message came from.
        iad.send_message(message.from, Bytes::from_static(b"thanks")).expect("queued");
    }
    let thanks = soon("thanks", to_fra.recv()).await.expect("open");
    assert_eq!((thanks.from, &thanks.bytes[..]), (iad.local_address(), &b"thanks"[..]));
    assert!(fra.rtt(&peer(&iad)).is_some());
}

async fn sending_messages_never_waits_and_never_fails_for_a_peer_that_is_not_there(lab: &dyn Lab) {
    let fra = lab.join("fra-1", None).await;
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let begun = Instant::now();
    for _ in 0..5_000 {
        fra.send_message(nowhere, Bytes::from_static(b"anyone?")).expect("dropped, not refused");
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let error = fra.send_message(nowhere, Bytes::from(vec![0; MESSAGE_BYTES_MAX + 1])).expect_err("too large");
    assert!(matches!(error, FabricError::TooLarge { .. }), "{error}");
}

async fn calls_are_answered_by_name_and_bounded_in_time(lab: &dyn Lab) {
    let (fra, iad) = (lab.join("fra-1", None).await, lab.join("iad-1", None).await);
    let shutdown = CancellationToken::new();
    let server = {
        let (iad, shutdown) = (Arc::clone(&iad), shutdown.clone());
        tokio::spawn(async move {
            serve(&*iad, Protocol::NodeApi, 8, shutdown, |caller: NodeId, wait_ms: u64| async move {
                sleep(Duration::from_millis(wait_ms)).await;
                format!("{caller} waited {wait_ms}")
            })
            .await
        })
    };
    let to = peer(&iad);
    let answer = call::<_, String>(&*fra, &to, Protocol::NodeApi, &1_u64, PATIENCE).await.expect("answered");
    assert_eq!(answer, "fra-1 waited 1");
    let late = call::<_, String>(&*fra, &to, Protocol::NodeApi, &60_000_u64, Duration::from_millis(300)).await;
    let late = late.expect_err("too late");
    assert_eq!(late.to_string(), format!("no answer from iad-1 at {} in 300 ms", to.address));
    // A late answer takes the connection with it at most, never the next call.
    let again = call::<_, String>(&*fra, &to, Protocol::NodeApi, &2_u64, PATIENCE).await.expect("answered");
    assert_eq!(again, "fra-1 waited 2");
    let malformed = call::<_, String>(&*fra, &to, Protocol::NodeApi, "no number", PATIENCE).await;
    let malformed = malformed.expect_err("refused");
    assert!(matches!(malformed, FabricError::Malformed { .. }), "{malformed}");
    let other_answer = call::<_, u64>(&*fra, &to, Protocol::NodeApi, &1_u64, PATIENCE).await;
    assert!(matches!(other_answer, Err(FabricError::Malformed { .. })), "{other_answer:?}");
    shutdown.cancel();
    // The call that sleeps for a minute still counts as begun; the server waits for it, this test doesn't.
    server.abort();
}

async fn a_closed_peer_breaks_its_streams_and_is_found_again_at_the_same_address(lab: &dyn Lab) {
    let (fra, iad) = (lab.join("fra-1", None).await, lab.join("iad-1", None).await);
    let to = peer(&iad);
    let mut streams = iad.accept(Protocol::Raft).expect("first");
    let mut near = soon("opening", fra.open(&to, Protocol::Raft)).await.expect("opens");
    near.send.write_all(b"?").await.expect("writes");
    let far = next(&mut streams).await;
    iad.close().await;
    drop((far, streams, iad));
    let mut rest = Vec::new();
    let broken = soon("the break", near.recv.read_to_end(&mut rest)).await;
    assert!(broken.is_err(), "{broken:?}");
    let iad = lab.join("iad-1", Some(to.address)).await;
    assert_eq!(iad.local_address(), to.address);
    echo(iad.accept(Protocol::Raft).expect("first"));
    let mut answer = Err(String::new());
    for _ in 0..20 {
        answer = exchange(&fra, &to, Protocol::Raft, b"again").await;
        if answer.is_ok() {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(answer.as_deref(), Ok(&b"again"[..]));
}

macro_rules! contract {
    // One suite, two implementations: the list of tests stands once.
    ($($test:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(&super::Memory(super::MemoryNetwork::new())).await;
            })*
        }
        mod quic {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(&super::Quic(super::Authority::generate().expect("an authority"))).await;
            })*
        }
    };
}

contract! {
    a_stream_carries_bytes_both_ways_and_names_both_ends
    dropping_the_sending_half_ends_the_stream
    megabytes_and_many_streams_at_once_arrive_whole
    protocols_do_not_mix_and_each_is_taken_once
    a_node_reaches_itself
    another_node_than_expected_is_named
    an_address_where_nothing_listens_is_unreachable_in_bounded_time
    a_full_queue_refuses_the_stream
    messages_arrive_small_and_large_with_their_sender
    sending_messages_never_waits_and_never_fails_for_a_peer_that_is_not_there
    calls_are_answered_by_name_and_bounded_in_time
    a_closed_peer_breaks_its_streams_and_is_found_again_at_the_same_address
}
