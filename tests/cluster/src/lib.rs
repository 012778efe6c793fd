//! Tests of a running mesh: restart, failover, snapshots across regions, leaks.
//!
//! ```text
//! sandbox   a sandbox of a test, through the command line
//! counter   a process in a guest whose memory is a number that grows
//! soak      long runs with kills in the middle, also as the program `soak`
//! ```

mod counter;
mod sandbox;
pub mod soak;

pub use counter::Counter;
pub use sandbox::Sandbox;
