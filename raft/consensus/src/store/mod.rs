//! Where votes, logs and snapshots lie: an ordered map on disk with an explicit flush.
//!
//! ```text
//! backend   the trait: get, range, insert, remove, flush
//! sled      one implementation                redb   the other
//! store     a backend with a flushing thread; poisoned for good by the first failure to flush
//! ```
//!
//! What is inserted can be read at once and is on disk after the next flush that succeeds. Both implementations keep
//! the order of writes: what a crash leaves is all that was written up to some moment, and never something later
//! without something earlier.

mod backend;
mod redb;
mod sled;
#[expect(clippy::module_inception, reason = "the module's one owner has the module's name")]
mod store;

pub use backend::{BATCH_ENTRIES_MAX, Backend, Pair, StoreError, StoreKind, VALUE_BYTES_MAX};
pub use redb::RedbBackend;
pub use sled::SledBackend;
pub use store::{Store, StoreHealth};
