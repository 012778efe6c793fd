//! Random generators in a monitor's own memory: each copy is given keys of its own.
//!
//! What a guest's `rdrand` answers under TCG, QEMU draws from GnuTLS, which keeps a ChaCha generator for each thread and draws
//! from the kernel every two hours only. GnuTLS would notice a fork, and notices no copy: without this, all copies of a
//! checkpoint would answer the same numbers. A generator's state begins with ChaCha's constant (RFC 8439, 2.3), and its
//! key follows: that is how it is found.

use std::fs::File;
use std::io::{self, Read};

use super::manifest::{Area, Content};
use super::remote::read_at;
use super::{CheckpointError, failed};

/// The words that a state begins with.
const CONSTANT: &[u8; 16] = b"expand 32-byte k";
/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Bytes read at once.
const STEP: usize = 1 << 20;
/// Most that are thought to be generators: a monitor has one for each thread that draws.
const FOUND_MAX: usize = 256;

/// Where the generators' keys lie.
pub(super) fn find(pid: u32, areas: &[Area]) -> Result<Vec<u64>, CheckpointError> {
    let mut found = Vec::new();
    let mut buffer = vec![0; STEP + CONSTANT.len()];
    for area in areas.iter().filter(|area| may_hold(area)) {
        let mut at = area.start;
        while at < area.end {
            // Pieces overlap by a constant, so that none is cut.
            let length = usize::try_from(area.end - at).unwrap_or(buffer.len()).min(buffer.len());
            read_at(pid, at, &mut buffer[..length]).map_err(failed("look for the monitor's random generators"))?;
            found.extend(constants(&buffer[..length]).map(|offset| at + offset as u64 + CONSTANT.len() as u64));
            at += STEP as u64;
        }
    }
    found.sort_unstable();
    found.dedup();
    match found.len() {
        1..=FOUND_MAX => Ok(found),
        0 => Err(CheckpointError::Unfit("the monitor's random generator is none that is known".to_owned())),
        many => Err(CheckpointError::Unfit(format!("the monitor has {many} random generators"))),
    }
}

/// Data that the monitor writes: neither code that it translates nor what belongs to its guest.
fn may_hold(area: &Area) -> bool {
    let has = |right: libc::c_int| area.rights & right.cast_unsigned() != 0;
    has(libc::PROT_WRITE) && !has(libc::PROT_EXEC) && matches!(area.content, Content::Pages(_) | Content::Base(_))
}

/// Offsets of the constant, which lies on a word's boundary.
fn constants(bytes: &[u8]) -> impl Iterator<Item = usize> {
    // Word by word: a machine stands still meanwhile.
    let begins = |(number, word): (usize, &[u8; 4])| (CONSTANT.starts_with(word)).then_some(number * 4);
    bytes.as_chunks::<4>().0.iter().enumerate().filter_map(begins).filter(|&at| bytes[at..].starts_with(CONSTANT))
}

/// A key for one of them, from the kernel's generator.
pub(super) fn key(mut urandom: &File) -> io::Result<[u8; KEY_BYTES]> {
    let mut key = [0; KEY_BYTES];
    urandom.read_exact(&mut key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_is_found_on_a_words_boundary_only() {
        let mut bytes = vec![0; 200];
        bytes[40..56].copy_from_slice(CONSTANT);
        bytes[101..117].copy_from_slice(CONSTANT);
        bytes[184..200].copy_from_slice(CONSTANT);
        assert_eq!(constants(&bytes).collect::<Vec<_>>(), [40, 184]);
        assert_eq!(constants(&[]).count(), 0);
    }

    #[test]
    fn neither_code_nor_the_guest_is_looked_through() {
        let area = |rights: i32, content| Area { start: 0, end: 4096, rights: rights.cast_unsigned(), content };
        let (write, execute) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_EXEC);
        assert!(may_hold(&area(write, Content::Pages(0))) && may_hold(&area(write, Content::Base(0))));
        assert!(!may_hold(&area(write | execute, Content::Pages(0))));
        assert!(!may_hold(&area(libc::PROT_READ, Content::Pages(0))));
        assert!(!may_hold(&area(write, Content::Guest(0))) && !may_hold(&area(write, Content::Zero)));
    }

    #[test]
    fn this_process_has_the_constant_that_it_just_wrote() {
        let mut page = vec![0u8; 3 * STEP];
        // Across the seam of two pieces.
        page[STEP - 8..STEP + 8].copy_from_slice(CONSTANT);
        let start = page.as_ptr() as u64;
        let area = Area {
            start,
            end: start + page.len() as u64,
            rights: (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned(),
            content: Content::Pages(0),
        };
        let found = find(std::process::id(), &[area]).expect("found");
        assert_eq!(found, [start + STEP as u64 + 8]);
        let none = Area { end: start + 4096, ..area };
        assert!(find(std::process::id(), &[none]).expect_err("none").to_string().contains("none that is known"));
    }

    #[test]
    fn keys_differ() {
        let urandom = File::open("/dev/urandom").expect("opened");
        assert_ne!(key(&urandom).expect("drawn"), key(&urandom).expect("drawn"));
    }
}
