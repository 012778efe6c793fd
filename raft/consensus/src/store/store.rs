//! A backend with one flushing thread, poisoned for good by the first flush that fails.
//!
//! Writers insert at once, in their own order, and then wait for the thread: one flush serves all who wait, whatever
//! group they belong to. After a failed fsync the kernel may have dropped the pages that it could not write and will
//! report the next fsync as successful (Rebello et al., "Can Applications Recover from fsync Failures?"), so nothing
//! may be flushed, read or acknowledged after one: the groups on this store stop voting.

use std::path::Path;
use std::sync::mpsc as blocking;
use std::sync::{Arc, Weak};
use std::thread;

use fabric_types::NodeId;
use tokio::sync::{oneshot, watch};
use tracing::error;

use super::backend::{BATCH_ENTRIES_MAX, Backend, Pair, StoreError, StoreKind, VALUE_BYTES_MAX};
use super::{RedbBackend, SledBackend};

/// The layout of keys in the store.
const SCHEMA: u32 = 1;
/// Holds the schema's number. No group's key begins with a zero byte.
const SCHEMA_KEY: &[u8] = b"\0schema";
/// Holds the id of the node that the store belongs to.
const OWNER_KEY: &[u8] = b"\0owner";

/// Whether the store can be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreHealth {
    /// Every flush has succeeded.
    Sound,
    /// A flush failed: nothing is acknowledged any more.
    Poisoned {
        /// What it said.
        cause: String,
    },
}

type Waiter = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// A store, shared by the groups of one node. The last copy that is dropped ends the flushing thread and closes the
/// files before it returns.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Arc<dyn Backend>,
    health: watch::Receiver<StoreHealth>,
    /// None only while it is being dropped, as the thread.
    flusher: Option<blocking::Sender<Waiter>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.flusher = None;
        if let Some(flushing) = self.thread.take()
            && flushing.thread().id() != thread::current().id()
            && flushing.join().is_err()
        {
            error!("the flushing thread panicked");
        }
    }
}

impl Store {
    /// Opens or creates a node's store in a folder.
    pub fn open(kind: StoreKind, path: &Path, node: &NodeId) -> Result<Self, StoreError> {
        let backend: Arc<dyn Backend> = match kind {
            StoreKind::Sled => Arc::new(SledBackend::open(path)?),
            StoreKind::Redb => Arc::new(RedbBackend::open(path)?),
        };
        let store = Self::over(backend);
        store.claim(path, node)?;
        Ok(store)
    }

    /// A store over a backend that is open already.
    pub fn over(backend: Arc<dyn Backend>) -> Self {
        let (set_health, health) = watch::channel(StoreHealth::Sound);
        let (flusher, waiters) = blocking::channel();
        let flushed = Arc::clone(&backend);
        let thread = thread::spawn(move || flush_for(&*flushed, &waiters, &set_health));
        Self { inner: Arc::new(Inner { backend, health, flusher: Some(flusher), thread: Some(thread) }) }
    }

    /// Checks that the store is of a schema that we know and of this node, or makes it so if it is new.
    fn claim(&self, path: &Path, node: &NodeId) -> Result<(), StoreError> {
        let Some(schema) = self.get(SCHEMA_KEY)? else {
            let owner = node.as_str().as_bytes().to_vec();
            self.insert(vec![(OWNER_KEY.to_vec(), owner), (SCHEMA_KEY.to_vec(), SCHEMA.to_be_bytes().to_vec())])?;
            return self.flush_blocking();
        };
        let found = <[u8; 4]>::try_from(schema.as_slice()).map(u32::from_be_bytes);
        let found = found.map_err(|_| corrupt("schema", "it is not four bytes long"))?;
        if found == 0 || found > SCHEMA {
            return Err(StoreError::Newer { path: path.to_owned(), found, known: SCHEMA });
        }
        let owner = self.get(OWNER_KEY)?.ok_or_else(|| corrupt("owner", "it is missing"))?;
        if owner != node.as_str().as_bytes() {
            let (owner, node) = (String::from_utf8_lossy(&owner).into_owned(), node.to_string());
            return Err(StoreError::Foreign { path: path.to_owned(), owner, node });
        }
        Ok(())
    }

