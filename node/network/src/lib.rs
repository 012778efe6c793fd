//! The guests' network on one node.
//!
//! ```text
//! networks   the door: a handle to the owner
//! contract   the types at this crate's door
//! ```

mod contract;
mod networks;

pub use contract::*;
pub use networks::Networks;
