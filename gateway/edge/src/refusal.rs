//! An error on its way to the client: a handler answers it, the front puts it into words.

use axum::response::{IntoResponse, Response};
use fabric_api::{ApiError, ErrorCode};
use http::StatusCode;

/// A handler's error. The response that it becomes is empty and carries itself as an extension; `front::rescue` writes
/// the body, because only there the request id and path are known.
#[derive(Debug, Clone)]
pub(crate) struct Refusal(pub(crate) ApiError);

/// What every handler answers.
pub(crate) type Answer<T> = Result<T, Refusal>;

impl Refusal {
    /// A malformed or impossible request.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self(ApiError::new(ErrorCode::BadRequest, message))
    }

    /// Known, but not built.
    pub(crate) fn not_built(message: impl Into<String>) -> Self {
        Self(ApiError::new(ErrorCode::NotImplemented, message))
    }

    /// Something that answers oddly or not at all now.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self(ApiError::new(ErrorCode::Unavailable, message))
    }

    /// No such thing.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self(ApiError::new(ErrorCode::NotFound, message))
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}
