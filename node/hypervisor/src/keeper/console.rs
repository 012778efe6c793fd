//! A log of bytes that nobody limits but us: the newest part is kept, in two files, and no more a second than a disk
//! shared by many has to spare for one. What is left out is said in its place. They are read a few times a second, however
//! many there are: a flood costs the processor no more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Bytes of one file; when it is full it becomes the elder one (`.log.1`) and replaces the one before. A boot's console
/// is 30 KiB when it is not quiet.
pub(crate) const LOG_BYTES_MAX: u64 = 256 << 10;
/// Bytes a second that are written for long: a flood costs the host's disk no more. A chatty boot is 30 KiB.
const RATE_BYTES_PER_SECOND: u64 = 64 << 10;
/// Bytes that may come at once.
const BURST_BYTES: u64 = 256 << 10;
/// Bytes read at once: a pipe's size.
pub(super) const OUTPUT_BYTES: usize = 64 << 10;
/// Between two reads of one output. A serial port hands its bytes over one by one, each of which would wake its reader; a
/// pipe holds what comes meanwhile, up to 1.2 MiB a second, and above that the guest waits.
const REST: Duration = Duration::from_millis(50);
/// Bytes of the last line that a sentence about the end quotes.
const LAST_BYTES: usize = 300;

/// One of the monitor's outputs and the log it goes to.
pub(super) struct Output {
    pipe: Option<OwnedFd>,
    pub(super) log: CappedLog,
    /// Read no sooner.
    from: Instant,
}

impl Output {
    /// An output that is read when it is due.
    pub(super) fn new(pipe: Option<OwnedFd>, log: PathBuf, now: Instant) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self { pipe, log: CappedLog::new(log, now), from: now })
    }

    /// What to wait for now, unless it rests or has ended.
    pub(super) fn due(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().filter(|_| now >= self.from).map(AsFd::as_fd)
    }

    /// How long it rests still, if it does.
    pub(super) fn rest(&self, now: Instant) -> Option<Duration> {
        let left = self.from.saturating_duration_since(now);
        (self.pipe.is_some() && !left.is_zero()).then_some(left)
    }

    /// Moves what is there into the log, and rests after that; at the end of the stream the pipe is let go. Answers how much
    /// of the buffer was filled.
    pub(super) fn drain(&mut self, buffer: &mut [u8], now: Instant) -> usize {
        let Some(pipe) = self.pipe.take() else { return 0 };
        let mut file = File::from(pipe);
        let (count, keep) = match file.read(buffer) {
            Ok(count) => (count, count > 0),
            Err(error) => (0, matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)),
        };
        if count > 0 {
            self.from = now + REST;
            // A full disk costs log lines, not the machine.
            let _ = self.log.append(&buffer[..count], now);
        }
        self.pipe = keep.then(|| file.into());
        count
    }
}

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

    #[test]
    fn an_output_is_read_at_once_and_then_rests() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("console.log");
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let (begun, mut buffer) = (Instant::now(), vec![0; OUTPUT_BYTES]);
        let mut output = Output::new(Some(reader.into()), path.clone(), begun).expect("an output");
        output.drain(&mut buffer, begun);
        assert!(output.due(begun).is_some() && output.rest(begun).is_none(), "nothing was there to rest after");
        writer.write_all(b"one ").expect("written");
        output.drain(&mut buffer, begun);
        assert!(output.due(begun).is_none());
        assert_eq!(output.rest(begun + REST / 2), Some(REST / 2));
        assert!(output.due(begun + REST).is_some() && output.rest(begun + REST).is_none());
        writer.write_all(b"two").expect("written");
        drop(writer);
        output.drain(&mut buffer, begun + REST);
        output.drain(&mut buffer, begun + REST);
        assert_eq!(fs::read_to_string(path).expect("read"), "one two");
        assert!(output.due(begun + 2 * REST).is_none() && output.rest(begun + REST).is_none(), "it has ended");
    }

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
