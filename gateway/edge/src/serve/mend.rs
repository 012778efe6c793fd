//! What hyper answers by itself, made to look like every other answer.
//!
//! A request that hyper can't parse never reaches the router: hyper answers a bare status and closes. Its answers can't
//! be configured, so they are recognized on their way out, by their fixed form, and replaced by one with a request id
//! and the wire's JSON.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{Method, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{HEAD_BYTES_MAX, HEADERS_MAX};
use crate::front::rescue::{body_of, new_request_id};

/// What follows the status line of an answer of hyper's own.
const BARE: &[u8] = b"\r\nconnection: close\r\ncontent-length: 0\r\n";
/// How every answer of HTTP/1.1 begins.
const VERSION: &[u8] = b"HTTP/1.1 ";
/// Longest answer of hyper's own, in bytes.
const BARE_BYTES_MAX: usize = 256;

/// A connection on whose way out hyper's bare errors are replaced.
pub(super) struct Mended<T> {
    inner: T,
    /// What is written instead of what hyper asked for.
    instead: Option<Bytes>,
}

impl<T> Mended<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, instead: None }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Mended<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> Mended<T> {
    /// Writes what stands instead of `bare`, if it is bare; then says that all of `bare` is written.
    fn poll_instead(&mut self, context: &mut Context<'_>, bare: &[u8]) -> Poll<Option<io::Result<usize>>> {
        if self.instead.is_none() {
            self.instead = bare_status(bare).map(answer);
        }
        let Some(instead) = &mut self.instead else { return Poll::Ready(None) };
        while instead.has_remaining() {
            match ready!(Pin::new(&mut self.inner).poll_write(context, instead)) {
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::WriteZero.into()))),
                Ok(count) => instead.advance(count),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        self.instead = None;
        Poll::Ready(Some(Ok(bare.len())))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Mended<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(self.poll_instead(context, bytes)) {
            Some(written) => Poll::Ready(written),
            None => Pin::new(&mut self.inner).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        if let (Some(only), None) = (filled.next(), filled.next())
            && let Some(written) = ready!(self.poll_instead(context, only))
        {
            return Poll::Ready(written);
        }
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// The status of an answer of hyper's own. No answer of ours is one: our errors have a body.
fn bare_status(bytes: &[u8]) -> Option<StatusCode> {
    if bytes.len() > BARE_BYTES_MAX {
        return None;
    }
    let rest = bytes.strip_prefix(VERSION)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let status = StatusCode::from_bytes(rest.get(..3)?).ok()?;
    (status.is_client_error() && rest[end..].starts_with(BARE)).then_some(status)
}

fn answer(status: StatusCode) -> Bytes {
    let message = match status {
        StatusCode::URI_TOO_LONG => "the path and query are longer than 65534 bytes".to_owned(),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            format!("the headers hold more than {HEAD_BYTES_MAX} bytes or {HEADERS_MAX} fields")
        }
        _ => "this is not a request of HTTP/1.1 or HTTP/2: its first line or a header is malformed".to_owned(),
    };
    let id = new_request_id();
    let body = body_of(status, "bad_request", &message, &id, &Method::GET, "");
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nx-request-id: {id}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Bytes::from([head.into_bytes(), body].concat())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const HYPERS: &[u8] =
        b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: Tue, 24 Nov 2026 08:26:06 GMT\r\n\r\n";

    /// What comes out when these are written, through a pipe of a few bytes.
    async fn written(bytes: &'static [u8]) -> String {
        let (near, mut far) = tokio::io::duplex(7);
        let writing = tokio::spawn(async move {
            let mut mended = Mended::new(near);
            mended.write_all(bytes).await.expect("written");
            mended.shutdown().await.expect("shut down");
        });
        let mut text = String::new();
        far.read_to_string(&mut text).await.expect("read");
        writing.await.expect("no panic");
        text
    }

    #[tokio::test]
    async fn a_bare_error_gets_a_body_and_a_request_id() {
        let text = written(HYPERS).await;
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n") && head.contains("x-request-id: "), "{head}");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).expect("JSON")["statusCode"], 400);
    }

    #[tokio::test]
    async fn every_other_answer_passes_unchanged() {
        for text in [
            &b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
            b"HTTP/1.1 4",
            b"",
        ] {
            assert_eq!(written(text).await.as_bytes(), text);
        }
    }
}
