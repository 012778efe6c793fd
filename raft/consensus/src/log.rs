//! A group's vote and log in the node's store, as openraft wants them.
//!
//! Writes are put into the store at once and in order, and acknowledged by the store's flushing thread. Reading
//! goes to the store, which holds them in its own cache.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use raft_placement::Machine;

use crate::keys::Keys;
use crate::record;
use crate::store::{Store, StoreError};
use crate::types::{Entry, LogId, Types, Vote};

/// Bytes of entries that one append carries at most, if it carries more than one: a frame between members stays
/// under its limit, and a follower that is far behind catches up in pieces.
const APPEND_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Entries read from the store at a time.
const READ_ENTRIES: usize = 1024;

/// A group's vote and log.
pub(crate) struct LogStore<M> {
    store: Store,
    keys: Keys,
    machine: std::marker::PhantomData<fn() -> M>,
}

impl<M: Machine> LogStore<M> {
    pub(crate) fn new(store: Store, keys: Keys) -> Self {
        Self { store, keys, machine: std::marker::PhantomData }
    }

    fn read_mark<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        key: &[u8],
    ) -> Result<Option<T>, StoreError> {
        self.store.get(key)?.map(|bytes| record::decode(what, &bytes)).transpose()
    }

    fn write_mark<T: serde::Serialize>(&self, what: &'static str, key: Vec<u8>, mark: &T) -> Result<(), StoreError> {
        self.store.insert(vec![(key, record::encode(what, mark)?)])
    }

    /// The entries of a range, in order, until `enough` says that the bytes read so far suffice.
    fn read(&self, from: u64, to: u64, enough: impl Fn(usize) -> bool) -> Result<Vec<Entry<M>>, StoreError> {
        let (mut entries, mut bytes, mut next) = (Vec::new(), 0, from);
        while next < to {
            let wanted = usize::try_from(to - next).unwrap_or(usize::MAX).min(READ_ENTRIES);
            let pairs = self.store.range(&self.keys.entry(next), &self.keys.entry(to), wanted)?;
            let ended = pairs.len() < wanted;
            for (key, value) in pairs {
                let index = self.keys.index_of(&key).unwrap_or(u64::MAX);
                // Entries may be missing at the range's ends, never inside.
                if !entries.is_empty() && index != next {
                    let cause = format!("entry {next} is missing before entry {index}");
                    return Err(StoreError::Corrupt { what: "a log", cause });
                }
                if !entries.is_empty() && enough(bytes + value.len()) {
                    return Ok(entries);
                }
                bytes += value.len();
                next = index + 1;
                entries.push(record::decode("a log entry", &value)?);
            }
            if ended {
                break;
            }
        }
        Ok(entries)
    }
}

impl<M> Clone for LogStore<M> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), keys: self.keys.clone(), machine: std::marker::PhantomData }
    }
}

impl<M: Machine> RaftLogReader<Types<M>> for LogStore<M> {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<M>>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        Ok(self.read(from, to, |_| false)?)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry<M>>, io::Error> {
        Ok(self.read(start, end, |bytes| bytes > APPEND_BYTES_MAX)?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<M>>, io::Error> {
        Ok(self.read_mark("a vote", &self.keys.vote())?)
    }
}

impl<M: Machine> RaftLogStorage<Types<M>> for LogStore<M> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types<M>>, io::Error> {
        let purged: Option<LogId<M>> = self.read_mark("the purged id", &self.keys.purged())?;
        let last = self.store.last(&self.keys.entry(0), &self.keys.entries_end())?;
        let last = last.map(|(_, value)| record::decode::<Entry<M>>("a log entry", &value)).transpose()?;
        // A crash between the mark and the removal leaves entries up to the mark; they count as purged.
        let last_log_id = last.map(|entry| entry.log_id()).max(purged.clone());
        Ok(LogState { last_purged_log_id: purged, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<M>) -> Result<(), io::Error> {
        self.write_mark("a vote", self.keys.vote(), vote)?;
        Ok(self.store.flush().await?)
    }

    async fn save_committed(&mut self, committed: Option<LogId<M>>) -> Result<(), io::Error> {
        // Not flushed: an older mark only makes the next start apply less before it hears from the others.
        Ok(self.write_mark("the committed id", self.keys.committed(), &committed)?)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<M>>, io::Error> {
        Ok(self.read_mark("the committed id", &self.keys.committed())?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<M>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry<M>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let pairs = entries
            .into_iter()
            .map(|entry| Ok((self.keys.entry(entry.log_id().index()), record::encode("a log entry", &entry)?)))
            .collect::<Result<Vec<_>, StoreError>>()?;
        self.store.insert(pairs)?;
        self.store.when_flushed(move |result| callback.io_completed(result.map_err(io::Error::from)));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId<M>>) -> Result<(), io::Error> {
        let first = last_log_id.map_or(0, |id| id.index() + 1);
        Ok(self.store.remove(&self.keys.entry(first), &self.keys.entries_end())?)
    }

    async fn purge(&mut self, log_id: LogId<M>) -> Result<(), io::Error> {
        // The mark first: the log may then begin later than it says, never earlier.
        self.write_mark("the purged id", self.keys.purged(), &log_id)?;
        Ok(self.store.remove(&self.keys.entry(0), &self.keys.entry(log_id.index() + 1))?)
    }
}
