//! A peer that is killed, not closed: its connections end without a word, and it comes back at the same address.

use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fabric_quic::{Authority, Fabric, FabricError, NodeIdentity, Peer, Protocol, QuicConfig, QuicFabric, call, serve};
use fabric_types::{NodeId, UnixMillis};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

const TEST: &str = "a_killed_peer_is_noticed_and_reached_again_once_it_is_back";
/// Names the folder of the process that is killed; it is this test binary once more, in another part.
const PART: &str = "ATOLL_TEST_FABRIC_FOLDER";
const PORT_FILE: &str = "port";
const PATIENCE: Duration = Duration::from_secs(30);

fn node(id: &str) -> NodeId {
    id.parse().expect("a node id")
}

/// The part of the peer: answers calls of two protocols until it is killed.
async fn be_the_peer(folder: &Path) {
    let identity = NodeIdentity::load(folder).expect("an identity");
    let port = std::fs::read_to_string(folder.join(PORT_FILE)).map_or(0, |port| port.parse().expect("a port"));
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let fabric = bind(listen, &identity).await;
    let pid = std::process::id();
    let answer = move |_: NodeId, (): ()| async move { pid };
    let never = CancellationToken::new();
    let raft = serve(&*fabric, Protocol::Raft, 8, never.clone(), answer);
    let node_api = serve(&*fabric, Protocol::NodeApi, 8, never.clone(), answer);
    let temporary = folder.join("port.tmp");
    std::fs::write(&temporary, fabric.local_address().port().to_string()).expect("writes");
    std::fs::rename(&temporary, folder.join(PORT_FILE)).expect("renames");
    let (raft, node_api) = tokio::join!(raft, node_api);
    raft.and(node_api).expect("serves");
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

/// Kills the process when the test ends, however it ends.
struct Peering(Child);

impl Drop for Peering {
    fn drop(&mut self) {
        // It may be dead already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(folder: &Path) -> Peering {
    let child = Command::new(env::current_exe().expect("this binary"))
        .args(["--exact", TEST, "--nocapture"])
        .env(PART, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("starts");
    Peering(child)
}

async fn call_peer(fabric: &QuicFabric, peer: &Peer, protocol: Protocol) -> Result<u32, String> {
    call(fabric, peer, protocol, &(), Duration::from_secs(1)).await.map_err(|error| error.to_string())
}

async fn call_until_answered(fabric: &QuicFabric, peer: &Peer, protocol: Protocol) -> u32 {
    let calling = async {
        loop {
            match call_peer(fabric, peer, protocol).await {
                Ok(pid) => return pid,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(PATIENCE, calling).await.expect("answers in the end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_peer_is_noticed_and_reached_again_once_it_is_back() {
    if let Some(folder) = env::var_os(PART).map(PathBuf::from) {
        return be_the_peer(&folder).await;
    }
    let mesh = Authority::generate().expect("an authority");
    let folder = tempfile::tempdir().expect("a folder");
    let forever = UnixMillis(4_000_000_000_000);
    mesh.issue(&node("iad-1"), forever).expect("an identity").save(folder.path()).expect("writes");
    let identity = mesh.issue(&node("fra-1"), forever).expect("an identity");
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let fabric: Arc<QuicFabric> = QuicFabric::bind(QuicConfig { listen, identity }).expect("binds");

    let mut first = start(folder.path());
    let port_file = folder.path().join(PORT_FILE);
    let appears = async {
        while !port_file.exists() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, appears).await.expect("the peer starts");
    let port: u16 = std::fs::read_to_string(&port_file).expect("reads").parse().expect("a port");
    let peer = Peer { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), node: Some(node("iad-1")) };
    for protocol in [Protocol::Raft, Protocol::NodeApi] {
        assert_eq!(call_until_answered(&fabric, &peer, protocol).await, first.0.id());
    }
    let mut held = fabric.open(&peer, Protocol::Raft).await.expect("opens");
    held.send.write_all(&[0]).await.expect("writes");

    first.0.kill().expect("killed");
    first.0.wait().expect("reaped");
    // Nobody listens now: a call ends at its deadline and no later.
    let begun = Instant::now();
    assert!(call_peer(&fabric, &peer, Protocol::Raft).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());

    let written = || std::fs::metadata(&port_file).and_then(|file| file.modified()).expect("a time");
    let before = written();
    let second = start(folder.path());
    let listens = async {
        while written() == before {
            sleep(Duration::from_millis(20)).await;
        }
        Instant::now()
    };
    let answers = async {
        assert_eq!(call_until_answered(&fabric, &peer, Protocol::NodeApi).await, second.0.id());
        assert_eq!(call_until_answered(&fabric, &peer, Protocol::Raft).await, second.0.id());
        Instant::now()
    };
    let (listened, answered) = tokio::join!(timeout(PATIENCE, listens), answers);
    // What a busy machine needs to start the process is not the fabric's.
    let again = answered.saturating_duration_since(listened.expect("the peer starts again"));
    assert!(again < Duration::from_secs(10), "{again:?}");
    let mut rest = Vec::new();
    let broken = timeout(PATIENCE, held.recv.read_to_end(&mut rest)).await.expect("the old stream ends");
    assert!(broken.is_err(), "{broken:?}");
    println!("reached again {again:?} after the peer began to listen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_asked_for_before_its_peer_listens_opens_soon_after_it_does() {
    let mesh = Authority::generate().expect("an authority");
    let forever = UnixMillis(4_000_000_000_000);
    let (fra, iad) = (mesh.issue(&node("fra-1"), forever), mesh.issue(&node("iad-1"), forever));
    let (fra, iad) = (fra.expect("an identity"), iad.expect("an identity"));
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let before = QuicFabric::bind(QuicConfig { listen: anywhere, identity: iad.clone() }).expect("binds");
    let address = before.local_address();
    before.close().await;
    drop(before);
    let peer = Peer { address, node: Some(node("iad-1")) };
    let opened = loop {
        let fabric = bind(anywhere, &fra).await;
        let asked = Instant::now();
        let opening = {
            let (fabric, peer) = (Arc::clone(&fabric), peer.clone());
            tokio::spawn(async move { fabric.open(&peer, Protocol::NodeApi).await.map(|stream| stream.peer) })
        };
        // By now the first attempt repeats its packet only once in a second and more.
        sleep(Duration::from_millis(1_300)).await;
        let begun = Instant::now();
        let after = bind(address, &iad).await;
        let in_time = asked.elapsed() < Duration::from_secs(2);
        let opened = timeout(PATIENCE, opening).await.expect("in time").expect("no panic");
        if opened.is_ok() || in_time {
            println!("opened {:?} after the peer began to listen", begun.elapsed());
            break opened;
        }
        // The machine paused, and the dial's five seconds were over too soon: once more, from the begin.
        after.close().await;
    };
    assert_eq!(opened.expect("opens"), node("iad-1"));
}
