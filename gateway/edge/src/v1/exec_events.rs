//! A command's events, gathered into its result: so the output before a timeout is not lost.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BytesMut};
use fabric_api::v1::ExecResult;
use fabric_api::{ApiError, ErrorCode};
use guest_proto::surface::{ExecEvent, OUTPUT_BYTES_MAX};
use http::Response;
use http_body_util::BodyExt;

use crate::RelayBody;

/// Longest line of events, in bytes: both outputs whole in one event would fit.
const LINE_BYTES_MAX: usize = 2 * OUTPUT_BYTES_MAX;
/// The exit code of a command that its timeout ended, as of `timeout(1)`.
const TIMED_OUT: i32 = 124;

/// Reads events up to the exit.
pub(super) async fn collect(response: Response<RelayBody>) -> Result<ExecResult, ApiError> {
    let mut body = response.into_body();
    let mut gathered = Gathered::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| unavailable(format!("the command's events broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if let Some(result) = gathered.take(&data)? {
            return Ok(result);
        }
    }
    Err(unavailable("the command's events ended without its exit; whether it ran is unknown".to_owned()))
}

#[derive(Default)]
struct Gathered {
    rest: BytesMut,
    /// Bytes of `rest` already known to hold no end of line.
    searched: usize,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    dropped: bool,
}

impl Gathered {
    /// Takes more bytes; answers the result when the exit is among them.
    fn take(&mut self, data: &[u8]) -> Result<Option<ExecResult>, ApiError> {
        self.rest.extend_from_slice(data);
        while let Some(end) = self.rest[self.searched..].iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(self.searched + end);
            self.rest.advance(1);
            self.searched = 0;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let event = serde_json::from_slice(&line)
                .map_err(|error| unavailable(format!("the guest's agent sent an event that can't be read: {error}")))?;
            if let Some(result) = self.event(event)? {
                return Ok(Some(result));
            }
        }
        self.searched = self.rest.len();
        if self.searched > LINE_BYTES_MAX {
            return Err(unavailable(format!("the guest's agent sent an event of over {LINE_BYTES_MAX} bytes")));
        }
        Ok(None)
    }

    fn event(&mut self, event: ExecEvent) -> Result<Option<ExecResult>, ApiError> {
        let (output, data) = match event {
            ExecEvent::Stdout { data } => (&mut self.stdout, data),
            ExecEvent::Stderr { data } => (&mut self.stderr, data),
            ExecEvent::Exit { exit_code, timed_out, truncated, .. } => {
                return Ok(Some(ExecResult {
                    exit_code: if timed_out { TIMED_OUT } else { exit_code },
                    stdout: String::from_utf8_lossy(&self.stdout).into_owned(),
                    stderr: String::from_utf8_lossy(&self.stderr).into_owned(),
                    timed_out,
                    truncated: truncated || self.dropped,
                }));
            }
        };
        let bytes = STANDARD
            .decode(data)
            .map_err(|error| unavailable(format!("the guest's agent sent output that is not base64: {error}")))?;
        let room = OUTPUT_BYTES_MAX.saturating_sub(output.len());
        self.dropped |= bytes.len() > room;
        output.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(None)
    }
}

fn unavailable(message: String) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENTS: &str = concat!(
        r#"{"type":"stdout","data":"aGk="}"#,
        "\n\n",
        r#"{"type":"stderr","data":"bm8="}"#,
        "\n",
        r#"{"type":"exit","exitCode":3,"signal":null,"timedOut":false,"truncated":false}"#,
        "\n"
    );

    proptest! {
        #[test]
        fn events_may_be_cut_anywhere(cuts in proptest::collection::vec(1_usize..40, 1..20)) {
            let (mut gathered, mut rest, mut cuts) = (Gathered::default(), EVENTS.as_bytes(), cuts.into_iter().cycle());
            let mut result = None;
            while !rest.is_empty() && result.is_none() {
                let (now, later) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
                result = gathered.take(now).expect("events");
                rest = later;
            }
            let result = result.expect("an exit");
            prop_assert_eq!((result.exit_code, result.stdout.as_str(), result.stderr.as_str()), (3, "hi", "no"));
        }

        #[test]
        fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(Gathered::default().take(&bytes));
        }
    }

    #[test]
    fn a_timeout_keeps_what_was_written_before() {
        let mut gathered = Gathered::default();
        let exit = r#"{"type":"exit","exitCode":137,"signal":9,"timedOut":true,"truncated":false}"#;
        let events = format!("{}\n{exit}\n", r#"{"type":"stdout","data":"aGk="}"#);
        let result = gathered.take(events.as_bytes()).expect("events").expect("an exit");
        assert_eq!((result.exit_code, result.timed_out, result.stdout.as_str()), (124, true, "hi"));
    }
}
