//! Exit codes, and the failures that they stand for.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use gateway_sdk::{ClientError, SettingsError};
use serde::Serialize;
use thiserror::Error;

/// All went well.
pub const EXIT_OK: u8 = 0;
/// The command line is malformed (clap exits with it too).
pub const EXIT_USAGE: u8 = 2;
/// A time limit passed, as with timeout(1).
pub const EXIT_TIMEOUT: u8 = 124;
/// Atoll itself failed, as with timeout(1) and the container tools: a command's own codes stay below.
pub const EXIT_FAILED: u8 = 125;
/// Ctrl-C: 128 and SIGINT.
pub const EXIT_INTERRUPTED: u8 = 130;
/// The reader of standard output went away: 128 and SIGPIPE, what a program that doesn't catch it exits with.
pub(crate) const EXIT_BROKEN_PIPE: u8 = 141;

/// Why a command failed.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The mesh, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A command line that parsed but makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Standard output can't be written.
    #[error("standard output can't be written")]
    Output(#[source] io::Error),
    /// A local file.
    #[error("{path} can't be {verb}")]
    Local {
        /// Which file.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::Client(error.into())
    }
}

impl Failure {
    /// The exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) if error.is_timeout() => EXIT_TIMEOUT,
            Self::Usage(_) => EXIT_USAGE,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => EXIT_BROKEN_PIPE,
            Self::Client(_) | Self::Output(_) | Self::Local { .. } => EXIT_FAILED,
        }
    }

    /// The sentence, with what caused it.
    pub(crate) fn sentence(&self) -> String {
        let mut sentence = self.to_string();
        // An API's sentence says it all; transport errors nest, and the innermost says what the system said.
        let mut innermost = self.source();
        while let Some(next) = innermost.and_then(|error| error.source()) {
            innermost = Some(next);
        }
        if let Some(cause) = innermost {
            let cause = cause.to_string();
            if !sentence.contains(&cause) {
                sentence = format!("{sentence}: {cause}");
            }
        }
        sentence
    }

    /// The failure as `--json` shows it.
    pub(crate) fn report(&self) -> Report {
        let (status_code, code, request_id) = match self {
            Self::Client(ClientError::Api(failure)) => {
                (Some(failure.body.status_code), failure.body.code.clone(), failure.body.request_id.clone())
            }
            _ => (None, None, None),
        };
        Report { error: Reported { message: self.sentence(), status_code, code, request_id } }
    }
}

/// `{"error":{...}}`: never mistaken for an answer.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    error: Reported,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reported {
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

/// A guest's exit code as this process's: the low eight bits, as a shell has it.
pub(crate) fn guest_exit(exit_code: i32, timed_out: bool) -> u8 {
    if timed_out { EXIT_TIMEOUT } else { (exit_code & 0xff) as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_code() {
        assert_eq!(Failure::Usage("x".into()).exit_code(), 2);
        assert_eq!(Failure::Client(ClientError::CutShort).exit_code(), 125);
        let deadline = ClientError::Deadline { endpoint: "e".into(), what: "w".into(), seconds: 3 };
        assert_eq!(Failure::Client(deadline).exit_code(), 124);
        assert_eq!(Failure::Output(io::ErrorKind::BrokenPipe.into()).exit_code(), 141);
        assert_eq!(Failure::Output(io::ErrorKind::StorageFull.into()).exit_code(), 125);
    }

    #[test]
    fn a_guest_code_is_kept_and_a_timeout_wins() {
        assert_eq!(guest_exit(7, false), 7);
        assert_eq!(guest_exit(137, false), 137);
        assert_eq!(guest_exit(137, true), 124);
    }

    #[test]
    fn the_sentence_names_the_cause_once() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let cause = source.to_string();
        let failure = Failure::Local { path: "a.py".into(), verb: "read", source };
        assert_eq!(failure.sentence(), format!("a.py can't be read: {cause}"));
    }
}
