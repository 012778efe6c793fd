//! Requests at once, bytes of headers, bytes of bodies.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use fabric_api::{ApiError, ErrorCode};
use http::{Method, header};
use http_body_util::BodyExt;

use super::drain::drain;
use crate::body::Holding;
use crate::edge::Edge;
use crate::refusal::Refusal;

/// Ends of the toolbox's paths that take file contents.
const UPLOADS: [&str; 3] = ["/files/upload", "/files/upload-v2", "/files/bulk-upload"];

/// Holds a request against the limits. A body outside uploads is read whole here, so that no answer is lost because
/// a handler didn't read on.
pub(crate) async fn limit(State(edge): State<Edge>, request: Request, next: Next) -> Response {
    let Ok(permit) = edge.requests().clone().try_acquire_owned() else {
        let limit = edge.config().limits.requests;
        let message = format!("this gateway is at its limit of {limit} requests at once; try again a little later");
        return Refusal(ApiError::new(ErrorCode::Busy, message)).into_response();
    };
    let response = match admit(&edge, request).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    // A streamed answer counts until its last byte.
    response.map(|body| Body::new(Holding::new(body, permit)))
}

async fn admit(edge: &Edge, request: Request) -> Result<Request, Refusal> {
    let limits = &edge.config().limits;
    let header_bytes: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if header_bytes > limits.header_bytes {
        drain(request.into_body(), limits).await;
        let limit = limits.header_bytes;
        return Err(Refusal::bad(format!("the headers hold {header_bytes} bytes; at most {limit} are taken")));
    }
    if is_upload(request.method(), request.uri().path()) {
        return Ok(request);
    }
    let announced = announced_bytes(&request)?;
    let (parts, body) = request.into_parts();
    let too_large = || {
        let message = format!(
            "the body is larger than {} bytes; only uploads of files may be, and they have paths of their own",
            limits.json_bytes
        );
        Refusal(ApiError::new(ErrorCode::TooLarge, message))
    };
    if announced.is_some_and(|bytes| bytes > limits.json_bytes as u64) {
        // Who asks for leave to send waits for the answer and sends nothing meanwhile.
        if !parts.headers.contains_key(header::EXPECT) {
            drain(body, limits).await;
        }
        return Err(too_large());
    }
    match collect(body, limits.json_bytes, limits.body_within).await {
        Collected::Whole(bytes) => Ok(Request::from_parts(parts, Body::from(bytes))),
        Collected::TooLarge(rest) => {
            drain(rest, limits).await;
            Err(too_large())
        }
        Collected::Late => {
            Err(Refusal::bad(format!("the body did not arrive within {} s", limits.body_within.as_secs())))
        }
        Collected::Broken(cause) => Err(Refusal::bad(format!("the body broke off: {cause}"))),
    }
}

/// Whether a path takes file contents, which are streamed and have a limit of their own.
pub(crate) fn is_upload(method: &Method, path: &str) -> bool {
    match *method {
        Method::POST => path.contains("/toolbox/") && UPLOADS.iter().any(|end| path.ends_with(end)),
        Method::PUT => path.starts_with("/v1/sandboxes/") && path.ends_with("/files"),
        _ => false,
    }
}

fn announced_bytes(request: &Request) -> Result<Option<u64>, Refusal> {
    let Some(length) = request.headers().get(header::CONTENT_LENGTH) else { return Ok(None) };
    let length = length.to_str().ok().and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| Refusal::bad("the header content-length is not a number"))
}

enum Collected {
    Whole(Bytes),
    TooLarge(Body),
    Late,
    Broken(String),
}

async fn collect(mut body: Body, limit: usize, within: Duration) -> Collected {
    let deadline = tokio::time::Instant::now() + within;
    let mut bytes = BytesMut::new();
    loop {
        let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
            Err(_) => return Collected::Late,
            Ok(None) => return Collected::Whole(bytes.freeze()),
            Ok(Some(Err(error))) => return Collected::Broken(error.to_string()),
            Ok(Some(Ok(frame))) => frame,
        };
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > limit {
            return Collected::TooLarge(body);
        }
        bytes.extend_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_take_file_contents_are_uploads() {
        assert!(is_upload(&Method::POST, "/toolbox/fra0123456789abcdef/files/bulk-upload"));
        assert!(is_upload(&Method::PUT, "/v1/sandboxes/box/files"));
        assert!(!is_upload(&Method::PUT, "/v1/sandboxes/box/labels"));
        assert!(!is_upload(&Method::POST, "/api/sandbox"));
        assert!(!is_upload(&Method::POST, "/api/files/upload"));
        assert!(!is_upload(&Method::GET, "/v1/sandboxes/box/files"));
    }
}
