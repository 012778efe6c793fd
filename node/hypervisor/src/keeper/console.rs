//! A log of bytes that nobody limits but us: the newest part is kept, in two files, and no more a second than a disk
//! shared by many has to spare for one. What is left out is said in its place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Instant;

/// Bytes of one file; when it is full it becomes the elder one (`.log.1`) and replaces the one before. A boot's console
/// is 30 KiB when it is not quiet.
pub(crate) const LOG_BYTES_MAX: u64 = 256 << 10;
/// Bytes a second that are written for long: a flood costs the host's disk no more. A chatty boot is 30 KiB.
const RATE_BYTES_PER_SECOND: u64 = 64 << 10;
/// Bytes that may come at once.
const BURST_BYTES: u64 = 256 << 10;
/// Bytes of the last line that a sentence about the end quotes.
const LAST_BYTES: usize = 300;

/// One limited log.
pub(crate) struct CappedLog {
    path: PathBuf,
    file: Option<File>,
    written: u64,
    last: Vec<u8>,
    allowance: Allowance,
    /// Bytes that were left out since the last that were written.
    dropped: u64,
}

/// What may be written now.
struct Allowance {
    bytes: u64,
    since: Instant,
}

impl Allowance {
    /// Takes up to `wanted` bytes; answers how many.
    fn take(&mut self, wanted: u64, now: Instant) -> u64 {
        let passed_ms = u64::try_from(now.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX);
        let grown = passed_ms.saturating_mul(RATE_BYTES_PER_SECOND) / 1000;
        if grown > 0 {
            self.bytes = self.bytes.saturating_add(grown).min(BURST_BYTES);
            self.since = now;
        }
        let taken = wanted.min(self.bytes);
        self.bytes -= taken;
        taken
    }
}

impl CappedLog {
    /// A log that makes its file with the first byte.
    pub(crate) fn new(path: PathBuf, now: Instant) -> Self {
        let allowance = Allowance { bytes: BURST_BYTES, since: now };
        Self { path, file: None, written: 0, last: Vec::new(), allowance, dropped: 0 }
    }

    /// Adds bytes that came at `now`; those above the rate are left out.
    pub(crate) fn append(&mut self, bytes: &[u8], now: Instant) -> io::Result<()> {
        self.last.extend_from_slice(&bytes[bytes.len().saturating_sub(LAST_BYTES)..]);
        self.last.drain(..self.last.len().saturating_sub(LAST_BYTES));
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let taken = self.allowance.take(length, now);
        let left_out = self.dropped;
        self.dropped += length - taken;
        let bytes = &bytes[..usize::try_from(taken).unwrap_or(bytes.len())];
        if bytes.is_empty() {
            return Ok(());
        }
        if left_out > 0 {
            self.dropped -= left_out;
            self.write(format!("\n[{left_out} bytes left out: too many at once]\n").as_bytes())?;
        }
        self.write(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written >= LOG_BYTES_MAX {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            self.file = None;
            self.written = 0;
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?,
        };
        self.file.insert(file).write_all(bytes)?;
        self.written += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// The last line that isn't empty, as text without control characters.
    pub(crate) fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.last);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        line.chars().filter(|character| !character.is_control()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_takes_two_files_at_most_and_the_newest_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut now = Instant::now();
        let mut log = CappedLog::new(folder.path().join("console.log"), now);
        for number in 0..500 {
            now += Duration::from_millis(100);
            log.append(format!("{number:04}{}\n", "x".repeat(4091)).as_bytes(), now).expect("appended");
        }
        log.append(b"the end\r\n\n", now).expect("appended");
        let sizes: u64 =
            fs::read_dir(folder.path()).expect("listed").map(|e| e.expect("entry").metadata().expect("m").len()).sum();
        assert!(sizes <= 2 * (LOG_BYTES_MAX + 4096), "{sizes}");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 2);
        assert_eq!(log.last_line(), "the end");
        let newest = fs::read_to_string(folder.path().join("console.log")).expect("read");
        assert!(newest.contains("0499x") && newest.ends_with("the end\r\n\n"));
    }

    #[test]
    fn a_flood_is_written_at_its_rate_and_says_what_it_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut now = Instant::now();
        let mut log = CappedLog::new(folder.path().join("console.log"), now);
        let mut written = 0;
        // 10 s of 6.4 MB/s.
        for _ in 0..1000 {
            now += Duration::from_millis(10);
            let before = log.written;
            log.append(&[b'x'; 64 << 10], now).expect("appended");
            written += log.written.saturating_sub(if log.written < before { 0 } else { before });
        }
        let most = BURST_BYTES + 10 * RATE_BYTES_PER_SECOND + 1000 * 60;
        assert!(written > 10 * RATE_BYTES_PER_SECOND / 2 && written < most, "{written}");
        let newest = fs::read_to_string(folder.path().join("console.log")).expect("read");
        assert!(newest.contains("bytes left out: too many at once]"));
        now += Duration::from_secs(10);
        log.append(b"\ncalm again\n", now).expect("appended");
        assert_eq!(log.last_line(), "calm again");
        assert_eq!(log.dropped, 0);
    }
}
