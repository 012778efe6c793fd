//! Pulls between nodes in one process, over the in-memory fabric and over the real one.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fabric_quic::{
    Authority, BiStream, Fabric, MemoryFabric, MemoryNetwork, Peer, Protocol, QuicConfig, QuicFabric, read_frame,
    write_frame,
};
use fabric_types::{Digest, NodeId, UnixMillis};
use node_snapshot::{ChunkServer, Fault, PullError, PullProgress, Puller, SnapshotStore};
use support::{Guest, chunk_files, lay_over, open, private_pages};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn id(text: &str) -> NodeId {
    text.parse().expect("a node id")
}

struct Node {
    fabric: Arc<dyn Fabric>,
    peer: Peer,
    store: SnapshotStore,
    server: CancellationToken,
}

impl Node {
    async fn new(network: &MemoryNetwork, name: &str, guest: &Guest) -> Self {
        Self::over(network.join(id(name)), guest).await
    }

    async fn over(fabric: Arc<dyn Fabric>, guest: &Guest) -> Self {
        let name = fabric.node().clone();
        let store = open(&guest.path(name.as_str())).await;
        let server = CancellationToken::new();
        let streams = fabric.accept(Protocol::Chunks).expect("first");
        tokio::spawn(ChunkServer::run(store.clone(), streams, server.clone()));
        let peer = Peer { address: fabric.local_address(), node: Some(name) };
        Self { fabric, peer, store, server }
    }

    fn puller(&self) -> Puller {
        Puller::new(self.store.clone(), Arc::clone(&self.fabric))
    }
}

/// A template and a sandbox of it, stored on a node: the sandbox's manifest and the template's.
async fn store_sandbox(guest: &Guest, node: &Node) -> (Digest, Digest) {
    let template = node.store.ingest_template(guest.template_input()).await.expect("stores").manifest;
    let private = private_pages(guest, 900);
    let input = guest.sandbox_input(template, &private, &guest.template_disk, true);
    (node.store.ingest_sandbox(input).await.expect("stores").manifest, template)
}

/// Checks that a node has everything to resume the sandbox without any file of the origin.
async fn resumes(guest: &Guest, node: &Node, sandbox: Digest, template: Digest, name: &str) {
    let folder = guest.path(&format!("{name}-template"));
    node.store.materialize_folder(template, folder.clone()).await.expect("makes the template");
    let made = node
        .store
        .materialize_sandbox(sandbox, Some(folder.join("disk")), guest.path(&format!("{name}-sandbox")))
        .await
        .expect("makes the sandbox");
    let memory = lay_over(&folder.join("memory"), &made.pages, &made.runs);
    assert!(memory == guest.memory(&private_pages(guest, 900)));
    assert!(fs::read(made.disk).expect("reads") == fs::read(guest.path("stopped/disk")).expect("reads"));
}

fn progress() -> (watch::Sender<PullProgress>, watch::Receiver<PullProgress>) {
    watch::channel(PullProgress::default())
}

#[tokio::test]
async fn a_replica_is_complete_with_its_template_and_a_second_pull_fetches_nothing() {
    let guest = Guest::new(9000, 900);
    let network = MemoryNetwork::new();
    let (fra, iad) = (Node::new(&network, "fra-1", &guest).await, Node::new(&network, "iad-1", &guest).await);
    let (sandbox, template) = store_sandbox(&guest, &fra).await;
    let (sender, seen) = progress();
    let holders = [fra.peer.clone()];
    let stats = iad.puller().pull(sandbox, &holders, &sender).await.expect("pulls");
    assert_eq!(stats.chunks_here, 0);
    assert_eq!(stats.by_holder, vec![stats.chunks_fetched]);
    let seen = *seen.borrow();
    assert_eq!((seen.chunks_here, seen.bytes_here), (seen.chunks, seen.bytes));
    assert_eq!(seen.bytes, stats.bytes_fetched);
    assert_eq!(iad.store.manifests().await.expect("lists"), fra.store.manifests().await.expect("lists"));
    resumes(&guest, &iad, sandbox, template, "iad").await;

    let again = iad.puller().pull(sandbox, &[], &sender).await.expect("needs nobody");
    assert_eq!((again.chunks_fetched, again.chunks_here), (0, stats.chunks_fetched));
    // And the replica is itself a holder.
    let sin = Node::new(&network, "sin-1", &guest).await;
    sin.puller().pull(sandbox, std::slice::from_ref(&iad.peer), &sender).await.expect("pulls from the replica");
}

