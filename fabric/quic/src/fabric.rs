//! The trait, protocols, streams and errors.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fabric_types::NodeId;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// What a stream is for. Each is an ALPN of its own, with its wire version in the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Chitchat's messages.
    Gossip,
    /// openraft's calls, with a group id in each.
    Raft,
    /// Node-to-node requests.
    NodeApi,
    /// Snapshot chunks and manifests.
    Chunks,
    /// HTTP to a guest's agent.
    Relay,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 5] = [Self::Gossip, Self::Raft, Self::NodeApi, Self::Chunks, Self::Relay];

    /// The version of every protocol that this node speaks.
    pub const WIRE_VERSION: u32 = 1;

    /// The ALPN, with the wire version at its end.
    pub fn alpn(self) -> &'static str {
        match self {
            Self::Gossip => "atoll-gossip/1",
            Self::Raft => "atoll-raft/1",
            Self::NodeApi => "atoll-node/1",
            Self::Chunks => "atoll-chunks/1",
            Self::Relay => "atoll-relay/1",
        }
    }

    /// The ALPN of any version.
    pub(crate) fn alpn_of(self, version: u32) -> String {
        let name = self.alpn().trim_end_matches(|end: char| end.is_ascii_digit());
        format!("{name}{version}")
    }

    /// Reads an ALPN of any version.
    pub(crate) fn parse_alpn(alpn: &[u8]) -> Option<(Self, u32)> {
        let alpn = std::str::from_utf8(alpn).ok()?;
        let version = alpn.rsplit_once('/')?.1.parse().ok()?;
        Self::ALL.into_iter().find(|protocol| protocol.alpn_of(version) == alpn).map(|protocol| (protocol, version))
    }
}

/// A peer: where it listens, and who its certificate must say it is. Without an id any node of the mesh will do
/// (only gossip's first contact does that).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// Where it listens.
    pub address: SocketAddr,
    /// Who it must be.
    pub node: Option<NodeId>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.node {
            Some(node) => write!(f, "{node} at {}", self.address),
            None => write!(f, "any node at {}", self.address),
        }
    }
}

/// The sending half of a stream. Shutting it down ends the stream for the other side.
pub type SendHalf = Pin<Box<dyn AsyncWrite + Send + Sync>>;
/// The receiving half of a stream.
pub type RecvHalf = Pin<Box<dyn AsyncRead + Send + Sync>>;

/// A stream both ways, opened by either side.
pub struct BiStream {
    /// Who is at the other end, as its certificate says.
    pub peer: NodeId,
    /// From where.
    pub address: SocketAddr,
    /// To the other side.
    pub send: SendHalf,
    /// From the other side.
    pub recv: RecvHalf,
}

/// A message that may be lost: gossip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// From where; an answer goes back there.
    pub from: SocketAddr,
    /// At most [`MESSAGE_BYTES_MAX`].
    pub bytes: Bytes,
}

/// Chitchat fills a message up to a UDP payload.
pub const MESSAGE_BYTES_MAX: usize = 65_507;

/// Streams of one protocol that wait to be taken: a burst of calls fits, and a taker that has stopped is soon noticed.
pub const STREAM_QUEUE_MAX: usize = 256;
/// Messages that wait to be taken: what 500 members send in a second.
pub const MESSAGE_QUEUE_MAX: usize = 1024;

/// The fabric as its users see it.
#[async_trait]
pub trait Fabric: Send + Sync + 'static {
    /// This node.
    fn node(&self) -> &NodeId;
    /// Where it listens, with the port really bound.
    fn local_address(&self) -> SocketAddr;
    /// Opens a stream, dialling if there is no connection. Bounded (5 s for the dial); an error says which peer and what was tried.
    async fn open(&self, peer: &Peer, protocol: Protocol) -> Result<BiStream, FabricError>;
    /// The streams that peers open. Each protocol is taken once; a second call is an error. A full queue refuses the stream.
    fn accept(&self, protocol: Protocol) -> Result<mpsc::Receiver<BiStream>, FabricError>;
    /// Sends a message that may be lost; never waits for a dial or for room.
    fn send_message(&self, to: SocketAddr, bytes: Bytes) -> Result<(), FabricError>;
    /// The messages that peers send; taken once.
    fn messages(&self) -> Result<mpsc::Receiver<Message>, FabricError>;
    /// The measured round trip to a peer, or `None` where there is no connection to measure it on.
    fn rtt(&self, _peer: &Peer) -> Option<Duration> {
        None
    }
    /// Says that a peer did not answer in time: the next stream of that protocol is opened on a new connection.
    /// Streams already open are left alone.
    fn suspect(&self, _peer: &Peer, _protocol: Protocol) {}
    /// Ends every connection and the endpoint; bounded (1 s). The port is free for another bind in this process a moment
    /// after the fabric is dropped.
    async fn close(&self);
}

/// Why the fabric failed.
#[derive(Debug, Error)]
pub enum FabricError {
    /// No connection to a peer.
    #[error("can't reach {peer} at {address} for {protocol:?}: {cause}")]
    Unreachable {
        /// The peer's id, or "any node".
        peer: String,
        /// Where.
        address: SocketAddr,
        /// For what.
        protocol: Protocol,
        /// In the transport's words.
        cause: String,
    },
    /// The peer is another than expected.
    #[error("at {address} answers {found}, not {expected}")]
    WrongPeer {
        /// Where.
        address: SocketAddr,
        /// Who should be there.
        expected: NodeId,
        /// Who is.
        found: NodeId,
    },
    /// The peer speaks another wire version.
    #[error("{peer} speaks version {theirs} of {protocol:?}; this node speaks {ours}; upgrade the older of the two")]
    Version {
        /// The peer.
        peer: String,
        /// The protocol.
        protocol: Protocol,
        /// Its version.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// A frame or message over its limit.
    #[error("{what} of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How large.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The stream broke.
    #[error("the stream to {peer} broke while {action}: {source}")]
    Broken {
        /// The peer.
        peer: String,
        /// What was tried.
        action: &'static str,
        /// How.
        source: std::io::Error,
    },
    /// What came isn't what the protocol says.
    #[error("{peer} sent what is not {expected}: {cause}")]
    Malformed {
        /// The peer.
        peer: String,
        /// What was expected.
        expected: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// No answer in time.
    #[error("no answer from {peer} in {waited_ms} ms")]
    Timeout {
        /// The peer.
        peer: String,
        /// The limit that passed.
        waited_ms: u64,
    },
    /// Taken already, or closed.
    #[error("{0}")]
    State(&'static str),
    /// A certificate or key.
    #[error("can't use {path}: {cause}")]
    Certificate {
        /// The file, or what it is.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// The socket.
    #[error("can't bind the fabric to {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// How.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alpn_of_any_version_reads_back_and_the_constant_is_of_our_version() {
        for protocol in Protocol::ALL {
            assert_eq!(protocol.alpn_of(Protocol::WIRE_VERSION), protocol.alpn());
            assert_eq!(Protocol::parse_alpn(protocol.alpn_of(42).as_bytes()), Some((protocol, 42)));
        }
        for text in ["", "h3", "atoll-raft", "atoll-raft/", "atoll-raft/01", "atoll-raft/1x", "atoll-raft/-1"] {
            assert_eq!(Protocol::parse_alpn(text.as_bytes()), None, "{text}");
        }
    }
}
