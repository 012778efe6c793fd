//! What can go wrong between a client and a mesh, told apart by whose hand mends it.

use fabric_api::ErrorCode;
use fabric_api::v1::ErrorBody;
use thiserror::Error;

use crate::SettingsError;

/// A request that failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nothing was sent: endpoints or key are missing or malformed.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// No endpoint took the connection; nothing was done.
    #[error("no gateway can be reached (tried {tried}): is the mesh running?")]
    Unreachable {
        /// The endpoints that were tried, with commas.
        tried: String,
        /// Why the last one failed.
        #[source]
        source: reqwest::Error,
    },
    /// The deadline passed; whether the request took effect is not known.
    #[error("{endpoint} gave no answer to {what} within {seconds} s")]
    Deadline {
        /// Which endpoint.
        endpoint: String,
        /// Method and path.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The connection broke; whether the request took effect is not known.
    #[error("the connection to {endpoint} broke during {what}")]
    Broken {
        /// Which endpoint.
        endpoint: String,
        /// Method and path.
        what: String,
        /// How it broke.
        #[source]
        source: reqwest::Error,
    },
    /// The mesh refused or failed the request, and said why.
    #[error(transparent)]
    Api(#[from] Box<ApiFailure>),
    /// The answer isn't what the API says: a gateway of another version, or no gateway at all.
    #[error("the answer of {endpoint} to {what} is not what the API says")]
    Malformed {
        /// Which endpoint.
        endpoint: String,
        /// Method and path.
        what: String,
        /// What was wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// An answer past its limit.
    #[error("the answer to {what} is larger than {limit_bytes} bytes")]
    TooLarge {
        /// Method and path.
        what: String,
        /// The limit.
        limit_bytes: usize,
    },
    /// A streamed command's answer ended before its exit was told.
    #[error("the stream of the command ended before its exit code: its sandbox or node went away")]
    CutShort,
}

impl ClientError {
    /// The mesh's code, where it was the mesh that answered.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Api(failure) => failure.code(),
            _ => None,
        }
    }

    /// Whether the mesh answered that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(failure) if failure.body.status_code == 404)
    }

    /// Whether a time limit passed: the client's own, or a command's in the guest.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Deadline { .. } => true,
            Self::Api(failure) => failure.body.status_code == 408,
            _ => false,
        }
    }
}

/// An error as the mesh told it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", .body.message)]
pub struct ApiFailure {
    /// The body of the answer.
    pub body: ErrorBody,
}

impl ApiFailure {
    /// The code; none where the gateway sent one that this version doesn't know.
    pub fn code(&self) -> Option<ErrorCode> {
        let text = self.body.code.as_deref()?;
        serde_json::from_value(serde_json::Value::String(text.to_owned())).ok()
    }

    /// The failure that an answer of this status and body stands for; a body that isn't ours becomes its sentence.
    pub(crate) fn parse(status: u16, body: &[u8], request_id: Option<&str>) -> Self {
        let mut parsed = serde_json::from_slice::<ErrorBody>(body).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(body);
            let shown: String = text.trim().chars().take(SHOWN_CHARS_MAX).collect();
            let message = if shown.is_empty() { format!("the gateway answered {status}") } else { shown };
            ErrorBody { status_code: status, message, error: String::new(), code: None, request_id: None }
        });
        // The status line is what proxies and clients acted on: it wins over a body that says something else.
        parsed.status_code = status;
        if parsed.request_id.is_none() {
            parsed.request_id = request_id.map(str::to_owned);
        }
        Self { body: parsed }
    }
}

/// At most so many characters of a foreign body are shown: enough for a proxy's sentence, not for its page.
const SHOWN_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_error_keeps_its_sentence_and_code() {
        let body = br#"{"statusCode":409,"message":"the name 'a' is taken","error":"Conflict","code":"conflict"}"#;
        let failure = ApiFailure::parse(409, body, Some("r-1"));
        assert_eq!(failure.to_string(), "the name 'a' is taken");
        assert_eq!(failure.code(), Some(ErrorCode::Conflict));
        assert_eq!(failure.body.request_id.as_deref(), Some("r-1"));
    }

    #[test]
    fn a_foreign_body_becomes_a_short_sentence() {
        let page = format!("<html>{}</html>", "x".repeat(10_000));
        let failure = ApiFailure::parse(502, page.as_bytes(), None);
        assert_eq!(failure.body.status_code, 502);
        assert!(failure.to_string().chars().count() <= SHOWN_CHARS_MAX);
        assert_eq!(ApiFailure::parse(503, b"", None).to_string(), "the gateway answered 503");
    }

    #[test]
    fn a_command_timeout_and_a_deadline_are_timeouts() {
        let body = br#"{"statusCode":408,"message":"passed its timeout","error":"Request Timeout"}"#;
        assert!(ClientError::from(Box::new(ApiFailure::parse(408, body, None))).is_timeout());
        let deadline = ClientError::Deadline { endpoint: "e".into(), what: "w".into(), seconds: 1 };
        assert!(deadline.is_timeout());
        assert!(!ClientError::CutShort.is_timeout());
    }
}
