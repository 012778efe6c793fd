//! Exec, code-run, files, logs of one sandbox's agent.

use std::time::Duration;

use bytes::Bytes;
use fabric_api::{ApiError, ErrorCode};
use guest_proto::surface::{CodeRunRequest, EXEC_SECONDS_MAX, ExecReply, ExecRequest, FileInfo, FileList, Health};
use http::{Method, Response};
use serde::Serialize;
use url::form_urlencoded;

use super::answer::{json, succeeded, whole};
use super::call::{GuestBody, GuestCall};
use super::upload::Upload;
use crate::RelayBody;
use crate::mesh::{Mesh, Scope};

/// How much longer than a command's own timeout its answer may take.
const GRACE: Duration = Duration::from_secs(30);

/// One sandbox's agent, on behalf of one request.
pub(crate) struct Guest<'request> {
    /// The way to it.
    pub(crate) mesh: &'request Mesh,
    /// The sandbox's id or name.
    pub(crate) key: &'request str,
    /// For whom, and how long an answer may take (a command's own timeout comes on top).
    pub(crate) scope: Scope,
}

impl Guest<'_> {
    /// Runs a command and awaits its end.
    pub(crate) async fn exec(&self, request: &ExecRequest) -> Result<ExecReply, ApiError> {
        let call = with_json(Method::POST, "/v1/exec", request)?;
        json(self.send_within(run_within(request.timeout_seconds), call).await?).await
    }

    /// Runs a command; its events come as lines of JSON.
    pub(crate) async fn exec_stream(&self, request: &ExecRequest) -> Result<Response<RelayBody>, ApiError> {
        self.send(with_json(Method::POST, "/v1/exec/stream", request)?).await
    }

    /// Runs a program text and awaits its end.
    pub(crate) async fn code_run(&self, request: &CodeRunRequest) -> Result<ExecReply, ApiError> {
        let call = with_json(Method::POST, "/v1/code-run", request)?;
        json(self.send_within(run_within(request.timeout_seconds), call).await?).await
    }

    /// A folder's entries.
    pub(crate) async fn list(&self, path: &str) -> Result<FileList, ApiError> {
        json(self.send(GuestCall::new(Method::GET, target("/v1/files", &[("path", path)]))).await?).await
    }

    /// One file or folder.
    pub(crate) async fn info(&self, path: &str) -> Result<FileInfo, ApiError> {
        json(self.send(GuestCall::new(Method::GET, target("/v1/files/info", &[("path", path)]))).await?).await
    }

    /// A file's bytes, streamed.
    pub(crate) async fn content(&self, path: &str) -> Result<Response<RelayBody>, ApiError> {
        self.send(GuestCall::new(Method::GET, target("/v1/files/content", &[("path", path)]))).await
    }

    /// Writes a file from a stream. The answer may take as long as the stream.
    pub(crate) async fn write(&self, path: &str, mode: Option<&str>, upload: Upload) -> Result<FileInfo, ApiError> {
        let mut query = vec![("path", path)];
        query.extend(mode.map(|mode| ("mode", mode)));
        let mut call = GuestCall::new(Method::PUT, target("/v1/files/content", &query));
        let (body, ended) = upload.split();
        call.body = GuestBody::Stream(Some(body));
        match self.send(call).await {
            Ok(response) => json(response).await,
            Err(error) => Err(ended.explain(error)),
        }
    }

    /// Makes a folder and its parents.
    pub(crate) async fn folder(&self, path: &str, mode: Option<&str>) -> Result<FileInfo, ApiError> {
        let mut query = vec![("path", path)];
        query.extend(mode.map(|mode| ("mode", mode)));
        json(self.send(GuestCall::new(Method::POST, target("/v1/files/folder", &query))).await?).await
    }

    /// Removes a file or folder.
    pub(crate) async fn remove(&self, path: &str, recursive: bool) -> Result<(), ApiError> {
        let mut query = vec![("path", path)];
        query.extend(recursive.then_some(("recursive", "true")));
        self.send(GuestCall::new(Method::DELETE, target("/v1/files", &query))).await.map(drop)
    }

    /// The kernel's and agent's last lines.
    pub(crate) async fn logs(&self, tail: Option<i64>) -> Result<Bytes, ApiError> {
        let tail = tail.map(|lines| lines.to_string());
        let query: Vec<_> = tail.iter().map(|lines| ("tail", lines.as_str())).collect();
        whole(self.send(GuestCall::new(Method::GET, target("/v1/logs", &query))).await?).await
    }

    /// The agent's state. Asking counts as activity.
    pub(crate) async fn health(&self) -> Result<Health, ApiError> {
        json(self.send(GuestCall::new(Method::GET, "/v1/health")).await?).await
    }

    pub(super) async fn send(&self, call: GuestCall) -> Result<Response<RelayBody>, ApiError> {
        self.send_within(Duration::ZERO, call).await
    }

    pub(super) async fn send_within(&self, longer: Duration, call: GuestCall) -> Result<Response<RelayBody>, ApiError> {
        let scope = self.scope.within(self.scope.deadline + longer);
        succeeded(self.mesh.guest(self.key, &scope, call).await?).await
    }
}

/// How long a command's answer may take, by its own timeout.
pub(crate) fn run_within(timeout_seconds: Option<u32>) -> Duration {
    Duration::from_secs(timeout_seconds.unwrap_or(EXEC_SECONDS_MAX).min(EXEC_SECONDS_MAX).into()) + GRACE
}

pub(super) fn with_json<T: Serialize>(method: Method, path: &str, body: &T) -> Result<GuestCall, ApiError> {
    let body = serde_json::to_vec(body).map_err(|error| {
        ApiError::new(ErrorCode::BadRequest, format!("this can't be put into a request to the guest: {error}"))
    })?;
    let mut call = GuestCall::new(method, path);
    call.body = GuestBody::Json(body.into());
    Ok(call)
}

fn target(path: &str, query: &[(&str, &str)]) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}
