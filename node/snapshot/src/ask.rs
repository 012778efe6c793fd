//! One question to one holder: the request, the frames of its answer, and what can be wrong with them.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use fabric_quic::{Fabric, FabricError, Peer, Protocol, RecvHalf, read_frame, write_frame};
use fabric_types::Digest;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::chunk::digest_of;
use crate::manifest::{Manifest, ManifestError};
use crate::wire::{CHUNK_FRAME_BYTES_MAX, MANIFEST_FRAME_BYTES_MAX, REQUEST_BYTES_MAX, Reply, Request};

/// The next chunk of a batch must come in this time, or the holder has broken off: 1 MiB at 420 kbit/s.
const CHUNK_DEADLINE: Duration = Duration::from_secs(20);
/// A manifest must come in this time: the largest, 48 MiB, at 7 Mbit/s.
const MANIFEST_DEADLINE: Duration = Duration::from_secs(60);

/// What a holder did wrong.
#[derive(Debug)]
pub struct HolderFault {
    /// Which.
    pub holder: Peer,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for HolderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.holder, self.fault)
    }
}

/// How a holder failed.
#[derive(Debug, Error)]
pub enum Fault {
    /// It doesn't have it.
    #[error("it doesn't have {0}")]
    Absent(Digest),
    /// It sent other bytes.
    #[error("it sent other bytes as {0}")]
    Forged(Digest),
    /// It sent a manifest whose hash is right and that can't be read.
    #[error("its manifest can't be read: {0}")]
    Manifest(#[from] ManifestError),
    /// It refused, in its words.
    #[error("it refused: {0}")]
    Refused(String),
    /// It sent what is no answer.
    #[error("it sent what is no answer")]
    NoAnswer,
    /// The stream to it.
    #[error(transparent)]
    Fabric(#[from] FabricError),
}

/// A manifest, read and checked, and its bytes.
pub(crate) async fn manifest(fabric: &dyn Fabric, peer: &Peer, digest: Digest) -> Result<(Manifest, Bytes), Fault> {
    let asked = timeout(MANIFEST_DEADLINE, ask_manifest(fabric, peer, digest)).await;
    asked.unwrap_or_else(|_| Err(late(fabric, peer, MANIFEST_DEADLINE)))
}

/// The answers to a request for chunks, one after the other.
pub(crate) struct Answers<'a> {
    fabric: &'a dyn Fabric,
    peer: &'a Peer,
    recv: RecvHalf,
}

impl<'a> Answers<'a> {
    /// Asks a holder for chunks.
    pub(crate) async fn to(fabric: &'a dyn Fabric, peer: &'a Peer, digests: Vec<Digest>) -> Result<Self, Fault> {
        let asked = timeout(CHUNK_DEADLINE, ask(fabric, peer, &Request::Chunks(digests))).await;
        let recv = asked.unwrap_or_else(|_| Err(late(fabric, peer, CHUNK_DEADLINE)))?;
        Ok(Self { fabric, peer, recv })
    }

    /// The next chunk's bytes, which nobody has checked yet, or `None` if the holder doesn't have it.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let reply = timeout(CHUNK_DEADLINE, reply(&mut self.recv, self.peer, CHUNK_FRAME_BYTES_MAX)).await;
        match reply.unwrap_or_else(|_| Err(late(self.fabric, self.peer, CHUNK_DEADLINE)))? {
            Reply::Here(bytes) => Ok(Some(bytes)),
            Reply::Absent => Ok(None),
            refusal => Err(refused(refusal)),
        }
    }
}

async fn ask_manifest(fabric: &dyn Fabric, peer: &Peer, digest: Digest) -> Result<(Manifest, Bytes), Fault> {
    let mut recv = ask(fabric, peer, &Request::Manifest(digest)).await?;
    match reply(&mut recv, peer, MANIFEST_FRAME_BYTES_MAX).await? {
        Reply::Here(bytes) if digest_of(&bytes) == digest => Ok((Manifest::parse(&bytes)?, bytes)),
        Reply::Here(_) => Err(Fault::Forged(digest)),
        Reply::Absent => Err(Fault::Absent(digest)),
        refusal => Err(refused(refusal)),
    }
}

/// Opens a stream, asks, and returns where the answer will come from.
async fn ask(fabric: &dyn Fabric, peer: &Peer, request: &Request) -> Result<RecvHalf, Fault> {
    let body = request.encode().map_err(|source| FabricError::Malformed {
        peer: peer.to_string(),
        expected: "a request for chunks",
        cause: source.to_string(),
    })?;
    let mut stream = fabric.open(peer, Protocol::Chunks).await?;
    let broken = |source| FabricError::Broken { peer: peer.to_string(), action: "asking for chunks", source };
    write_frame(&mut stream.send, &body, REQUEST_BYTES_MAX)
        .await
        .map_err(|error| error.at(peer.to_string(), "asking for chunks"))?;
    stream.send.shutdown().await.map_err(broken)?;
    Ok(stream.recv)
}

async fn reply(recv: &mut RecvHalf, peer: &Peer, limit: usize) -> Result<Reply, Fault> {
    let frame = read_frame(recv, limit).await.map_err(|error| error.at(peer.to_string(), "awaiting chunks"))?;
    let frame = frame.ok_or_else(|| FabricError::Broken {
        peer: peer.to_string(),
        action: "awaiting chunks",
        source: std::io::ErrorKind::UnexpectedEof.into(),
    })?;
    Reply::decode(&frame).ok_or(Fault::NoAnswer)
}

/// The fault that a reply is which is neither bytes nor their absence.
fn refused(reply: Reply) -> Fault {
    match reply {
        Reply::Refused(sentence) => Fault::Refused(sentence),
        Reply::Version(theirs) => {
            Fault::Refused(format!("it speaks version {theirs} of the chunk protocol; upgrade the older of the two"))
        }
        Reply::Here(_) | Reply::Absent => Fault::NoAnswer,
    }
}

/// No answer in time; the next stream to this peer is opened on a new connection.
fn late(fabric: &dyn Fabric, peer: &Peer, deadline: Duration) -> Fault {
    fabric.suspect(peer, Protocol::Chunks);
    let waited_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    FabricError::Timeout { peer: peer.to_string(), waited_ms }.into()
}
