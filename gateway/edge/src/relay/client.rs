//! The gateway's side: a request to the owner of a sandbox, wherever that is.

use std::time::Duration;

use fabric_api::{ApiError, ErrorCode};
use fabric_quic::{Fabric, FabricError, Peer, Protocol, write_frame};
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tracing::debug;

use super::REFUSAL_HEADER;
use super::preamble::{PREAMBLE_BYTES_MAX, Preamble, RELAY_VERSION};
use crate::body::{Named, received};
use crate::{RelayBody, Route};

/// How long opening a stream and greeting may take: the fabric's own dial has 5 s.
const OPEN_WITHIN: Duration = Duration::from_secs(6);
/// Largest error of an owner that is read, in bytes.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// What became of a relayed request.
pub(crate) enum Relayed {
    /// The guest answered.
    Answer(Response<RelayBody>),
    /// The owner refused, and the guest has seen nothing of it.
    Refused(ApiError),
    /// The request never left: no stream was opened.
    Unsent(ApiError),
    /// The stream broke; whether the guest has seen the request is unknown.
    Broken(ApiError),
}

/// Sends a request to a sandbox's owner over the fabric and awaits the head of its answer.
pub(crate) async fn relay(
    fabric: &dyn Fabric,
    peer: &Peer,
    route: &Route,
    request_id: &str,
    request: Request<RelayBody>,
) -> Relayed {
    let unreachable = |cause: &dyn std::fmt::Display| {
        let message = format!("node {} of sandbox {} can't be reached now ({cause}); try again", route.node, route.id);
        ApiError::new(ErrorCode::Unavailable, message)
    };
    let stream = match timeout(OPEN_WITHIN, greet(fabric, peer, route, request_id)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Relayed::Unsent(unreachable(&error)),
        Err(_) => {
            fabric.suspect(peer, Protocol::Relay);
            return Relayed::Unsent(unreachable(&format_args!("no stream within {} s", OPEN_WITHIN.as_secs())));
        }
    };
    let (mut sender, connection) = match http1::handshake(TokioIo::new(stream)).await {
        Ok(pair) => pair,
        Err(error) => return Relayed::Unsent(unreachable(&error)),
    };
    // Ends with the answer's last byte, or when the answer is dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "a relay stream broke");
        }
    });
    match sender.send_request(request.map(Named)).await {
        Ok(response) if response.headers().contains_key(&REFUSAL_HEADER) => Relayed::Refused(refusal(response).await),
        Ok(response) => Relayed::Answer(response.map(received)),
        Err(error) => {
            let message = format!("the stream to node {} of sandbox {} broke: {error}", route.node, route.id);
            Relayed::Broken(ApiError::new(ErrorCode::Unavailable, message))
        }
    }
}

type Stream = tokio::io::Join<fabric_quic::RecvHalf, fabric_quic::SendHalf>;

/// Opens a stream and says what it is for.
async fn greet(fabric: &dyn Fabric, peer: &Peer, route: &Route, request_id: &str) -> Result<Stream, FabricError> {
    let mut stream = fabric.open(peer, Protocol::Relay).await?;
    let preamble = Preamble {
        version: RELAY_VERSION,
        sandbox: route.id.clone(),
        generation: route.generation,
        request_id: request_id.to_owned(),
        organization: route.organization.clone(),
    };
    let frame = serde_json::to_vec(&preamble).map_err(|source| FabricError::Malformed {
        peer: fabric.node().to_string(),
        expected: "a preamble",
        cause: source.to_string(),
    })?;
    write_frame(&mut stream.send, &frame, PREAMBLE_BYTES_MAX)
        .await
        .map_err(|error| error.at(stream.peer.as_str(), "greeting for the relay"))?;
    Ok(tokio::io::join(stream.recv, stream.send))
}

async fn refusal(response: Response<hyper::body::Incoming>) -> ApiError {
    let unreadable = || ApiError::new(ErrorCode::Unavailable, "the sandbox's node refused, with an unreadable reason");
    match Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect().await {
        Ok(body) => serde_json::from_slice(&body.to_bytes()).unwrap_or_else(|_| unreadable()),
        Err(_) => unreadable(),
    }
}
