//! A monitor's private pages: found by /proc/PID/pagemap, read and written in its memory from outside.
//!
//! A clone maps the template's memory file privately: a page that it only read is still the file's page, one that it
//! wrote is its own. Bit 61 of a pagemap entry tells them apart (Documentation/admin-guide/mm/pagemap.rst). Reading
//! another process's memory is its parent's right (and root's), so the keeper does it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};

use crate::process::pid_of;

/// x86-64's page, bytes.
pub(crate) const PAGE: u64 = 4096;
/// Bytes moved by one call: the buffer stays in the processor's cache, and the keeper small.
const BATCH_BYTES: usize = 1 << 20;
/// Pieces of one call: IOV_MAX of Linux.
const BATCH_PIECES: usize = 1024;
/// Threads that move pages: two take half the time of one (25 ms instead of 50 for 112 MiB), and memory is busy with four.
const THREADS_MAX: usize = 4;
/// Stack of such a thread, bytes: its buffer is elsewhere.
const STACK_BYTES: usize = 128 << 10;
/// Shortest run whose blocks are allocated ahead, bytes: for shorter ones the call costs what it saves.
const ALLOCATE_BYTES_MIN: u64 = 64 << 10;
/// Entries of pagemap that are read at once: 128 KiB, which covers 64 MiB of guest memory.
const ENTRIES: usize = 16 << 10;

/// Page is a file's or shared.
const BIT_FILE: u64 = 1 << 61;
/// Page is swapped out.
const BIT_SWAPPED: u64 = 1 << 62;
/// Page is in memory.
const BIT_PRESENT: u64 = 1 << 63;

/// Whether a page of that entry of pagemap has content of its own.
pub(crate) fn is_there(entry: u64) -> bool {
    entry & (BIT_PRESENT | BIT_SWAPPED) != 0
}

/// Whether it is the process's own, of no file.
pub(crate) fn is_private(entry: u64) -> bool {
    is_there(entry) && entry & BIT_FILE == 0
}

/// A run of pages: offset into the memory file and length, bytes.
pub(crate) type Run = (u64, u64);

/// A piece of the memory file as the monitor maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    address: u64,
    offset: u64,
    length: u64,
}

/// The file that a monitor maps its guest's memory from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backing {
    inode: u64,
    length: u64,
    /// The name by which it is mapped; none where that may have been another, or is no more.
    name: Option<String>,
}

impl Backing {
    /// One that is mapped by this name.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let about = fs::metadata(path)?;
        let name = fs::canonicalize(path)?.to_string_lossy().into_owned();
        Ok(Self { inode: about.ino(), length: about.len(), name: Some(name) })
    }

    /// One that is open here.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let about = file.metadata()?;
        Ok(Self { inode: about.ino(), length: about.len(), name: None })
    }

    /// Whether a mapping of this inode and name is of it. Device numbers in maps differ from stat's on some file systems
    /// (btrfs, overlayfs), so they don't count.
    pub(crate) fn is(&self, inode: u64, name: &str) -> bool {
        inode == self.inode && self.name.as_deref().is_none_or(|known| known == name)
    }
}

/// Writes the private pages of `pid`'s mapping of `memory`, and those of `further` runs, into `file`, and all their runs into
/// `runs`; answers the bytes.
pub(crate) fn save(pid: u32, memory: &Backing, further: &[Run], file: &File, runs: &File) -> io::Result<u64> {
    let mappings = mappings_of(pid, memory)?;
    let found = united(private_runs(pid, &mappings)?, further);
    file.set_len(memory.length)?;
    allocate(file, &found);
    let total = in_parallel(&found, |batch, buffer| {
        let remote = remote_pieces(&mappings, batch)?;
        if process_vm_readv(pid_of(pid), &mut [IoSliceMut::new(buffer)], &remote)? != buffer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = 0;
        for &(offset, length) in batch {
            let next = at + size(length)?;
            file.write_all_at(&buffer[at..next], offset)?;
            at = next;
        }
        Ok(())
    })?;
    put_runs(runs, &found)?;
    Ok(total)
}

/// Lays the runs of `file` over `pid`'s private mapping of `memory`; answers the bytes.
pub(crate) fn lay(pid: u32, memory: &Backing, file: &File, runs: &File) -> io::Result<u64> {
    let mappings = mappings_of(pid, memory)?;
    let wanted = take_runs(runs)?;
    check_runs(&wanted, memory.length)?;
    in_parallel(&wanted, |batch, buffer| {
        let mut at = 0;
        for &(offset, length) in batch {
            let next = at + size(length)?;
            file.read_exact_at(&mut buffer[at..next], offset)?;
            at = next;
        }
        let remote = remote_pieces(&mappings, batch)?;
        if process_vm_writev(pid_of(pid), &[IoSlice::new(buffer)], &remote)? != buffer.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    })
}

