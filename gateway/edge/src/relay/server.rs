//! The owner's side: streams of other gateways, served into this node's guests.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fabric_api::node::{NodeCall, NodeRequest, SandboxKey};
use fabric_api::{ApiError, ErrorCode};
use fabric_quic::{BiStream, Drain, read_frame, serve_streams};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::REFUSAL_HEADER;
use super::preamble::{PREAMBLE_BYTES_MAX, Preamble};
use crate::body::{Named, received};
use crate::{LocalNode, RelayBody};

/// Relayed requests at once on one node: as many as a gateway takes from clients.
const RELAYS_MAX: usize = 1024;
/// How long a stream may take to say what it is for.
const PREAMBLE_WITHIN: Duration = Duration::from_secs(5);
/// How long a request's head may take after that.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long relayed requests may go on once the node stops.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the question whose a sandbox is may take where this node's copy doesn't know it yet.
const OWNER_DEADLINE_MS: u64 = 5_000;

/// Serves relay streams into this node's guests until `cancel`; then waits a bounded time for those that have begun.
pub async fn serve_relay(streams: mpsc::Receiver<BiStream>, local: Arc<dyn LocalNode>, cancel: CancellationToken) {
    let serve_one = |stream: BiStream| {
        let local = Arc::clone(&local);
        async move {
            let peer = stream.peer.clone();
            if let Err(error) = serve_stream(stream, local).await {
                debug!(%peer, %error, "a relay stream broke");
            }
        }
    };
    serve_streams(streams, RELAYS_MAX, Drain::Within(DRAIN), cancel, serve_one).await;
}

/// Serves one stream: its preamble, then one request.
async fn serve_stream(mut stream: BiStream, local: Arc<dyn LocalNode>) -> Result<(), StreamError> {
    let frame = timeout(PREAMBLE_WITHIN, read_frame(&mut stream.recv, PREAMBLE_BYTES_MAX))
        .await
        .map_err(|_| StreamError::NoPreamble)??;
    let Some(frame) = frame else { return Ok(()) };
    let preamble = Arc::new(Preamble::parse(&frame));
    let service = service_fn(move |request: Request<Incoming>| {
        let (preamble, local) = (Arc::clone(&preamble), Arc::clone(&local));
        async move {
            let answer = match &*preamble {
                Ok(preamble) => serve_request(preamble, &*local, request).await,
                Err(error) => Err(error.clone()),
            };
            let answer = answer.unwrap_or_else(|error| refuse(&error));
            Ok::<_, Infallible>(answer.map(Named))
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .keep_alive(false)
        .serve_connection(TokioIo::new(tokio::io::join(stream.recv, stream.send)), service)
        .await?;
    Ok(())
}

async fn serve_request(
    preamble: &Preamble,
    local: &dyn LocalNode,
    request: Request<Incoming>,
) -> Result<Response<RelayBody>, ApiError> {
    owned(preamble, local).await?;
    let request = request.map(received);
    let mut response = local.guest(&preamble.sandbox, preamble.generation, request).await?;
    // Only an owner may say this: a guest that does is lying.
    response.headers_mut().remove(&REFUSAL_HEADER);
    debug!(request_id = preamble.request_id, sandbox_id = %preamble.sandbox, status = response.status().as_u16(), "relayed");
    Ok(response)
}

/// The sender has checked whose the sandbox is; so does the owner, for no key may reach another organization's.
async fn owned(preamble: &Preamble, local: &dyn LocalNode) -> Result<(), ApiError> {
    if local.locate(preamble.sandbox.as_str(), &preamble.organization).is_some() {
        return Ok(());
    }
    // This node's copy may lag behind a placement that has just been made: its leader knows.
    let key = SandboxKey { key: preamble.sandbox.to_string(), organization: preamble.organization.clone() };
    let call = NodeCall {
        request_id: preamble.request_id.clone(),
        hops: 0,
        deadline_ms: OWNER_DEADLINE_MS,
        request: NodeRequest::Get { key },
    };
    match timeout(Duration::from_millis(OWNER_DEADLINE_MS), local.handle(call)).await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(ApiError::new(ErrorCode::Unavailable, "the sandbox's region could not confirm whose it is")),
    }
}

fn refuse(error: &ApiError) -> Response<RelayBody> {
    let body = serde_json::to_vec(error).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    response.headers_mut().insert(REFUSAL_HEADER, http::HeaderValue::from_static("1"));
    response
}

/// Why a relay stream ended early.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("it did not say in time what it is for")]
    NoPreamble,
    #[error(transparent)]
    Frame(#[from] fabric_quic::FrameError),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}
