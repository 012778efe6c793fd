//! Addresses, names and limits of a gateway.

use std::net::SocketAddr;
use std::time::Duration;

use fabric_types::{NodeId, RegionCode};

/// What a gateway is told about itself.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Where it listens; for logs, the listener itself is given to [`crate::serve()`].
    pub listen: SocketAddr,
    /// The base of its URL as clients reach it, without a slash at its end, as in `http://127.0.0.1:7080`.
    pub public_url: String,
    /// The node it runs in.
    pub node: NodeId,
    /// The region it stands in.
    pub region: RegionCode,
    /// The version of Atoll.
    pub version: String,
    /// Limits on what clients may do to it.
    pub limits: EdgeLimits,
}

/// Limits on what clients may do to a gateway.
#[derive(Debug, Clone)]
pub struct EdgeLimits {
    /// Connections at once; more wait in the kernel's queue. 4,096 of them, idle, hold some 100 MiB.
    pub connections: usize,
    /// Requests at once; one more is answered 429. With `json_bytes` each they hold at most 1 GiB.
    pub requests: usize,
    /// Bytes of a body outside uploads.
    pub json_bytes: usize,
    /// Bytes of an upload: more than the default disk holds, less than would fill a host.
    pub upload_bytes: u64,
    /// Bytes of a body over its limit that are still read, so that the client hears the answer.
    pub drained_bytes: u64,
    /// How long they are read.
    pub drained_for: Duration,
    /// Bytes of all headers of a request; what proxies and browsers send stays far below.
    pub header_bytes: usize,
    /// How long a body outside uploads may take to arrive.
    pub body_within: Duration,
    /// How long a connection may take to send its first request's headers.
    pub headers_within: Duration,
    /// How long it may then be idle, or take over a further request's headers: longer than clients keep connections
    /// in their pools, so that it is they who close.
    pub idle_for: Duration,
    /// How long requests that have begun may go on once the gateway stops.
    pub drain: Duration,
}

impl Default for EdgeLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            requests: 1024,
            json_bytes: 1 << 20,
            upload_bytes: 5 << 30,
            drained_bytes: 64 << 20,
            drained_for: Duration::from_secs(5),
            header_bytes: 32 << 10,
            body_within: Duration::from_secs(30),
            headers_within: Duration::from_secs(15),
            idle_for: Duration::from_secs(120),
            drain: Duration::from_secs(10),
        }
    }
}
