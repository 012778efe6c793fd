//! The first word on a connection, from the side that accepted it: "you may go on", or a close that says why not.
//!
//! ```text
//! hello    one unidirectional stream that holds the version (u32) and ends
//! refusal  a close whose code says which version the acceptor speaks (see `codes`), and a sentence
//! ```
//! A dialler that has heard it knows that its certificate and its version were accepted; in TLS 1.3 the handshake alone
//! doesn't tell it.

use quinn::{Connection, ConnectionError};
use thiserror::Error;

use crate::{Protocol, codes};

const HELLO_BYTES: usize = 4;

/// Why there was no hello.
#[derive(Debug, Error)]
pub(crate) enum HelloError {
    /// The connection ended instead.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The peer goes on in a version that we don't speak.
    #[error("the peer speaks version {0}")]
    Version(u32),
    /// Something else came.
    #[error("the peer's first stream is no hello")]
    Malformed,
}

/// Says hello.
pub(crate) async fn send(connection: &Connection) -> Result<(), ConnectionError> {
    let mut stream = connection.open_uni().await?;
    // If these fail the connection has ended, and whoever uses it next sees why.
    if stream.write_all(&Protocol::WIRE_VERSION.to_be_bytes()).await.is_ok() {
        drop(stream.finish());
    }
    Ok(())
}

/// Awaits the peer's hello.
pub(crate) async fn receive(connection: &Connection) -> Result<(), HelloError> {
    let mut stream = connection.accept_uni().await?;
    let hello = match stream.read_to_end(HELLO_BYTES).await {
        Ok(hello) => hello,
        Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error))) => return Err(error.into()),
        Err(_) => return Err(HelloError::Malformed),
    };
    let hello: [u8; HELLO_BYTES] = hello.try_into().map_err(|_| HelloError::Malformed)?;
    match u32::from_be_bytes(hello) {
        Protocol::WIRE_VERSION => Ok(()),
        theirs => Err(HelloError::Version(theirs)),
    }
}

/// Refuses a peer that speaks another version, in a sentence.
pub(crate) fn refuse(connection: &Connection, protocol: Protocol, theirs: u32) {
    let ours = Protocol::WIRE_VERSION;
    let sentence =
        format!("this node speaks version {ours} of {protocol:?}, not version {theirs}; upgrade the older of the two");
    connection.close(codes::speaks(ours), sentence.as_bytes());
}
