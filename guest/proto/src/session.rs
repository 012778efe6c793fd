//! The session layer: one byte channel that breaks in the middle of a message, made into clean byte streams.
//!
//! The channel (a virtio-serial port, a vsock connection) outlives both ends' memory of it: a snapshot can hold half a
//! message, a restore continues with another host, and no end-of-file tells of it. So each host opens a *session*:
//!
//! ```text
//! host                                  guest
//!  | 00 HELLO(id, magic, version) 00 ->  |   ends the session before, whatever its state: the newest wins
//!  | <- 00 ACK(id, magic, version) 00    |   or REFUSE(id, version) when it doesn't speak that version
//!  | DATA(id, 0, bytes) 00 ->            |
//!  | <- DATA(id, 0, bytes) 00            |
//!  | FIN(id, 1) 00 ->                    |   no more bytes from this side
//! ```
//!
//! Frames are COBS-encoded, so a zero byte is a delimiter and nothing else; each carries its session, its number in the
//! session and a CRC-32. Frames of another session, garbage and halves are dropped. A gap in the numbers of the own
//! session means lost bytes: the stream ends with `ConnectionReset`, never with wrong bytes.
//!
//! ```text
//! crc, cobs   pure
//! frame       the frame's form; encoder and incremental decoder, bounded; pure
//! half        one end's view of a session: which frames count, what they mean; pure
//! link        frames over an asynchronous channel
//! host        opens a session: a stream that is the channel's only user
//! guest       takes sessions: a task owns the channel, each session is a stream
//! ```

mod cobs;
mod crc;
mod frame;
pub mod guest;
mod half;
pub mod host;
mod link;

use std::io;
use std::pin::Pin;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

pub use frame::{ENCODED_BYTES_MAX, PAYLOAD_BYTES_MAX, VERSION};

/// A byte stream inside one session.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
/// A boxed stream.
pub type BoxStream = Pin<Box<dyn Stream>>;
/// What tells one session from all others: 16 random bytes, chosen by the host for each.
pub type SessionId = [u8; 16];

/// Why a session could not be opened or taken.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The channel failed.
    #[error("the guest channel failed: {0}")]
    Channel(#[from] io::Error),
    /// The channel ended.
    #[error("the guest channel ended before a session was opened")]
    Closed,
    /// The guest did not answer in time.
    #[error("the guest did not acknowledge the session in {waited_ms} ms ({hellos} attempts)")]
    Deadline {
        /// The caller's limit.
        waited_ms: u64,
        /// How many times it was asked.
        hellos: u32,
    },
    /// The guest speaks another version of the session layer.
    #[error("the guest speaks version {guest} of the session layer, this host version {host}")]
    Version {
        /// The guest's.
        guest: u32,
        /// Ours.
        host: u32,
    },
}
