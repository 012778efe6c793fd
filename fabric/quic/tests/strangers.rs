//! Who gets nothing: peers without a certificate, with one of another mesh, with an unknown protocol or version. The
//! strangers are built from quinn and rustls alone, so that nothing of ours keeps them honest.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fabric_quic::{Authority, Fabric, FabricError, NodeIdentity, Peer, Protocol, QuicConfig, QuicFabric};
use fabric_types::{NodeId, UnixMillis};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, Endpoint};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);
const FOREVER: UnixMillis = UnixMillis(4_000_000_000_000);

fn node(id: &str) -> NodeId {
    id.parse().expect("a node id")
}

fn anywhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn issue(mesh: &Authority, id: &str) -> NodeIdentity {
    mesh.issue(&node(id), FOREVER).expect("an identity")
}

fn fabric(mesh: &Authority, id: &str) -> Arc<QuicFabric> {
    QuicFabric::bind(QuicConfig { listen: anywhere(), identity: issue(mesh, id) }).expect("binds")
}

fn key_of(identity: &NodeIdentity) -> PrivateKeyDer<'static> {
    let folder = tempfile::tempdir().expect("a folder");
    identity.save(folder.path()).expect("writes");
    PrivateKeyDer::from_pem_file(folder.path().join("node.key")).expect("a key")
}

fn certificate(identity: &NodeIdentity) -> CertificateDer<'static> {
    CertificateDer::from(identity.certificate_der().to_vec())
}

/// A client that trusts the mesh and shows what it is told to.
fn stranger(mesh: &Authority, shows: Option<&NodeIdentity>, alpn: &[u8]) -> Endpoint {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(mesh.ca_pem().as_bytes()).expect("a certificate")).expect("an authority");
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut config = match shows {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            builder.with_client_auth_cert(vec![certificate(identity)], key_of(identity)).expect("a certificate")
        }
    };
    config.alpn_protocols = if alpn.is_empty() { Vec::new() } else { vec![alpn.to_vec()] };
    let mut endpoint = Endpoint::client(anywhere()).expect("binds");
    let crypto = QuicClientConfig::try_from(config).expect("a configuration");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    endpoint
}

/// Dials as far as it gets and says how it ended. `iad-1.node.atoll` is in the certificate of the node that is dialled.
async fn dial(endpoint: &Endpoint, to: SocketAddr) -> ConnectionError {
    let connecting = endpoint.connect(to, "iad-1.node.atoll").expect("dials");
    let ending = async {
        match connecting.await {
            Err(error) => error,
            Ok(connection) => {
                // The client's half of the handshake ends before the server has judged its certificate.
                if let Ok((mut send, _recv)) = connection.open_bi().await {
                    drop(send.write_all(b"let me in").await);
                }
                connection.closed().await
            }
        }
    };
    timeout(PATIENCE, ending).await.expect("refused in time")
}

