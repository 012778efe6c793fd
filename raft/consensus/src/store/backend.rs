//! The storage trait and its errors.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use thiserror::Error;

/// Insertions in one batch at most. sled 0.34's `apply_batch` of 1,000 leaks memory and disk, one of 100 doesn't
/// (measured: a million puts cost 3.6 GB of memory against 51 MB).
pub const BATCH_ENTRIES_MAX: usize = 100;
/// Bytes of one value at most. sled moves values of about 128 KiB and more to files of their own, which the sync of
/// its log file doesn't cover.
pub const VALUE_BYTES_MAX: usize = 112 * 1024;

/// How long an opening waits for who has the store open.
const FREE_WITHIN: Duration = Duration::from_secs(5);
/// Between two attempts.
const AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Opens a store once nobody else has it open: a thread that closes it may go on for a moment after its last handle is
/// gone. Blocks.
pub(super) fn once_free<T, E>(open: impl Fn() -> Result<T, E>, is_locked: impl Fn(&E) -> bool) -> Result<T, E> {
    let begun = Instant::now();
    loop {
        match open() {
            Err(error) if is_locked(&error) && begun.elapsed() < FREE_WITHIN => std::thread::sleep(AGAIN_AFTER),
            opened => return opened,
        }
    }
}

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// An ordered map on disk. Methods block; a range is from its first key to before its second.
pub trait Backend: Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// At most `limit` pairs of a range, in order.
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError>;
    /// The last pair of a range.
    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError>;
    /// Sets at most [`BATCH_ENTRIES_MAX`] keys, all or none.
    fn insert(&self, pairs: &[Pair]) -> Result<(), StoreError>;
    /// Removes a range.
    fn remove(&self, from: &[u8], to: &[u8]) -> Result<(), StoreError>;
    /// Returns when everything written before the call is on disk, power loss included.
    fn flush(&self) -> Result<(), StoreError>;
}

/// Which implementation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StoreKind {
    /// sled 0.34, with a sync of its log file of our own.
    #[default]
    Sled,
    /// redb 4.
    Redb,
}

impl StoreKind {
    /// The name in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sled => "sled",
            Self::Redb => "redb",
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for StoreKind {
    type Err = StoreError;
    fn from_str(text: &str) -> Result<Self, StoreError> {
        match text {
            "sled" => Ok(Self::Sled),
            "redb" => Ok(Self::Redb),
            _ => Err(StoreError::UnknownKind(text.chars().take(40).collect())),
        }
    }
}

/// Why the store failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The files could not be opened.
    #[error("can't open the {kind} store in {path}: {cause}", path = path.display())]
    Open {
        /// Which implementation.
        kind: StoreKind,
        /// Where.
        path: PathBuf,
        /// In its words.
        cause: String,
    },
    /// A read or a write failed.
    #[error("the store failed while {action}: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// In its words.
        cause: String,
    },
    /// A flush has failed, now or before: nothing that this store holds in memory can be trusted to be on disk.
    #[error("the store is poisoned, since a flush failed ({cause}); restart the node once its disk is sound")]
    Poisoned {
        /// What the flush said.
        cause: String,
    },
    /// What was read isn't what was written.
    #[error("the store holds {what} that can't be read: {cause}")]
    Corrupt {
        /// What.
        what: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// The files were written by a newer program.
    #[error("the store in {path} has schema {found}; this program knows schemas 1 to {known}: upgrade it", path = path.display())]
    Newer {
        /// Where.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest that we know.
        known: u32,
    },
    /// The files are another node's.
    #[error("the store in {path} belongs to node {owner}, not to {node}", path = path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who opened it.
        node: String,
    },
    /// A value over its limit.
    #[error("a value of {bytes} bytes is over the store's limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// No such implementation.
    #[error("'{0}' is not a store: sled or redb")]
    UnknownKind(String),
}

impl StoreError {
    /// A failed read or write, in the implementation's words.
    pub(crate) fn io(action: &'static str) -> impl Fn(&dyn fmt::Display) -> Self {
        move |cause| Self::Io { action, cause: cause.to_string() }
    }

    /// A failed opening.
    pub(crate) fn open(kind: StoreKind, path: &Path, cause: &dyn fmt::Display) -> Self {
        Self::Open { kind, path: path.to_owned(), cause: cause.to_string() }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        io::Error::other(error)
    }
}
