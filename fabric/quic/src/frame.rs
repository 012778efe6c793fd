//! Frames: a length of four bytes, most significant first, and a body. Nothing here knows what a body means.
//!
//! ```text
//! +--------------+------------------+
//! | length (u32) | body             |   the length counts the body alone and is held against a limit before
//! +--------------+------------------+   a byte of the body is read or room for it is made
//! ```

use std::io;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{FabricError, codes};

/// The largest frame of a call, request or answer: 4 MiB holds the largest list that a node answers with; what is
/// larger travels as a stream of its own.
pub const CALL_FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of the length.
const LENGTH_BYTES: usize = 4;
/// Room made at first for a body, in bytes. A peer that announces megabytes and sends none costs this and no more.
const FIRST_ROOM_BYTES: usize = 64 * 1024;

/// Why a frame could not be written or read.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The body is, or is said to be, over the limit.
    #[error("a frame of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended after {got} of {expected} bytes of a frame")]
    Truncated {
        /// Bytes that came.
        got: usize,
        /// Bytes that should have come.
        expected: usize,
    },
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
    /// The body is no JSON of the type expected.
    #[error("the frame is not {expected}: {source}")]
    Json {
        /// The type expected.
        expected: &'static str,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
}

impl FrameError {
    /// The same as an error of the fabric: `peer` is who is at the other end, `action` what was being done.
    pub fn at(self, peer: impl Into<String>, action: &'static str) -> FabricError {
        let peer = peer.into();
        match self {
            Self::TooLarge { bytes, limit } => FabricError::TooLarge { what: "a frame", bytes, limit },
            Self::Truncated { .. } => {
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, self.to_string());
                FabricError::Broken { peer, action, source }
            }
            Self::Io(source) => FabricError::Broken { peer, action, source: codes::explain(source) },
            Self::Json { expected, source } => FabricError::Malformed { peer, expected, cause: source.to_string() },
        }
    }
}

/// Writes one frame. Not cancel safe: a frame that is dropped half written leaves the stream unusable.
pub async fn write_frame<W>(writer: &mut W, body: &[u8], limit: usize) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    write_frame_parts(writer, &[body], limit).await
}

/// Writes one frame whose body lies in several pieces.
pub(crate) async fn write_frame_parts<W>(writer: &mut W, parts: &[&[u8]], limit: usize) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let too_large = || FrameError::TooLarge { bytes: bytes as u64, limit: limit as u64 };
    if bytes > limit {
        return Err(too_large());
    }
    let length = u32::try_from(bytes).map_err(|_| too_large())?;
    // The length and a small body leave in one write, and so in one packet.
    let mut head = BytesMut::with_capacity(LENGTH_BYTES + bytes.min(FIRST_ROOM_BYTES));
    head.extend_from_slice(&length.to_be_bytes());
    if bytes <= FIRST_ROOM_BYTES {
        parts.iter().for_each(|part| head.extend_from_slice(part));
        writer.write_all(&head).await?;
    } else {
        writer.write_all(&head).await?;
        for part in parts {
            writer.write_all(part).await?;
        }
    }
    writer.flush().await?;
    Ok(())
}

/// Reads one frame, or `None` if the stream ended where a frame would begin. Not cancel safe.
pub async fn read_frame<R>(reader: &mut R, limit: usize) -> Result<Option<Bytes>, FrameError>
where
    R: AsyncRead + Unpin + ?Sized,
{
    let mut length = [0; LENGTH_BYTES];
    let mut got = 0;
    while got < LENGTH_BYTES {
        match reader.read(&mut length[got..]).await? {
            0 if got == 0 => return Ok(None),
            0 => return Err(FrameError::Truncated { got, expected: LENGTH_BYTES }),
            count => got += count,
        }
    }
    let announced = u32::from_be_bytes(length);
    let expected = usize::try_from(announced).unwrap_or(usize::MAX);
    if expected > limit {
        return Err(FrameError::TooLarge { bytes: announced.into(), limit: limit as u64 });
    }
    let mut body = BytesMut::with_capacity(expected.min(FIRST_ROOM_BYTES));
    let mut rest = reader.take(u64::from(announced));
    while body.len() < expected {
        if rest.read_buf(&mut body).await? == 0 {
            return Err(FrameError::Truncated { got: body.len(), expected });
        }
    }
    Ok(Some(body.freeze()))
}

