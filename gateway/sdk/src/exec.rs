//! A streamed command: lines of JSON in, events out, the exit always last.

use std::pin::Pin;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, Stream, StreamExt};
use serde::Deserialize;

use crate::transport::Answer;
use crate::{ClientError, v1};

/// Longest line of a stream. The agent sends what a pipe gave it, 64 KiB at most, in base64; this leaves room.
const LINE_BYTES_MAX: usize = 4 << 20;
/// Most bytes of each output that [`ExecStream::collect`] keeps, as much as the agent itself answers.
const COLLECT_BYTES_MAX: usize = 16 << 20;

/// What a running command says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes of standard output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// The end; nothing follows.
    Exit(Exit),
}

/// How a command ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Exit {
    /// The exit code; 128+n when signal n ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether its timeout ended it.
    pub timed_out: bool,
    /// Whether output was dropped.
    pub truncated: bool,
}

/// A line of the stream, as the wire has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
enum Line {
    Stdout { data: String },
    Stderr { data: String },
    Exit(Exit),
}

/// A running command's events. Dropping it ends the connection.
pub struct ExecStream {
    events: BoxStream<'static, Result<ExecEvent, ClientError>>,
}

/// A command's whole output and its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Its end.
    pub exit: Exit,
}

impl ExecStream {
    pub(crate) fn new(answer: Answer) -> Self {
        let reader = Reader { answer, buffer: BytesMut::new(), scanned: 0, done: false };
        let events = futures::stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.next().await?.map(|event| (event, reader)))
        });
        Self { events: events.boxed() }
    }

    /// Reads to the end. Of each output at most 16 MiB are kept, as in an answer that isn't streamed; more is told
    /// as `truncated`.
    pub async fn collect(mut self) -> Result<Collected, ClientError> {
        let mut collected = Collected::default();
        let mut dropped = false;
        while let Some(event) = self.next().await {
            match event? {
                ExecEvent::Stdout(bytes) => dropped |= !keep(&mut collected.stdout, &bytes),
                ExecEvent::Stderr(bytes) => dropped |= !keep(&mut collected.stderr, &bytes),
                ExecEvent::Exit(exit) => collected.exit = exit,
            }
        }
        collected.exit.truncated |= dropped;
        Ok(collected)
    }
}

impl Stream for ExecStream {
    type Item = Result<ExecEvent, ClientError>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.as_mut().poll_next(cx)
    }
}

impl std::fmt::Debug for ExecStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExecStream(..)")
    }
}

impl From<Collected> for v1::ExecResult {
    fn from(collected: Collected) -> Self {
        Self {
            exit_code: collected.exit.exit_code,
            stdout: String::from_utf8_lossy(&collected.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&collected.stderr).into_owned(),
            timed_out: collected.exit.timed_out,
            truncated: collected.exit.truncated,
        }
    }
}

/// Appends what has room; false where something was dropped.
fn keep(kept: &mut Vec<u8>, bytes: &[u8]) -> bool {
    let room = COLLECT_BYTES_MAX.saturating_sub(kept.len());
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    bytes.len() <= room
}

struct Reader {
    answer: Answer,
    buffer: BytesMut,
    /// Bytes of the buffer that hold no newline, so that a long line is searched once.
    scanned: usize,
    done: bool,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<ExecEvent>, ClientError> {
        if self.done {
            return Ok(None);
        }
        loop {
            if let Some(line) = self.line() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let event = self.event(&line)?;
                self.done = matches!(event, ExecEvent::Exit(_));
                return Ok(Some(event));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                let what = format!("a line of {}", self.answer.what);
                return Err(ClientError::TooLarge { what, limit_bytes: LINE_BYTES_MAX });
            }
            match self.answer.chunk().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                // The last line may lack its newline.
                None if !self.buffer.is_empty() => self.buffer.extend_from_slice(b"\n"),
                None => return Err(ClientError::CutShort),
            }
        }
    }

    fn line(&mut self) -> Option<BytesMut> {
        match self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let line = self.buffer.split_to(self.scanned + at + 1);
                self.scanned = 0;
                Some(line)
            }
            None => {
                self.scanned = self.buffer.len();
                None
            }
        }
    }

    fn event(&self, line: &[u8]) -> Result<ExecEvent, ClientError> {
        let malformed = |source| ClientError::Malformed {
            endpoint: self.answer.endpoint.clone(),
            what: self.answer.what.clone(),
            source,
        };
        let decode = |data: String| STANDARD.decode(data).map(Bytes::from).map_err(serde::de::Error::custom);
        match serde_json::from_slice(line).map_err(malformed)? {
            Line::Stdout { data } => decode(data).map(ExecEvent::Stdout).map_err(malformed),
            Line::Stderr { data } => decode(data).map(ExecEvent::Stderr).map_err(malformed),
            Line::Exit(exit) => Ok(ExecEvent::Exit(exit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_past_the_limit_is_dropped_and_told() {
        let mut kept = vec![0; COLLECT_BYTES_MAX - 2];
        assert!(keep(&mut kept, b"ab"));
        assert!(!keep(&mut kept, b"c"));
        assert_eq!(kept.len(), COLLECT_BYTES_MAX);
    }
}
