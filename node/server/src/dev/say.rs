//! What a person sees of a development mesh: progress lines with the time they took, and the closing words.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Instant;

/// Most bytes of a log copied at once.
const COPY_BYTES_MAX: u64 = 64 * 1024;

/// A line of progress, on standard error: standard output is for results.
#[expect(clippy::print_stderr, reason = "the one place where the supervisor speaks")]
pub(crate) fn line(text: &str) {
    eprintln!("atoll: {text}");
}

/// Text for standard output, as it is.
#[expect(clippy::print_stdout, reason = "the one place where the supervisor prints results")]
pub(crate) fn result(text: &str) {
    println!("{text}");
}

/// A stretch of work that a person waits for: said when it begins, and with its time when it ends.
#[derive(Debug)]
pub(crate) struct Step {
    what: String,
    began: Instant,
}

impl Step {
    /// Begins.
    pub(crate) fn begin(what: &str) -> Self {
        line(&format!("{what} ..."));
        Self { what: what.to_owned(), began: Instant::now() }
    }

    /// Ends well.
    pub(crate) fn done(self) {
        line(&format!("{}: {:.1} s", self.what, self.began.elapsed().as_secs_f64()));
    }
}

/// Shows what has come into a log since `shown` bytes; how many have been shown then.
pub(crate) fn copy_new_lines(log: &Path, shown: u64) -> u64 {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(log)?;
        file.seek(SeekFrom::Start(shown))?;
        let mut bytes = Vec::new();
        file.take(COPY_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let Ok(bytes) = read() else { return shown };
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole > 0 {
        for text in String::from_utf8_lossy(&bytes[..whole]).lines() {
            result(text);
        }
    }
    shown + whole as u64
}

/// The last line of a log that says something, at most so long.
pub(crate) fn last_line(log: &Path) -> Option<String> {
    const SHOWN_CHARS_MAX: usize = 400;
    let mut file = std::fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(COPY_BYTES_MAX))).ok()?;
    let mut bytes = Vec::new();
    file.take(COPY_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.chars().take(SHOWN_CHARS_MAX).collect())
}