/// Has the file system find the blocks of large runs at once: each write of 4 KiB that finds them itself takes twice as
/// long. Where it can't, the writes do.
fn allocate(file: &File, runs: &[Run]) {
    for &(offset, length) in runs.iter().filter(|&&(_, length)| length >= ALLOCATE_BYTES_MIN) {
        if fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset.cast_signed(), length.cast_signed()).is_err() {
            return;
        }
    }
}

/// Moves all runs, batch after batch, each with a buffer as long as its batch. Answers the bytes.
fn in_parallel(runs: &[Run], each: impl Fn(&[Run], &mut [u8]) -> io::Result<()> + Sync) -> io::Result<u64> {
    let all: Vec<Vec<Run>> = batches(runs).collect();
    on_threads(all.len(), BATCH_BYTES, |number, buffer| {
        let batch = &all[number];
        each(batch, &mut buffer[..length_of(batch)?])
    })?;
    Ok(runs.iter().map(|&(_, length)| length).sum())
}

/// Does `each` of `count` pieces of work, on as many threads as help, each of which has a buffer. The machine stands
/// still meanwhile, so its processors are free for it.
pub(crate) fn on_threads(
    count: usize,
    buffer_bytes: usize,
    each: impl Fn(usize, &mut [u8]) -> io::Result<()> + Sync,
) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buffer = vec![0; buffer_bytes];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return io::Result::Ok(());
            }
            each(number, &mut buffer)?;
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(count);
    thread::scope(|scope| {
        // Fewer threads are slower, not wrong: what couldn't be started, the others do.
        let others: Vec<_> = (1..threads)
            .filter_map(|_| thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work).ok())
            .collect();
        let mut outcome = work();
        for other in others {
            let theirs = other.join().unwrap_or_else(|_| Err(io::Error::other("a thread that moves pages panicked")));
            outcome = outcome.and(theirs);
        }
        outcome
    })
}

/// Writes runs as pairs of little-endian 64-bit numbers.
pub(crate) fn write_runs(path: &Path, runs: &[Run]) -> io::Result<()> {
    put_runs(&OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?, runs)
}

fn put_runs(mut file: &File, runs: &[Run]) -> io::Result<()> {
    let bytes: Vec<u8> =
        runs.iter().flat_map(|&(offset, length)| [offset.to_le_bytes(), length.to_le_bytes()]).flatten().collect();
    file.write_all(&bytes)
}

/// Reads what `write_runs` wrote.
pub(crate) fn read_runs(path: &Path) -> io::Result<Vec<Run>> {
    take_runs(&File::open(path)?)
}

fn take_runs(file: &File) -> io::Result<Vec<Run>> {
    let mut bytes = Vec::new();
    // The largest guest (64 GiB) has at most 2^23 separate runs of 16 bytes.
    file.take(1 << 27).read_to_end(&mut bytes)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    Ok(bytes.chunks_exact(16).map(|pair| (number(&pair[..8]), number(&pair[8..]))).collect())
}