/// Writes a value as JSON in one frame.
pub async fn send_json<W, T>(writer: &mut W, value: &T, limit: usize) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin + ?Sized,
    T: Serialize + ?Sized,
{
    let body = serde_json::to_vec(value)
        .map_err(|source| FrameError::Json { expected: std::any::type_name::<T>(), source })?;
    write_frame(writer, &body, limit).await
}

/// Reads a value as JSON from one frame, or `None` at the stream's end.
pub async fn recv_json<R, T>(reader: &mut R, limit: usize) -> Result<Option<T>, FrameError>
where
    R: AsyncRead + Unpin + ?Sized,
    T: DeserializeOwned,
{
    let Some(body) = read_frame(reader, limit).await? else { return Ok(None) };
    serde_json::from_slice(&body)
        .map(Some)
        .map_err(|source| FrameError::Json { expected: std::any::type_name::<T>(), source })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
    }

    proptest! {
        #[test]
        fn frames_read_back_as_written_in_order(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..8)) {
            run(async {
                let mut wire = Vec::new();
                for body in &bodies {
                    write_frame(&mut wire, body, 3000).await.expect("writes");
                }
                let mut reader = &wire[..];
                for body in &bodies {
                    let read = read_frame(&mut reader, 3000).await.expect("reads").expect("a frame");
                    assert_eq!(&read[..], &body[..]);
                }
                assert!(read_frame(&mut reader, 3000).await.expect("the end").is_none());
            });
        }

        #[test]
        fn a_frame_cut_anywhere_is_an_error_and_never_a_shorter_frame(body in prop::collection::vec(any::<u8>(), 1..500), cut in any::<prop::sample::Index>()) {
            run(async {
                let mut wire = Vec::new();
                write_frame(&mut wire, &body, 500).await.expect("writes");
                let kept = 1 + cut.index(wire.len() - 1);
                let mut reader = &wire[..kept.min(wire.len() - 1)];
                let error = read_frame(&mut reader, 500).await.expect_err("cut");
                assert!(matches!(error, FrameError::Truncated { .. }), "{error}");
            });
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_never_pass_the_limit(wire in prop::collection::vec(any::<u8>(), 0..200)) {
            run(async {
                let mut reader = &wire[..];
                while let Ok(Some(body)) = read_frame(&mut reader, 64).await {
                    assert!(body.len() <= 64);
                }
            });
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_its_body_is_read() {
        run(async {
            let mut wire = Vec::new();
            assert!(matches!(
                write_frame(&mut wire, &[0; 65], 64).await,
                Err(FrameError::TooLarge { bytes: 65, limit: 64 })
            ));
            assert!(wire.is_empty());
            // Only the length is there: were the body awaited first, this would be a truncated frame.
            let mut reader = &0xffff_ffff_u32.to_be_bytes()[..];
            let error = read_frame(&mut reader, 64).await.expect_err("too large");
            assert_eq!(error.to_string(), "a frame of 4294967295 bytes is over the limit of 64");
        });
    }

    #[test]
    fn a_body_of_many_pieces_and_megabytes_is_one_frame() {
        run(async {
            let large = vec![7; 3 * 1024 * 1024];
            let mut wire = Vec::new();
            write_frame_parts(&mut wire, &[b"head", &large], CALL_FRAME_BYTES_MAX).await.expect("writes");
            let body = read_frame(&mut &wire[..], CALL_FRAME_BYTES_MAX).await.expect("reads").expect("a frame");
            assert_eq!(body.len(), 4 + large.len());
            assert_eq!(&body[..4], b"head");
        });
    }

    #[test]
    fn json_of_another_type_says_what_was_expected() {
        run(async {
            let mut wire = Vec::new();
            send_json(&mut wire, "text", 64).await.expect("writes");
            let error = recv_json::<_, u32>(&mut &wire[..], 64).await.expect_err("no number");
            assert!(error.to_string().starts_with("the frame is not u32"), "{error}");
        });
    }
}
