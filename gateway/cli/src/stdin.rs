//! Standard input, read on a plain thread of its own: the runtime would wait at its end for a read of its own threads
//! that a terminal never finishes.

use std::io::{self, Read as _};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};

use crate::exit::Failure;

/// Bytes that are read at once: a few reads fill a connection's window.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait to be taken; then the thread waits too, and so does whoever writes to us.
const PIECES_AHEAD: usize = 4;

/// Standard input in pieces, as it comes. Ends with it, or with its first error.
pub(crate) fn pieces() -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (sender, receiver) = tokio::sync::mpsc::channel(PIECES_AHEAD);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let piece = match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(Bytes::copy_from_slice(&buffer[..length])),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let is_last = piece.is_err();
            // Nobody takes any more, or this was the end.
            if sender.blocking_send(piece).is_err() || is_last {
                return;
            }
        }
    });
    futures::stream::unfold(
        receiver,
        |mut receiver| async move { receiver.recv().await.map(|piece| (piece, receiver)) },
    )
}

/// Standard input to its end; longer than the limit is a usage error.
pub(crate) async fn whole(limit_bytes: usize) -> Result<Vec<u8>, Failure> {
    let failed = |source| Failure::Local { path: "standard input".into(), verb: "read", source };
    let mut bytes = Vec::new();
    let mut pieces = std::pin::pin!(pieces());
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece.map_err(failed)?);
        if bytes.len() > limit_bytes {
            return Err(Failure::Usage(format!(
                "standard input is longer than {limit_bytes} bytes: copy it first, as in `atoll cp - SANDBOX:/root/input`"
            )));
        }
    }
    Ok(bytes)
}
