//! The pages that a forked interpreter will write to, copied before it is used.
//!
//! A forked process shares its parent's memory until it writes, page by page, each time through a fault: under emulation that
//! was half of a small program's time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use crate::sys;

/// Bytes of a page, on the only architecture that guests have.
const PAGE_BYTES: u64 = 4096;
/// Most pages of one interpreter: python has some 700.
const PAGES_MAX: usize = 4096;
/// An entry of /proc/PID/pagemap, and its bit for a page that is there (the kernel's documentation, "pagemap").
const ENTRY_BYTES: u64 = 8;
const PRESENT: u64 = 1 << 63;

/// The pages that are a process's own: its heap, its anonymous memory, its program's data.
pub(super) fn of(pid: i32) -> io::Result<Vec<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let map = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut pages = Vec::new();
    for (start, end) in maps.lines().filter_map(region) {
        let mut entries = vec![0; usize::try_from((end - start) / PAGE_BYTES * ENTRY_BYTES).unwrap_or(0)];
        map.read_exact_at(&mut entries, start / PAGE_BYTES * ENTRY_BYTES)?;
        let (entries, _) = entries.as_chunks::<8>();
        let present = entries.iter().zip((start..end).step_by(4096));
        pages.extend(present.filter(|(entry, _)| u64::from_le_bytes(**entry) & PRESENT != 0).map(|(_, page)| page));
    }
    pages.truncate(PAGES_MAX);
    Ok(pages)
}

/// Pages that are copied before a request is looked for again: half a millisecond under emulation.
const PAGES_AT_ONCE: usize = 32;

/// Gives a process its own copy of pages, by writing to each what it holds. The process must be waiting.
pub(super) async fn own(pid: i32, pages: &[u64]) -> io::Result<()> {
    for pages in pages.chunks(PAGES_AT_ONCE) {
        sys::rewrite_pages(pid, pages)?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Start and end of a line of /proc/PID/maps, if it is memory to write to, of the heap, of no file or of the interpreter.
fn region(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_own = fields.next()? == "rw-p";
    let name = fields.nth(3).unwrap_or("");
    let counts = is_own && (name.is_empty() || name == "[heap]" || name.starts_with("/usr/bin/"));
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (counts && start <= end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn regions_are_the_heap_anonymous_memory_and_the_programs_data() {
        let counted = [
            ("55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]", true),
            ("7f0000000000-7f0000021000 rw-p 00000000 00:00 0 ", true),
            ("0094a000-00a89000 rw-p 0054a000 08:01 1234                       /usr/bin/python3.11", true),
            ("7f0000000000-7f0000021000 rw-p 00000000 08:01 12                 /usr/lib/x/libc.so.6", false),
            ("7f0000000000-7f0000021000 r--p 00000000 00:00 0 ", false),
            ("7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]", false),
            ("nonsense", false),
        ];
        for (line, counts) in counted {
            assert_eq!(region(line).is_some(), counts, "{line}");
        }
    }

    #[tokio::test]
    async fn a_process_goes_on_with_pages_of_its_own() {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", "import sys; print(len(sys.stdin.read()))"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        // It reads other files while it starts.
        while !fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap().starts_with("0 0x0 ") {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let pages = of(pid).unwrap();
        assert!(pages.len() > 100, "{}", pages.len());
        own(pid, &pages).await.unwrap();
        drop(child.stdin.take());
        assert_eq!(child.wait_with_output().unwrap().stdout, b"0\n");
    }
}
