//! The one place where errors are put into words, and where every answer gets its request id.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fabric_api::daytona::ErrorBody;
use fabric_api::{ApiError, ErrorCode};
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use rand::RngCore;
use tracing::{Instrument, debug, debug_span, error};

use crate::instant;
use crate::refusal::Refusal;

/// The header with the request's id, both ways.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken from a client, in characters.
const REQUEST_ID_CHARS_MAX: usize = 128;
/// Longest part of a path that an error repeats, in characters.
const SHOWN_CHARS_MAX: usize = 200;

/// The id of a request, for logs on every hop.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// Gives the request its id, runs it, and makes every error the wire's JSON.
pub(crate) async fn rescue(mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(request.headers());
    request.extensions_mut().insert(RequestId(id.clone()));
    let method = request.method().clone();
    let path: String = request.uri().path().chars().take(SHOWN_CHARS_MAX).collect();
    let span = debug_span!("request", request_id = %id, %method, path);
    let mut response = match AssertUnwindSafe(next.run(request).instrument(span)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            error!(request_id = %id, %method, path, "a handler panicked: this is a fault in the gateway");
            let message = "the gateway failed on this request; it is a fault of ours, and the log says more";
            Refusal(ApiError::new(ErrorCode::Internal, message)).into_response()
        }
    };
    let refusal = response.extensions_mut().remove::<Refusal>();
    if refusal.is_some() || response.status().is_client_error() || response.status().is_server_error() {
        let refused = refusal.map_or_else(|| unnamed(response.status(), &method, &path), |refusal| refusal.0);
        response = render(&refused, response.headers(), &id, &method, &path);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    debug!(request_id = %id, %method, path, status = response.status().as_u16(), took_ms, "answered");
    response
}

/// The client's id where it is sane, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let sane = |text: &&str| {
        !text.is_empty() && text.len() <= REQUEST_ID_CHARS_MAX && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok()).filter(sane);
    given.map_or_else(new_request_id, str::to_owned)
}

/// A request id of our own.
pub(crate) fn new_request_id() -> String {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// What an answer of the router's own means, which carries only a status.
fn unnamed(status: StatusCode, method: &http::Method, path: &str) -> ApiError {
    match status {
        StatusCode::NOT_FOUND => {
            let message = format!("no such path: {path}; this gateway serves /api, /toolbox, /v1 and /health");
            ApiError::new(ErrorCode::NotFound, message)
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            let message = format!("{path} takes no {method}; the header allow says what it takes");
            ApiError::new(ErrorCode::MethodNotAllowed, message)
        }
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(ErrorCode::TooLarge, "the body is too large"),
        status if status.is_client_error() => {
            ApiError::new(ErrorCode::BadRequest, format!("the request can't be read ({status})"))
        }
        status => ApiError::new(ErrorCode::Internal, format!("the gateway failed on this request ({status})")),
    }
}

fn render(refused: &ApiError, headers: &HeaderMap, id: &str, method: &http::Method, path: &str) -> Response {
    let status = StatusCode::from_u16(refused.code.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let code = serde_json::to_value(refused.code).ok().and_then(|code| code.as_str().map(str::to_owned));
    let body = body_of(status, &code.unwrap_or_default(), &refused.message, id, method, path);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(allow) = headers.get(header::ALLOW) {
        response.headers_mut().insert(header::ALLOW, allow.clone());
    }
    if refused.code == ErrorCode::Unauthorized {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if refused.code.retry() == fabric_api::Retry::Later {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// The body of an error.
pub(crate) fn body_of(
    status: StatusCode,
    code: &str,
    message: &str,
    id: &str,
    method: &http::Method,
    path: &str,
) -> Vec<u8> {
    let body = ErrorBody {
        base: fabric_api::v1::ErrorBody {
            status_code: status.as_u16(),
            message: message.to_owned(),
            error: status.canonical_reason().unwrap_or("Error").to_owned(),
            code: Some(code.to_owned()),
            request_id: Some(id.to_owned()),
        },
        path: path.to_owned(),
        method: method.to_string(),
        timestamp: instant::rfc3339(instant::now()),
        errors: if path.ends_with("/files/bulk-upload") { vec![message.to_owned()] } else { Vec::new() },
    };
    serde_json::to_vec(&body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sane_request_id_is_kept_and_any_other_replaced() {
        let with = |text: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(text).expect("a header value"));
            request_id(&headers)
        };
        assert_eq!(with(b"abc-123"), "abc-123");
        for odd in [&b""[..], b"with space", b"\xff\xfe", &[b'a'; 129]] {
            let id = with(odd);
            assert_eq!(id.len(), 32, "{id}");
        }
    }
}