/// Runs come from files and peers: aligned, ascending, disjoint and within the memory, or refused.
pub(crate) fn check_runs(runs: &[Run], memory_bytes: u64) -> io::Result<()> {
    let mut before = 0;
    for &(offset, length) in runs {
        let end = offset.checked_add(length).filter(|&end| end <= memory_bytes);
        let aligned = offset.is_multiple_of(PAGE) && length.is_multiple_of(PAGE) && length > 0;
        match end {
            Some(end) if aligned && offset >= before => before = end,
            _ => {
                let message =
                    format!("the run of {length} bytes at {offset} is misplaced in a memory of {memory_bytes} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
    }
    Ok(())
}

fn mappings_of(pid: u32, memory: &Backing) -> io::Result<Vec<Mapping>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let found = parse_maps(&maps, memory);
    let covered: u64 = found.iter().map(|mapping| mapping.length).sum();
    if covered == memory.length {
        return Ok(found);
    }
    let (length, name) = (memory.length, memory.name.as_deref().unwrap_or("its checkpoint's memory"));
    let message = format!("process {pid} maps {covered} of {length} bytes of {name} privately");
    Err(io::Error::new(io::ErrorKind::NotFound, message))
}

/// Private mappings of one file, in the file's order.
fn parse_maps(maps: &str, memory: &Backing) -> Vec<Mapping> {
    let parse = |line: &str| {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let private = fields.next()?.ends_with('p');
        let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let inode = fields.nth(1)?.parse::<u64>().ok()?;
        let name = fields.next()?.trim_start();
        if !private || !memory.is(inode, name) {
            return None;
        }
        let (address, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        Some(Mapping { address, offset, length: end - address })
    };
    let mut found: Vec<Mapping> = maps.lines().filter_map(parse).collect();
    found.sort_by_key(|mapping| mapping.offset);
    found
}

/// Looks through the whole mapping, on several threads: most of its gigabytes are untouched, and the machine waits.
fn private_runs(pid: u32, mappings: &[Mapping]) -> io::Result<Vec<Run>> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let slice = PAGE * ENTRIES as u64;
    let slices: Vec<Mapping> = mappings
        .iter()
        .flat_map(|mapping| {
            (0..mapping.length).step_by(ENTRIES * PAGE as usize).map(|at| Mapping {
                address: mapping.address + at,
                offset: mapping.offset + at,
                length: slice.min(mapping.length - at),
            })
        })
        .collect();
    let found = Mutex::new(Vec::new());
    on_threads(slices.len(), ENTRIES * 8, |number, buffer| {
        let slice = slices[number];
        let bytes = &mut buffer[..size(slice.length / PAGE)? * 8];
        pagemap.read_exact_at(bytes, slice.address / PAGE * 8)?;
        let mut runs = Vec::new();
        extend_runs(&mut runs, slice.offset, bytes.as_chunks::<8>().0.iter().map(|&entry| u64::from_ne_bytes(entry)));
        found.lock().unwrap_or_else(PoisonError::into_inner).extend(runs);
        Ok(())
    })?;
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_unstable();
    Ok(joined(found))
}

/// All that lies in either; both ascend.
fn united(runs: Vec<Run>, further: &[Run]) -> Vec<Run> {
    if further.is_empty() {
        return runs;
    }
    let mut all = runs;
    all.extend_from_slice(further);
    all.sort_unstable();
    let mut united: Vec<Run> = Vec::with_capacity(all.len());
    for (offset, length) in all {
        match united.last_mut() {
            Some((start, before)) if *start + *before >= offset => *before = (*before).max(offset + length - *start),
            _ => united.push((offset, length)),
        }
    }
    united
}

/// Joins neighbours among ascending runs.
fn joined(runs: Vec<Run>) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::with_capacity(runs.len());
    for (offset, length) in runs {
        match joined.last_mut() {
            Some((start, before)) if *start + *before == offset => *before += length,
            _ => joined.push((offset, length)),
        }
    }
    joined
}

/// Adds the private pages among `entries`, the first of which lies at `offset` of the file.
fn extend_runs(runs: &mut Vec<Run>, offset: u64, entries: impl Iterator<Item = u64>) {
    let mut at = offset;
    for entry in entries {
        if is_private(entry) {
            match runs.last_mut() {
                Some((start, length)) if *start + *length == at => *length += PAGE,
                _ => runs.push((at, PAGE)),
            }
        }
        at += PAGE;
    }
}

/// Cuts runs into groups of at most `BATCH_BYTES` and half of `BATCH_PIECES` (a piece may straddle two mappings).
fn batches(runs: &[Run]) -> impl Iterator<Item = Vec<Run>> + '_ {
    const BYTES: u64 = BATCH_BYTES as u64;
    let mut rest = runs.iter().copied();
    let mut carried = None;
    std::iter::from_fn(move || {
        let (mut batch, mut free) = (Vec::new(), BYTES);
        while batch.len() < BATCH_PIECES / 2 && free > 0 {
            let Some((offset, length)) = carried.take().or_else(|| rest.next()) else { break };
            let taken = length.min(free);
            batch.push((offset, taken));
            free -= taken;
            if taken < length {
                carried = Some((offset + taken, length - taken));
            }
        }
        (!batch.is_empty()).then_some(batch)
    })
}

fn remote_pieces(mappings: &[Mapping], batch: &[Run]) -> io::Result<Vec<RemoteIoVec>> {
    let mut pieces = Vec::with_capacity(batch.len());
    for &(offset, length) in batch {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let mapping = mappings.iter().find(|m| m.offset <= at && at < m.offset + m.length);
            let mapping = mapping.ok_or(io::ErrorKind::NotFound)?;
            let until = end.min(mapping.offset + mapping.length);
            pieces.push(RemoteIoVec { base: size(mapping.address + (at - mapping.offset))?, len: size(until - at)? });
            at = until;
        }
    }
    Ok(pieces)
}

fn length_of(batch: &[Run]) -> io::Result<usize> {
    size(batch.iter().map(|&(_, length)| length).sum())
}

