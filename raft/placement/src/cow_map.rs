//! An ordered map whose copies share what hasn't changed.
//!
//! The state of a group is published after every batch of commands, and a region may hold 100,000 sandboxes: a
//! plain map's copy would touch each of them. This one is a sorted list of shared chunks of shared entries; a copy
//! takes a reference to each chunk, and a change copies one chunk's references.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Entries in a chunk at most. Near the square root of the largest map, so that a copy (one reference a chunk) and
/// a change (one reference an entry of one chunk) cost about the same.
const CHUNK_ENTRIES_MAX: usize = 256;
/// Below this many entries a chunk joins its neighbour, if both fit half a chunk.
const CHUNK_ENTRIES_LOW: usize = CHUNK_ENTRIES_MAX / 4;

type Entry<K, V> = Arc<(K, V)>;
type Chunk<K, V> = Arc<Vec<Entry<K, V>>>;

/// An ordered map with cheap copies. No chunk is empty, keys ascend within and across chunks.
pub struct CowMap<K, V> {
    chunks: Vec<Chunk<K, V>>,
    len: usize,
}

impl<K, V> CowMap<K, V> {
    /// An empty map.
    pub const fn new() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entries in the order of their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|entry| (&entry.0, &entry.1))
    }

    /// The keys in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// The values in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The entry with the smallest key.
    pub fn first(&self) -> Option<(&K, &V)> {
        self.iter().next()
    }
}

impl<K: Ord, V> CowMap<K, V> {
    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        position(chunk, key).ok().map(|at| &chunk[at].1)
    }

    /// Whether a key is there.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Sets a key's value; true if it had one before.
    pub fn insert(&mut self, key: K, value: V) -> bool {
        // A key past the last chunk belongs at that chunk's end.
        let index = self.chunk_of(&key).min(self.chunks.len().saturating_sub(1));
        let entry = Arc::new((key, value));
        let Some(chunk) = self.chunks.get_mut(index) else {
            self.chunks.push(Arc::new(vec![entry]));
            self.len = 1;
            return false;
        };
        let entries = Arc::make_mut(chunk);
        match position(entries, &entry.0) {
            Ok(at) => {
                entries[at] = entry;
                return true;
            }
            Err(at) => entries.insert(at, entry),
        }
        self.len += 1;
        if entries.len() > CHUNK_ENTRIES_MAX {
            let upper = entries.split_off(CHUNK_ENTRIES_MAX / 2);
            self.chunks.insert(index + 1, Arc::new(upper));
        }
        false
    }

    /// Removes a key; true if it was there.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        let index = self.chunk_of(key);
        let Some(chunk) = self.chunks.get_mut(index) else { return false };
        let Ok(at) = position(chunk, key) else { return false };
        Arc::make_mut(chunk).remove(at);
        self.len -= 1;
        self.tidy(index);
        true
    }

    /// Drops an empty chunk, or joins a small one to a neighbour.
    fn tidy(&mut self, index: usize) {
        let left = self.chunks[index].len();
        if left == 0 {
            self.chunks.remove(index);
            return;
        }
        if left >= CHUNK_ENTRIES_LOW {
            return;
        }
        // Each pair of neighbours by the index of its first.
        let pairs = [index.checked_sub(1), Some(index)].into_iter().flatten();
        let joinable = pairs.into_iter().find(|first| {
            let pair = self.chunks.get(*first).zip(self.chunks.get(first + 1));
            pair.is_some_and(|(first, second)| first.len() + second.len() <= CHUNK_ENTRIES_MAX / 2)
        });
        if let Some(first) = joinable {
            let second = self.chunks.remove(first + 1);
            Arc::make_mut(&mut self.chunks[first]).extend(second.iter().cloned());
        }
    }

    /// The first chunk whose last key isn't below `key`.
    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.chunks.partition_point(|chunk| chunk.last().is_some_and(|entry| entry.0.borrow() < key))
    }
}

