//! Whether the host has room for one more machine: its disk, and its physical memory.
//!
//! The ledger counts what sandboxes were promised, times an overcommit factor; this looks at what is really there. Both
//! refuse, so that a node says no before the kernel does.

use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::sys::statvfs::statvfs;

use crate::durable::At;
use crate::{RuntimeConfig, RuntimeError};

/// Private memory of a machine of whose kind none has been measured yet, KiB: what a fresh clone under QEMU takes, and
/// more than a copy does.
const PRIVATE_KIB_GUESSED: u64 = 64 << 10;
/// How much a new measurement counts against the old mean: one in so many.
const MEASUREMENTS: u64 = 8;

/// The disk that a node leaves free where it isn't told otherwise: 1 GiB or 2% of the disk under `dir`, whichever is
/// more, but never more than a tenth, so that a small disk is of use.
///
/// # Errors
/// When the disk can't be measured.
pub fn min_free_disk_bytes(dir: &Path) -> std::io::Result<u64> {
    let stat = statvfs(dir)?;
    Ok(kept_free(stat.blocks() * stat.fragment_size()))
}

fn kept_free(total_bytes: u64) -> u64 {
    (total_bytes / 50).max(1 << 30).min(total_bytes / 10)
}

/// The memory that a node leaves available where it isn't told otherwise, so that guests that run can grow: a twentieth
/// of the host's.
///
/// # Errors
/// When /proc/meminfo can't be read.
pub fn min_free_memory_bytes() -> std::io::Result<u64> {
    meminfo("MemTotal").map(|kib| (kib << 10) / 20)
}

/// How a machine is made, as far as it tells what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Making {
    /// By a monitor of its own: a clone, a restore, a boot.
    Anew,
    /// As a copy of a checkpoint, which shares its monitor's memory too.
    Copy,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Room {
    /// Machines that are being made now: what they will take isn't missing from the host's memory yet.
    making: AtomicU32,
    /// What a machine took on the average once it was made, KiB: one made anew, and a copy.
    private_kib: [AtomicU64; 2],
}

/// A machine that is being made. Dropped when it is made, or when nothing is left of it.
#[derive(Debug)]
pub(crate) struct Berth<'a>(&'a Room);

impl Drop for Berth<'_> {
    fn drop(&mut self) {
        self.0.making.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Room {
    pub(crate) fn new() -> Self {
        Self { making: AtomicU32::new(0), private_kib: [PRIVATE_KIB_GUESSED; 2].map(AtomicU64::new) }
    }

    /// What a machine takes for itself, KiB, as far as it was measured.
    pub(crate) fn private_kib(&self, making: Making) -> u64 {
        self.of(making).load(Ordering::Relaxed)
    }

    /// Takes a measurement in.
    pub(crate) fn measured(&self, making: Making, private_kib: u64) {
        let old = self.private_kib(making);
        let mean = if old == PRIVATE_KIB_GUESSED {
            private_kib
        } else {
            (old * (MEASUREMENTS - 1) + private_kib) / MEASUREMENTS
        };
        self.of(making).store(mean.max(1), Ordering::Relaxed);
    }

    fn of(&self, making: Making) -> &AtomicU64 {
        let [anew, copy] = &self.private_kib;
        match making {
            Making::Anew => anew,
            Making::Copy => copy,
        }
    }

    /// Refuses new work on a disk that is too full. Microseconds.
    pub(crate) fn check_disk(config: &RuntimeConfig) -> Result<(), RuntimeError> {
        let stat = statvfs(&config.dir).map_err(std::io::Error::from).at("measure the disk of", &config.dir)?;
        let free = stat.blocks_available() * stat.fragment_size();
        let needed = config.min_free_disk_bytes;
        if free < needed { Err(RuntimeError::HostDisk { free, needed }) } else { Ok(()) }
    }

    /// Enters one more machine that is to be made, or refuses it.
    pub(crate) fn enter(&self, config: &RuntimeConfig, kind: Making) -> Result<Berth<'_>, RuntimeError> {
        let making = self.making.fetch_add(1, Ordering::Relaxed);
        let berth = Berth(self);
        let path = Path::new("/proc/meminfo");
        let available = meminfo("MemAvailable").at("read", path)? << 10;
        fits(available, self.private_kib(kind) << 10, u64::from(making), config.min_free_memory_bytes)?;
        Ok(berth)
    }
}

/// Whether one more machine fits beside `making` others that haven't taken theirs yet.
fn fits(available: u64, private: u64, making: u64, reserve: u64) -> Result<(), RuntimeError> {
    let needed = private.saturating_mul(making + 1).saturating_add(reserve);
    if available < needed { Err(RuntimeError::HostMemory { available, needed }) } else { Ok(()) }
}

/// A line of /proc/meminfo (proc_meminfo(5)), KiB.
fn meminfo(name: &str) -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok();
    text.lines().find_map(value).ok_or_else(|| std::io::Error::other(format!("it has no {name}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_large_disk_keeps_two_percent_free_and_a_small_one_a_tenth() {
        assert_eq!(kept_free(1 << 40), (1 << 40) / 50);
        assert_eq!(kept_free(40 << 30), 1 << 30);
        assert_eq!(kept_free(1 << 30), (1 << 30) / 10);
    }

    #[test]
    fn the_first_measurement_replaces_the_guess_and_later_ones_move_the_mean() {
        let room = Room::new();
        room.measured(Making::Anew, 40 << 10);
        assert_eq!(room.private_kib(Making::Anew), 40 << 10);
        room.measured(Making::Anew, 48 << 10);
        assert_eq!(room.private_kib(Making::Anew), 41 << 10);
        assert_eq!(room.private_kib(Making::Copy), PRIVATE_KIB_GUESSED, "nothing is known of copies by that");
        room.measured(Making::Copy, 9 << 10);
        assert_eq!((room.private_kib(Making::Anew), room.private_kib(Making::Copy)), (41 << 10, 9 << 10));
    }

    #[test]
    fn machines_in_the_making_count_until_they_are_made() {
        let root = tempfile::tempdir().expect("a folder");
        let config = crate::testing::config(root.path());
        let room = Room::new();
        let berths =
            [room.enter(&config, Making::Anew).expect("room"), room.enter(&config, Making::Anew).expect("room")];
        assert_eq!(room.making.load(Ordering::Relaxed), 2);
        drop(berths);
        let full = RuntimeConfig { min_free_memory_bytes: u64::MAX, ..config };
        assert!(matches!(room.enter(&full, Making::Anew), Err(RuntimeError::HostMemory { .. })));
        assert_eq!(room.making.load(Ordering::Relaxed), 0, "a refused one isn't being made");
    }

    proptest! {
        #[test]
        fn what_fits_leaves_the_reserve(
            available in 0_u64..1 << 40, private in 0_u64..1 << 32, making in 0_u64..64, reserve in 0_u64..1 << 36,
        ) {
            let fitted = fits(available, private, making, reserve).is_ok();
            prop_assert_eq!(fitted, available >= reserve + private * (making + 1));
        }
    }
}
