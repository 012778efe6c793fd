//! The catalog group of the mesh: what is rare and global. Regions, nodes, API keys, templates, and snapshots with
//! the nodes that hold a copy of them.

mod apply;
mod command;
mod refusal;
mod state;

pub use apply::Catalog;
pub use command::Command;
pub use refusal::Refusal;
pub use state::{ApiKey, Node, Region, ReplicaState, Snapshot, State, Template, durable};

/// Regions of a mesh at most, as the design grows.
pub const REGIONS_MAX: usize = 100;
/// Nodes of a mesh at most: 1,000 in each region.
pub const NODES_MAX: usize = 100_000;
/// API keys at most.
pub const KEYS_MAX: usize = 100_000;
/// Templates at most.
pub const TEMPLATES_MAX: usize = 1_000;
/// Snapshots at most, until they are sharded as sandboxes are.
pub const SNAPSHOTS_MAX: usize = 100_000;
/// Copies of one snapshot at most.
pub const REPLICAS_MAX: usize = 16;
/// Bytes of text in one entry at most, as for a sandbox's spec.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Regions that must each hold a complete copy before a snapshot is durable: losing any one loses nothing.
pub const DURABLE_REGIONS: usize = 2;
