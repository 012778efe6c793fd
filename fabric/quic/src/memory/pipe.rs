//! One direction of a stream in memory: a bounded pipe that breaks when its token is cancelled and may lag.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{RecvHalf, SendHalf};

/// Bytes in a pipe before its writer waits: a stream's first window would be of this order.
const PIPE_BYTES: usize = 256 * 1024;
/// Chunks under way in a pipe that lags, before its writer waits.
const LAGGING_CHUNKS_MAX: usize = 64;

/// A pipe. Dropping the sending half ends it, as over QUIC; dropping the receiving half breaks the sender's writes.
pub(super) fn pipe(broken: &CancellationToken, delay: Duration) -> (SendHalf, RecvHalf) {
    let (writer, reader) = tokio::io::duplex(PIPE_BYTES);
    if delay.is_zero() {
        return (Box::pin(Half::new(writer, broken)), Box::pin(Half::new(reader, broken)));
    }
    let (late_writer, late_reader) = tokio::io::duplex(PIPE_BYTES);
    let until = broken.clone();
    tokio::spawn(async move {
        until.run_until_cancelled(lag(reader, late_writer, delay)).await;
    });
    (Box::pin(Half::new(writer, broken)), Box::pin(Half::new(late_reader, broken)))
}

/// Carries bytes over, each `delay` after it came, the end of the stream included.
async fn lag(mut from: DuplexStream, mut to: DuplexStream, delay: Duration) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(LAGGING_CHUNKS_MAX);
    let taking = async move {
        let mut buffer = BytesMut::new();
        while from.read_buf(&mut buffer).await.is_ok_and(|count| count > 0) {
            if sender.send((Instant::now() + delay, buffer.split().freeze())).await.is_err() {
                return;
            }
        }
        drop(sender.send((Instant::now() + delay, Bytes::new())).await);
    };
    let giving = async move {
        while let Some((due, chunk)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(taking, giving);
}

struct Half {
    io: DuplexStream,
    broken: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Half {
    fn new(io: DuplexStream, broken: &CancellationToken) -> Self {
        Self { io, broken: Box::pin(broken.clone().cancelled_owned()) }
    }

    /// The stream's inner end, or the error of a stream that broke. Registers the waker for the break.
    fn whole(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut DuplexStream>> {
        match self.broken.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(Pin::new(&mut self.io)),
        }
    }
}

impl AsyncRead for Half {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.whole(context) {
            Ok(io) => io.poll_read(context, buffer),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for Half {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.whole(context) {
            Ok(io) => io.poll_write(context, bytes),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.whole(context) {
            Ok(io) => io.poll_flush(context),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.whole(context) {
            Ok(io) => io.poll_shutdown(context),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}
