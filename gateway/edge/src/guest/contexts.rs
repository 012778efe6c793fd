//! Stateful interpreters of one sandbox's agent.

use fabric_api::{ApiError, ErrorCode};
use guest_proto::surface::{Context, ContextList, InterpreterRequest, NewContext};
use http::{Method, Response};

use super::answer::json;
use super::call::GuestCall;
use super::surface::{Guest, run_within, with_json};
use crate::RelayBody;

/// The context of an execution that names none.
pub(crate) const DEFAULT_CONTEXT: &str = "default";
/// Longest id of a context that is asked for: an agent's own are far shorter.
const CONTEXT_ID_CHARS_MAX: usize = 64;

impl Guest<'_> {
    /// Makes a context.
    pub(crate) async fn new_context(&self, new: &NewContext) -> Result<Context, ApiError> {
        json(self.send(with_json(Method::POST, "/v1/interpreter/contexts", new)?).await?).await
    }

    /// The contexts, by age.
    pub(crate) async fn contexts(&self) -> Result<ContextList, ApiError> {
        json(self.send(GuestCall::new(Method::GET, "/v1/interpreter/contexts")).await?).await
    }

    /// Ends a context; what runs in it is killed.
    pub(crate) async fn delete_context(&self, id: &str) -> Result<(), ApiError> {
        let target = format!("/v1/interpreter/contexts/{}", plain(id)?);
        self.send(GuestCall::new(Method::DELETE, target)).await.map(drop)
    }

    /// Interrupts what runs in a context.
    pub(crate) async fn interrupt(&self, id: &str) -> Result<(), ApiError> {
        let target = format!("/v1/interpreter/contexts/{}/interrupt", plain(id)?);
        self.send(GuestCall::new(Method::POST, target)).await.map(drop)
    }

    /// Runs a text in a context; its events come as lines of JSON. It may wait its turn for as long as it may run.
    pub(crate) async fn interpret(&self, request: &InterpreterRequest) -> Result<Response<RelayBody>, ApiError> {
        let call = with_json(Method::POST, "/v1/interpreter/execute", request)?;
        self.send_within(run_within(request.timeout_seconds), call).await
    }
}

/// An id that stands in a path as it is; any other is no context's.
fn plain(id: &str) -> Result<&str, ApiError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !id.is_empty() && id.len() <= CONTEXT_ID_CHARS_MAX && id.bytes().all(fits) {
        return Ok(id);
    }
    let shown: String = id.chars().take(CONTEXT_ID_CHARS_MAX).collect();
    Err(ApiError::new(ErrorCode::NotFound, format!("there is no interpreter context '{shown}'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_never_leaves_its_place_in_the_path() {
        assert_eq!(plain("ctx-1_a").expect("plain"), "ctx-1_a");
        for odd in ["", "../exec", "a/b", "a?b", "a#b", "a b", "%2e", &"a".repeat(65), "\u{e9}"] {
            assert_eq!(plain(odd).expect_err(odd).code, ErrorCode::NotFound);
        }
    }
}
