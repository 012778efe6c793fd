//! The guest's end: a task owns the channel for as long as it lives; each session is a stream.
//!
//! ```text
//! channel <-> task (link, the session's half) <-> shared buffers <-> SessionStream <-> HTTP/2
//! ```
//!
//! The task always reads the channel, so a new HELLO is seen even when nobody reads the session before; only a
//! session whose reader lets [`IN_BYTES_MAX`] pile up holds it back, for at most [`STALL`].

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep};

use super::SessionError;
use super::frame::{Frame, Kind, VERSION, encode_opening};
use super::half::{Half, Meaning};
use super::link::{Link, OUT_BYTES_MAX};

/// Received bytes that wait for their reader. Above HTTP/2's connection window, so that an HTTP/2 peer never fills it.
pub const IN_BYTES_MAX: usize = 4 << 20;
/// How long a full session may hold back the channel before it is broken off: whoever waits behind it is a new host.
pub const STALL: Duration = Duration::from_secs(3);

/// Takes sessions from one channel, the newest first and only.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

/// A byte stream inside one session. It reads as ended when a newer session was opened.
#[derive(Debug)]
pub struct SessionStream {
    shared: Arc<Mutex<Shared>>,
    epoch: u64,
}

/// What the task, the listener and the streams share.
#[derive(Debug, Default)]
struct Shared {
    /// Counts sessions: a stream of another epoch is over.
    epoch: u64,
    session: Option<Session>,
    /// A session that nobody has accepted yet.
    waiting: bool,
    /// Encoded bytes for the channel.
    out: BytesMut,
    /// How the channel ended.
    channel_end: Option<io::ErrorKind>,
    task: Option<Waker>,
    accept: Option<Waker>,
}

#[derive(Debug)]
struct Session {
    half: Half,
    received: VecDeque<Bytes>,
    received_bytes: usize,
    ended: bool,
    broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Session {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }
}

