//! The keys of one group in the node's store.
//!
//! ```text
//! <group> 0 l <index>            a log entry; the index has 8 bytes, most significant first
//! <group> 0 v | c | p            the vote, the last committed id, the last purged id
//! <group> 0 s                    which snapshot is the current one
//! <group> 0 d <number> <part>    a part of a snapshot's bytes
//! ```
//! A group's name holds no zero byte, so no group's keys lie among another's.

use crate::GroupName;

/// The keys of a group.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: Vec<u8>,
}

impl Keys {
    pub(crate) fn of(group: &GroupName) -> Self {
        let mut prefix = group.as_str().as_bytes().to_vec();
        prefix.push(0);
        Self { prefix }
    }

    pub(crate) fn entry(&self, index: u64) -> Vec<u8> {
        self.key(b'l', &[index])
    }

    /// The key after every entry's.
    pub(crate) fn entries_end(&self) -> Vec<u8> {
        self.key(b'l' + 1, &[])
    }

    /// The index in an entry's key.
    pub(crate) fn index_of(&self, key: &[u8]) -> Option<u64> {
        let index = key.strip_prefix(self.prefix.as_slice())?.strip_prefix(b"l")?;
        index.try_into().map(u64::from_be_bytes).ok()
    }

    pub(crate) fn vote(&self) -> Vec<u8> {
        self.key(b'v', &[])
    }

    pub(crate) fn committed(&self) -> Vec<u8> {
        self.key(b'c', &[])
    }

    pub(crate) fn purged(&self) -> Vec<u8> {
        self.key(b'p', &[])
    }

    pub(crate) fn snapshot(&self) -> Vec<u8> {
        self.key(b's', &[])
    }

    pub(crate) fn snapshot_part(&self, number: u64, part: u64) -> Vec<u8> {
        self.key(b'd', &[number, part])
    }

    /// The key after every part's of every snapshot.
    pub(crate) fn snapshot_parts_end(&self) -> Vec<u8> {
        self.key(b'd' + 1, &[])
    }

    fn key(&self, tag: u8, numbers: &[u64]) -> Vec<u8> {
        let mut key = self.prefix.clone();
        key.push(tag);
        numbers.iter().for_each(|number| key.extend_from_slice(&number.to_be_bytes()));
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_their_indexes_and_stay_in_their_group() {
        let keys = Keys::of(&GroupName::parse("catalog").expect("a name"));
        let longer = Keys::of(&GroupName::parse("catalog2").expect("a name"));
        assert!(keys.entry(255) < keys.entry(256));
        assert!(keys.entry(u64::MAX) < keys.entries_end());
        assert!(keys.snapshot_part(1, u64::MAX) < keys.snapshot_part(2, 0));
        assert_eq!(keys.index_of(&keys.entry(7)), Some(7));
        assert_eq!(longer.index_of(&keys.entry(7)), None);
        assert!([longer.entry(0), longer.vote()].iter().all(|key| *key > keys.entries_end()));
    }
}
