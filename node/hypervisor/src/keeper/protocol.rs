//! The keeper's wire: one line of JSON asks, one line answers, each connection carries one question.
//!
//! A keeper's files are those of its seal, so the files of `SavePages`, `LayPages` and `TakeCheckpoint` travel with the
//! question, opened, as descriptors, in the order of their names: `pages`, then `runs`. A keeper that gets none opens them by their names.
//!
//! A keeper outlives the node that started it, so a newer node meets older keepers: [`PROTOCOL`] is in the greeting,
//! and a node refuses one that it doesn't know.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, IoSliceMut, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{base_file, guest_file, manifest_file, own_memory_file, pages_file, runs_file};
use crate::process::ProcessRef;
use crate::sys::seal::received;

/// Number of this wire.
pub(crate) const PROTOCOL: u32 = 1;
/// Longest line either way, bytes: paths (4 KiB each, three at most) and a sentence.
pub(crate) const LINE_BYTES_MAX: u64 = 32 << 10;

/// Descriptors of one question.
const DESCRIPTORS_MAX: usize = 6;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Who is there? The first connection that asks this is the creator's: until `Confirm`, its end ends the machine.
    Hello,
    /// The machine is complete; it outlives the node from now on.
    Confirm,
    /// Answered with `Ended` when the monitor has ended.
    Wait,
    /// Kill the monitor when CLOCK_BOOTTIME reaches this; none takes a deadline back.
    Deadline {
        /// Milliseconds of CLOCK_BOOTTIME.
        boottime_ms: Option<u64>,
    },
    /// End the monitor (SIGTERM, SIGKILL after `grace_ms`), remove all; answered with `Ended`.
    End {
        /// Milliseconds between the two signals; 0 sends only SIGKILL.
        grace_ms: u32,
    },
    /// Write the private pages of the mapping of `memory` into `pages`, at their offsets, and their ranges into `runs`.
    SavePages {
        /// The template's memory file, mapped privately by the monitor.
        memory: PathBuf,
        /// The sparse file to write.
        pages: PathBuf,
        /// The ranges, see `pages::write_runs`.
        runs: PathBuf,
    },
    /// The reverse: lay the ranges of `pages` over the monitor's mapping of `memory`.
    LayPages {
        /// As above.
        memory: PathBuf,
        /// The sparse file to read.
        pages: PathBuf,
        /// As above.
        runs: PathBuf,
    },
    /// Copy the paused monitor into a checkpoint's folder: `checkpoint.json`, `pages`, `guest`, `runs`.
    TakeCheckpoint {
        /// The folder.
        folder: PathBuf,
        /// What lies there already.
        based: Based,
    },
}

/// Files of the checkpoint that the monitor itself was restored from, under names of their own in a new one's folder; the
/// descriptors follow the four that are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Based {
    /// `base`.
    pub(crate) pages: bool,
    /// `memory`.
    pub(crate) memory: bool,
}

/// The files of a checkpoint, as its folder names them.
fn checkpoint_files(folder: &Path) -> [PathBuf; 4] {
    [manifest_file(folder), pages_file(folder), guest_file(folder), runs_file(folder)]
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// To `Hello`.
    Here {
        /// [`PROTOCOL`] of this keeper.
        protocol: u32,
        /// The keeper.
        keeper: ProcessRef,
        /// The monitor.
        vmm: ProcessRef,
        /// Whether `Confirm` was asked.
        confirmed: bool,
    },
    /// Done as asked.
    Done,
    /// To `SavePages` and `LayPages`.
    Pages {
        /// Bytes moved.
        bytes: u64,
        /// Microseconds that it took.
        took_us: u64,
    },
    /// The monitor has ended.
    Ended {
        /// A sentence.
        how: String,
    },
    /// It didn't work.
    Failed {
        /// A sentence.
        message: String,
    },
}

/// A stream's bytes, with the descriptors that come along (unix(7), `SCM_RIGHTS`).
pub(crate) struct Incoming<'a> {
    stream: &'a UnixStream,
    descriptors: Vec<OwnedFd>,
}

impl<'a> Incoming<'a> {
    pub(crate) fn new(stream: &'a UnixStream) -> Self {
        Self { stream, descriptors: Vec::new() }
    }