fn size(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection, prelude::*};

    #[test]
    fn only_private_mappings_of_the_very_file_count() {
        let maps = "\
7f00-8f00 rw-p 00001000 fe:00 77    /t/memory\n\
1000-2000 rw-p 00000000 fe:00 77    /t/memory\n\
3000-4000 rw-s 00002000 fe:00 77    /t/memory\n\
5000-6000 rw-p 00000000 fe:00 78    /t/memory\n\
9000-a000 rw-p 00000000 fe:00 77    /t/memory2\n\
b000-c000 rw-p 00000000 00:00 0 \n";
        let memory = Backing { inode: 77, length: 0, name: Some("/t/memory".to_owned()) };
        let found = parse_maps(maps, &memory);
        let expected = [(0x1000, 0, 0x1000), (0x7f00, 0x1000, 0x1000)];
        assert_eq!(found, expected.map(|(address, offset, length)| Mapping { address, offset, length }));
    }

    #[test]
    fn runs_join_neighbours_and_leave_out_what_the_file_has() {
        let (private, file, swapped) = (BIT_PRESENT, BIT_PRESENT | BIT_FILE, BIT_SWAPPED);
        let mut runs = Vec::new();
        extend_runs(&mut runs, 0, [private, private, file, 0, swapped].into_iter());
        extend_runs(&mut runs, 5 * PAGE, [private, file].into_iter());
        assert_eq!(runs, [(0, 2 * PAGE), (4 * PAGE, 2 * PAGE)]);
    }

    #[test]
    fn what_lies_in_either_lies_in_both_together() {
        let runs = vec![(0, 2 * PAGE), (8 * PAGE, PAGE)];
        let further = [(PAGE, 4 * PAGE), (9 * PAGE, PAGE), (20 * PAGE, PAGE)];
        assert_eq!(united(runs.clone(), &further), [(0, 5 * PAGE), (8 * PAGE, 2 * PAGE), (20 * PAGE, PAGE)]);
        assert_eq!(united(runs.clone(), &[]), runs);
        assert_eq!(united(Vec::new(), &further), further);
        assert_eq!(united(vec![(0, 30 * PAGE)], &further), [(0, 30 * PAGE)]);
    }

    #[test]
    fn batches_cover_every_byte_once_and_keep_the_limits() {
        let runs: Vec<Run> =
            (0..3000).map(|n| (n * 64 * PAGE, PAGE * (1 + n % 40))).chain([(1 << 40, 5 << 20)]).collect();
        let mut joined: Vec<Run> = Vec::new();
        for batch in batches(&runs) {
            assert!(batch.len() <= BATCH_PIECES / 2 && length_of(&batch).expect("small") <= BATCH_BYTES);
            for (offset, length) in batch {
                match joined.last_mut() {
                    Some((start, sum)) if *start + *sum == offset => *sum += length,
                    _ => joined.push((offset, length)),
                }
            }
        }
        assert_eq!(joined, runs);
    }

    #[test]
    fn misplaced_runs_are_refused() {
        let memory = 16 * PAGE;
        assert!(check_runs(&[(0, PAGE), (PAGE, PAGE), (15 * PAGE, PAGE)], memory).is_ok());
        for bad in [
            vec![(1, PAGE)],
            vec![(0, 0)],
            vec![(0, PAGE + 1)],
            vec![(16 * PAGE, PAGE)],
            vec![(u64::MAX - PAGE + 1, PAGE)],
            vec![(PAGE, PAGE), (0, PAGE)],
            vec![(0, 2 * PAGE), (PAGE, PAGE)],
        ] {
            assert!(check_runs(&bad, memory).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn runs_survive_their_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("runs");
        let runs = vec![(0, PAGE), (u64::from(u32::MAX) * PAGE, 3 * PAGE)];
        write_runs(&path, &runs).expect("written");
        assert_eq!(read_runs(&path).expect("read"), runs);
    }

    proptest! {
        #[test]
        fn runs_name_exactly_the_private_pages(entries in collection::vec(0u64..8, 0..200), cut in 0usize..200) {
            let entries: Vec<u64> = entries.iter().map(|bits| bits << 61).collect();
            let cut = cut.min(entries.len());
            let mut runs = Vec::new();
            extend_runs(&mut runs, 0, entries[..cut].iter().copied());
            extend_runs(&mut runs, cut as u64 * PAGE, entries[cut..].iter().copied());
            prop_assert!(check_runs(&runs, entries.len() as u64 * PAGE).is_ok());
            for (page, entry) in entries.iter().enumerate() {
                let at = page as u64 * PAGE;
                let named = runs.iter().any(|&(offset, length)| (offset..offset + length).contains(&at));
                prop_assert_eq!(named, entry >> 62 != 0 && entry & BIT_FILE == 0);
            }
        }

        #[test]
        fn any_bytes_are_runs_or_refused(bytes in collection::vec(any::<u8>(), 0..400), memory in any::<u64>()) {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("runs");
            fs::write(&path, &bytes).expect("written");
            let runs = read_runs(&path).expect("read");
            if check_runs(&runs, memory).is_ok() {
                prop_assert!(runs.iter().all(|&(offset, length)| offset + length <= memory));
            }
        }
    }
}
