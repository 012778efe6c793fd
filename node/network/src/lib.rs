//! The guests' network on one node.
//!
//! ```text
//! networks   the door: a handle to the owner
//! contract   the types at this crate's door
//! ```

mod conntrack;
mod contract;
mod crew;
mod filter;
mod found;
mod links;
mod names;
mod namespace;
mod networks;
mod owner;
mod passt;
mod plan;
mod resolver;
mod rule;
mod ruleset;
mod sys;
mod uplink;

pub use contract::*;
pub use networks::Networks;
