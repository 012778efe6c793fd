//! The other side of the calls: one accept queue for every group of the process.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fabric_quic::{BiStream, FabricError, RecvHalf, read_frame, write_frame};
use fabric_types::NodeId;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::GroupName;
use crate::wire::{Call, FRAME_BYTES_MAX, WireError, decode_request, encode_answer};

/// Calls in work at once. Each holds a stream and up to a frame of memory; members of a group have few open.
const CALLS_AT_ONCE: usize = 256;
/// A caller sends its request as soon as it has opened the stream.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long one call may take in all; longer than any deadline that a caller sets.
const CALL_DEADLINE: Duration = Duration::from_secs(120);

/// A group as its members call it.
#[async_trait]
pub(crate) trait GroupService: Send + Sync {
    /// Answers a call of `from`; `rest` is what follows the request on the stream.
    async fn answer(&self, from: &NodeId, call: Call, body: Bytes, rest: &mut RecvHalf) -> Result<Vec<u8>, WireError>;
}

/// The groups that are open in this process.
#[derive(Clone, Default)]
pub(crate) struct Groups {
    open: Arc<RwLock<BTreeMap<GroupName, Arc<dyn GroupService>>>>,
}

impl Groups {
    /// Adds a group; false if one of its name is open.
    pub(crate) fn add(&self, name: GroupName, service: Arc<dyn GroupService>) -> bool {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.contains_key(&name) {
            return false;
        }
        open.insert(name, service);
        true
    }

    pub(crate) fn remove(&self, name: &GroupName) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    pub(crate) fn contains(&self, name: &GroupName) -> bool {
        self.open.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    fn get(&self, name: &GroupName) -> Option<Arc<dyn GroupService>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

/// Answers calls until it is told to stop or the fabric ends; then waits for those in work, which stop too.
pub(crate) async fn serve(mut streams: mpsc::Receiver<BiStream>, groups: Groups, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CALLS_AT_ONCE));
    let calls = TaskTracker::new();
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((slot, streams.recv().await?))
        };
        let Some(Some((slot, stream))) = stop.run_until_cancelled(next).await else { break };
        let (groups, stop) = (groups.clone(), stop.clone());
        calls.spawn(async move {
            let peer = stream.peer.clone();
            match stop.run_until_cancelled(timeout(CALL_DEADLINE, answer(stream, &groups))).await {
                Some(Ok(Err(error))) => debug!(%peer, %error, "a raft call was not answered"),
                Some(Err(_)) => debug!(%peer, "a raft call took too long"),
                Some(Ok(Ok(()))) | None => {}
            }
            drop(slot);
        });
    }
    calls.close();
    calls.wait().await;
}

async fn answer(mut stream: BiStream, groups: &Groups) -> Result<(), FabricError> {
    let peer = stream.peer.clone();
    let late = |_| FabricError::Timeout { peer: peer.to_string(), waited_ms: 1000 * REQUEST_DEADLINE.as_secs() };
    let frame = timeout(REQUEST_DEADLINE, read_frame(&mut stream.recv, FRAME_BYTES_MAX)).await.map_err(late)?;
    let Some(frame) = frame.map_err(|error| error.at(peer.as_str(), "reading a raft request"))? else {
        // The caller gave up before it asked anything.
        return Ok(());
    };
    let answer = dispatch(&peer, &frame, &mut stream.recv, groups).await;
    let sending = |error: fabric_quic::FrameError| error.at(peer.as_str(), "sending a raft answer");
    write_frame(&mut stream.send, &encode_answer(answer), FRAME_BYTES_MAX).await.map_err(sending)?;
    stream.send.shutdown().await.map_err(|error| sending(error.into()))
}

async fn dispatch(peer: &NodeId, frame: &Bytes, rest: &mut RecvHalf, groups: &Groups) -> Result<Vec<u8>, WireError> {
    let (call, name, body) = decode_request(frame)?;
    let group = groups.get(&name);
    let group = group.ok_or_else(|| WireError::Refused(format!("group {name} is not open on this node")))?;
    group.answer(peer, call, body, rest).await
}
