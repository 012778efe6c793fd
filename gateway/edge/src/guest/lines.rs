//! Lines of JSON out of a guest's answer, cut as its bytes come. A line has a most of bytes: guests are hostile.

use bytes::{Buf, Bytes, BytesMut};
use fabric_api::{ApiError, ErrorCode};
use guest_proto::surface::OUTPUT_BYTES_MAX;
use http::Response;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::RelayBody;

/// Longest line, in bytes: both outputs of a command whole in one event would fit.
const LINE_BYTES_MAX: usize = 2 * OUTPUT_BYTES_MAX;

/// The lines of an answer.
pub(crate) struct Lines {
    body: RelayBody,
    splitter: Splitter,
}

impl Lines {
    pub(crate) fn of(response: Response<RelayBody>) -> Self {
        Self { body: response.into_body(), splitter: Splitter::default() }
    }

    /// The next line, or none where the answer has ended. Cancel safe: a line that was cut off is kept.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ApiError> {
        loop {
            if let Some(line) = self.splitter.next()? {
                return parse(&line).map(Some);
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|error| unavailable(format!("the guest's events broke off: {error}")))?;
            if let Ok(data) = frame.into_data() {
                self.splitter.push(&data);
            }
        }
    }
}

/// Cuts bytes into lines.
#[derive(Default)]
struct Splitter {
    rest: BytesMut,
    /// Bytes of `rest` already known to hold no end of line.
    searched: usize,
}

impl Splitter {
    fn push(&mut self, data: &[u8]) {
        self.rest.extend_from_slice(data);
    }

    /// The next whole line that isn't blank.
    fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        while let Some(end) = self.rest[self.searched..].iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(self.searched + end);
            self.rest.advance(1);
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line.freeze()));
            }
        }
        self.searched = self.rest.len();
        if self.searched > LINE_BYTES_MAX {
            return Err(unavailable(format!("the guest's agent sent an event of over {LINE_BYTES_MAX} bytes")));
        }
        Ok(None)
    }
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(line)
        .map_err(|error| unavailable(format!("the guest's agent sent an event that can't be read: {error}")))
}

fn unavailable(message: String) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, message)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use proptest::prelude::*;

    use super::*;

    fn lines(chunks: Vec<Vec<u8>>) -> Lines {
        let frames = futures::stream::iter(chunks).map(|chunk| Ok(Frame::data(Bytes::from(chunk))));
        Lines::of(Response::new(StreamBody::new(frames).boxed_unsync()))
    }

    async fn all(mut lines: Lines) -> Result<Vec<u64>, ApiError> {
        let mut found = Vec::new();
        while let Some(number) = lines.next().await? {
            found.push(number);
        }
        Ok(found)
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
    }

    proptest! {
        #[test]
        fn lines_may_be_cut_anywhere(cuts in proptest::collection::vec(1_usize..9, 1..20)) {
            let (mut rest, mut cuts, mut chunks) = (&b"1\n\n22\n \n333\n4"[..], cuts.into_iter().cycle(), Vec::new());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
                chunks.push(now.to_vec());
                rest = later;
            }
            // What has no end of line was cut off, and is no line.
            prop_assert_eq!(block_on(all(lines(chunks))).expect("lines"), [1, 22, 333]);
        }

        #[test]
        fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(block_on(all(lines(vec![bytes]))));
        }
    }

    #[test]
    fn a_line_without_an_end_is_cut_off_at_its_limit() {
        let chunks = (0..40).map(|_| vec![b'1'; 1 << 20]).collect();
        let error = block_on(all(lines(chunks))).expect_err("too long");
        assert!(error.message.contains("over 33554432 bytes"), "{error}");
    }
}
