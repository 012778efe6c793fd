//! Chunks that an operation needs and no manifest refers to yet: a collection leaves them alone. No I/O but the
//! removal that is done under the lock, so that a pin is either before it or after it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fabric_types::Digest;

/// The pins of one store.
#[derive(Clone, Default)]
pub(crate) struct Pins {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    counts: HashMap<Digest, u32>,
    /// While a collection runs: everything that was pinned at any moment of it. What it didn't see in a manifest may
    /// by now be in one that was written after it looked.
    seen_by_collection: Option<HashSet<Digest>>,
}

/// Some pins, until dropped.
pub(crate) struct PinSet {
    pins: Pins,
    digests: Vec<Digest>,
}

/// A running collection, until dropped.
pub(crate) struct Collection {
    pins: Pins,
}

impl Pins {
    /// No pins yet, to be added to.
    pub(crate) fn set(&self) -> PinSet {
        PinSet { pins: self.clone(), digests: Vec::new() }
    }

    /// Begins a collection. There is one at a time: the store sees to it.
    pub(crate) fn collection(&self) -> Collection {
        let mut state = self.lock();
        state.seen_by_collection = Some(state.counts.keys().copied().collect());
        drop(state);
        Collection { pins: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PinSet {
    /// Pins one more.
    pub(crate) fn add(&mut self, digest: Digest) {
        let mut state = self.pins.lock();
        *state.counts.entry(digest).or_default() += 1;
        if let Some(seen) = &mut state.seen_by_collection {
            seen.insert(digest);
        }
        drop(state);
        self.digests.push(digest);
    }
}

impl Drop for PinSet {
    fn drop(&mut self) {
        let mut state = self.pins.lock();
        for digest in &self.digests {
            if let Some(count) = state.counts.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.counts.remove(digest);
                }
            }
        }
    }
}

impl Collection {
    /// Runs `remove` unless the chunk was pinned since the collection began. Nobody can pin it meanwhile.
    pub(crate) fn unless_pinned<T>(&self, digest: &Digest, remove: impl FnOnce() -> T) -> Option<T> {
        let state = self.pins.lock();
        let pinned = state.seen_by_collection.as_ref().is_some_and(|seen| seen.contains(digest));
        if pinned { None } else { Some(remove()) }
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        self.pins.lock().seen_by_collection = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pinned_at_any_moment_of_a_collection_is_left_alone() {
        let pins = Pins::default();
        let [before, during, never] = [1, 2, 3].map(|byte| Digest::from_bytes([byte; 32]));
        let mut set = pins.set();
        set.add(before);
        let collection = pins.collection();
        drop(set);
        let mut set = pins.set();
        set.add(during);
        drop(set);
        assert_eq!(collection.unless_pinned(&before, || ()), None);
        assert_eq!(collection.unless_pinned(&during, || ()), None);
        assert_eq!(collection.unless_pinned(&never, || ()), Some(()));
        drop(collection);
        assert_eq!(pins.collection().unless_pinned(&during, || ()), Some(()));
    }

    #[test]
    fn a_chunk_pinned_twice_stays_until_both_are_gone() {
        let pins = Pins::default();
        let digest = Digest::from_bytes([9; 32]);
        let (mut first, mut second) = (pins.set(), pins.set());
        first.add(digest);
        second.add(digest);
        drop(first);
        assert_eq!(pins.collection().unless_pinned(&digest, || ()), None);
        drop(second);
        assert_eq!(pins.collection().unless_pinned(&digest, || ()), Some(()));
    }
}
