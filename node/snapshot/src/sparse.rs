//! Holes, and which pages of a file differ from what lies under it. Ranges here count pages, not bytes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use crate::chunk::{PAGE, PAGE_BYTES, ZERO_PAGE};
use crate::error::{FileContext, StoreError};

/// Pages read at once: 1 MiB keeps system calls few and fits the cache.
const WINDOW_PAGES: u64 = 256;

/// A file with the length at which it is looked at: bytes past it read as zeros, whatever the file does meanwhile.
pub(crate) struct Source<'a> {
    pub(crate) file: &'a File,
    pub(crate) path: &'a Path,
    pub(crate) length: u64,
}

/// What lies under a file's pages.
pub(crate) enum Under<'a> {
    /// Zeros: a page of zeros says nothing.
    Zeros,
    /// Something that isn't here to be compared with: every page says something, zeros too.
    Unknown,
    /// This: a page says something where it differs.
    File(Source<'a>),
}

/// A page that says something.
pub(crate) enum Page<'a> {
    /// Its bytes.
    Data(&'a [u8]),
    /// It is zero, and what lies under it may not be.
    Zeros,
}

/// The pages of a file that may hold something other than zeros: ascending, disjoint, rounded outwards, within
/// `length`. A file system that can't tell gives the whole file.
pub(crate) fn data_ranges(source: &Source<'_>) -> Result<Vec<Range<u64>>, StoreError> {
    let seek = |offset: u64, whence| -> Result<Option<u64>, Errno> {
        let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        match lseek(source.file, offset, whence) {
            Ok(found) => Ok(u64::try_from(found).ok()),
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(errno),
        }
    };
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut offset = 0;
    while offset < source.length {
        let start = match seek(offset, Whence::SeekData) {
            Ok(Some(start)) if start < source.length => start,
            Ok(_) => break,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {
                let whole = 0..source.length.div_ceil(PAGE_BYTES);
                return Ok(vec![whole]);
            }
            Err(errno) => return Err(errno.into()).at("find the holes of", source.path),
        };
        let end = seek(start, Whence::SeekHole).map_err(io::Error::from).at("find the holes of", source.path)?;
        let end = end.unwrap_or(source.length).min(source.length);
        // A hole that was filled meanwhile may end where it began.
        offset = end.max(start + 1);
        push(&mut ranges, start / PAGE_BYTES..offset.div_ceil(PAGE_BYTES));
    }
    Ok(ranges)
}

/// The pages that lie in either.
pub(crate) fn union(left: Vec<Range<u64>>, right: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut all = left;
    all.extend(right);
    all.sort_unstable_by_key(|range| range.start);
    let mut ranges = Vec::new();
    all.into_iter().for_each(|range| push(&mut ranges, range));
    ranges
}

/// Appends a range that starts no earlier than the last one, joining them where they touch.
fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
        _ => ranges.push(range),
    }
}

/// Visits the pages within `ranges` (ascending) that say something over what lies under them.
pub(crate) fn differences(
    source: &Source<'_>,
    ranges: &[Range<u64>],
    under: &Under<'_>,
    mut visit: impl FnMut(u64, Page<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut window = Vec::new();
    let mut under_window = Vec::new();
    for range in ranges {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + WINDOW_PAGES);
            read_pages(source, start..end, &mut window)?;
            if let Under::File(under) = under {
                read_pages(under, start..end, &mut under_window)?;
            }
            for (at, page) in window.chunks_exact(PAGE).enumerate() {
                let is_zero = page == ZERO_PAGE;
                let says_nothing = match under {
                    Under::Zeros => is_zero,
                    Under::Unknown => false,
                    Under::File(_) => page == &under_window[at * PAGE..][..PAGE],
                };
                if !says_nothing {
                    visit(start + at as u64, if is_zero { Page::Zeros } else { Page::Data(page) })?;
                }
            }
            start = end;
        }
    }
    Ok(())
}

/// Reads whole pages; what lies past the file's length is zero.
fn read_pages(source: &Source<'_>, pages: Range<u64>, into: &mut Vec<u8>) -> Result<(), StoreError> {
    let count = usize::try_from(pages.end - pages.start).unwrap_or(usize::MAX).min(WINDOW_PAGES as usize);
    into.clear();
    into.resize(count * PAGE, 0);
    let start = pages.start * PAGE_BYTES;
    let wanted = usize::try_from(source.length.saturating_sub(start)).unwrap_or(usize::MAX).min(into.len());
    let mut got = 0;
    while got < wanted {
        match source.file.read_at(&mut into[got..wanted], start + got as u64) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).at("read", source.path),
        }
    }
    Ok(())
}