#[tokio::test]
async fn when_a_holder_dies_in_the_middle_the_second_gives_the_rest() {
    let guest = Guest::new(15_000, 900);
    let network = MemoryNetwork::new();
    let fra = Node::new(&network, "fra-1", &guest).await;
    let iad = Node::new(&network, "iad-1", &guest).await;
    let sin = Node::new(&network, "sin-1", &guest).await;
    let (sandbox, template) = store_sandbox(&guest, &fra).await;
    let (sender, mut seen) = progress();
    sin.puller().pull(sandbox, std::slice::from_ref(&fra.peer), &sender).await.expect("pulls");

    sender.send_replace(PullProgress::default());
    seen.mark_unchanged();
    let kill = async {
        seen.wait_for(|progress| progress.chunks_here >= 10).await.expect("progress");
        fra.server.cancel();
        network.cut(&id("fra-1"), &id("iad-1"));
    };
    let holders = [fra.peer.clone(), sin.peer.clone()];
    let puller = iad.puller();
    let (stats, ()) = tokio::join!(puller.pull(sandbox, &holders, &sender), kill);
    let stats = stats.expect("pulls");
    assert!(stats.by_holder[0] >= 10 && stats.by_holder[1] > 0, "{stats:?}");
    resumes(&guest, &iad, sandbox, template, "iad").await;
}

#[tokio::test]
async fn a_pull_that_is_cut_short_goes_on_where_it_was() {
    let guest = Guest::new(24_000, 900);
    let network = MemoryNetwork::new();
    let (fra, iad) = (Node::new(&network, "fra-1", &guest).await, Node::new(&network, "iad-1", &guest).await);
    let (sandbox, template) = store_sandbox(&guest, &fra).await;
    let (sender, mut seen) = progress();
    let holders = [fra.peer.clone()];
    {
        let puller = iad.puller();
        let pull = puller.pull(sandbox, &holders, &sender);
        tokio::select! {
            done = pull => panic!("done before it was cut short: {done:?}"),
            _ = seen.wait_for(|progress| progress.chunks_here >= 40) => {}
        }
    }
    assert_eq!(iad.store.manifests().await.expect("lists"), vec![], "no manifest before its chunks");
    let stats = iad.puller().pull(sandbox, &holders, &sender).await.expect("pulls");
    assert!(stats.chunks_here >= 32 && stats.chunks_fetched > 0, "{stats:?}");
    resumes(&guest, &iad, sandbox, template, "iad").await;

    // A holder that is gone for good: what came is kept all the same.
    let sin = Node::new(&network, "sin-1", &guest).await;
    let (sender, mut seen) = progress();
    let kill = async {
        seen.wait_for(|progress| progress.chunks_here >= 5).await.expect("progress");
        network.cut(&id("fra-1"), &id("sin-1"));
    };
    let puller = sin.puller();
    let (failed, ()) = tokio::join!(puller.pull(sandbox, &holders, &sender), kill);
    let failed = failed.expect_err("nobody is left");
    assert!(matches!(failed, PullError::Unavailable { what: "chunk", .. }), "{failed}");
    assert!(failed.to_string().contains("fra-1"), "{failed}");
    network.heal(&id("fra-1"), &id("sin-1"));
    let stats = sin.puller().pull(sandbox, &holders, &sender).await.expect("pulls");
    assert!(stats.chunks_here >= 5, "{stats:?}");
}

