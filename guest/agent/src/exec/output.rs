//! A command's pipes: read while it runs, emptied when it ends, drained when children hold them.

use std::future::poll_fn;
use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use guest_proto::surface::OUTPUT_BYTES_MAX;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::unix::pipe::Receiver;

/// Bytes of one read: a quarter of a pipe's usual buffer (pipe(7)); most commands write less.
const READ_BYTES: usize = 16 << 10;
/// Most bytes taken from a pipe after its command has ended. What it wrote is in the pipe by then, and a pipe holds at
/// most this (the default of /proc/sys/fs/pipe-max-size): more is a child's.
const REST_BYTES_MAX: usize = 1 << 20;

/// The reading end of one pipe.
#[derive(Debug)]
pub(crate) struct Output {
    pipe: Pipe,
    buffer: Vec<u8>,
    filled: usize,
}

/// A pipe is waited on from its first read on: each wake of the agent takes the processor from the command, and most have
/// ended by the time that their output is wanted.
#[derive(Debug)]
enum Pipe {
    Unwatched(PipeReader),
    Watched(Receiver),
    Ended,
}

impl Pipe {
    fn watch(&mut self) {
        if let Self::Unwatched(_) = self {
            // What can't be waited on is lost, as if the command had closed it.
            let Self::Unwatched(pipe) = std::mem::replace(self, Self::Ended) else { return };
            if let Ok(pipe) = Receiver::from_owned_fd(OwnedFd::from(pipe)) {
                *self = Self::Watched(pipe);
            }
        }
    }
}

impl Output {
    pub(crate) fn new(pipe: PipeReader) -> io::Result<Self> {
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { pipe: Pipe::Unwatched(pipe), buffer: Vec::new(), filled: 0 })
    }

    /// No pipe: the other output carries both.
    pub(crate) fn none() -> Self {
        Self { pipe: Pipe::Ended, buffer: Vec::new(), filled: 0 }
    }

    /// The next bytes; never ready once the pipe has ended. Cancel safe.
    pub(crate) async fn read(&mut self) -> &[u8] {
        self.pipe.watch();
        poll_fn(|cx| self.poll(cx)).await;
        &self.buffer[..self.filled]
    }

    /// What is in the pipe at this moment, if anything.
    pub(super) fn read_now(&mut self) -> Option<&[u8]> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.poll(&mut cx).is_ready().then(|| &self.buffer[..self.filled])
    }

    /// Fills the buffer.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.buffer.resize(READ_BYTES, 0);
        let read = match &mut self.pipe {
            Pipe::Ended => return Poll::Pending,
            Pipe::Unwatched(pipe) => match pipe.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                read => read.unwrap_or(0),
            },
            Pipe::Watched(pipe) => {
                let mut buf = ReadBuf::new(&mut self.buffer);
                match Pin::new(pipe).poll_read(cx, &mut buf) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(read) => read.map_or(0, |()| buf.filled().len()),
                }
            }
        };
        self.filled = read;
        if read > 0 {
            return Poll::Ready(());
        }
        // An end or an error: nothing more will come.
        self.pipe = Pipe::Ended;
        Poll::Pending
    }

    /// Calls `take` with all that the command left in the pipe.
    pub(crate) fn empty(&mut self, mut take: impl FnMut(&[u8])) {
        let mut rest = 0;
        while rest < REST_BYTES_MAX
            && let Some(bytes) = self.read_now()
        {
            rest += bytes.len();
            take(bytes);
        }
    }

    /// If a child still holds the pipe: reads and drops what it writes, until it ends, so that no write of it fails.
    pub(super) async fn drain(&mut self) {
        self.empty(|_| {});
        self.pipe.watch();
        let Pipe::Watched(pipe) = &mut self.pipe else { return };
        while pipe.read(&mut self.buffer).await.is_ok_and(|read| read > 0) {}
    }
}

/// Output of all commands that waits for its answer. An answer in base64 takes as much again, twice: together a fifth
/// of the smallest guest's memory.
const COLLECTED_BYTES_MAX: usize = 32 << 20;

/// How much output all commands hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Budget(Arc<AtomicUsize>);

/// One output, collected up to its own limit and to what is left for all.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) bytes: Vec<u8>,
    pub(super) truncated: bool,
    budget: Budget,
}

impl Collected {
    pub(super) fn new(budget: Budget) -> Self {
        Self { bytes: Vec::new(), truncated: false, budget }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let held = self.budget.0.load(Ordering::Relaxed);
        let room = (OUTPUT_BYTES_MAX - self.bytes.len()).min(COLLECTED_BYTES_MAX.saturating_sub(held));
        let kept = bytes.len().min(room);
        self.budget.0.fetch_add(kept, Ordering::Relaxed);
        self.bytes.extend_from_slice(&bytes[..kept]);
        self.truncated |= kept < bytes.len();
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_output_and_all_together_have_limits() {
        let budget = Budget::default();
        let piece = vec![b'x'; 1 << 20];
        let mut outputs: Vec<Collected> = (0..3).map(|_| Collected::new(budget.clone())).collect();
        for output in &mut outputs {
            for _ in 0..17 {
                output.push(&piece);
            }
        }
        let lens: Vec<usize> = outputs.iter().map(|output| output.bytes.len()).collect();
        assert_eq!(lens, [OUTPUT_BYTES_MAX, COLLECTED_BYTES_MAX - OUTPUT_BYTES_MAX, 0]);
        assert!(outputs.iter().all(|output| output.truncated));
        drop(outputs);
        let mut again = Collected::new(budget);
        again.push(&piece);
        assert!(!again.truncated);
    }
}
