//! The numbers with which a stream or a connection is ended, and what they mean in words.

use std::io;

use quinn::{ConnectionError, ReadError, VarInt, WriteError};

/// A connection: the node is closing.
pub(crate) const CLOSING: VarInt = VarInt::from_u32(0);
/// A stream: its protocol's queue is full.
pub(crate) const BUSY: VarInt = VarInt::from_u32(0x10);
/// A connection: its certificate names no node, or its ALPN no protocol.
pub(crate) const REFUSED: VarInt = VarInt::from_u32(0x11);
/// A connection: this plus the version that the closer speaks.
const VERSION: u32 = 0x1000;
/// Versions that fit behind that.
const VERSIONS: u64 = 0x1000;

/// The code that says which version this node speaks.
pub(crate) fn speaks(version: u32) -> VarInt {
    VarInt::from_u32(VERSION + version)
}

/// The version that a peer speaks, if that is why it closed the connection.
pub(crate) fn spoken_version(error: &ConnectionError) -> Option<u32> {
    let ConnectionError::ApplicationClosed(close) = error else { return None };
    let version = close.error_code.into_inner().checked_sub(VERSION.into())?;
    (version < VERSIONS).then(|| u32::try_from(version).ok()).flatten()
}

/// The same error of a stream, in words where it holds one of our codes.
pub(crate) fn explain(error: io::Error) -> io::Error {
    let code = error.get_ref().and_then(|inner| {
        match (inner.downcast_ref::<ReadError>(), inner.downcast_ref::<WriteError>()) {
            (Some(ReadError::Reset(code)), _) | (_, Some(WriteError::Stopped(code))) => Some(*code),
            _ => None,
        }
    });
    match code {
        Some(BUSY) => io::Error::new(io::ErrorKind::ConnectionRefused, "its queue of streams is full"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_explained_and_other_errors_are_left_alone() {
        for error in [io::Error::from(ReadError::Reset(BUSY)), io::Error::from(WriteError::Stopped(BUSY))] {
            assert_eq!(explain(error).to_string(), "its queue of streams is full");
        }
        let other = explain(io::Error::from(ReadError::Reset(VarInt::from_u32(7))));
        assert_eq!(other.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(explain(io::ErrorKind::TimedOut.into()).kind(), io::ErrorKind::TimedOut);
    }
}
