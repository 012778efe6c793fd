//! The edge: takes a client's HTTP request, authenticates it, finds the sandbox's home and relays.
//!
//! ```text
//! ports      what the edge needs of the process it runs in (this crate's contract)
//! ```

mod ports;

pub use ports::*;
