//! Sandboxes on one node: one driver task each, the warm pool, adoption, reconciliation.
//!
//! It knows nothing of consensus, gossip or the fabric: intent comes down as commands, what is observed goes up on watches.

mod contract;

pub use contract::*;
