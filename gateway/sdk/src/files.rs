//! Files of a sandbox, streamed both ways: never a whole file in memory.

use std::io;

use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt};
use http::Method;

use crate::client::{Client, sandbox_ask};
use crate::settings::Endpoint;
use crate::{ClientError, v1};

/// A file's bytes on their way here.
pub struct ByteStream {
    /// The size that the gateway announced, where it did.
    pub size_bytes: Option<u64>,
    /// The bytes.
    pub chunks: BoxStream<'static, Result<Bytes, ClientError>>,
}

impl std::fmt::Debug for ByteStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByteStream").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}

impl Client {
    /// Writes a file of a sandbox from a stream; folders above it are made. The sandbox is looked up first, so that
    /// a wrong name is told before a gigabyte was sent.
    pub async fn upload<S>(&self, sandbox: &str, path: &str, bytes: S) -> Result<v1::Sandbox, ClientError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let found = self.sandbox(sandbox).await?;
        let endpoint = match Endpoint::parse(&found.endpoint) {
            Ok(endpoint) => endpoint,
            Err(_) => self.transport.endpoints.first().clone(),
        };
        let ask = sandbox_ask(Method::PUT, &found.id, &["files"]).query("path", path).within(None);
        let body = reqwest::Body::wrap_stream(bytes);
        self.transport.send_once(&ask, &endpoint, body).await?;
        Ok(found)
    }

    /// Reads a file of a sandbox as a stream.
    pub async fn download(&self, sandbox: &str, path: &str) -> Result<ByteStream, ClientError> {
        let mut ask = sandbox_ask(Method::GET, sandbox, &["files"]).query("path", path);
        ask.accept = "application/octet-stream";
        let answer = self.transport.send(&ask).await?;
        let size_bytes = answer.content_length();
        let chunks = futures::stream::try_unfold(answer, |mut answer| async move {
            Ok(answer.chunk().await?.map(|chunk| (chunk, answer)))
        });
        Ok(ByteStream { size_bytes, chunks: chunks.boxed() })
    }
}
