//! What an agent answers: a body, or an error put into the mesh's words.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use fabric_api::{ApiError, ErrorCode};
use guest_proto::surface::{AgentError, AgentErrorCode, OUTPUT_BYTES_MAX};
use http::Response;
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::RelayBody;
use crate::body::Named;

/// Largest reply that is read whole: both outputs of a command in base64, and some more.
const REPLY_BYTES_MAX: usize = 2 * OUTPUT_BYTES_MAX / 3 * 4 + (1 << 20);
/// How long a guest may be silent in the middle of an answer that is read whole.
const SILENCE: Duration = Duration::from_secs(30);
/// Largest error of an agent that is read.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Longest sentence of a guest that is repeated, in characters.
const SENTENCE_CHARS_MAX: usize = 2000;

/// The response if it is a success, else the agent's error.
pub(super) async fn succeeded(response: Response<RelayBody>) -> Result<Response<RelayBody>, ApiError> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let body = Limited::new(Named(response.into_body()), ERROR_BYTES_MAX).collect();
    let told = timeout(SILENCE, body)
        .await
        .ok()
        .and_then(Result::ok)
        .and_then(|body| serde_json::from_slice::<AgentError>(&body.to_bytes()).ok());
    Err(told.map_or_else(
        || ApiError::new(ErrorCode::Unavailable, format!("the guest's agent answered {status} without saying why")),
        translate,
    ))
}

/// A whole reply as JSON.
pub(super) async fn json<T: DeserializeOwned>(response: Response<RelayBody>) -> Result<T, ApiError> {
    let bytes = whole(response).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::new(ErrorCode::Unavailable, format!("the guest's agent answered what can't be read: {error}"))
    })
}

/// A whole reply. A guest that falls silent in the middle of it is not waited for.
pub(super) async fn whole(response: Response<RelayBody>) -> Result<Bytes, ApiError> {
    whole_unless_silent(response, SILENCE).await
}

async fn whole_unless_silent(response: Response<RelayBody>, silence: Duration) -> Result<Bytes, ApiError> {
    let broken = |cause: &dyn std::fmt::Display| {
        ApiError::new(ErrorCode::Unavailable, format!("the guest's answer broke off: {cause}"))
    };
    let mut body = Limited::new(Named(response.into_body()), REPLY_BYTES_MAX);
    let mut bytes = BytesMut::new();
    loop {
        match timeout(silence, body.frame()).await {
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(Ok(frame))) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            Ok(Some(Err(error))) => return Err(broken(&error)),
            Err(_) => return Err(broken(&format_args!("it was silent for {} s", silence.as_secs()))),
        }
    }
}

/// An output's bytes as text; what isn't UTF-8 is replaced.
pub(crate) fn lossy(base64: &str) -> Result<String, ApiError> {
    match STANDARD.decode(base64) {
        Ok(bytes) => {
            Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
        }
        Err(error) => {
            let message = format!("the guest's agent answered an output that is not base64: {error}");
            Err(ApiError::new(ErrorCode::Unavailable, message))
        }
    }
}

fn translate(error: AgentError) -> ApiError {
    let code = match error.code {
        AgentErrorCode::BadRequest => ErrorCode::BadRequest,
        AgentErrorCode::NotFound => ErrorCode::NotFound,
        AgentErrorCode::StaleGeneration => ErrorCode::StaleGeneration,
        AgentErrorCode::Conflict => ErrorCode::Conflict,
        AgentErrorCode::Forbidden => ErrorCode::Forbidden,
        AgentErrorCode::Timeout => ErrorCode::CommandTimeout,
        AgentErrorCode::TooLarge => ErrorCode::TooLarge,
        AgentErrorCode::Busy => ErrorCode::Busy,
        AgentErrorCode::NoSpace => ErrorCode::Storage,
        // A guest's faults are not the gateway's: it is the guest that is not available.
        AgentErrorCode::MethodNotAllowed | AgentErrorCode::NoIdentity | AgentErrorCode::Internal => {
            ErrorCode::Unavailable
        }
    };
    ApiError::new(code, error.message.chars().take(SENTENCE_CHARS_MAX).collect::<String>())
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    fn answered(status: u16, body: &'static str) -> Response<RelayBody> {
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        Response::builder().status(status).body(body).expect("a response")
    }

    #[tokio::test]
    async fn an_agents_fault_is_never_ours() {
        for (status, body) in [(500, r#"{"code":"internal","message":"x"}"#), (500, "boom"), (302, ""), (101, "")] {
            let error = succeeded(answered(status, body)).await.expect_err("an error");
            assert_eq!(error.code, ErrorCode::Unavailable, "{status} {body}");
        }
        let timeout = succeeded(answered(408, r#"{"code":"timeout","message":"late"}"#)).await.expect_err("an error");
        assert_eq!((timeout.code, timeout.message.as_str()), (ErrorCode::CommandTimeout, "late"));
    }

    #[tokio::test]
    async fn a_guest_that_falls_silent_in_an_answer_is_not_waited_for() {
        let first = futures::stream::iter([Ok(hyper::body::Frame::data(Bytes::from("half")))]);
        let silent = futures::StreamExt::chain(first, futures::stream::pending());
        let body = http_body_util::StreamBody::new(silent).boxed_unsync();
        let error = whole_unless_silent(Response::new(body), Duration::from_millis(20)).await.expect_err("silence");
        assert!(error.code == ErrorCode::Unavailable && error.message.contains("silent"), "{error}");
    }

    #[test]
    fn output_that_is_not_text_is_shown_as_far_as_it_is() {
        assert_eq!(lossy("aGn/").expect("base64"), "hi\u{fffd}");
        assert_eq!(lossy("???").expect_err("no base64").code, ErrorCode::Unavailable);
    }
}
