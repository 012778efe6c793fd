//! What travels on a stream of [`Protocol::Chunks`](fabric_quic::Protocol::Chunks), wire version 1.
//!
//! ```text
//! request   one frame:   version (u32, most significant byte first) | JSON
//! answer    one frame for each digest asked for, in order:   status (u8) | body
//!             0 here: the manifest's or chunk's bytes       1 absent: not here, or damaged: no body
//!             2 refused: a sentence; the last frame         3 another version: the one spoken here (u32); the last
//! ```
//! Whoever asks checks each hash; nobody is believed.

use bytes::Bytes;
use fabric_types::Digest;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::chunk::CHUNK_STORED_BYTES_MAX;
use crate::manifest::MANIFEST_BYTES_MAX;

/// The version of all this. It also stands in the protocol's ALPN.
pub(crate) const WIRE_VERSION: u32 = 1;
/// Chunks of one request: 16 MiB at most, so that a request that breaks costs little to ask again.
pub(crate) const REQUEST_CHUNKS_MAX: usize = 16;
/// Largest request, in bytes: 16 digests are 1.1 KiB of JSON.
pub(crate) const REQUEST_BYTES_MAX: usize = 4096;
/// Largest frames of an answer, in bytes.
pub(crate) const MANIFEST_FRAME_BYTES_MAX: usize = MANIFEST_BYTES_MAX + 1;
pub(crate) const CHUNK_FRAME_BYTES_MAX: usize = CHUNK_STORED_BYTES_MAX + 1;
/// Longest sentence of a refusal that is kept, in bytes.
const SENTENCE_BYTES_MAX: usize = 512;

const VERSION_BYTES: usize = 4;
const HERE: u8 = 0;
const ABSENT: u8 = 1;
const REFUSED: u8 = 2;
const VERSION: u8 = 3;

/// What a peer asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// A manifest.
    Manifest(Digest),
    /// Chunks, from 1 to [`REQUEST_CHUNKS_MAX`].
    Chunks(Vec<Digest>),
}

/// One frame of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The bytes, unchecked.
    Here(Bytes),
    /// Not there.
    Absent,
    /// The request makes no sense there, or the peer is failing: its sentence.
    Refused(String),
    /// The peer speaks another version.
    Version(u32),
}

/// Bytes that are no request.
#[derive(Debug, Error)]
pub(crate) enum RequestError {
    #[error("it speaks version {0} of the chunk protocol; this node speaks {WIRE_VERSION}")]
    Version(u32),
    #[error("the request is shorter than a version")]
    Short,
    #[error("the request is malformed: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0} chunks were asked for; 1 to {REQUEST_CHUNKS_MAX} are possible")]
    Count(usize),
}

impl Request {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut body = WIRE_VERSION.to_be_bytes().to_vec();
        serde_json::to_writer(&mut body, self)?;
        Ok(body)
    }

    pub(crate) fn decode(body: &[u8]) -> Result<Self, RequestError> {
        let (version, json) = body.split_first_chunk::<VERSION_BYTES>().ok_or(RequestError::Short)?;
        let version = u32::from_be_bytes(*version);
        if version != WIRE_VERSION {
            return Err(RequestError::Version(version));
        }
        match serde_json::from_slice(json)? {
            Self::Chunks(digests) if digests.is_empty() || digests.len() > REQUEST_CHUNKS_MAX => {
                Err(RequestError::Count(digests.len()))
            }
            request => Ok(request),
        }
    }
}

impl Reply {
    /// The frame's body.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (status, body): (u8, &[u8]) = match self {
            Self::Here(bytes) => (HERE, bytes),
            Self::Absent => (ABSENT, &[]),
            Self::Refused(sentence) => (REFUSED, sentence.as_bytes()),
            Self::Version(version) => (VERSION, &version.to_be_bytes()),
        };
        let mut frame = Vec::with_capacity(body.len() + 1);
        frame.push(status);
        frame.extend_from_slice(body);
        frame
    }

    /// A reply from a frame's body, or `None` if it is none.
    pub(crate) fn decode(frame: &Bytes) -> Option<Self> {
        let (status, body) = frame.split_first()?;
        match *status {
            HERE => Some(Self::Here(frame.slice(1..))),
            ABSENT if body.is_empty() => Some(Self::Absent),
            REFUSED => {
                let kept = &body[..body.len().min(SENTENCE_BYTES_MAX)];
                Some(Self::Refused(String::from_utf8_lossy(kept).escape_debug().to_string()))
            }
            VERSION => Some(Self::Version(u32::from_be_bytes(body.try_into().ok()?))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_as_they_always_were() {
        let digest = Digest::from_bytes([0xab; 32]);
        let hex = "ab".repeat(32);
        let manifest = Request::Manifest(digest).encode().expect("encodes");
        assert_eq!(manifest, [b"\0\0\0\x01{\"manifest\":\"", hex.as_bytes(), b"\"}"].concat());
        let chunks = Request::Chunks(vec![digest]).encode().expect("encodes");
        assert_eq!(chunks, [b"\0\0\0\x01{\"chunks\":[\"", hex.as_bytes(), b"\"]}"].concat());
        assert_eq!(Request::decode(&chunks).expect("decodes"), Request::Chunks(vec![digest]));
        let most = Request::Chunks(vec![digest; REQUEST_CHUNKS_MAX]).encode().expect("encodes");
        assert!(most.len() <= REQUEST_BYTES_MAX);
    }

    #[test]
    fn requests_past_a_limit_and_of_another_version_are_refused() {
        let digest = Digest::from_bytes([1; 32]);
        for count in [0, REQUEST_CHUNKS_MAX + 1] {
            let body = Request::Chunks(vec![digest; count]).encode().expect("encodes");
            assert!(matches!(Request::decode(&body), Err(RequestError::Count(_))));
        }
        assert!(matches!(Request::decode(b"\0\0\0\x02{}"), Err(RequestError::Version(2))));
        assert!(matches!(Request::decode(b"\0\0"), Err(RequestError::Short)));
        assert!(matches!(Request::decode(b"\0\0\0\x01{\"other\":1}"), Err(RequestError::Json(_))));
    }

    proptest! {
        #[test]
        fn decoders_take_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Request::decode(&bytes);
            let _ = Request::decode(&[&b"\0\0\0\x01"[..], &bytes].concat());
            if let Some(reply) = Reply::decode(&Bytes::from(bytes))
                && !matches!(reply, Reply::Refused(_))
            {
                prop_assert_eq!(Reply::decode(&Bytes::from(reply.encode())), Some(reply));
            }
        }
    }
}
