//! Calls to the other members, over the fabric. Knows addresses, deadlines and silence; nothing of what is said.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fabric_quic::{BiStream, Fabric, FabricError, Peer, Protocol, read_frame, write_frame};
use fabric_types::NodeId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};

use crate::GroupName;
use crate::wire::{Call, FRAME_BYTES_MAX, SNAPSHOT_PART_BYTES, WireError, decode_answer, encode_request};

/// Where nodes listen now, by gossip or configuration; none if it isn't known.
pub type Resolver = Arc<dyn Fn(&NodeId) -> Option<SocketAddr> + Send + Sync>;

/// A peer that has answered nothing for this long is dialled anew: its process may have been replaced, and nobody
/// tells an old connection so. Well above what a loaded machine needs for a dial.
const SUSPECT_AFTER: Duration = Duration::from_secs(1);

/// Why a call had no answer.
#[derive(Debug, Error)]
pub(crate) enum CallError {
    /// The request can't have been carried out.
    #[error("{0}")]
    Unsent(#[source] FabricError),
    /// The request may have been carried out.
    #[error("{0}")]
    Broken(#[source] FabricError),
    /// No answer in time; the request may have been carried out.
    #[error("{node} did not answer a {call} call in {waited_ms} ms", call = call.as_str())]
    Late { node: NodeId, call: Call, waited_ms: u64 },
    /// The peer said why not.
    #[error("{node} refused a {call} call: {cause}", call = call.as_str())]
    Refused { node: NodeId, call: Call, cause: WireError },
}

/// The other nodes, for every group of this process.
#[derive(Clone)]
pub(crate) struct Peers {
    fabric: Arc<dyn Fabric>,
    resolve: Resolver,
    /// Since when each peer has been silent; absent while it answers.
    silent: Arc<Mutex<HashMap<NodeId, Instant>>>,
}

impl Peers {
    pub(crate) fn new(fabric: Arc<dyn Fabric>, resolve: Resolver) -> Self {
        Self { fabric, resolve, silent: Arc::default() }
    }

    /// Calls a node and awaits its answer. `recorded` is the address that the membership has for it.
    pub(crate) async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        (node, recorded): (&NodeId, SocketAddr),
        call: Call,
        group: &GroupName,
        request: &Q,
        deadline: Duration,
    ) -> Result<A, CallError> {
        self.exchange((node, recorded), call, group, request, &Bytes::new(), deadline).await
    }

    /// The same, with bytes after the request, in parts.
    pub(crate) async fn exchange<Q: Serialize, A: DeserializeOwned>(
        &self,
        (node, recorded): (&NodeId, SocketAddr),
        call: Call,
        group: &GroupName,
        request: &Q,
        rest: &Bytes,
        deadline: Duration,
    ) -> Result<A, CallError> {
        let refused = |cause| CallError::Refused { node: node.clone(), call, cause };
        let frame = encode_request(call, group, request).map_err(refused)?;
        let peer = Peer { address: (self.resolve)(node).unwrap_or(recorded), node: Some(node.clone()) };
        let exchanged = timeout(deadline, async {
            let stream = self.fabric.open(&peer, Protocol::Raft).await.map_err(CallError::Unsent)?;
            say(stream, &frame, rest).await.map_err(CallError::Broken)
        });
        match exchanged.await {
            Ok(Ok(frame)) => {
                self.heard(node);
                decode_answer(&frame).map_err(refused)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                self.not_heard(&peer, node);
                let waited_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
                Err(CallError::Late { node: node.clone(), call, waited_ms })
            }
        }
    }

    fn heard(&self, node: &NodeId) {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    fn not_heard(&self, peer: &Peer, node: &NodeId) {
        let now = Instant::now();
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *silent.entry(node.clone()).or_insert(now);
        let suspect = now.duration_since(since) >= SUSPECT_AFTER;
        if suspect {
            silent.insert(node.clone(), now);
        }
        drop(silent);
        if suspect {
            self.fabric.suspect(peer, Protocol::Raft);
        }
    }
}

/// Sends a request with what follows it, and reads the answer's frame.
async fn say(mut stream: BiStream, frame: &[u8], rest: &Bytes) -> Result<Bytes, FabricError> {
    let peer = stream.peer.to_string();
    let sending = |error: fabric_quic::FrameError| error.at(peer.as_str(), "sending a raft request");
    write_frame(&mut stream.send, frame, FRAME_BYTES_MAX).await.map_err(sending)?;
    for part in rest.chunks(SNAPSHOT_PART_BYTES) {
        write_frame(&mut stream.send, part, SNAPSHOT_PART_BYTES).await.map_err(sending)?;
    }
    stream.send.shutdown().await.map_err(|error| sending(error.into()))?;
    let reading = |error: fabric_quic::FrameError| error.at(peer.as_str(), "awaiting a raft answer");
    let answer = read_frame(&mut stream.recv, FRAME_BYTES_MAX).await.map_err(reading)?;
    answer.ok_or_else(|| reading(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()))
}
