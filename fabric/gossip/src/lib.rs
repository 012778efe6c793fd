//! Chitchat behind typed keys, carried by the fabric, published as a ClusterView on a watch.
//!
//! ```text
//! report     what a node says about itself
//! view       the mesh as one node sees it
//! ```

mod report;
mod view;

pub use report::{NodeReport, PoolReport};
pub use view::{ClusterView, NodeView};