    /// Something to tell by whether every copy of this store has been dropped, and its files closed.
    pub(crate) fn alive(&self) -> Weak<impl Sized + use<>> {
        Arc::downgrade(&self.inner)
    }

    /// Whether the store can be trusted, and when that ends.
    pub fn health(&self) -> watch::Receiver<StoreHealth> {
        self.inner.health.clone()
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.check()?;
        self.inner.backend.get(key)
    }

    /// At most `limit` pairs of a range, in order.
    pub fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.check()?;
        self.inner.backend.range(from, to, limit)
    }

    /// The last pair of a range.
    pub fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        self.check()?;
        self.inner.backend.last(from, to)
    }

    /// Sets keys, in order and in batches: a crash may leave a prefix of them.
    pub fn insert(&self, pairs: Vec<Pair>) -> Result<(), StoreError> {
        self.check()?;
        if let Some((_, value)) = pairs.iter().find(|(_, value)| value.len() > VALUE_BYTES_MAX) {
            return Err(StoreError::TooLarge { bytes: value.len(), limit: VALUE_BYTES_MAX });
        }
        pairs.chunks(BATCH_ENTRIES_MAX).try_for_each(|batch| self.inner.backend.insert(batch))
    }

    /// Removes a range.
    pub fn remove(&self, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        self.check()?;
        self.inner.backend.remove(from, to)
    }

    /// Calls back, from the flushing thread, when all that was written before is on disk or can't be put there.
    pub fn when_flushed(&self, done: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        let unsent = match &self.inner.flusher {
            Some(flusher) => flusher.send(Box::new(done)).err().map(|blocking::SendError(done)| done),
            None => Some(Box::new(done) as Waiter),
        };
        if let Some(done) = unsent {
            done(Err(thread_ended()));
        }
    }

    /// Waits until all that was written before is on disk.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let (done, flushed) = oneshot::channel();
        // A waiter that has gone doesn't want to know.
        self.when_flushed(move |result| drop(done.send(result)));
        flushed.await.unwrap_or_else(|_| Err(thread_ended()))
    }

    /// The same, for callers without a runtime.
    pub(crate) fn flush_blocking(&self) -> Result<(), StoreError> {
        let (done, flushed) = blocking::channel();
        self.when_flushed(move |result| drop(done.send(result)));
        flushed.recv().unwrap_or_else(|_| Err(thread_ended()))
    }

    fn check(&self) -> Result<(), StoreError> {
        match &*self.inner.health.borrow() {
            StoreHealth::Sound => Ok(()),
            StoreHealth::Poisoned { cause } => Err(StoreError::Poisoned { cause: cause.clone() }),
        }
    }
}

/// The flushing thread: takes all who wait, flushes once, tells them.
fn flush_for(backend: &dyn Backend, waiters: &blocking::Receiver<Waiter>, health: &watch::Sender<StoreHealth>) {
    while let Ok(first) = waiters.recv() {
        let waiting: Vec<Waiter> = std::iter::once(first).chain(waiters.try_iter()).collect();
        let poisoned = match &*health.borrow() {
            StoreHealth::Sound => None,
            StoreHealth::Poisoned { cause } => Some(cause.clone()),
        };
        let result = match poisoned {
            Some(cause) => Err(StoreError::Poisoned { cause }),
            None => backend.flush().map_err(|failure| {
                let cause = failure.to_string();
                error!(%cause, "a flush failed: the store is poisoned, and this node's groups stop voting");
                health.send_replace(StoreHealth::Poisoned { cause: cause.clone() });
                StoreError::Poisoned { cause }
            }),
        };
        waiting.into_iter().for_each(|done| done(result.clone()));
    }
}

fn thread_ended() -> StoreError {
    StoreError::Io { action: "flushing", cause: "the flushing thread has ended".into() }
}

fn corrupt(what: &'static str, cause: &str) -> StoreError {
    StoreError::Corrupt { what, cause: cause.to_owned() }
}