#[tokio::test]
async fn a_chunk_damaged_at_a_holder_is_not_served_and_comes_from_the_next() {
    let guest = Guest::new(9000, 900);
    let network = MemoryNetwork::new();
    let fra = Node::new(&network, "fra-1", &guest).await;
    let iad = Node::new(&network, "iad-1", &guest).await;
    let sin = Node::new(&network, "sin-1", &guest).await;
    let (sandbox, template) = store_sandbox(&guest, &fra).await;
    let (sender, _seen) = progress();
    sin.puller().pull(sandbox, std::slice::from_ref(&fra.peer), &sender).await.expect("pulls");
    let damaged = &chunk_files(&guest.path("fra-1"))[3];
    File::options().write(true).open(damaged).expect("opens").write_all_at(b"damage", 20).expect("writes");

    let alone = iad.puller().pull(sandbox, std::slice::from_ref(&fra.peer), &sender).await.expect_err("damaged");
    assert!(matches!(alone, PullError::Unavailable { what: "chunk", .. }), "{alone}");
    let stats = iad.puller().pull(sandbox, &[fra.peer.clone(), sin.peer.clone()], &sender).await.expect("pulls");
    assert_eq!(stats.by_holder[1], 1, "{stats:?}");
    resumes(&guest, &iad, sandbox, template, "iad").await;
    // The holder itself is mended by a pull.
    assert_eq!(
        fra.puller().pull(sandbox, std::slice::from_ref(&sin.peer), &sender).await.expect("pulls").chunks_fetched,
        1
    );
    resumes(&guest, &fra, sandbox, template, "fra").await;
}

/// Serves like a node that lies: every request is answered with `answer`'s frames.
fn serve_lies(fabric: &MemoryFabric, answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) {
    let mut streams = fabric.accept(Protocol::Chunks).expect("first");
    tokio::spawn(async move {
        while let Some(BiStream { mut send, mut recv, .. }) = streams.recv().await {
            let Ok(Some(request)) = read_frame(&mut recv, 4096).await else { continue };
            for frame in answer(&request) {
                // The puller may hang up as soon as it has seen through it.
                let _ = write_frame(&mut send, &frame, 2 * 1024 * 1024).await;
            }
            let _ = send.shutdown().await;
        }
    });
}

#[tokio::test]
async fn liars_are_seen_through_and_passed_over() {
    let guest = Guest::new(9000, 900);
    let network = MemoryNetwork::new();
    let (fra, iad) = (Node::new(&network, "fra-1", &guest).await, Node::new(&network, "iad-1", &guest).await);
    let (sandbox, template) = store_sandbox(&guest, &fra).await;
    let manifests = guest.path("fra-1/manifests");
    // The right manifest of whatever is asked for, or `None` if it is chunks that are asked for.
    let right_manifest = move |request: &[u8]| -> Option<Vec<u8>> {
        let json: serde_json::Value = serde_json::from_slice(&request[4..]).expect("a request");
        let bytes = fs::read(manifests.join(json["manifest"].as_str()?)).expect("reads");
        Some([&[0][..], &bytes].concat())
    };
    let liars: Vec<Peer> = [
        // Other bytes for everything; a right manifest and other chunks; garbage; silence; a version of its own.
        Box::new(|_: &[u8]| vec![b"\0other bytes".to_vec(); 16]) as Box<dyn Fn(&[u8]) -> Vec<Vec<u8>> + Send>,
        Box::new(move |request: &[u8]| match right_manifest(request) {
            Some(manifest) => vec![manifest],
            None => vec![b"\0other bytes".to_vec(); 16],
        }),
        Box::new(|_: &[u8]| vec![b"\x99nonsense".to_vec()]),
        Box::new(|_: &[u8]| vec![]),
        Box::new(|_: &[u8]| vec![b"\x03\0\0\0\x07".to_vec()]),
    ]
    .into_iter()
    .enumerate()
    .map(|(number, answer)| {
        let node = id(&format!("sin-{}", number + 1));
        let fabric = network.join(node.clone());
        serve_lies(&fabric, answer);
        Peer { address: fabric.local_address(), node: Some(node) }
    })
    .collect();
    let (sender, _seen) = progress();
    let failed = iad.puller().pull(sandbox, &liars, &sender).await.expect_err("only liars");
    let PullError::Unavailable { what: "chunk", faults, .. } = &failed else { panic!("{failed}") };
    assert!(faults.iter().any(|fault| matches!(fault.fault, Fault::Forged(_))), "{failed}");
    assert!(failed.to_string().contains("it speaks version 7 of the chunk protocol"), "{failed}");
    assert_eq!(chunk_files(&guest.path("iad-1")), Vec::<std::path::PathBuf>::new(), "nothing of it is kept");

    let holders: Vec<Peer> = liars.into_iter().chain([fra.peer.clone()]).collect();
    let stats = iad.puller().pull(sandbox, &holders, &sender).await.expect("pulls");
    assert_eq!(stats.by_holder.last(), Some(&stats.chunks_fetched));
    resumes(&guest, &iad, sandbox, template, "iad").await;
}

