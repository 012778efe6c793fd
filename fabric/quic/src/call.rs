//! One-shot calls: a request and an answer, each one frame, on a stream of their own.
//!
//! ```text
//! request   version (u32) | JSON                     the caller then ends its half
//! answer    version (u32) | outcome (u8) | JSON      outcome 0: the answer; 1: the version is unknown; 2: the
//!                                                    request is malformed, and the JSON says why
//! ```
//! The version lies before everything else so that every later version can still be told that it is unknown.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fabric_types::NodeId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::frame::write_frame_parts;
use crate::{BiStream, CALL_FRAME_BYTES_MAX, Drain, Fabric, FabricError, Peer, Protocol, read_frame, serve_streams};

/// The version of the envelope above and of the calls in it.
pub const CALL_VERSION: u32 = 1;
/// A caller that has opened its stream sends its request at once; after this it is given up.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Writing an answer takes as long as the caller's window lets it; after this the caller is given up.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

const VERSION_BYTES: usize = 4;
const OUTCOME_ANSWER: u8 = 0;
const OUTCOME_VERSION: u8 = 1;
const OUTCOME_MALFORMED: u8 = 2;

/// Calls a peer: opens a stream, sends the request, reads the answer. `deadline` bounds all of it, the dial
/// included. A call that ran into its deadline also asks the fabric to dial anew for the next one, since the
/// connection may lead to a process that is gone.
///
/// # Errors
/// [`FabricError::Version`] if the peer doesn't know this version, [`FabricError::Malformed`] if it doesn't know the
/// request or we don't know its answer, [`FabricError::Timeout`], and what [`Fabric::open`] answers.
///
/// Cancel safe in so far as nothing of ours is left behind; the peer may have carried the request out.
pub async fn call<Q, A>(
    fabric: &dyn Fabric,
    peer: &Peer,
    protocol: Protocol,
    request: &Q,
    deadline: Duration,
) -> Result<A, FabricError>
where
    Q: Serialize + ?Sized,
    A: DeserializeOwned,
{
    let body = serde_json::to_vec(request).map_err(|source| FabricError::Malformed {
        peer: fabric.node().to_string(),
        expected: std::any::type_name::<Q>(),
        cause: source.to_string(),
    })?;
    match timeout(deadline, exchange(fabric, peer, protocol, CALL_VERSION, &body)).await {
        Ok(Ok((name, body))) => serde_json::from_slice(&body).map_err(|source| FabricError::Malformed {
            peer: name,
            expected: std::any::type_name::<A>(),
            cause: source.to_string(),
        }),
        Ok(Err(error)) => Err(error),
        Err(_) => {
            fabric.suspect(peer, protocol);
            let waited_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
            Err(FabricError::Timeout { peer: peer.to_string(), waited_ms })
        }
    }
}

