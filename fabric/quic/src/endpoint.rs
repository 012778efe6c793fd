//! The fabric over QUIC: one endpoint, put together from transport, TLS, pool, router and messages.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fabric_types::NodeId;
use quinn::Endpoint;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::pool::{DialError, Link, Pool};
use crate::router::Router;
use crate::{
    BiStream, Fabric, FabricError, MESSAGE_BYTES_MAX, MESSAGE_QUEUE_MAX, Message, NodeIdentity, Peer, Protocol,
    STREAM_QUEUE_MAX, codes, messages, tls, transport,
};

/// Wait for room among a connection's streams. Short: if a peer holds thousands open, one more doesn't help it.
const STREAM_DEADLINE: Duration = Duration::from_secs(2);
/// Connections tried for one stream: the one at hand may have died unseen, and then a new one is dialled.
const ATTEMPTS: usize = 2;
/// Wait for peers to hear that the endpoint closes.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// Where and as whom the fabric listens.
#[derive(Debug, Clone)]
pub struct QuicConfig {
    /// The UDP address; port 0 takes any.
    pub listen: SocketAddr,
    /// This node's certificate and key.
    pub identity: NodeIdentity,
}

/// The fabric over QUIC. Dropping it ends it as [`Fabric::close`] does, without waiting for the peers to hear of it.
pub struct QuicFabric {
    node: NodeId,
    address: SocketAddr,
    endpoint: Endpoint,
    pool: Arc<Pool>,
    outgoing: mpsc::Sender<(SocketAddr, Bytes)>,
    streams: Mutex<HashMap<Protocol, mpsc::Receiver<BiStream>>>,
    messages: Mutex<Option<mpsc::Receiver<Message>>>,
    shutdown: CancellationToken,
}

impl fmt::Debug for QuicFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicFabric").field("node", &self.node).field("address", &self.address).finish_non_exhaustive()
    }
}

impl QuicFabric {
    /// Binds the socket and starts to accept. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// [`FabricError::Bind`] if the address is taken, [`FabricError::Certificate`] if the identity is unusable.
    pub fn bind(config: QuicConfig) -> Result<Arc<Self>, FabricError> {
        let QuicConfig { listen, identity } = config;
        let mut clients = HashMap::new();
        for protocol in Protocol::ALL {
            let mut client = quinn::ClientConfig::new(Arc::new(tls::client(&identity, protocol.alpn())?));
            client.transport_config(transport::dialled());
            clients.insert(protocol, client);
        }
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls::server(&identity)?));
        // Peers are known by their addresses; one that moves dials anew.
        server.transport_config(transport::accepted()).migration(false);
        let socket = transport::bind(listen)?;
        let failed = |source| FabricError::Bind { address: listen, source };
        let endpoint = transport::endpoint(socket, &identity, server).map_err(failed)?;
        let address = endpoint.local_addr().map_err(failed)?;
        Ok(Self::start(identity.node().clone(), address, endpoint, clients))
    }

    fn start(
        node: NodeId,
        address: SocketAddr,
        endpoint: Endpoint,
        clients: HashMap<Protocol, quinn::ClientConfig>,
    ) -> Arc<Self> {
        let shutdown = CancellationToken::new();
        let (message_sender, message_receiver) = mpsc::channel(MESSAGE_QUEUE_MAX);
        let (outgoing, outgoing_receiver) = mpsc::channel(MESSAGE_QUEUE_MAX);
        let pool = Pool::new(endpoint.clone(), clients, message_sender.clone(), shutdown.clone());
        let (mut senders, mut receivers) = (HashMap::new(), HashMap::new());
        for protocol in Protocol::ALL {
            let (sender, receiver) = mpsc::channel(STREAM_QUEUE_MAX);
            senders.insert(protocol, sender);
            receivers.insert(protocol, receiver);
        }
        let router =
            Router { pool: Arc::clone(&pool), streams: senders, messages: message_sender, shutdown: shutdown.clone() };
        tokio::spawn(Arc::new(router).run(endpoint.clone()));
        tokio::spawn(Arc::clone(&pool).sweep());
        tokio::spawn(messages::dispatch(Arc::clone(&pool), outgoing_receiver, shutdown.clone()));
        Arc::new(Self {
            node,
            address,
            endpoint,
            pool,
            outgoing,
            streams: Mutex::new(receivers),
            messages: Mutex::new(Some(message_receiver)),
            shutdown,
        })
    }

    fn dial_error(peer: &Peer, protocol: Protocol, error: DialError) -> FabricError {
        match error {
            DialError::Version { theirs } => {
                FabricError::Version { peer: peer.to_string(), protocol, theirs, ours: Protocol::WIRE_VERSION }
            }
            DialError::Failed(cause) => unreachable(peer, protocol, cause),
        }
    }
}

