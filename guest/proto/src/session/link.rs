//! Frames over an asynchronous channel.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::frame::{Decoder, ENCODED_BYTES_MAX, Frame};

/// Room for each read: a whole frame, so that a large one takes few reads.
const READ_BYTES: usize = ENCODED_BYTES_MAX;
/// A buffer with less room than this is replaced: small messages then share one.
const READ_BYTES_MIN: usize = 4 << 10;
/// Encoded bytes that wait for the channel before a writer is held back: two frames, one in the channel and one ready.
pub(super) const OUT_BYTES_MAX: usize = 2 * ENCODED_BYTES_MAX;

/// A channel with a decoder on one side and a buffer of encoded bytes on the other.
#[derive(Debug)]
pub(super) struct Link<Io> {
    io: Io,
    decoder: Decoder,
    /// Encoded bytes that wait for the channel.
    pub(super) out: BytesMut,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Link<Io> {
    pub(super) fn new(io: Io) -> Self {
        Self { io, decoder: Decoder::default(), out: BytesMut::new() }
    }

    /// The next frame; `None` when the channel has ended.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Frame>>> {
        loop {
            if let Some(frame) = self.decoder.next_frame() {
                return Poll::Ready(Ok(Some(frame)));
            }
            let buffer = self.decoder.buffer();
            if buffer.capacity() - buffer.len() < READ_BYTES_MIN {
                buffer.reserve(READ_BYTES);
            }
            if ready!(poll_read_buf(Pin::new(&mut self.io), cx, buffer))? == 0 {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Writes all that waits.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Whether a writer may add a frame.
    pub(super) fn has_room(&self) -> bool {
        self.out.len() < OUT_BYTES_MAX
    }
}
