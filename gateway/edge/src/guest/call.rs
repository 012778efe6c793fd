//! One request to a sandbox's agent, wherever the sandbox lives.

use bytes::Bytes;
use fabric_api::{ApiError, ErrorCode};
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use tokio::time::timeout;
use tracing::debug;

use crate::mesh::{Mesh, Scope};
use crate::relay::{Relayed, relay};
use crate::{RelayBody, Route};

/// What is asked of an agent.
pub(crate) struct GuestCall {
    /// The method.
    pub(crate) method: Method,
    /// Path and query of `guest_proto::surface`.
    pub(crate) target: String,
    /// The body.
    pub(crate) body: GuestBody,
}

/// A request's body.
pub(crate) enum GuestBody {
    /// Whole, as JSON: it can be sent again.
    Json(Bytes),
    /// Streamed: it can be sent once, and is gone then.
    Stream(Option<RelayBody>),
}

impl GuestCall {
    /// A request without a body.
    pub(crate) fn new(method: Method, target: impl Into<String>) -> Self {
        Self { method, target: target.into(), body: GuestBody::Json(Bytes::new()) }
    }

    /// The request as HTTP, or `None` when its body is gone.
    fn build(&mut self) -> Option<Result<Request<RelayBody>, ApiError>> {
        let (kind, body) = match &mut self.body {
            GuestBody::Json(bytes) => {
                ("application/json", Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync())
            }
            GuestBody::Stream(body) => ("application/octet-stream", body.take()?),
        };
        let request = Request::builder()
            .method(self.method.clone())
            .uri(&self.target)
            .header(header::HOST, "guest")
            .header(header::CONTENT_TYPE, HeaderValue::from_static(kind))
            .body(body);
        Some(request.map_err(|error| {
            ApiError::new(ErrorCode::BadRequest, format!("this can't be put into a request to the guest: {error}"))
        }))
    }
}

impl Mesh {
    /// Sends a request to a sandbox's agent and awaits the head of its answer for at most the scope's deadline. A
    /// route that proves old is asked for anew once.
    pub(super) async fn guest(
        &self,
        key: &str,
        scope: &Scope,
        mut call: GuestCall,
    ) -> Result<Response<RelayBody>, ApiError> {
        let sending = async {
            let mut route = self.route(key, scope).await?;
            let mut refreshed = false;
            loop {
                let Some(request) = call.build() else {
                    let message = format!("sandbox {} moved while an upload was on its way; send it again", route.id);
                    return Err(ApiError::new(ErrorCode::Unavailable, message));
                };
                let (error, again) = match self.send(&route, scope, request?).await {
                    Relayed::Answer(response) => return Ok(response),
                    Relayed::Refused(error) => {
                        let old = matches!(error.code, ErrorCode::StaleGeneration | ErrorCode::NotFound);
                        (error, old)
                    }
                    Relayed::Unsent(error) => (error, true),
                    Relayed::Broken(error) => (error, false),
                };
                debug!(request_id = %scope.request_id, sandbox_id = %route.id, node_id = %route.node, %error, again, "a guest was not reached");
                if refreshed || !again {
                    return Err(error);
                }
                refreshed = true;
                let fresh = self.fresh_route(key, scope).await?;
                if fresh == route && error.code != ErrorCode::Unavailable {
                    return Err(error);
                }
                route = fresh;
            }
        };
        match timeout(scope.deadline, sending).await {
            Ok(answer) => answer,
            Err(_) => {
                let message = format!("the guest of sandbox '{key}' did not answer in {} s", scope.deadline.as_secs());
                Err(ApiError::new(ErrorCode::DeadlineExceeded, message))
            }
        }
    }

    async fn send(&self, route: &Route, scope: &Scope, request: Request<RelayBody>) -> Relayed {
        if self.is_here(&route.node) {
            return match self.local().guest(&route.id, route.generation, request).await {
                Ok(response) => Relayed::Answer(response),
                Err(error) => Relayed::Refused(error),
            };
        }
        match self.peer(&route.node) {
            Some(peer) => relay(self.fabric(), &peer, route, &scope.request_id, request).await,
            None => {
                let message = format!("node {} of sandbox {} is unknown here now; try again", route.node, route.id);
                Relayed::Unsent(ApiError::new(ErrorCode::Unavailable, message))
            }
        }
    }
}