#[tokio::test]
async fn an_unknown_manifest_and_nobody_to_ask_are_errors_that_say_so() {
    let guest = Guest::new(30, 10);
    let network = MemoryNetwork::new();
    let (fra, iad) = (Node::new(&network, "fra-1", &guest).await, Node::new(&network, "iad-1", &guest).await);
    let (sender, _seen) = progress();
    let unknown = Digest::from_bytes([5; 32]);
    let error = iad.puller().pull(unknown, std::slice::from_ref(&fra.peer), &sender).await.expect_err("unknown");
    assert!(error.to_string().contains("it doesn't have 0505"), "{error}");
    let error = iad.puller().pull(unknown, &[], &sender).await.expect_err("nobody");
    assert!(error.to_string().ends_with("there is none"), "{error}");
}

#[tokio::test]
async fn a_server_refuses_what_is_no_request() {
    let guest = Guest::new(30, 10);
    let network = MemoryNetwork::new();
    let (fra, iad) = (Node::new(&network, "fra-1", &guest).await, Node::new(&network, "iad-1", &guest).await);
    for (request, status) in [(&b"\0\0\0\x01nonsense"[..], 2), (b"\0\0\0\x09{}", 3), (b"x", 2)] {
        let mut stream = iad.fabric.open(&fra.peer, Protocol::Chunks).await.expect("opens");
        write_frame(&mut stream.send, request, 4096).await.expect("asks");
        stream.send.shutdown().await.expect("ends");
        let reply: Bytes = read_frame(&mut stream.recv, 4096).await.expect("reads").expect("a frame");
        assert_eq!(reply[0], status);
        assert!(read_frame(&mut stream.recv, 4096).await.expect("reads").is_none());
    }
    // A server that is told to stop stops, whatever its streams do.
    let idle = iad.fabric.open(&fra.peer, Protocol::Chunks).await.expect("opens");
    fra.server.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (sender, _seen) = progress();
    let gone = iad.puller().pull(Digest::from_bytes([5; 32]), std::slice::from_ref(&fra.peer), &sender).await;
    assert!(gone.is_err());
    drop(idle);
}

/// The same over real connections: the pull of a template and a sandbox, with a holder whose endpoint closes half way.
#[tokio::test(flavor = "multi_thread")]
async fn over_quic_the_second_holder_gives_what_the_first_could_not() {
    // More chunks than can be in flight at once: what isn't asked for yet when the holder dies, it can't give.
    let guest = Guest::new(40_000, 900);
    let authority = Authority::generate().expect("an authority");
    let mut nodes = Vec::new();
    for name in ["fra-1", "iad-1", "sin-1"] {
        let identity = authority.issue(&id(name), UnixMillis(4_000_000_000_000)).expect("an identity");
        let listen = ([127, 0, 0, 1], 0).into();
        let fabric = QuicFabric::bind(QuicConfig { listen, identity }).expect("binds");
        nodes.push(Node::over(fabric, &guest).await);
    }
    let [fra, iad, sin] = &nodes[..] else { panic!("three nodes") };
    let (sandbox, template) = store_sandbox(&guest, fra).await;
    let (sender, mut seen) = progress();
    let first = sin.puller().pull(sandbox, std::slice::from_ref(&fra.peer), &sender).await.expect("pulls");
    assert_eq!(first.chunks_here, 0);

    sender.send_replace(PullProgress::default());
    let kill = async {
        seen.wait_for(|progress| progress.chunks_here >= 5).await.expect("progress");
        fra.fabric.close().await;
    };
    let (holders, puller) = ([fra.peer.clone(), sin.peer.clone()], iad.puller());
    let (stats, ()) = tokio::join!(puller.pull(sandbox, &holders, &sender), kill);
    let stats = stats.expect("pulls");
    assert!(stats.by_holder[0] >= 5 && stats.by_holder[1] > 0, "{stats:?}");
    resumes(&guest, iad, sandbox, template, "iad").await;
    iad.fabric.close().await;
    sin.fabric.close().await;
}
