//! The guests' network on one node.
//!
//! ```text
//! contract   the types at this crate's door
//! ```

mod contract;

pub use contract::*;
