//! A command's events, gathered into its result: so the output before a timeout is not lost.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fabric_api::v1::ExecResult;
use fabric_api::{ApiError, ErrorCode};
use guest_proto::surface::{ExecEvent, OUTPUT_BYTES_MAX};
use http::Response;

use crate::RelayBody;
use crate::guest::Lines;

/// The exit code of a command that its timeout ended, as of `timeout(1)`.
const TIMED_OUT: i32 = 124;

/// Reads events up to the exit.
pub(super) async fn collect(response: Response<RelayBody>) -> Result<ExecResult, ApiError> {
    let (mut lines, mut gathered) = (Lines::of(response), Gathered::default());
    while let Some(event) = lines.next().await? {
        if let Some(result) = gathered.event(event)? {
            return Ok(result);
        }
    }
    Err(unavailable("the command's events ended without its exit; whether it ran is unknown".to_owned()))
}

#[derive(Default)]
struct Gathered {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    dropped: bool,
}

impl Gathered {
    /// Takes an event; answers the result when it is the exit.
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
    use super::*;

    #[test]
    fn a_timeout_keeps_what_was_written_before() {
        let mut gathered = Gathered::default();
        let exit = ExecEvent::Exit { exit_code: 137, signal: Some(9), timed_out: true, truncated: false };
        assert!(gathered.event(ExecEvent::Stdout { data: "aGk=".into() }).expect("output").is_none());
        let result = gathered.event(exit).expect("an event").expect("an exit");
        assert_eq!((result.exit_code, result.timed_out, result.stdout.as_str()), (124, true, "hi"));
    }

    #[test]
    fn output_that_is_not_base64_is_the_guests_fault() {
        let error = Gathered::default().event(ExecEvent::Stderr { data: "???".into() }).expect_err("no base64");
        assert_eq!(error.code, ErrorCode::Unavailable);
    }
}
