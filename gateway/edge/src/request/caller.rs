//! Who asks: the key of a request, looked up by its hash in this node's copy of the catalog.

use std::time::Duration;

use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use fabric_api::{ApiError, ErrorCode};
use fabric_types::{Digest, OrganizationId};
use http::request::Parts;
use http::{HeaderMap, header};

use crate::edge::Edge;
use crate::front::drain::drain;
use crate::front::rescue::RequestId;
use crate::mesh::Scope;
use crate::refusal::Refusal;

/// Longest key that is hashed, in bytes; ours have 44.
const KEY_BYTES_MAX: usize = 512;
const API_KEY: &str = "x-api-key";

/// Who asks, proven by a key.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Whose sandboxes it may see.
    pub(crate) organization: OrganizationId,
    /// The request's id.
    pub(crate) request_id: String,
}

impl Caller {
    /// What a call on the caller's behalf carries.
    pub(crate) fn scope(&self, deadline: Duration) -> Scope {
        Scope { request_id: self.request_id.clone(), organization: self.organization.clone(), deadline }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        // Only a route without the layer below lacks it.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| unauthorized("this path needs a key"))
    }
}

/// Lets through what carries a valid key, and says who it is.
pub(crate) async fn authenticate(State(edge): State<Edge>, mut request: Request, next: Next) -> Response {
    let principal = given_key(request.headers()).and_then(|key| {
        let hash = Digest::from_bytes(*blake3::hash(key).as_bytes());
        edge.mesh().local().principal(&hash).ok_or_else(|| {
            unauthorized("the API key is unknown: it was mistyped or revoked, or belongs to another mesh")
        })
    });
    match principal {
        Ok(principal) => {
            let request_id = request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default();
            request.extensions_mut().insert(Caller { organization: principal.organization, request_id });
            next.run(request).await
        }
        Err(refusal) => {
            drain(request.into_body(), &edge.config().limits).await;
            refusal.into_response()
        }
    }
}

/// The key that a request carries: `Authorization: Bearer KEY` or `X-API-Key: KEY`.
fn given_key(headers: &HeaderMap) -> Result<&[u8], Refusal> {
    let key = if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.as_bytes();
        let scheme = value.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
        scheme.map(|_| value[7..].trim_ascii()).ok_or_else(|| {
            unauthorized("the header authorization has another scheme: send `Authorization: Bearer KEY`")
        })?
    } else if let Some(value) = headers.get(API_KEY) {
        value.as_bytes().trim_ascii()
    } else {
        return Err(unauthorized("the API key is missing: send `Authorization: Bearer KEY`"));
    };
    if key.is_empty() {
        return Err(unauthorized("the API key is empty: send `Authorization: Bearer KEY`"));
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(unauthorized("the API key is unknown: it is longer than any key"));
    }
    Ok(key)
}

fn unauthorized(message: &str) -> Refusal {
    Refusal(ApiError::new(ErrorCode::Unauthorized, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(name: &'static str, value: &'static str) -> Result<Vec<u8>, String> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().expect("a header value"));
        given_key(&headers).map(<[u8]>::to_vec).map_err(|refusal| refusal.0.message)
    }

    #[test]
    fn a_key_is_read_from_either_header() {
        assert_eq!(key_of("authorization", "Bearer  k1 "), Ok(b"k1".to_vec()));
        assert_eq!(key_of("authorization", "bearer k1"), Ok(b"k1".to_vec()));
        assert_eq!(key_of("x-api-key", "k1"), Ok(b"k1".to_vec()));
    }

    #[test]
    fn the_refusal_says_what_is_wrong_with_the_key() {
        assert!(key_of("authorization", "Basic abc").expect_err("basic").contains("scheme"));
        assert!(key_of("accept", "*/*").expect_err("none").contains("missing"));
    }
}
