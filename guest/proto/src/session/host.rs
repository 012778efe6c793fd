//! The host's end: opens a session and is the channel's only user.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

use super::frame::{Kind, VERSION, encode_opening};
use super::half::{Half, Meaning};
use super::link::Link;
use super::{SessionError, SessionId};

/// How long a HELLO may go unanswered before it is sent again: a guest under emulation answers in about a
/// millisecond, and a device may lose what it held when it was restored.
const HELLO_AGAIN: Duration = Duration::from_millis(200);

/// A byte stream inside one session; it owns the channel, which ends with it.
#[derive(Debug)]
pub struct SessionStream<Io> {
    link: Link<Io>,
    half: Half,
    /// What was received and not yet read.
    current: Bytes,
    /// How receiving ended.
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Fin,
    Broken,
    Channel,
}

/// Opens a session over a channel, ending whatever session the guest had. `id` is random, new for each session.
///
/// # Errors
/// When the channel fails or ends, the guest speaks another version, or doesn't answer within `deadline`.
///
/// # Cancel safety
/// Dropping the future drops the channel; a session that the guest opened meanwhile is ended by the next one.
pub async fn open<Io>(io: Io, id: SessionId, deadline: Duration) -> Result<SessionStream<Io>, SessionError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut link = Link::new(io);
    let start = Instant::now();
    let mut hellos = 0;
    loop {
        encode_opening(&mut link.out, Kind::Hello, &id, VERSION);
        hellos += 1;
        let until = (start + HELLO_AGAIN * hellos).min(start + deadline);
        tokio::select! {
            biased;
            answer = answer(&mut link, &id) => {
                answer?;
                return Ok(SessionStream { link, half: Half::new(id), current: Bytes::new(), end: None });
            }
            () = sleep_until(until) => {}
        }
        if start.elapsed() >= deadline {
            let waited_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
            return Err(SessionError::Deadline { waited_ms, hellos });
        }
        // A channel that takes no bytes isn't given more of the same.
        if !link.has_room() {
            link.out.clear();
        }
    }
}

/// Waits for the guest's answer to this session's HELLO while writing it out.
async fn answer<Io: AsyncRead + AsyncWrite + Unpin>(link: &mut Link<Io>, id: &SessionId) -> Result<(), SessionError> {
    poll_fn(|cx| {
        if let Poll::Ready(Err(error)) = link.poll_drain(cx) {
            return Poll::Ready(Err(error.into()));
        }
        loop {
            let Some(frame) = ready!(link.poll_frame(cx))? else { return Poll::Ready(Err(SessionError::Closed)) };
            if frame.session != *id {
                continue;
            }
            match (frame.kind, frame.version()) {
                (Kind::Ack, Some(VERSION)) => return Poll::Ready(Ok(())),
                (Kind::Ack | Kind::Refuse, Some(guest)) => {
                    return Poll::Ready(Err(SessionError::Version { guest, host: VERSION }));
                }
                _ => {}
            }
        }
    })
    .await
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for SessionStream<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.current.is_empty() {
                let len = this.current.len().min(buf.remaining());
                buf.put_slice(&this.current[..len]);
                this.current.advance(len);
                return Poll::Ready(Ok(()));
            }
            match this.end {
                None => {}
                Some(End::Fin) => return Poll::Ready(Ok(())),
                Some(End::Broken) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                Some(End::Channel) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            }
            match ready!(this.link.poll_frame(cx))? {
                None => this.end = Some(End::Channel),
                Some(frame) => match this.half.take(frame) {
                    Meaning::Bytes(bytes) => this.current = bytes,
                    Meaning::End => this.end = Some(End::Fin),
                    Meaning::Broken => this.end = Some(End::Broken),
                    Meaning::Nothing => {}
                },
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for SessionStream<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.half.ended_out() || this.end == Some(End::Broken) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if !this.link.has_room() {
            ready!(this.link.poll_drain(cx))?;
        }
        let taken = this.half.send(&mut this.link.out, bytes);
        // What the channel doesn't take now goes with the next write or flush.
        if let Poll::Ready(Err(error)) = this.link.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().link.poll_drain(cx)
    }

    /// Sends FIN. The channel stays open: what the guest still has to say is read on.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.half.finish(&mut this.link.out);
        this.link.poll_drain(cx)
    }
}