    /// What came so far, as files.
    pub(crate) fn files(&mut self) -> Vec<File> {
        self.descriptors.drain(..).map(File::from).collect()
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut control = cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        let mut pieces = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.stream.as_raw_fd(), &mut pieces, Some(&mut control), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                self.descriptors.extend(descriptors.into_iter().map(received));
            }
        }
        // A peer that sends more and more of them is not ours.
        self.descriptors.truncate(DESCRIPTORS_MAX);
        Ok(message.bytes)
    }
}

/// Opens the files that a request is about, for the keeper, and makes those that it fills.
pub(crate) fn files_of(request: &Request) -> io::Result<Vec<File>> {
    let made = |path: &PathBuf| {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(path)
    };
    match request {
        Request::SavePages { pages, runs, .. } => Ok(vec![made(pages)?, made(runs)?]),
        Request::TakeCheckpoint { folder, based } => {
            let read = [(based.pages, base_file(folder)), (based.memory, own_memory_file(folder))];
            let read = read.into_iter().filter(|(wanted, _)| *wanted).map(|(_, path)| File::open(path));
            checkpoint_files(folder).iter().map(made).chain(read).collect()
        }
        Request::LayPages { pages, runs, .. } => Ok(vec![File::open(pages)?, File::open(runs)?]),
        Request::Hello | Request::Confirm | Request::Wait | Request::Deadline { .. } | Request::End { .. } => {
            Ok(Vec::new())
        }
    }
}

/// Reads one line, without its end; none at the end of the stream. A longer or unfinished line is an error.
pub(crate) fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a line without end, or longer than 32 KiB")),
    }
}

/// The message and its line end.
pub(crate) fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection, prelude::*};
    use std::io::Cursor;

    #[test]
    fn the_wire_is_the_golden_one() {
        let process = ProcessRef { pid: 7, start_ticks: 9 };
        let here = Reply::Here { protocol: PROTOCOL, keeper: process, vmm: process, confirmed: false };
        let lines = [
            (encode(&Request::Hello), r#"{"op":"hello"}"#),
            (encode(&Request::Deadline { boottime_ms: Some(5) }), r#"{"op":"deadline","boottime_ms":5}"#),
            (encode(&Request::End { grace_ms: 2000 }), r#"{"op":"end","grace_ms":2000}"#),
            (
                encode(&Request::SavePages { memory: "/m".into(), pages: "/p".into(), runs: "/r".into() }),
                r#"{"op":"save_pages","memory":"/m","pages":"/p","runs":"/r"}"#,
            ),
            (
                encode(&Request::TakeCheckpoint { folder: "/c".into(), based: Based { pages: true, memory: false } }),
                r#"{"op":"take_checkpoint","folder":"/c","based":{"pages":true,"memory":false}}"#,
            ),
            (encode(&Reply::Ended { how: "x".into() }), r#"{"reply":"ended","how":"x"}"#),
            (
                encode(&here),
                r#"{"reply":"here","protocol":1,"keeper":{"pid":7,"start_ticks":9},"vmm":{"pid":7,"start_ticks":9},"confirmed":false}"#,
            ),
        ];
        for (line, golden) in lines {
            assert_eq!(String::from_utf8(line.expect("encoded")).expect("text"), format!("{golden}\n"));
        }
    }

    #[test]
    fn a_line_is_bounded_and_must_end() {
        assert_eq!(read_line(&mut Cursor::new(b"ab\ncd\n")).expect("read"), Some(b"ab".to_vec()));
        assert_eq!(read_line(&mut Cursor::new(b"")).expect("read"), None);
        assert!(read_line(&mut Cursor::new(b"half")).is_err());
        let long = vec![b'x'; 40 << 10];
        assert!(read_line(&mut Cursor::new(long)).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_refused(bytes in collection::vec(any::<u8>(), 0..2000)) {
            if let Ok(Some(line)) = read_line(&mut Cursor::new(&bytes)) {
                prop_assert!(line.len() < bytes.len() && !line.contains(&b'\n'));
                let _ = serde_json::from_slice::<Request>(&line);
                let _ = serde_json::from_slice::<Reply>(&line);
            }
        }
    }
}
