//! A group's current snapshot in the node's store: the machine's state and what it covers, in parts.
//!
//! A snapshot is written under a number of its own, flushed, and only then named as the current one; the one before
//! is removed after that. A crash in between leaves parts without a name, which the next snapshot removes.

use std::sync::Arc;

use bytes::Bytes;
use raft_placement::{Machine, Versioned};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::keys::Keys;
use crate::record;
use crate::store::{Store, StoreError};
use crate::types::SnapshotMeta;

/// Bytes of a snapshot at most: 100,000 sandboxes take about 60 MiB.
pub(crate) const SNAPSHOT_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Bytes of one part in the store, under its limit for a value.
const PART_BYTES: usize = 64 * 1024;
/// Parts written or read at a time.
const PARTS_AT_ONCE: usize = 64;

/// A snapshot's bytes, shared: the written form of the machine's state.
pub(crate) type SnapshotBytes = Bytes;

/// Which snapshot is the current one.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
struct Current<M: Machine> {
    number: u64,
    bytes: usize,
    meta: SnapshotMeta<M>,
}

/// The snapshots of a group.
pub(crate) struct Snapshots<M> {
    store: Store,
    keys: Keys,
    /// One writer at a time: a snapshot that is built here and one that comes from the leader.
    writing: Arc<Mutex<()>>,
    machine: std::marker::PhantomData<fn() -> M>,
}

impl<M> Clone for Snapshots<M> {
    fn clone(&self) -> Self {
        let Self { store, keys, writing, machine } = self;
        Self { store: store.clone(), keys: keys.clone(), writing: Arc::clone(writing), machine: *machine }
    }
}

impl<M: Machine> Snapshots<M> {
    pub(crate) fn new(store: Store, keys: Keys) -> Self {
        Self { store, keys, writing: Arc::default(), machine: std::marker::PhantomData }
    }

    /// The current snapshot, if there is one.
    pub(crate) fn read(&self) -> Result<Option<(SnapshotMeta<M>, SnapshotBytes)>, StoreError> {
        let Some(current) = self.current()? else { return Ok(None) };
        let mut bytes = Vec::with_capacity(current.bytes.min(SNAPSHOT_BYTES_MAX));
        let end = self.keys.snapshot_part(current.number + 1, 0);
        let mut part = 0;
        while bytes.len() < current.bytes {
            let parts = self.store.range(&self.keys.snapshot_part(current.number, part), &end, PARTS_AT_ONCE)?;
            if parts.is_empty() {
                break;
            }
            part += parts.len() as u64;
            parts.iter().for_each(|(_, value)| bytes.extend_from_slice(value));
        }
        if bytes.len() != current.bytes {
            let cause = format!("it has {} of {} bytes", bytes.len(), current.bytes);
            return Err(StoreError::Corrupt { what: "a snapshot", cause });
        }
        Ok(Some((current.meta, bytes.into())))
    }

    /// Makes a snapshot the current one, unless the current one covers as much. On disk when it returns.
    pub(crate) async fn write(&self, meta: SnapshotMeta<M>, snapshot: SnapshotBytes) -> Result<(), StoreError> {
        if snapshot.len() > SNAPSHOT_BYTES_MAX {
            return Err(StoreError::TooLarge { bytes: snapshot.len(), limit: SNAPSHOT_BYTES_MAX });
        }
        let _one_writer = self.writing.lock().await;
        let current = self.current()?;
        if current.as_ref().is_some_and(|current| current.meta.last_log_id >= meta.last_log_id) {
            return Ok(());
        }
        let number = current.map_or(0, |current| current.number + 1);
        self.store.remove(&self.keys.snapshot_part(number, 0), &self.keys.snapshot_parts_end())?;
        let mut parts = snapshot.chunks(PART_BYTES).zip(0..).peekable();
        while parts.peek().is_some() {
            let pairs = parts.by_ref().take(PARTS_AT_ONCE);
            let pairs = pairs.map(|(part, at)| (self.keys.snapshot_part(number, at), part.to_vec())).collect();
            self.store.insert(pairs)?;
            // Parts of a large snapshot shouldn't keep this thread from the group's heartbeats.
            tokio::task::yield_now().await;
        }
        self.store.flush().await?;
        let current = Current::<M> { number, bytes: snapshot.len(), meta };
        self.store.insert(vec![(self.keys.snapshot(), record::encode("the current snapshot", &current)?)])?;
        self.store.flush().await?;
        self.store.remove(&self.keys.snapshot_part(0, 0), &self.keys.snapshot_part(number, 0))
    }

    fn current(&self) -> Result<Option<Current<M>>, StoreError> {
        let bytes = self.store.get(&self.keys.snapshot())?;
        bytes.map(|bytes| record::decode("the current snapshot", &bytes)).transpose()
    }
}

/// A state's written form.
pub(crate) fn encode_state<M: Machine>(state: M::State) -> Result<SnapshotBytes, StoreError> {
    let bytes = serde_json::to_vec(&Versioned(state));
    bytes.map(Bytes::from).map_err(|error| corrupt(&error))
}

/// Reads a state's written form.
pub(crate) fn decode_state<M: Machine>(bytes: &[u8]) -> Result<M::State, StoreError> {
    let state = serde_json::from_slice::<Versioned<M::State>>(bytes);
    state.map(|Versioned(state)| state).map_err(|error| corrupt(&error))
}

fn corrupt(cause: &serde_json::Error) -> StoreError {
    StoreError::Corrupt { what: "a snapshot", cause: cause.to_string() }
}
