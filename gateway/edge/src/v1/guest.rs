//! Commands, files and logs under `/v1/sandboxes/{id}`.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fabric_api::v1 as wire;
use fabric_api::{ApiError, ErrorCode};
use guest_proto::surface::{CodeRunRequest, ExecReply, ExecRequest};
use http::{HeaderMap, HeaderValue, header};
use tokio::time::timeout;

use super::exec_events;
use crate::body::{Named, file};
use crate::edge::Edge;
use crate::front::drain::drain;
use crate::guest::{Guest, Upload, lossy, run_within};
use crate::intake;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Params, Segments};
use crate::sandboxes::LOOK_UP;

/// What asks for a command's events as they come.
pub(super) const NDJSON: &str = "application/x-ndjson";
/// The exit code of a command that its timeout ended, as of `timeout(1)`.
const TIMED_OUT: i32 = 124;
/// How long a file may take to pass.
const TRANSFER: Duration = Duration::from_secs(30 * 60);

/// `POST .../exec`: one JSON object at the end, or with `Accept: application/x-ndjson` the events as they come.
pub(super) async fn exec(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<wire::Exec>,
) -> Answer<Response> {
    let request = parse_exec(body)?;
    let guest = Guest { mesh: edge.mesh(), key: &key, scope: caller.scope(LOOK_UP + LOOK_UP) };
    let events = guest.exec_stream(&request).await?;
    if !wants_lines(&headers) {
        let collected = timeout(run_within(request.timeout_seconds), exec_events::collect(events)).await;
        let result = collected.map_err(|_| {
            Refusal(ApiError::new(ErrorCode::Unavailable, "the guest's agent did not tell the command's end in time"))
        })?;
        return Ok(Json(result?).into_response());
    }
    let mut response = Response::new(Body::new(Named(events.into_body())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Whether a client asks for events as they come.
pub(super) fn wants_lines(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|kind| kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(NDJSON))
}

fn parse_exec(body: wire::Exec) -> Answer<ExecRequest> {
    let command = body.command.unwrap_or_default();
    match (command.trim().is_empty(), body.argv.is_empty()) {
        (true, true) => return Err(Refusal::bad("give either 'command', a line for the shell, or 'argv'")),
        (false, false) => return Err(Refusal::bad("both 'command' and 'argv' are given; one of them is run")),
        (true, false) | (false, true) => {}
    }
    if body.argv.first().is_some_and(String::is_empty) {
        return Err(Refusal::bad("field 'argv' names no program"));
    }
    if body.stdin.as_ref().is_some_and(|stdin| STANDARD.decode(stdin).is_err()) {
        return Err(Refusal::bad("field 'stdin' is not base64"));
    }
    Ok(ExecRequest {
        command,
        argv: body.argv,
        cwd: body.cwd.filter(|cwd| !cwd.is_empty()),
        env: intake::env(body.env)?,
        timeout_seconds: intake::timeout(body.timeout_seconds.map(i64::from))?,
        stdin: body.stdin,
        merge: false,
    })
}

/// `POST .../code-run`
pub(super) async fn code_run(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::CodeRun>,
) -> Answer<Json<wire::ExecResult>> {
    let request = CodeRunRequest {
        code: body.code,
        language: body.language,
        argv: body.argv,
        env: intake::env(body.env)?,
        timeout_seconds: intake::timeout(body.timeout_seconds.map(i64::from))?,
        merge: false,
    };
    let guest = Guest { mesh: edge.mesh(), key: &key, scope: caller.scope(LOOK_UP + LOOK_UP) };
    let ExecReply { exit_code, stdout, stderr, truncated, .. } = match guest.code_run(&request).await {
        Ok(reply) => reply,
        Err(ApiError { code: ErrorCode::CommandTimeout, .. }) => {
            let (exit_code, timed_out) = (TIMED_OUT, true);
            return Ok(Json(wire::ExecResult { exit_code, timed_out, ..wire::ExecResult::default() }));
        }
        Err(error) => return Err(error.into()),
    };
    let (stdout, stderr) = (lossy(&stdout)?, lossy(&stderr)?);
    Ok(Json(wire::ExecResult { exit_code, stdout, stderr, timed_out: false, truncated }))
}

/// `GET .../files?path=`: the bytes.
pub(super) async fn read_file(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
) -> Answer<Response> {
    params.only(&["path"])?;
    let guest = Guest { mesh: edge.mesh(), key: &key, scope: caller.scope(TRANSFER) };
    Ok(file(guest.content(params.required("path")?).await?))
}

/// `PUT .../files?path=[&mode=]`: the bytes; answers what was written.
pub(super) async fn write_file(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
    request: Request,
) -> Answer<Response> {
    let limits = &edge.config().limits;
    let (path, mode) = match target(&params) {
        Ok(target) => target,
        Err(refusal) => {
            drain(request.into_body(), limits).await;
            return Err(refusal);
        }
    };
    let guest = Guest { mesh: edge.mesh(), key: &key, scope: caller.scope(TRANSFER) };
    let upload = Upload::of_body(request.into_body(), limits.upload_bytes);
    Ok(Json(guest.write(path, mode, upload).await?).into_response())
}

fn target(params: &Params) -> Answer<(&str, Option<&str>)> {
    params.only(&["path", "mode"])?;
    Ok((params.required("path")?, intake::mode(params.one("mode")?)?))
}

/// `GET .../logs?tail=`: the guest's kernel and agent, as text.
pub(super) async fn logs(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
) -> Answer<Response> {
    params.only(&["tail"])?;
    let tail = params.number("tail")?;
    if tail.is_some_and(|lines| lines < 0) {
        return Err(Refusal::bad("the query parameter 'tail' must be 0 or more"));
    }
    let guest = Guest { mesh: edge.mesh(), key: &key, scope: caller.scope(LOOK_UP + LOOK_UP) };
    let text = guest.logs(tail).await?;
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}
