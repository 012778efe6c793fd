//! The placement group of one region: which nodes it has, which sandbox lives where, and what is reserved.

mod apply;
mod command;
mod fork;
mod refusal;
mod room;
mod state;

pub use apply::Placement;
pub use command::{Child, Command};
pub use fork::child_spec;
pub use refusal::Refusal;
pub use state::{Node, Record, State, Usage};

/// Sandboxes of a region at most: the design's 1,000 nodes with 100 each.
pub const SANDBOXES_MAX: usize = 100_000;
/// Nodes of a region at most, as the design grows.
pub const NODES_MAX: usize = 1_000;
/// Bytes of text in one spec (name, labels, environment and so on) at most. A log entry must stay well under the
/// 128 KiB at which sled begins to keep values in files of their own, outside what is synced.
pub const SPEC_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a failure's reason at most: it is a sentence.
pub const REASON_BYTES_MAX: usize = 1024;
/// Deleted sandboxes whose generation is remembered, so that a create that was delayed for long can't bring one
/// back. Ids are random, so forgetting the oldest is safe but for such a delay.
pub const TOMBSTONES_MAX: usize = 10_000;
/// Children of one fork at most: they all start at once, on one node.
pub const CHILDREN_MAX: usize = 16;
/// Organizations with a quota of their own at most: as many as a region's sandboxes could be split among.
pub const QUOTAS_MAX: usize = 10_000;
