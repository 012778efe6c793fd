//! How processes of the mesh reach each other: one endpoint, mutual TLS, one ALPN per protocol.
//!
//! ```text
//! fabric     the trait that gossip, raft, node API, chunks and relay are written against (this crate's contract)
//! frame      length-prefixed, bounded frames
//! call       a request and an answer over a stream of their own, with a version in front
//! authority  the mesh's certificate authority and node certificates
//! endpoint   the trait over quinn: pool, accept router, datagrams
//! memory     the trait in one process, for tests: links that can be cut and delayed (feature `memory`)
//! ```

mod call;
mod fabric;
mod frame;
#[cfg(feature = "memory")]
mod memory;

pub use call::{CALL_VERSION, answer, call, serve};
pub use fabric::*;
pub use frame::{CALL_FRAME_BYTES_MAX, FrameError, read_frame, recv_json, send_json, write_frame};
#[cfg(feature = "memory")]
pub use memory::{MemoryFabric, MemoryNetwork};
