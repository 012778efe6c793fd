//! The giving side: answers peers' requests for manifests and chunks out of the store. Who may ask is the fabric's
//! matter: only nodes of the mesh get this far. What is given hashes to its name, or isn't given.

use std::time::Duration;

use bytes::Bytes;
use fabric_quic::{BiStream, Drain, FrameError, read_frame, serve_streams, write_frame};
use fabric_types::{Digest, NodeId};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::error::StoreError;
use crate::store::SnapshotStore;
use crate::wire::{
    CHUNK_FRAME_BYTES_MAX, MANIFEST_FRAME_BYTES_MAX, REQUEST_BYTES_MAX, Reply, Request, RequestError, WIRE_VERSION,
};

/// Requests answered at a time, from all peers: each holds one chunk of 1 MiB, or one manifest.
const REQUESTS_MAX: usize = 16;
/// Whoever opens a stream asks at once; after this it is given up.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// A frame that a peer doesn't take in this time is the last one for it: at 1 MiB that is some 280 kbit/s.
const FRAME_DEADLINE: Duration = Duration::from_secs(30);

/// The giving side of the chunk protocol.
#[derive(Debug, Clone, Copy)]
pub struct ChunkServer;

impl ChunkServer {
    /// Serves the streams that peers open (`fabric.accept(Protocol::Chunks)`) until `shutdown` or until there will be
    /// no more of them. Requests in progress are cut short then: whoever asked turns to another holder.
    pub async fn run(store: SnapshotStore, streams: mpsc::Receiver<BiStream>, shutdown: CancellationToken) {
        let serve_or_cut = |stream: BiStream| {
            let (store, shutdown) = (store.clone(), shutdown.clone());
            async move {
                shutdown.run_until_cancelled(serve_one(&store, stream)).await;
            }
        };
        serve_streams(streams, REQUESTS_MAX, Drain::Unbounded, shutdown.clone(), serve_or_cut).await;
    }
}

/// Serves one stream; what goes wrong with it ends it and nothing else.
async fn serve_one(store: &SnapshotStore, mut stream: BiStream) {
    let peer = stream.peer.clone();
    if let Err(error) = answer(store, &mut stream, &peer).await {
        debug!(%peer, %error, "a request for chunks was not answered in full");
    }
    // Without this the other side would wait for more.
    let _ = timeout(FRAME_DEADLINE, stream.send.shutdown()).await;
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("{action} took longer than {waited_s} s")]
    Slow { action: &'static str, waited_s: u64 },
    #[error(transparent)]
    Frame(#[from] FrameError),
}

async fn answer(store: &SnapshotStore, stream: &mut BiStream, peer: &NodeId) -> Result<(), ServeError> {
    let slow = |_| ServeError::Slow { action: "asking", waited_s: REQUEST_DEADLINE.as_secs() };
    let asked = timeout(REQUEST_DEADLINE, read_frame(&mut stream.recv, REQUEST_BYTES_MAX)).await.map_err(slow)??;
    let Some(asked) = asked else { return Ok(()) };
    match Request::decode(&asked) {
        Ok(Request::Manifest(digest)) => {
            let reply = reply(store.manifest_bytes(digest).await.map(Bytes::from), digest, peer);
            send(stream, &reply, MANIFEST_FRAME_BYTES_MAX).await
        }
        Ok(Request::Chunks(digests)) => {
            for digest in digests {
                let reply = reply(store.get_chunk(digest).await, digest, peer);
                send(stream, &reply, CHUNK_FRAME_BYTES_MAX).await?;
                if matches!(reply, Reply::Refused(_)) {
                    break;
                }
            }
            Ok(())
        }
        Err(RequestError::Version(_)) => send(stream, &Reply::Version(WIRE_VERSION), CHUNK_FRAME_BYTES_MAX).await,
        Err(error) => send(stream, &Reply::Refused(error.to_string()), CHUNK_FRAME_BYTES_MAX).await,
    }
}

fn reply(read: Result<Bytes, StoreError>, digest: Digest, peer: &NodeId) -> Reply {
    match read {
        Ok(bytes) => Reply::Here(bytes),
        // A damaged one was set aside and named in the log by the store; to the peer it isn't here.
        Err(StoreError::NoChunk(_) | StoreError::NoManifest(_) | StoreError::Damaged { .. }) => Reply::Absent,
        Err(error) => {
            warn!(%peer, %digest, %error, "can't read what a peer asks for");
            Reply::Refused("the holder can't read its store".to_owned())
        }
    }
}

async fn send(stream: &mut BiStream, reply: &Reply, limit: usize) -> Result<(), ServeError> {
    let slow = |_| ServeError::Slow { action: "taking a frame", waited_s: FRAME_DEADLINE.as_secs() };
    timeout(FRAME_DEADLINE, write_frame(&mut stream.send, &reply.encode(), limit)).await.map_err(slow)??;
    Ok(())
}
