//! Tests of a running mesh: restart, failover, snapshots across regions, leaks.
//!
//! ```text
//! sandbox   a sandbox of a test, through the command line
//! counter   a process in a guest whose memory is a number that grows
//! ```

mod counter;
mod sandbox;

pub use counter::Counter;
pub use sandbox::Sandbox;
