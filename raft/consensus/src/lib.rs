//! Consensus: the state machines of `raft_placement`, replicated by openraft over the fabric.
//!
//! ```text
//! host      all groups of a process: one store, one accept queue         group     one group, as its users see it
//! lead      what only a leader may do, here or asked of it               timing    heartbeats, elections, snapshots
//! member    a member as the others call it          service   the accept queue        wire      what they say
//! network   openraft's calls                        peers     calls over the fabric
//! log       vote and log                            snapshot, state_machine           the machine and its snapshots
//! store     an ordered map on disk: sled or redb    keys, record                      what lies in it
//! ```
//! Only this crate uses openraft, sled and redb. A vote or an entry counts only when it is on disk (fdatasync); a
//! flush that fails poisons the store for good, and the node stops voting. A node's id stands for its log: it must
//! not be given to a node without that log while the group counts it as a voter.

#[cfg(test)]
mod golden;
mod group;
mod host;
mod keys;
mod lead;
mod log;
mod member;
mod metrics;
mod network;
mod peers;
mod record;
mod service;
mod snapshot;
mod state_machine;
mod store;
#[cfg(test)]
mod suite;
mod timing;
mod types;
mod wire;

pub use group::{COMMAND_BYTES_MAX, Group, GroupError, ProposeError};
pub use host::{HostError, RaftHost, RaftHostConfig};
pub use metrics::{GroupMetrics, Role};
pub use peers::Resolver;
pub use store::{
    BATCH_ENTRIES_MAX, Backend, Pair, RedbBackend, SledBackend, Store, StoreError, StoreHealth, StoreKind,
    VALUE_BYTES_MAX,
};
pub use timing::{GroupOptions, Timing};
pub use types::{GroupName, GroupNameError};
