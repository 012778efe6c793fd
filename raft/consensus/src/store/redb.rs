//! The store on redb 4: a write is a commit that isn't durable, a flush an empty commit that is.

use std::fs::{self, File};
use std::path::Path;

use redb::{Database, DatabaseError, Durability, ReadableDatabase, TableDefinition, WriteTransaction};

use super::backend::{Backend, Pair, StoreError, StoreKind, once_free};

/// Bytes of pages that redb may keep in memory, as for sled.
const CACHE_BYTES: usize = 64 * 1024 * 1024;
/// redb's file in the store's folder.
const FILE: &str = "store.redb";
/// The one table. It is created when the store is opened, so every read finds it.
const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("pairs");

/// An ordered map on redb.
pub struct RedbBackend {
    db: Database,
}

impl RedbBackend {
    /// Opens or creates the store in a folder. Blocks: up to 5 s while another has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |cause: &dyn std::fmt::Display| StoreError::open(StoreKind::Redb, path, cause);
        fs::create_dir_all(path).map_err(|error| failed(&error))?;
        let create = || Database::builder().set_cache_size(CACHE_BYTES).create(path.join(FILE));
        let locked = |error: &DatabaseError| matches!(error, DatabaseError::DatabaseAlreadyOpen);
        let backend = Self::over(once_free(create, locked).map_err(|error| failed(&error))?)?;
        // The name of a file just created must survive too.
        File::open(path).and_then(|folder| folder.sync_all()).map_err(|error| failed(&error))?;
        Ok(backend)
    }

    /// A store over a database that is open already.
    pub fn over(db: Database) -> Result<Self, StoreError> {
        let backend = Self { db };
        backend.write("creating the table", Durability::Immediate, |_| Ok(()))?;
        Ok(backend)
    }

    fn write(
        &self,
        action: &'static str,
        durability: Durability,
        change: impl FnOnce(&mut redb::Table<'_, &'static [u8], &'static [u8]>) -> Result<(), redb::StorageError>,
    ) -> Result<(), StoreError> {
        let failed = StoreError::io(action);
        let mut transaction: WriteTransaction = self.db.begin_write().map_err(|error| failed(&error))?;
        transaction.set_durability(durability).map_err(|error| failed(&error))?;
        {
            let mut table = transaction.open_table(TABLE).map_err(|error| failed(&error))?;
            change(&mut table).map_err(|error| failed(&error))?;
        }
        transaction.commit().map_err(|error| failed(&error))
    }

    fn read<T>(
        &self,
        action: &'static str,
        look: impl FnOnce(redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, redb::StorageError>,
    ) -> Result<T, StoreError> {
        let failed = StoreError::io(action);
        let transaction = self.db.begin_read().map_err(|error| failed(&error))?;
        let table = transaction.open_table(TABLE).map_err(|error| failed(&error))?;
        look(table).map_err(|error| failed(&error))
    }
}

impl Backend for RedbBackend {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read("reading a key", |table| Ok(table.get(key)?.map(|value| value.value().to_vec())))
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.read("reading a range", |table| {
            let pairs = table.range(from..to)?.take(limit);
            pairs.map(|pair| pair.map(|(key, value)| (key.value().to_vec(), value.value().to_vec()))).collect()
        })
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        self.read("reading a range's end", |table| {
            let pair = table.range(from..to)?.next_back().transpose()?;
            Ok(pair.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
        })
    }

    fn insert(&self, pairs: &[Pair]) -> Result<(), StoreError> {
        self.write("writing", Durability::None, |table| {
            for (key, value) in pairs {
                table.insert(key.as_slice(), value.as_slice())?;
            }
            Ok(())
        })
    }

    fn remove(&self, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        self.write("removing a range", Durability::None, |table| table.retain_in(from..to, |_, _| false))
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.write("flushing", Durability::Immediate, |_| Ok(()))
    }
}
