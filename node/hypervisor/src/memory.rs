//! A machine's memory as files, where its monitor doesn't map the template's: put together before it is loaded, and
//! compared with the template's after it was saved. Everything here blocks.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::VmError;
use crate::cloud_hypervisor::open_plain;
use crate::disk::{copy_sparse, next_extent};

/// x86-64's page, bytes: the unit that memory is compared by.
const PAGE: usize = 4096;
/// Bytes compared at once: two buffers of it stay in the processor's cache.
const STEP: usize = 256 << 10;

/// A run of pages: offset into the memory and length, bytes.
type Run = (u64, u64);

/// Gives the monitor the template's memory as it is: the same file under another name, or a copy where that can't be.
pub(crate) fn link(template: &Path, into: &Path) -> Result<(), VmError> {
    match fs::hard_link(template, into) {
        Ok(()) => Ok(()),
        Err(_) => copy_sparse(template, into),
    }
}

/// Puts together the template's memory with the runs of `pages` laid over it.
pub(crate) fn assemble(template: &Path, pages: &Path, runs: &[Run], into: &Path) -> Result<(), VmError> {
    copy_sparse(template, into)?;
    let lay = || -> io::Result<()> {
        let (from, to) = (File::open(pages)?, OpenOptions::new().write(true).open(into)?);
        let mut buffer = vec![0; STEP];
        for &(offset, length) in runs {
            let mut at = offset;
            while at < offset + length {
                let bytes = usize::try_from(offset + length - at).unwrap_or(STEP).min(STEP);
                from.read_exact_at(&mut buffer[..bytes], at)?;
                to.write_all_at(&buffer[..bytes], at)?;
                at += bytes as u64;
            }
        }
        Ok(())
    };
    lay().map_err(|source| VmError::File { action: "lay pages over", path: into.to_owned(), source })
}

/// Writes into `pages`, at their offsets, the pages of `memory` that differ from the template's, and answers their runs.
/// Where both files have a hole nothing is read.
pub(crate) fn compare(template: &Path, memory: &Path, pages: &Path) -> Result<Vec<Run>, VmError> {
    let compared = || -> io::Result<Vec<Run>> {
        let (before, now) = (File::open(template)?, open_plain(memory)?);
        let length = now.metadata()?.len();
        if before.metadata()?.len() != length {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it isn't as long as the template's"));
        }
        let to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(pages)?;
        to.set_len(length)?;
        let (mut runs, mut old, mut new) = (Vec::new(), vec![0; STEP], vec![0; STEP]);
        let mut at = 0;
        while let Some(start) = next_data(&before, &now, at, length)? {
            at = start - start % PAGE as u64;
            let bytes = usize::try_from(length - at).unwrap_or(STEP).min(STEP);
            before.read_exact_at(&mut old[..bytes], at)?;
            now.read_exact_at(&mut new[..bytes], at)?;
            for (offset, (old, new)) in
                (at..).step_by(PAGE).zip(old[..bytes].chunks(PAGE).zip(new[..bytes].chunks(PAGE)))
            {
                if old != new {
                    to.write_all_at(new, offset)?;
                    extend(&mut runs, offset, new.len() as u64);
                }
            }
            at += bytes as u64;
        }
        Ok(runs)
    };
    compared().map_err(|source| VmError::File { action: "compare the memory in", path: memory.to_owned(), source })
}

/// Where the next byte is that one of the two has.
fn next_data(one: &File, other: &File, at: u64, length: u64) -> io::Result<Option<u64>> {
    let start = |file| next_extent(file, at, length).map(|extent| extent.map(|(start, _)| start.max(at)));
    Ok(match (start(one)?, start(other)?) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    })
}

fn extend(runs: &mut Vec<Run>, offset: u64, length: u64) {
    match runs.last_mut() {
        Some((start, before)) if *start + *before == offset => *before += length,
        _ => runs.push((offset, length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection, prelude::*};

    const PAGES: u64 = 200;

    fn memory(path: &Path, filled: &[(u64, u8)]) {
        let file = File::create(path).expect("created");
        file.set_len(PAGES * PAGE as u64).expect("sized");
        for &(page, byte) in filled {
            file.write_all_at(&[byte; PAGE], page % PAGES * PAGE as u64).expect("written");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_is_compared_is_put_together_again(
            before in collection::vec((0..PAGES, any::<u8>()), 0..40),
            now in collection::vec((0..PAGES, any::<u8>()), 0..40),
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let file = |name: &str| folder.path().join(name);
            memory(&file("template"), &before);
            memory(&file("memory"), &now);
            let runs = compare(&file("template"), &file("memory"), &file("pages")).expect("compared");
            assemble(&file("template"), &file("pages"), &runs, &file("again")).expect("put together");
            prop_assert_eq!(fs::read(file("memory")).expect("read"), fs::read(file("again")).expect("read"));
            let (old, new) = (fs::read(file("template")).expect("read"), fs::read(file("memory")).expect("read"));
            let differing = old.chunks(PAGE).zip(new.chunks(PAGE)).filter(|(old, new)| old != new).count();
            let named: u64 = runs.iter().map(|&(_, length)| length).sum();
            prop_assert_eq!(named, (differing * PAGE) as u64);
            prop_assert!(crate::keeper::check_runs(&runs, PAGES * PAGE as u64).is_ok());
        }
    }

    #[test]
    fn memory_of_another_length_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, other) = (folder.path().join("a"), folder.path().join("b"));
        memory(&one, &[(3, 1)]);
        fs::write(&other, [0; PAGE]).expect("written");
        assert!(compare(&one, &other, &folder.path().join("pages")).is_err());
    }

    #[test]
    fn a_linked_memory_is_the_very_file() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().expect("a folder");
        let (one, other) = (folder.path().join("a"), folder.path().join("b"));
        memory(&one, &[(3, 1)]);
        link(&one, &other).expect("linked");
        assert_eq!(fs::metadata(&one).expect("there").ino(), fs::metadata(&other).expect("there").ino());
    }
}
