//! A log of bytes that nobody limits but us: the newest part is kept, in two files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Bytes of one file; when it is full it becomes the elder one (`.log.1`) and replaces the one before. A boot's console
/// is 30 KiB when it is not quiet.
pub(crate) const LOG_BYTES_MAX: u64 = 256 << 10;
/// Bytes of the last line that a sentence about the end quotes.
const LAST_BYTES: usize = 300;

/// One limited log.
pub(crate) struct CappedLog {
    path: PathBuf,
    file: Option<File>,
    written: u64,
    last: Vec<u8>,
}

impl CappedLog {
    /// A log that makes its file with the first byte.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, file: None, written: 0, last: Vec::new() }
    }

    /// Adds bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.last.extend_from_slice(&bytes[bytes.len().saturating_sub(LAST_BYTES)..]);
        self.last.drain(..self.last.len().saturating_sub(LAST_BYTES));
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

    #[test]
    fn a_flood_takes_two_files_at_most_and_the_newest_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut log = CappedLog::new(folder.path().join("console.log"));
        for number in 0..500 {
            log.append(format!("{number:04}{}\n", "x".repeat(4091)).as_bytes()).expect("appended");
        }
        log.append(b"the end\r\n\n").expect("appended");
        let sizes: u64 =
            fs::read_dir(folder.path()).expect("listed").map(|e| e.expect("entry").metadata().expect("m").len()).sum();
        assert!(sizes <= 2 * (LOG_BYTES_MAX + 4096), "{sizes}");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 2);
        assert_eq!(log.last_line(), "the end");
        let newest = fs::read_to_string(folder.path().join("console.log")).expect("read");
        assert!(newest.contains("0499x") && newest.ends_with("the end\r\n\n"));
    }
}
