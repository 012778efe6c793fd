//! The socket and QUIC's settings: every number with its unit, its reason and where it comes from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use rand::RngCore;
use socket2::{Domain, Protocol as IpProtocol, Socket, Type};
use tracing::debug;

use crate::{FabricError, NodeIdentity};

/// Socket buffers: with the kernel's default of 208 KiB a burst loses thousands of packets on loopback, with this none
/// (measured). The kernel caps it at net.core.rmem_max and wmem_max.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Window of one stream: 16 MiB fills a gigabit at 130 ms, and brought 7 Gbit/s instead of 4.8 on loopback (measured).
const STREAM_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Window of a connection, each way: two full streams.
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Streams that a peer may hold open on one connection. Each call is a stream; quinn's 100 starves a busy leader.
pub(crate) const BIDI_STREAMS_MAX: u32 = 4096;
/// Gossip messages too large for a datagram that may be under way from one peer.
pub(crate) const MESSAGE_STREAMS_MAX: u32 = 64;
/// An unused connection shows that it lives this often; five go unanswered before it is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Silence after which a connection is dead.
const IDLE_TIMEOUT_MS: u32 = 10_000;
/// The round trip assumed before one is measured. RFC 9002 advises 333 ms; a node that has just started is dialled before
/// it listens, and the first packet is then repeated after three of these.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Pause between two stateless resets. A node that was restarted owes one to each of its peers' old connections at once.
const RESET_INTERVAL: Duration = Duration::from_millis(1);
/// Bytes of a connection id: what quinn itself uses, and too many to meet by chance.
const CID_BYTES: usize = 8;

/// A UDP socket with large buffers, where the kernel lets it have them.
pub(crate) fn bind(address: SocketAddr) -> Result<std::net::UdpSocket, FabricError> {
    let failed = |source| FabricError::Bind { address, source };
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(IpProtocol::UDP)).map_err(failed)?;
    for (what, set) in [
        ("receive", socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)),
        ("send", socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)),
    ] {
        if let Err(error) = set {
            debug!(what, %error, "the socket's buffer stays as the kernel made it");
        }
    }
    socket.set_nonblocking(true).map_err(failed)?;
    socket.bind(&address.into()).map_err(failed)?;
    Ok(socket.into())
}

/// The endpoint over a socket, with resets that outlive the process.
pub(crate) fn endpoint(
    socket: std::net::UdpSocket,
    identity: &NodeIdentity,
    server: quinn::ServerConfig,
) -> std::io::Result<quinn::Endpoint> {
    let mut config = EndpointConfig::new(Arc::new(identity.reset_key()));
    config.cid_generator(|| Box::new(RandomIds)).min_reset_interval(RESET_INTERVAL);
    quinn::Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))
}

/// Settings of connections that this node dials. The peer opens no streams on them but messages of gossip.
pub(crate) fn dialled() -> Arc<TransportConfig> {
    let mut config = settings();
    config.max_concurrent_bidi_streams(VarInt::from_u32(0));
    config.keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(config)
}

/// Settings of connections that this node accepts. The dialler keeps them alive.
pub(crate) fn accepted() -> Arc<TransportConfig> {
    let mut config = settings();
    config.max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS_MAX));
    Arc::new(config)
}

fn settings() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(CONNECTION_WINDOW_BYTES.into())
        .max_concurrent_uni_streams(VarInt::from_u32(MESSAGE_STREAMS_MAX))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .initial_rtt(INITIAL_RTT);
    config
}

/// Connection ids by chance, all of them plausible. quinn's own generator checks ids with a key of the process, and so
/// would keep a restarted node from resetting the connections of its predecessor.
#[derive(Debug, Clone, Copy)]
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CID_BYTES];
        rand::rng().fill_bytes(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
