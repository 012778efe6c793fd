//! Bodies on their way through the edge.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;

use crate::RelayBody;

/// Why a body ended early, as a type of its own: a boxed error has no name that bounds inside a future could be
/// checked against.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct BodyError(Box<dyn std::error::Error + Send + Sync>);

/// A body with a named error.
pub(crate) struct Named(pub(crate) RelayBody);

impl Body for Named {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.0).poll_frame(context).map_err(BodyError)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// A guest's file on its way to a client: its bytes and its length, and nothing else that the guest says.
pub(crate) fn file(content: http::Response<RelayBody>) -> Response {
    let length = content.headers().get(header::CONTENT_LENGTH).cloned();
    let mut response = Response::new(axum::body::Body::new(Named(content.into_body())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    // A guest's bytes are nothing that a browser should run under the gateway's name.
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    response
}

/// A body that counts as a request under way until its last byte.
pub(crate) struct Holding {
    body: axum::body::Body,
    _permit: OwnedSemaphorePermit,
}

impl Holding {
    pub(crate) fn new(body: axum::body::Body, permit: OwnedSemaphorePermit) -> Self {
        Self { body, _permit: permit }
    }
}

impl Body for Holding {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that hyper received.
pub(crate) fn received(body: hyper::body::Incoming) -> RelayBody {
    body.map_err(|error| Box::new(error) as Box<dyn std::error::Error + Send + Sync>).boxed_unsync()
}
