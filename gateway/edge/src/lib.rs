//! The edge: takes a client's HTTP request, authenticates it, finds the sandbox's home and relays.
//!
//! ```text
//! ports      what the edge needs of the process it runs in (this crate's contract)
//! config     addresses, names and limits
//! serve      the listener: connections, their limits and timers, the drain
//! router     which path goes where
//! front      around every request: its id, limits on bodies and headers, the rescue of errors
//! request    what a handler reads of a request: who asks, parameters, JSON
//! refusal    an error on its way to the client
//! mesh       which region and node a request goes to, and the call to it
//! relay      HTTP to a guest's agent: over the fabric to its node, or straight on this one
//! guest      the agent's surface as functions
//! daytona    `/api` and `/toolbox`
//! v1         `/v1`
//! ```
//!
//! Nothing here keeps state of a sandbox: what is known comes from [`LocalNode`], from gossip, or from the sandbox's
//! region when asked; routes to other regions are remembered for two seconds.

mod body;
mod config;
mod daytona;
mod edge;
mod front;
mod guest;
mod instant;
mod intake;
mod mesh;
mod node_api;
mod ports;
mod refusal;
mod relay;
mod request;
mod router;
mod sandboxes;
mod serve;
mod v1;

pub use config::{EdgeConfig, EdgeLimits};
pub use edge::Edge;
pub use node_api::serve_node_api;
pub use ports::*;
pub use relay::{RELAY_VERSION, serve_relay};
pub use router::router;
pub use serve::{EdgeError, serve};
