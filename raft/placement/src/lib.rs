//! The scheduler as pure functions: command, state, apply, choice and invariants.
//!
//! Nothing here does I/O, reads a clock or draws chance. A command is what a leader decided and a log recorded;
//! `apply` reads only the command and the state, so every replica reaches the same state. It re-checks each
//! decision against the ledger, because the leader decided from gossip, and refuses what is stale. A refused
//! command changes nothing.
//!
//! ```text
//! machine    the trait that both state machines implement, and that consensus runs
//! versioned  the schema number that every command and state carries
//! cow_map    an ordered map whose copies share what hasn't changed
//! region     the placement group of one region: nodes, sandboxes, reservations, generations
//! catalog    the catalog group of the mesh: regions, nodes, keys, templates, snapshots and their replicas
//! choose     which node a sandbox should go to, from gossip and ledger
//! ```
//!
//! A command may be applied twice (its first answer may have been lost): each is either idempotent, answering
//! `changed: false`, or refused as stale or taken. None has a second effect.

pub mod catalog;
mod choose;
mod cow_map;
mod machine;
pub mod region;
mod versioned;

pub use choose::{BEST_OF, Candidate, Need, NoCapacity, choose};
pub use cow_map::CowMap;
pub use machine::{Machine, Outcome};
pub use versioned::{Schema, Versioned};