/// Copies a file's data into an empty one and gives it the source's length; holes stay holes.
pub(crate) fn copy(source: &Source<'_>, into: &File, into_path: &Path) -> Result<(), StoreError> {
    into.set_len(source.length).at("set the length of", into_path)?;
    let mut window = Vec::new();
    for range in data_ranges(source)? {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + WINDOW_PAGES);
            read_pages(source, start..end, &mut window)?;
            write_pages(into, into_path, source.length, start, &window)?;
            start = end;
        }
    }
    Ok(())
}

/// Writes whole pages into a file of this length; what would lie past it is left out.
pub(crate) fn write_pages(file: &File, path: &Path, length: u64, page: u64, bytes: &[u8]) -> Result<(), StoreError> {
    let start = page * PAGE_BYTES;
    let fits = usize::try_from(length.saturating_sub(start)).unwrap_or(usize::MAX).min(bytes.len());
    file.write_all_at(&bytes[..fits], start).at("write", path)
}

/// Makes pages read as zeros: as a hole where the file system can.
pub(crate) fn clear_pages(file: &File, path: &Path, length: u64, page: u64, pages: u32) -> Result<(), StoreError> {
    let start = page * PAGE_BYTES;
    let bytes = (u64::from(pages) * PAGE_BYTES).min(length.saturating_sub(start));
    if bytes == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let too_far = || io::Error::from(io::ErrorKind::FileTooLarge);
    let offset = i64::try_from(start).map_err(|_| too_far()).at("clear", path)?;
    let count = i64::try_from(bytes).map_err(|_| too_far()).at("clear", path)?;
    match fallocate(file, flags, offset, count) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
            (0..u64::from(pages)).try_for_each(|at| write_pages(file, path, length, page + at, &ZERO_PAGE))
        }
        Err(errno) => Err(errno.into()).at("clear", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unions_are_ascending_and_disjoint() {
        assert_eq!(union(vec![0..2, 5..6], vec![1..3, 6..9, 20..21]), vec![0..3, 5..9, 20..21]);
        assert_eq!(union(vec![], vec![3..4, 7..8]), vec![3..4, 7..8]);
        assert_eq!(union(vec![0..10, 12..13], vec![2..3, 10..11]), vec![0..11, 12..13]);
    }

    #[test]
    fn holes_are_found_and_copied_as_holes() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("sparse");
        let file = File::create_new(&path).expect("a file");
        let file_length = 64 * 1024 * 1024 + 100;
        file.set_len(file_length).expect("a length");
        file.write_all_at(b"here", 8 * 1024 * 1024).expect("writes");
        file.write_all_at(b"end", file_length - 3).expect("writes");
        let file = File::open(&path).expect("opens");
        let source = Source { file: &file, path: &path, length: file_length };
        let ranges = data_ranges(&source).expect("ranges");
        let pages: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!(ranges.iter().any(|range| range.contains(&2048)), "{ranges:?}");
        assert_eq!(ranges.last().expect("a range").end, file_length.div_ceil(PAGE_BYTES));
        assert!(pages < 1024, "this file system keeps no holes: {ranges:?}");

        let copied_path = dir.path().join("copy");
        let copied = File::create_new(&copied_path).expect("a file");
        copy(&source, &copied, &copied_path).expect("copies");
        let copied = File::open(&copied_path).expect("opens");
        let copied = Source { file: &copied, path: &copied_path, length: file_length };
        let same = differences(
            &source,
            &union(ranges, data_ranges(&copied).expect("ranges")),
            &Under::File(copied),
            |page, _| panic!("page {page} differs"),
        );
        same.expect("compares");
    }

    #[test]
    fn a_cleared_page_reads_as_zeros_and_the_length_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7; 3 * PAGE + 10]).expect("writes");
        let file = File::options().write(true).open(&path).expect("opens");
        let length = 3 * PAGE_BYTES + 10;
        clear_pages(&file, &path, length, 1, 1).expect("clears");
        clear_pages(&file, &path, length, 3, 1).expect("clears");
        let bytes = std::fs::read(&path).expect("reads");
        assert_eq!(bytes.len() as u64, length);
        assert!(bytes[..PAGE].iter().all(|byte| *byte == 7));
        assert!(bytes[PAGE..2 * PAGE].iter().all(|byte| *byte == 0));
        assert!(bytes[2 * PAGE..3 * PAGE].iter().all(|byte| *byte == 7));
        assert!(bytes[3 * PAGE..].iter().all(|byte| *byte == 0));
    }
}
