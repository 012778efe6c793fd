//! What the fuzzer and the ordinary tests both feed with hostile bytes: each function takes any bytes and must neither panic
//! nor hang, and holds what it finds against a second reading.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use guest_proto::boot::ModuleLine;
use guest_proto::session::guest::Listener;
use guest_proto::session::host;
use guest_proto::surface::{
    AgentError, CodeRunRequest, Context as Interpreter, ContextList, DiskSize, ExecEvent, ExecReply, ExecRequest,
    FileInfo, FileList, Health, Identity, IdentityAck, InterpreterEvent, InterpreterRequest, NewContext,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Most bytes that one session gives its reader: more than any input here holds.
const READ_MAX: usize = 1 << 20;
/// The session's id of every input that is to be taken.
const ID: [u8; 16] = [7; 16];

/// A channel whose other end says this, in pieces, and hears everything.
struct Scripted {
    bytes: Vec<u8>,
    at: usize,
    piece: usize,
}

impl AsyncRead for Scripted {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let end = self.bytes.len().min(self.at + self.piece.min(buf.remaining()));
        buf.put_slice(&self.bytes[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Bytes as a channel carries them: the first byte says in which pieces, and whether the rest is taken as it is or as a list
/// of frames (kind, session, number, length, payload) that are well formed, which chance would never make.
fn scripted(data: &[u8]) -> Scripted {
    let (&how, mut rest) = data.split_first().unwrap_or((&0, &[]));
    let piece = 1 + usize::from(how >> 1) * 37;
    if how & 1 == 0 {
        return Scripted { bytes: rest.to_vec(), at: 0, piece };
    }
    let mut bytes = Vec::new();
    while let [kind, session, number, len, more @ ..] = rest {
        let (payload, after) = more.split_at(more.len().min(usize::from(*len)));
        let session = if session & 0x80 == 0 { ID } else { [*session; 16] };
        let opening = [&b"atoll/ch"[..], &u32::from(payload.first().copied().unwrap_or(1)).to_le_bytes()].concat();
        let payload = if (1..=3).contains(kind) { &opening } else { payload };
        let frame = [&[*kind][..], &session, &u32::from(*number).to_le_bytes(), payload].concat();
        bytes.extend(stuffed(&[&frame[..], &crc(&frame).to_le_bytes()].concat()));
        rest = after;
    }
    Scripted { bytes, at: 0, piece }
}

/// Consistent overhead byte stuffing (Cheshire and Baker, 1999), and the delimiter.
fn stuffed(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut run: Vec<u8> = Vec::new();
    for &byte in bytes {
        if byte != 0 {
            run.push(byte);
        }
        if byte == 0 || run.len() == 254 {
            out.push(u8::try_from(run.len() + 1).unwrap_or(u8::MAX));
            out.append(&mut run);
        }
    }
    out.push(u8::try_from(run.len() + 1).unwrap_or(u8::MAX));
    out.append(&mut run);
    out.push(0);
    out
}

/// CRC-32 (ISO 3309), a bit at a time.
fn crc(bytes: &[u8]) -> u32 {
    let mut value = u32::MAX;
    for &byte in bytes {
        value ^= u32::from(byte);
        for _ in 0..8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0xEDB8_8320 } else { value >> 1 };
        }
    }
    !value
}

/// Runs to its end what never waits for a clock, since its channel ends.
fn run<T>(work: impl Future<Output = T>) -> Option<T> {
    thread_local! {
        static RUNTIME: Option<tokio::runtime::Runtime> =
            tokio::runtime::Builder::new_current_thread().enable_time().build().ok();
    }
    RUNTIME.with(|runtime| runtime.as_ref().map(|runtime| runtime.block_on(work)))
}

/// What a guest says to the session layer of the host.
pub fn session_from_guest(data: &[u8]) {
    let channel = scripted(data);
    run(async {
        let Ok(session) = host::open(channel, ID, Duration::from_secs(60)).await else { return };
        read(session).await;
    });
}

/// What a host says to the session layer of a guest.
pub fn session_from_host(data: &[u8]) {
    let channel = scripted(data);
    run(async {
        let mut listener = Listener::new(channel);
        while let Ok(session) = listener.accept().await {
            read(session).await;
        }
    });
}

async fn read(session: impl AsyncRead + Unpin) {
    let mut bytes = Vec::new();
    // However it ends, what was read is bounded by what was sent.
    let _ = session.take(READ_MAX as u64).read_to_end(&mut bytes).await;
    assert!(bytes.len() < READ_MAX, "more was read than was ever sent");
}

/// Bodies of the agent's answers, as a host reads them; the first byte says of which request.
pub fn answers(data: &[u8]) {
    let (&which, body) = data.split_first().unwrap_or((&0, &[]));
    match which % 11 {
        0 => lines::<ExecEvent>(body),
        1 => lines::<InterpreterEvent>(body),
        2 => again::<Health>(body),
        3 => again::<IdentityAck>(body),
        4 => again::<FileInfo>(body),
        5 => again::<FileList>(body),
        6 => again::<ExecReply>(body),
        7 => again::<AgentError>(body),
        8 => again::<ContextList>(body),
        9 => again::<Interpreter>(body),
        _ => again::<DiskSize>(body),
    }
}

/// Bodies of requests, as the agent reads them, and lines of the list of modules.
pub fn requests(data: &[u8]) {
    let (&which, body) = data.split_first().unwrap_or((&0, &[]));
    match which % 6 {
        0 => again::<Identity>(body),
        1 => again::<ExecRequest>(body),
        2 => again::<CodeRunRequest>(body),
        3 => again::<InterpreterRequest>(body),
        4 => again::<NewContext>(body),
        _ => {
            let text = String::from_utf8_lossy(body);
            for line in text.lines().filter_map(ModuleLine::parse) {
                assert!(!line.file.contains('/'));
                assert_eq!(ModuleLine::parse(&line.to_string()), Some(line));
            }
        }
    }
}

fn lines<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(body: &[u8]) {
    body.split(|&byte| byte == b'\n').for_each(again::<T>);
}

/// What is read, written and read again is the same.
fn again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(body: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(body) else { return };
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&written).expect("what was written can be read"), value);
}