impl Listener {
    /// Takes over a channel. Must be called on a tokio runtime: a task on it owns the channel until the listener is
    /// dropped or the channel ends.
    pub fn new<Io>(io: Io) -> Self
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let mut driver = Driver { shared: Arc::clone(&shared), link: Link::new(io), stall: None };
        let task = tokio::spawn(async move { poll_fn(|cx| driver.poll(cx)).await });
        Self { shared, task }
    }

    /// The next session. Sessions that were replaced before anyone accepted them are passed over.
    ///
    /// # Errors
    /// When the channel has ended or failed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn accept(&mut self) -> Result<SessionStream, SessionError> {
        poll_fn(|cx| {
            let mut shared = lock(&self.shared);
            if std::mem::take(&mut shared.waiting) {
                let epoch = shared.epoch;
                drop(shared);
                return Poll::Ready(Ok(SessionStream { shared: Arc::clone(&self.shared), epoch }));
            }
            match shared.channel_end {
                Some(io::ErrorKind::UnexpectedEof) => Poll::Ready(Err(SessionError::Closed)),
                Some(kind) => Poll::Ready(Err(SessionError::Channel(kind.into()))),
                None => {
                    shared.accept = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
        lock(&self.shared).end(io::ErrorKind::UnexpectedEof);
    }
}

/// Nothing panics while it holds the lock, and every state in it is valid on its own.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The session of this epoch, if it is still the newest.
    fn session(&mut self, epoch: u64) -> Option<&mut Session> {
        if self.epoch == epoch { self.session.as_mut() } else { None }
    }

    fn end(&mut self, kind: io::ErrorKind) {
        self.channel_end = Some(kind);
        if let Some(mut session) = self.session.take() {
            session.wake();
        }
        self.epoch += 1;
        self.waiting = false;
        self.accept.take().into_iter().for_each(Waker::wake);
    }

    fn wake_task(&mut self) {
        self.task.take().into_iter().for_each(Waker::wake);
    }

    fn take(&mut self, frame: Frame) {
        if frame.kind == Kind::Hello {
            return self.open(&frame);
        }
        let Self { session: Some(session), out, .. } = self else { return };
        match session.half.take(frame) {
            Meaning::Bytes(bytes) => {
                session.received_bytes += bytes.len();
                session.received.push_back(bytes);
            }
            Meaning::End => session.ended = true,
            Meaning::Broken => {
                session.broken = true;
                session.half.reset(out);
                session.writer.take().into_iter().for_each(Waker::wake);
            }
            Meaning::Nothing => return,
        }
        session.reader.take().into_iter().for_each(Waker::wake);
    }

    fn open(&mut self, hello: &Frame) {
        match hello.version() {
            None => {}
            Some(VERSION) => {
                let again = self.session.as_ref().is_some_and(|session| *session.half.id() == hello.session);
                if !again {
                    if let Some(mut before) = self.session.take() {
                        before.wake();
                    }
                    // Frames of the session before that the channel hasn't taken yet are of no use to the new host.
                    self.out.clear();
                    self.epoch += 1;
                    self.waiting = true;
                    self.session = Some(Session {
                        half: Half::new(hello.session),
                        received: VecDeque::new(),
                        received_bytes: 0,
                        ended: false,
                        broken: false,
                        reader: None,
                        writer: None,
                    });
                    self.accept.take().into_iter().for_each(Waker::wake);
                }
                encode_opening(&mut self.out, Kind::Ack, &hello.session, VERSION);
            }
            Some(_) => encode_opening(&mut self.out, Kind::Refuse, &hello.session, VERSION),
        }
    }
}

/// The task that owns the channel.
struct Driver<Io> {
    shared: Arc<Mutex<Shared>>,
    link: Link<Io>,
    /// Runs while a full session holds back the channel.
    stall: Option<Pin<Box<Sleep>>>,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Driver<Io> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        lock(&self.shared).task = Some(cx.waker().clone());
        let end = match self.poll_in(cx) {
            Poll::Ready(kind) => Some(kind),
            Poll::Pending => match self.poll_out(cx) {
                Poll::Ready(Err(error)) => Some(error.kind()),
                _ => None,
            },
        };
        match end {
            Some(kind) => {
                lock(&self.shared).end(kind);
                Poll::Ready(())
            }
            None => Poll::Pending,
        }
    }

    /// Reads and judges frames for as long as there are any; ready when the channel has ended.
    fn poll_in(&mut self, cx: &mut Context<'_>) -> Poll<io::ErrorKind> {
        loop {
            if self.is_held_back(cx) {
                return Poll::Pending;
            }
            match self.link.poll_frame(cx) {
                Poll::Ready(Ok(Some(frame))) => lock(&self.shared).take(frame),
                Poll::Ready(Ok(None)) => return Poll::Ready(io::ErrorKind::UnexpectedEof),
                Poll::Ready(Err(error)) => return Poll::Ready(error.kind()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Whether the session's reader must catch up first. One that doesn't is broken off.
    fn is_held_back(&mut self, cx: &mut Context<'_>) -> bool {
        let mut shared = lock(&self.shared);
        let Shared { session, out, .. } = &mut *shared;
        let Some(session) = session.as_mut().filter(|session| session.received_bytes >= IN_BYTES_MAX) else {
            self.stall = None;
            return false;
        };
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(STALL)));
        if stall.as_mut().poll(cx).is_pending() {
            return true;
        }
        stall.as_mut().reset(Instant::now() + STALL);
        session.received.clear();
        session.received_bytes = 0;
        session.broken = true;
        session.half.reset(out);
        session.wake();
        false
    }

    /// Writes what the streams have encoded.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.link.out.is_empty() {
                let mut shared = lock(&self.shared);
                if shared.out.is_empty() {
                    return Poll::Pending;
                }
                std::mem::swap(&mut self.link.out, &mut shared.out);
                if let Some(session) = &mut shared.session {
                    session.writer.take().into_iter().for_each(Waker::wake);
                }
            }
            match self.link.poll_drain(cx) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        }
    }
}

impl AsyncRead for SessionStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.shared);
        let Some(session) = shared.session(self.epoch) else { return Poll::Ready(Ok(())) };
        let Some(front) = session.received.front_mut() else {
            if session.broken {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if !session.ended {
                session.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            return Poll::Ready(Ok(()));
        };
        let len = front.len().min(buf.remaining());
        buf.put_slice(&front[..len]);
        front.advance(len);
        if front.is_empty() {
            session.received.pop_front();
        }
        let was_full = session.received_bytes >= IN_BYTES_MAX;
        session.received_bytes -= len;
        if was_full {
            shared.wake_task();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SessionStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut shared = lock(&self.shared);
        let Shared { epoch, session: Some(session), out, .. } = &mut *shared else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if *epoch != self.epoch || session.broken || session.half.ended_out() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if out.len() >= OUT_BYTES_MAX {
            session.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = session.half.send(out, bytes);
        shared.wake_task();
        Poll::Ready(Ok(taken))
    }

    /// The task writes on its own; nothing is kept back.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.shared);
        let Shared { epoch, session: Some(session), out, .. } = &mut *shared else { return Poll::Ready(Ok(())) };
        if *epoch == self.epoch && !session.broken {
            session.half.finish(out);
            shared.wake_task();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for SessionStream {
    /// A stream that is dropped sends FIN if it hasn't, and what still comes for it is dropped.
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        let Shared { epoch, session, out, .. } = &mut *shared;
        if *epoch == self.epoch
            && let Some(mut session) = session.take()
        {
            if !session.broken {
                session.half.finish(out);
            }
            shared.wake_task();
        }
    }
}