impl Drop for QuicFabric {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.endpoint.close(codes::CLOSING, b"the node is closing");
    }
}

#[async_trait]
impl Fabric for QuicFabric {
    fn node(&self) -> &NodeId {
        &self.node
    }

    fn local_address(&self) -> SocketAddr {
        self.address
    }

    async fn open(&self, peer: &Peer, protocol: Protocol) -> Result<BiStream, FabricError> {
        let mut failure = None;
        for _ in 0..ATTEMPTS {
            let link =
                self.pool.get(peer.address, protocol).await.map_err(|error| Self::dial_error(peer, protocol, error))?;
            match open_on(&link, peer, protocol).await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    self.pool.release_link(peer.address, protocol, &link);
                    failure = Some(error);
                }
            }
        }
        Err(failure.unwrap_or_else(|| unreachable(peer, protocol, "no connection was tried".into())))
    }

    fn accept(&self, protocol: Protocol) -> Result<mpsc::Receiver<BiStream>, FabricError> {
        let mut streams = self.streams.lock().expect("no code panics while it holds this lock");
        streams.remove(&protocol).ok_or(FabricError::State("the streams of this protocol are taken already"))
    }

    fn send_message(&self, to: SocketAddr, bytes: Bytes) -> Result<(), FabricError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            let (bytes, limit) = (bytes.len() as u64, MESSAGE_BYTES_MAX as u64);
            return Err(FabricError::TooLarge { what: "a message", bytes, limit });
        }
        // A full queue loses the message, as a full socket buffer does.
        drop(self.outgoing.try_send((to, bytes)));
        Ok(())
    }

    fn messages(&self) -> Result<mpsc::Receiver<Message>, FabricError> {
        let mut messages = self.messages.lock().expect("no code panics while it holds this lock");
        messages.take().ok_or(FabricError::State("the messages are taken already"))
    }

    fn rtt(&self, peer: &Peer) -> Option<Duration> {
        self.pool.rtt(peer.address)
    }

    fn suspect(&self, peer: &Peer, protocol: Protocol) {
        self.pool.release(peer.address, protocol);
    }

    async fn close(&self) {
        self.shutdown.cancel();
        self.endpoint.close(codes::CLOSING, b"the node is closing");
        // Peers that don't acknowledge in time find out by themselves.
        drop(timeout(CLOSE_DEADLINE, self.endpoint.wait_idle()).await);
    }
}

async fn open_on(link: &Link, peer: &Peer, protocol: Protocol) -> Result<BiStream, FabricError> {
    if let Some(expected) = peer.node.as_ref().filter(|expected| **expected != link.node) {
        return Err(FabricError::WrongPeer {
            address: peer.address,
            expected: expected.clone(),
            found: link.node.clone(),
        });
    }
    match timeout(STREAM_DEADLINE, link.connection.open_bi()).await {
        Ok(Ok((send, recv))) => {
            Ok(BiStream { peer: link.node.clone(), address: peer.address, send: Box::pin(send), recv: Box::pin(recv) })
        }
        Ok(Err(error)) => Err(unreachable(peer, protocol, error.to_string())),
        Err(_) => {
            let most = transport::BIDI_STREAMS_MAX;
            Err(unreachable(peer, protocol, format!("{most} streams to it are open, and none has ended")))
        }
    }
}

fn unreachable(peer: &Peer, protocol: Protocol, cause: String) -> FabricError {
    let name = peer.node.as_ref().map_or_else(|| "any node".to_owned(), ToString::to_string);
    FabricError::Unreachable { peer: name, address: peer.address, protocol, cause }
}
