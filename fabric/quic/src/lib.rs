//! How processes of the mesh reach each other: one endpoint, mutual TLS, one ALPN per protocol.
//!
//! ```text
//! fabric     the trait that gossip, raft, node API, chunks and relay are written against (this crate's contract)
//! frame      length-prefixed, bounded frames and one-shot calls over a stream
//! authority  the mesh's certificate authority and node certificates
//! endpoint   the trait over quinn: pool, accept router, datagrams
//! memory     the trait in one process, for tests: links that can be cut and delayed (feature `memory`)
//! ```

mod fabric;

pub use fabric::*;