/// The other side of [`call`]: reads the request, lets `handler` answer it, sends the answer. The handler gets the
/// caller's node id as its certificate says it.
pub async fn answer<Q, A, H, F>(mut stream: BiStream, protocol: Protocol, handler: H) -> Result<(), FabricError>
where
    Q: DeserializeOwned,
    A: Serialize,
    H: FnOnce(NodeId, Q) -> F,
    F: Future<Output = A>,
{
    let peer = stream.peer.clone();
    let late = |deadline: Duration| FabricError::Timeout {
        peer: peer.to_string(),
        waited_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
    };
    let frame = timeout(REQUEST_DEADLINE, read_frame(&mut stream.recv, CALL_FRAME_BYTES_MAX))
        .await
        .map_err(|_| late(REQUEST_DEADLINE))?
        .map_err(|error| error.at(peer.as_str(), "reading a request"))?;
    let Some(frame) = frame else {
        // The caller gave up before it asked anything.
        return Ok(());
    };
    let (outcome, body, refused) = match parse_request::<Q>(&peer, protocol, &frame) {
        Ok(request) => {
            let body =
                serde_json::to_vec(&handler(peer.clone(), request).await).map_err(|source| FabricError::Malformed {
                    peer: peer.to_string(),
                    expected: std::any::type_name::<A>(),
                    cause: source.to_string(),
                })?;
            (OUTCOME_ANSWER, body, None)
        }
        Err(error) => {
            let outcome =
                if matches!(error, FabricError::Version { .. }) { OUTCOME_VERSION } else { OUTCOME_MALFORMED };
            let sentence = serde_json::Value::String(error.to_string()).to_string();
            (outcome, sentence.into_bytes(), Some(error))
        }
    };
    let send = async {
        let parts: [&[u8]; 3] = [&CALL_VERSION.to_be_bytes(), &[outcome], &body];
        write_frame_parts(&mut stream.send, &parts, CALL_FRAME_BYTES_MAX).await?;
        stream.send.shutdown().await?;
        Ok(())
    };
    timeout(ANSWER_DEADLINE, send)
        .await
        .map_err(|_| late(ANSWER_DEADLINE))?
        .map_err(|error: crate::FrameError| error.at(peer.as_str(), "sending an answer"))?;
    refused.map_or(Ok(()), Err)
}

/// Answers every call of a protocol until `shutdown`, at most `concurrency` at a time; what comes meanwhile waits in
/// the protocol's queue, and is refused when that is full. Takes the protocol's streams (see [`Fabric::accept`]).
/// Returns when the calls that had begun are answered.
pub async fn serve<Q, A, H, F>(
    fabric: &dyn Fabric,
    protocol: Protocol,
    concurrency: usize,
    shutdown: CancellationToken,
    handler: H,
) -> Result<(), FabricError>
where
    Q: DeserializeOwned + Send + 'static,
    A: Serialize + Send + 'static,
    H: Fn(NodeId, Q) -> F + Send + Sync + 'static,
    F: Future<Output = A> + Send + 'static,
{
    let streams = fabric.accept(protocol)?;
    let handler = Arc::new(handler);
    let serve_one = |stream: BiStream| {
        let handler = Arc::clone(&handler);
        async move {
            let peer = stream.peer.clone();
            if let Err(error) = answer(stream, protocol, |peer, request| handler(peer, request)).await {
                debug!(%peer, ?protocol, %error, "a call was not answered");
            }
        }
    };
    serve_streams(streams, concurrency, Drain::Unbounded, shutdown, serve_one).await;
    Ok(())
}

/// Sends a request in any version and returns the peer's name and the JSON of its answer.
async fn exchange(
    fabric: &dyn Fabric,
    peer: &Peer,
    protocol: Protocol,
    version: u32,
    body: &[u8],
) -> Result<(String, Bytes), FabricError> {
    let mut stream = fabric.open(peer, protocol).await?;
    let name = stream.peer.to_string();
    let parts: [&[u8]; 2] = [&version.to_be_bytes(), body];
    write_frame_parts(&mut stream.send, &parts, CALL_FRAME_BYTES_MAX)
        .await
        .map_err(|error| error.at(name.as_str(), "sending a request"))?;
    stream.send.shutdown().await.map_err(|source| FabricError::Broken {
        peer: name.clone(),
        action: "ending a request",
        source,
    })?;
    let frame = read_frame(&mut stream.recv, CALL_FRAME_BYTES_MAX)
        .await
        .map_err(|error| error.at(name.as_str(), "awaiting an answer"))?
        .ok_or_else(|| FabricError::Broken {
            peer: name.clone(),
            action: "awaiting an answer",
            source: std::io::ErrorKind::UnexpectedEof.into(),
        })?;
    parse_answer(name, protocol, version, &frame)
}

