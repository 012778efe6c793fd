//! How processes of the mesh reach each other: one endpoint, mutual TLS, one ALPN per protocol.
//!
//! ```text
//! fabric       the trait that gossip, raft, node API, chunks and relay are written against (this crate's contract)
//! frame        length-prefixed, bounded frames
//! call         a request and an answer over a stream of their own, with a version in front
//! serve        streams that peers open, each in a task of its own, a bounded number at a time
//! authority    the mesh's certificate authority; identity: a node's certificate and key; certificate: whom to trust
//! endpoint     the trait over quinn, put together from:
//!   transport    the socket and QUIC's settings         tls       the handshake
//!   pool         connections to send on                 router    connections that are accepted
//!   hello        the first word on a connection         messages  datagrams and small streams that may be lost
//!   codes        numbers that end streams and connections
//! memory       the trait in one process, for tests: links that can be cut and delayed (feature `memory`)
//! ```

mod authority;
mod call;
mod certificate;
mod codes;
mod endpoint;
mod fabric;
mod frame;
mod hello;
mod identity;
mod key_files;
#[cfg(feature = "memory")]
mod memory;
mod messages;
mod pool;
mod router;
mod serve;
mod tls;
mod transport;

pub use authority::Authority;
pub use call::{CALL_VERSION, answer, call, serve};
pub use certificate::{NodeCertificate, SignatureError, Trust};
pub use endpoint::{QuicConfig, QuicFabric};
pub use fabric::*;
pub use frame::{CALL_FRAME_BYTES_MAX, FrameError, read_frame, recv_json, send_json, write_frame};
pub use identity::NodeIdentity;
#[cfg(feature = "memory")]
pub use memory::{MemoryFabric, MemoryNetwork};
pub use serve::{Drain, serve_streams};