impl<K: Ord + Clone, V: Clone> CowMap<K, V> {
    /// Changes a key's value in place; false if it isn't there.
    pub fn update<Q: Ord + ?Sized>(&mut self, key: &Q, change: impl FnOnce(&mut V)) -> bool
    where
        K: Borrow<Q>,
    {
        let index = self.chunk_of(key);
        let Some(chunk) = self.chunks.get_mut(index) else { return false };
        let Ok(at) = position(chunk, key) else { return false };
        change(&mut Arc::make_mut(&mut Arc::make_mut(chunk)[at]).1);
        true
    }
}

fn position<K: Borrow<Q>, V, Q: Ord + ?Sized>(entries: &[Entry<K, V>], key: &Q) -> Result<usize, usize> {
    entries.binary_search_by(|entry| entry.0.borrow().cmp(key))
}

impl<K, V> Clone for CowMap<K, V> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks.clone(), len: self.len }
    }
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for CowMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Eq, V: Eq> Eq for CowMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for CowMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for CowMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

impl<K: Serialize, V: Serialize> Serialize for CowMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Deserialize<'de> for CowMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

struct Entries<K, V>(PhantomData<(K, V)>);

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Visitor<'de> for Entries<K, V> {
    type Value = CowMap<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut map = CowMap::new();
        while let Some((key, value)) = entries.next_entry()? {
            map.insert(key, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn assert_well_formed(map: &CowMap<u16, u32>) {
        assert!(map.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK_ENTRIES_MAX));
        assert_eq!(map.len, map.chunks.iter().map(|chunk| chunk.len()).sum::<usize>());
    }

    proptest! {
        #[test]
        fn it_does_what_a_tree_map_does_and_old_copies_stay(
            steps in proptest::collection::vec((0u8..4, 0u16..2000, any::<u32>()), 0..3000),
            copied_at in 0usize..3000,
        ) {
            let (mut map, mut model) = (CowMap::new(), BTreeMap::new());
            let mut old = None;
            for (step, (kind, key, value)) in steps.into_iter().enumerate() {
                if step == copied_at {
                    old = Some((map.clone(), model.clone()));
                }
                match kind {
                    0 | 1 => prop_assert_eq!(map.insert(key, value), model.insert(key, value).is_some()),
                    2 => prop_assert_eq!(map.remove(&key), model.remove(&key).is_some()),
                    _ => {
                        let there = model.get_mut(&key).map(|found| *found ^= value).is_some();
                        prop_assert_eq!(map.update(&key, |found| *found ^= value), there);
                    }
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
            }
            assert_well_formed(&map);
            prop_assert!(map.iter().eq(model.iter()));
            if let Some((map, model)) = old {
                prop_assert!(map.iter().eq(model.iter()));
            }
        }
    }

    #[test]
    fn it_stays_in_few_chunks_when_filled_in_order_and_emptied() {
        let mut map: CowMap<u16, u32> = (0..20_000).map(|key| (key, 0)).collect();
        assert_well_formed(&map);
        assert!(map.chunks.len() <= 20_000 / (CHUNK_ENTRIES_MAX / 2) + 1, "{}", map.chunks.len());
        (0..20_000).filter(|key| key % 100 != 0).for_each(|key| assert!(map.remove(&key)));
        assert_well_formed(&map);
        assert_eq!(map.len(), 200);
        assert!(map.chunks.len() <= 16, "{}", map.chunks.len());
    }

    #[test]
    fn it_is_written_as_a_map() {
        let map: CowMap<String, u32> = [("b".to_owned(), 2), ("a".to_owned(), 1)].into_iter().collect();
        let text = serde_json::to_string(&map).expect("JSON");
        assert_eq!(text, r#"{"a":1,"b":2}"#);
        assert_eq!(serde_json::from_str::<CowMap<String, u32>>(&text).expect("parses"), map);
    }
}
