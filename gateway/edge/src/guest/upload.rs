//! Bytes on their way into a guest's file, counted.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::BodyDataStream;
use bytes::Bytes;
use fabric_api::{ApiError, ErrorCode};
use futures::Stream;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use multer::Field;

use crate::RelayBody;

/// An upload: a stream that ends with an error when it passes its limit or the client breaks off, so that the guest
/// keeps nothing of it.
pub(crate) struct Upload {
    source: Source,
    read: u64,
    limit: u64,
    ended: Arc<Ended>,
}

enum Source {
    /// The request's body is the file.
    Body(BodyDataStream),
    /// A field of the request's form is the file.
    Field(Box<Field<'static>>),
}

/// Why an upload ended early.
#[derive(Default)]
pub(super) struct Ended {
    limit: u64,
    too_large: AtomicBool,
    broken: AtomicBool,
}

impl Upload {
    /// A request's body of at most `limit` bytes.
    pub(crate) fn of_body(body: axum::body::Body, limit: u64) -> Self {
        Self::new(Source::Body(body.into_data_stream()), limit)
    }

    /// A field of a form, which counts its bytes itself up to `limit`.
    pub(crate) fn of_field(field: Field<'static>, limit: u64) -> Self {
        Self::new(Source::Field(Box::new(field)), limit)
    }

    fn new(source: Source, limit: u64) -> Self {
        Self { source, read: 0, limit, ended: Arc::new(Ended { limit, ..Ended::default() }) }
    }

    /// The body to send, and what tells why it ended.
    pub(super) fn split(self) -> (RelayBody, Arc<Ended>) {
        let ended = Arc::clone(&self.ended);
        (self.boxed_unsync(), ended)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let (chunk, over) = match &mut self.source {
            Source::Body(body) => {
                let chunk = futures::ready!(Pin::new(body).poll_next(context));
                (chunk.map(|chunk| chunk.map_err(|error| error.to_string())), false)
            }
            Source::Field(field) => {
                let chunk = futures::ready!(Pin::new(&mut **field).poll_next(context));
                let over = matches!(chunk, Some(Err(multer::Error::StreamSizeExceeded { .. })));
                (chunk.map(|chunk| chunk.map_err(|error| error.to_string())), over)
            }
        };
        let Some(chunk) = chunk else { return Poll::Ready(None) };
        self.read = self.read.saturating_add(chunk.as_ref().map_or(0, Bytes::len) as u64);
        Poll::Ready(Some(match chunk {
            Ok(_) if self.read > self.limit => {
                self.ended.too_large.store(true, Ordering::Relaxed);
                Err("the upload is over its limit".into())
            }
            Ok(chunk) => Ok(Frame::data(chunk)),
            Err(error) => {
                let flag = if over { &self.ended.too_large } else { &self.ended.broken };
                flag.store(true, Ordering::Relaxed);
                Err(error.into())
            }
        }))
    }
}

impl Ended {
    /// The client's own fault, where that is what a failed write comes from.
    pub(super) fn explain(&self, error: ApiError) -> ApiError {
        if self.too_large.load(Ordering::Relaxed) {
            ApiError::new(ErrorCode::TooLarge, format!("the upload is over {} bytes; nothing was written", self.limit))
        } else if self.broken.load(Ordering::Relaxed) {
            ApiError::new(ErrorCode::BadRequest, "the upload broke off; nothing was written")
        } else {
            error
        }
    }
}