fn parse_request<Q: DeserializeOwned>(peer: &NodeId, protocol: Protocol, frame: &[u8]) -> Result<Q, FabricError> {
    let malformed = |cause: String| FabricError::Malformed { peer: peer.to_string(), expected: "a request", cause };
    let (theirs, body) = split_version(frame).ok_or_else(|| malformed("it is shorter than a version".into()))?;
    if theirs != CALL_VERSION {
        return Err(FabricError::Version { peer: peer.to_string(), protocol, theirs, ours: CALL_VERSION });
    }
    serde_json::from_slice(body).map_err(|source| malformed(source.to_string()))
}

fn parse_answer(peer: String, protocol: Protocol, ours: u32, frame: &Bytes) -> Result<(String, Bytes), FabricError> {
    let malformed =
        |cause: &str| FabricError::Malformed { peer: peer.clone(), expected: "an answer", cause: cause.to_owned() };
    let (theirs, rest) = split_version(frame).ok_or_else(|| malformed("it is shorter than a version"))?;
    let (outcome, _) = rest.split_first().ok_or_else(|| malformed("it holds no outcome"))?;
    match *outcome {
        OUTCOME_VERSION => Err(FabricError::Version { peer, protocol, theirs, ours }),
        _ if theirs != ours => Err(FabricError::Version { peer, protocol, theirs, ours }),
        OUTCOME_ANSWER => Ok((peer, frame.slice(VERSION_BYTES + 1..))),
        OUTCOME_MALFORMED => {
            let sentence = serde_json::from_slice(&frame[VERSION_BYTES + 1..])
                .unwrap_or_else(|_| "the peer did not understand the request".to_owned());
            Err(FabricError::Malformed { peer, expected: "an answer", cause: sentence })
        }
        _ => Err(malformed("its outcome is unknown")),
    }
}

fn split_version(frame: &[u8]) -> Option<(u32, &[u8])> {
    let (version, rest) = frame.split_first_chunk::<VERSION_BYTES>()?;
    Some((u32::from_be_bytes(*version), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryNetwork;

    fn node(text: &str) -> NodeId {
        text.parse().expect("a node id")
    }

    async fn one_version_later(request_version: u32) -> FabricError {
        let network = MemoryNetwork::new();
        let (fra, iad) = (network.join(node("fra-1")), network.join(node("iad-1")));
        let mut streams = iad.accept(Protocol::NodeApi).expect("first");
        let server = tokio::spawn(async move {
            let stream = streams.recv().await.expect("a stream");
            answer::<String, String, _, _>(stream, Protocol::NodeApi, |_, request| async move { request }).await
        });
        let peer = Peer { address: iad.local_address(), node: Some(node("iad-1")) };
        let error = exchange(&*fra, &peer, Protocol::NodeApi, request_version, b"\"hello\"")
            .await
            .expect_err("an unknown version");
        let seen = server.await.expect("no panic").expect_err("the server says it too");
        assert_eq!(
            seen.to_string(),
            "fra-1 speaks version 7 of NodeApi; this node speaks 1; upgrade the older of the two"
        );
        error
    }

    #[tokio::test]
    async fn an_unknown_wire_version_is_answered_with_a_sentence() {
        let error = one_version_later(7).await;
        assert_eq!(
            error.to_string(),
            "iad-1 speaks version 1 of NodeApi; this node speaks 7; upgrade the older of the two"
        );
    }

    #[test]
    fn malformed_requests_and_answers_are_errors() {
        let from = node("fra-1");
        for frame in [&b""[..], b"\0\0\0", b"\0\0\0\x01", b"\0\0\0\x01{", b"\0\0\0\x01\"text\""] {
            let error = parse_request::<u32>(&from, Protocol::NodeApi, frame).expect_err("malformed");
            assert!(matches!(error, FabricError::Malformed { .. }), "{error}");
        }
        for frame in [&b""[..], b"\0\0", b"\0\0\0\x01", b"\0\0\0\x01\x09{}"] {
            let frame = Bytes::from_static(frame);
            let error = parse_answer("iad-1".into(), Protocol::NodeApi, 1, &frame).expect_err("malformed");
            assert!(matches!(error, FabricError::Malformed { .. }), "{error}");
        }
    }
}
