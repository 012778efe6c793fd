//! The store on sled 0.34.
//!
//! sled's own `flush` is not durable on Linux: it writes and calls `sync_file_range`, which neither waits for the
//! disk's cache nor covers metadata (sled issues 1351 and 1452). So this flush asks sled to write and then syncs
//! sled's log file itself, through a handle of its own: fdatasync covers the file, not the handle.

use std::fs::File;
use std::path::Path;

use super::backend::{BATCH_ENTRIES_MAX, Backend, Pair, StoreError, StoreKind, once_free};

/// Bytes of pages that sled may keep in memory. Its default is 1 GiB; a group's live log is some megabytes.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// sled's log file in its folder.
const LOG_FILE: &str = "db";

/// An ordered map on sled.
pub struct SledBackend {
    db: sled::Db,
    log: File,
}

impl SledBackend {
    /// Opens or creates the store in a folder. Blocks: up to 5 s while another has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |cause: &dyn std::fmt::Display| StoreError::open(StoreKind::Sled, path, cause);
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(CACHE_BYTES)
            // Flushing is ours to decide: a periodic one would only add writes nobody waits for.
            .flush_every_ms(None);
        // sled has no kind for it (`Config::try_lock`).
        let locked = |error: &sled::Error| matches!(error, sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock"));
        let db = once_free(|| config.open(), locked).map_err(|error| failed(&error))?;
        let log = File::open(path.join(LOG_FILE)).map_err(|error| failed(&error))?;
        // The names of files just created must survive too.
        File::open(path).and_then(|folder| folder.sync_all()).map_err(|error| failed(&error))?;
        Ok(Self { db, log })
    }
}

impl Backend for SledBackend {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.db.get(key).map_err(|error| StoreError::io("reading a key")(&error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        let pairs = self.db.range(from..to).take(limit);
        pairs
            .map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())))
            .collect::<Result<_, _>>()
            .map_err(|error| StoreError::io("reading a range")(&error))
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        let pair = self.db.range(from..to).next_back().transpose();
        let pair = pair.map_err(|error| StoreError::io("reading a range's end")(&error))?;
        Ok(pair.map(|(key, value)| (key.to_vec(), value.to_vec())))
    }

    fn insert(&self, pairs: &[Pair]) -> Result<(), StoreError> {
        debug_assert!(pairs.len() <= BATCH_ENTRIES_MAX, "{} pairs in one batch", pairs.len());
        let failed = |error| StoreError::io("writing")(&error);
        if let [(key, value)] = pairs {
            return self.db.insert(key, value.as_slice()).map(drop).map_err(failed);
        }
        let mut batch = sled::Batch::default();
        pairs.iter().for_each(|(key, value)| batch.insert(key.as_slice(), value.as_slice()));
        self.db.apply_batch(batch).map_err(failed)
    }

    fn remove(&self, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        let failed = |error| StoreError::io("removing a range")(&error);
        let keys = self.db.range(from..to).keys().collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let mut batch = sled::Batch::default();
        keys.into_iter().for_each(|key| batch.remove(key));
        self.db.apply_batch(batch).map_err(failed)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(|error| StoreError::io("flushing")(&error))?;
        self.log.sync_data().map_err(|error| StoreError::io("syncing the log file")(&error))
    }
}