/// The queue of the node that was dialled stayed empty.
async fn got_nothing(fabric: &QuicFabric, protocol: Protocol) {
    let mut streams = fabric.accept(protocol).expect("first");
    assert!(timeout(Duration::from_millis(200), streams.recv()).await.is_err(), "a stranger's stream came through");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_without_a_certificate_gets_nothing() {
    let mesh = Authority::generate().expect("an authority");
    let iad = fabric(&mesh, "iad-1");
    let error = dial(&stranger(&mesh, None, b"atoll-node/1"), iad.local_address()).await;
    assert!(matches!(error, ConnectionError::ConnectionClosed(_)), "{error}");
    assert!(error.to_string().contains("cert"), "{error}");
    got_nothing(&iad, Protocol::NodeApi).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_another_mesh_gets_nothing() {
    let (mesh, other) = (Authority::generate().expect("an authority"), Authority::generate().expect("another"));
    let iad = fabric(&mesh, "iad-1");
    let foreign = issue(&other, "fra-1");
    let error = dial(&stranger(&mesh, Some(&foreign), b"atoll-node/1"), iad.local_address()).await;
    assert!(matches!(error, ConnectionError::ConnectionClosed(_)), "{error}");
    got_nothing(&iad, Protocol::NodeApi).await;
    // Between two of ours the dialler is the first to notice.
    let fra = fabric(&other, "fra-1");
    let peer = Peer { address: iad.local_address(), node: Some(node("iad-1")) };
    let error = timeout(PATIENCE, fra.open(&peer, Protocol::Gossip)).await.expect("in time").err().expect("refused");
    assert!(matches!(error, FabricError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_gets_nothing() {
    let mesh = Authority::generate().expect("an authority");
    let iad = fabric(&mesh, "iad-1");
    let expired = mesh.issue(&node("fra-1"), UnixMillis(1_600_000_000_000)).expect("an identity");
    let fra = QuicFabric::bind(QuicConfig { listen: anywhere(), identity: expired }).expect("binds");
    let peer = Peer { address: iad.local_address(), node: Some(node("iad-1")) };
    let error = timeout(PATIENCE, fra.open(&peer, Protocol::NodeApi)).await.expect("in time").err().expect("refused");
    // The dial fails although the dialler's own half of the handshake succeeded: it waits for the peer's hello.
    assert!(matches!(error, FabricError::Unreachable { .. }), "{error}");
    got_nothing(&iad, Protocol::NodeApi).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_protocol_is_refused_in_the_handshake() {
    let mesh = Authority::generate().expect("an authority");
    let iad = fabric(&mesh, "iad-1");
    let member = issue(&mesh, "fra-1");
    for alpn in [&b"h3"[..], b"atoll-raft/9999", b"atoll-other/1", b""] {
        let error = dial(&stranger(&mesh, Some(&member), alpn), iad.local_address()).await;
        assert!(!matches!(error, ConnectionError::TimedOut | ConnectionError::LocallyClosed), "{error}");
    }
    got_nothing(&iad, Protocol::Raft).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_peer_is_told_in_a_sentence_which_version_this_node_speaks() {
    let mesh = Authority::generate().expect("an authority");
    let iad = fabric(&mesh, "iad-1");
    let member = issue(&mesh, "fra-1");
    let error = dial(&stranger(&mesh, Some(&member), b"atoll-raft/2"), iad.local_address()).await;
    let ConnectionError::ApplicationClosed(close) = error else { panic!("{error}") };
    assert_eq!(
        std::str::from_utf8(&close.reason).expect("a sentence"),
        "this node speaks version 1 of Raft, not version 2; upgrade the older of the two"
    );
    got_nothing(&iad, Protocol::Raft).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialler_learns_that_its_peer_speaks_another_version() {
    let mesh = Authority::generate().expect("an authority");
    let fra = fabric(&mesh, "fra-1");
    // A node of the future: it still lets version 1 into the handshake, to tell it what it speaks.
    let future = issue(&mesh, "iad-1");
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate(&future)], key_of(&future))
        .expect("a certificate");
    config.alpn_protocols = vec![b"atoll-raft/1".to_vec()];
    let crypto = QuicServerConfig::try_from(config).expect("a configuration");
    let server = Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), anywhere()).expect("binds");
    let address = server.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            let connection = incoming.await.expect("a handshake");
            connection.close(0x1003_u32.into(), b"this node speaks version 3");
        }
    });
    let peer = Peer { address, node: Some(node("iad-1")) };
    let error = timeout(PATIENCE, fra.open(&peer, Protocol::Raft)).await.expect("in time").err().expect("refused");
    assert!(matches!(error, FabricError::Version { theirs: 3, ours: 1, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_named() {
    let mesh = Authority::generate().expect("an authority");
    let iad = fabric(&mesh, "iad-1");
    let config = QuicConfig { listen: iad.local_address(), identity: issue(&mesh, "iad-2") };
    let error = QuicFabric::bind(config).expect_err("taken");
    assert!(error.to_string().contains(&iad.local_address().to_string()), "{error}");
    assert!(matches!(error, FabricError::Bind { .. }), "{error}");
}
