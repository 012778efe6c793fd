//! Sandboxes on one node: one driver task each, the warm pool, adoption, reconciliation.
//!
//! ```text
//!    run, act, snapshot, guest            intents                      (from above)
//!              |                             |
//!              v                             v
//!          Runtime ----- board ------ reconcile (pure) ---> the same requests as above
//!              |           ^
//!              | queue     | observed phase
//!              v           |
//!           sandbox (one driver task each: owns phase, record, machine, guest link)
//!            |    |     \
//!            v    v      v
//!        template pool   folder, identity, guest, snapshots
//! ```
//! A sandbox's life is `fabric_types::Phase`; this crate's driver is the only one that moves it. What lies on disk is
//! described in `folder`: a *home* is a folder with a machine's disk and files, and it is a sandbox's
//! home as soon as a durable `sandbox.json` stands in it.
//!
//! It knows nothing of consensus, gossip or the fabric: intent comes down as commands, what is observed goes up on watches.

mod activity;
mod board;
mod budget;
mod checkpoint;
mod clock;
mod context;
mod contract;
#[cfg(test)]
mod cut;
#[cfg(test)]
mod double;
mod durable;
mod folder;
mod guest;
mod identity;
mod leftovers;
mod machine;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod network;
mod pool;
mod priority;
mod queue;
mod reconcile;
mod rehearsal;
mod room;
mod runtime;
mod sandbox;
#[cfg(test)]
mod scheduling;
mod template;
#[cfg(test)]
mod testing;
mod traffic;

pub use budget::{CreateBudget, CreateFrom};
pub use contract::*;
pub use guest::{GuestBody, GuestClient, GuestError};
pub use leftovers::end_machines;
pub use room::{min_free_disk_bytes, min_free_memory_bytes};
pub use runtime::Runtime;
