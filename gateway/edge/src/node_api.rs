//! Node calls from peers, one a stream, answered by this node.

use std::sync::Arc;
use std::time::Duration;

use fabric_api::node::{HOPS_MAX, NodeAnswer, NodeCall};
use fabric_api::{ApiError, ErrorCode};
use fabric_quic::{BiStream, Drain, Protocol, answer, serve_streams};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::LocalNode;

/// Calls at once: a burst of creates from every gateway; more wait in the protocol's queue.
const CALLS_MAX: usize = 512;
/// Longest deadline that a caller is believed: a cold boot under TCG and a snapshot's transfer fit.
const DEADLINE_MAX: Duration = Duration::from_secs(600);
/// How long calls may go on once the node stops.
const DRAIN: Duration = Duration::from_secs(10);

/// Answers node calls until `cancel`; then waits a bounded time for those that have begun.
pub async fn serve_node_api(streams: mpsc::Receiver<BiStream>, local: Arc<dyn LocalNode>, cancel: CancellationToken) {
    let answer_one = |stream: BiStream| {
        let local = Arc::clone(&local);
        async move {
            let peer = stream.peer.clone();
            if let Err(error) = answer(stream, Protocol::NodeApi, |_, call| handle(local, call)).await {
                debug!(%peer, %error, "a node call was not answered");
            }
        }
    };
    serve_streams(streams, CALLS_MAX, Drain::Within(DRAIN), cancel, answer_one).await;
}

async fn handle(local: Arc<dyn LocalNode>, call: NodeCall) -> NodeAnswer {
    if call.hops > HOPS_MAX {
        let message =
            format!("a call was passed on {} times: the nodes disagree about who leads; try again", call.hops);
        return Err(ApiError::new(ErrorCode::Unavailable, message));
    }
    let deadline = Duration::from_millis(call.deadline_ms).min(DEADLINE_MAX);
    match timeout(deadline, local.handle(call)).await {
        Ok(answer) => answer,
        Err(_) => {
            let message = format!("no answer within the {} ms that the caller waits", deadline.as_millis());
            Err(ApiError::new(ErrorCode::DeadlineExceeded, message))
        }
    }
}
