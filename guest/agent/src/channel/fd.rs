//! A descriptor in non-blocking mode as an asynchronous byte channel.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::sys::{Edge, watch_readable};

/// Bytes of one read. A virtio-serial port gives at most a page at once; more room would only be zeroed for nothing.
const READ_BYTES_MAX: usize = 8 << 10;

/// What a read of no bytes means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoBytes {
    /// The other side is gone for good.
    End,
    /// No host is connected at the moment: wait for the next.
    Wait,
}

/// A descriptor in non-blocking mode.
#[derive(Debug)]
pub(super) struct FdChannel {
    // The watches stand before the descriptor: they end first.
    readable: AsyncFd<Edge>,
    writable: AsyncFd<Edge>,
    file: File,
    no_bytes: NoBytes,
}

impl FdChannel {
    pub(super) fn new(fd: OwnedFd, no_bytes: NoBytes) -> io::Result<Self> {
        let file = File::from(fd);
        let readable = Edge::new(file.as_raw_fd(), libc::EPOLLIN | libc::EPOLLRDHUP)?;
        let writable = Edge::new(file.as_raw_fd(), libc::EPOLLOUT)?;
        Ok(Self { readable: watch_readable(readable)?, writable: watch_readable(writable)?, file, no_bytes })
    }
}

/// Waits until the watch tells of a change. The caller tries again after it: what changed before is cleared here.
fn poll_change(watch: &AsyncFd<Edge>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    let mut guard = ready!(watch.poll_read_ready(cx))?;
    watch.get_ref().clear()?;
    guard.clear_ready();
    Poll::Ready(Ok(()))
}

impl AsyncRead for FdChannel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let room = buf.remaining().min(READ_BYTES_MAX);
            match this.file.read(buf.initialize_unfilled_to(room)) {
                Ok(0) if this.no_bytes == NoBytes::Wait => {}
                Ok(read) => {
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            ready!(poll_change(&this.readable, cx))?;
        }
    }
}

impl AsyncWrite for FdChannel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            match this.file.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => return Poll::Ready(other),
            }
            ready!(poll_change(&this.writable, cx))?;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair(no_bytes: NoBytes) -> (FdChannel, tokio::net::UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (FdChannel::new(ours.into(), no_bytes).unwrap(), tokio::net::UnixStream::from_std(theirs).unwrap())
    }

    #[tokio::test]
    async fn bytes_go_both_ways_with_more_than_the_buffer_holds() {
        let (mut channel, mut other) = pair(NoBytes::End);
        let sent = vec![7; 1 << 20];
        let (mut got, mut four) = (vec![0; sent.len()], [0; 4]);
        let (written, read) = tokio::join!(channel.write_all(&sent), other.read_exact(&mut got));
        written.unwrap();
        read.unwrap();
        assert_eq!(got, sent);
        for _ in 0..3 {
            let (read, written) = tokio::join!(channel.read_exact(&mut four), async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                other.write_all(b"ping").await
            });
            read.unwrap();
            written.unwrap();
        }
    }

    #[tokio::test]
    async fn the_end_is_an_end_only_where_it_means_one() {
        let (mut channel, other) = pair(NoBytes::End);
        drop(other);
        assert_eq!(channel.read(&mut [0; 1]).await.unwrap(), 0);
        let (mut channel, other) = pair(NoBytes::Wait);
        drop(other);
        let waited = tokio::time::timeout(Duration::from_millis(50), channel.read(&mut [0; 1])).await;
        assert!(waited.is_err(), "it waits, and without turning in circles");
    }
}
