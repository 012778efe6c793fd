//! Bodies in, bounded; bodies out.

use std::io;

use bytes::Bytes;
use futures::stream::{self, Stream, TryStreamExt};
use guest_proto::surface::{AgentError, AgentErrorCode, JSON_BYTES_MAX};
use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Body as HttpBody, Frame};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::refusal::{Answer, bad_request, refuse};

/// The body of every answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Reads a JSON body.
pub(super) async fn read_json<T, B>(body: B) -> Answer<T>
where
    T: DeserializeOwned,
    B: HttpBody<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let bytes = match Limited::new(body, JSON_BYTES_MAX).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(refuse(AgentErrorCode::TooLarge, format!("the body is larger than {JSON_BYTES_MAX} bytes")));
        }
        Err(error) => return Err(bad_request(format!("the body broke off: {error}"))),
    };
    // serde takes an array for a structure's fields in order: not meant here.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(bad_request("the body is no JSON object"));
    }
    serde_json::from_slice(&bytes).map_err(|error| bad_request(format!("the body isn't what is asked for: {error}")))
}

/// An answer in JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(text) => answer(status, "application/json", full(text)),
        // The surface's types always can.
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", full(error.to_string())),
    }
}

/// A refusal, with the status of its kind.
pub(super) fn refusal(error: &AgentError) -> Response<Body> {
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, error)
}

/// An answer without a body.
pub(super) fn no_content() -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// An answer of plain text.
pub(super) fn text(text: String) -> Response<Body> {
    answer(StatusCode::OK, "text/plain; charset=utf-8", full(text))
}

/// An answer that comes in pieces.
pub(super) fn pieces(
    content_type: &'static str,
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Response<Body> {
    answer(StatusCode::OK, content_type, StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync())
}

/// A stream out of a state and a step.
pub(super) fn steps<S: Send + 'static, F>(
    state: S,
    step: impl FnMut(S) -> F + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static
where
    F: Future<Output = io::Result<Option<(Bytes, S)>>> + Send + 'static,
{
    stream::try_unfold(state, step)
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn answer(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
