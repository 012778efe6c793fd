//! A byte stream that notes when it last carried something: a long answer that still comes is use of a sandbox.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use fabric_types::UnixMillis;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock;

/// When a stream last carried something.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic(Arc<AtomicU64>);

impl Traffic {
    /// The last instant; 0 before the first byte.
    pub(crate) fn last(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::Relaxed))
    }

    fn note(&self) {
        self.0.store(clock::now().0, Ordering::Relaxed);
    }
}

/// The stream. What is read is noted, for it comes from the guest; what is written was asked for and noted by the asker.
pub(crate) struct Noted<Io> {
    io: Io,
    traffic: Traffic,
}

impl<Io> Noted<Io> {
    pub(crate) fn new(io: Io) -> (Self, Traffic) {
        let traffic = Traffic::default();
        (Self { io, traffic: traffic.clone() }, traffic)
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Noted<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut this.io).poll_read(cx, buf));
        if buf.filled().len() > before {
            this.traffic.note();
        }
        Poll::Ready(read)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Noted<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_comes_from_the_other_side_is_noted_and_its_end_is_not() {
        let (near, mut far) = duplex(64);
        let (mut noted, traffic) = Noted::new(near);
        noted.write_all(b"asked").await.expect("written");
        assert_eq!(traffic.last(), UnixMillis(0));
        far.write_all(b"x").await.expect("written");
        drop(far);
        let mut text = String::new();
        assert_eq!(noted.read_to_string(&mut text).await.expect("read"), 1);
        let at = traffic.last();
        assert!(at > UnixMillis(0));
        assert_eq!(noted.read(&mut [0; 4]).await.expect("ended"), 0);
        assert_eq!(traffic.last(), at);
    }
}
