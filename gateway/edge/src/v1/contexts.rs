//! Stateful interpreters under `/v1/sandboxes/{id}`: contexts, and executions in them.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use fabric_api::v1 as wire;
use fabric_api::{ApiError, ErrorCode};
use guest_proto::surface::{
    Context, InterpreterEvent, InterpreterOutcome, InterpreterRequest, NewContext, OUTPUT_BYTES_MAX,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::time::timeout;

use super::guest::{NDJSON, wants_lines};
use crate::body::Named;
use crate::edge::Edge;
use crate::guest::{Guest, Lines, run_within};
use crate::instant::rfc3339_seconds;
use crate::intake;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Segments};
use crate::sandboxes::LOOK_UP;

fn guest<'request>(edge: &'request Edge, caller: &Caller, key: &'request str) -> Guest<'request> {
    Guest { mesh: edge.mesh(), key, scope: caller.scope(LOOK_UP + LOOK_UP) }
}

/// `GET .../contexts`
pub(super) async fn list(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<Json<wire::ContextList>> {
    let list = guest(&edge, &caller, &key).contexts().await?;
    Ok(Json(wire::ContextList { items: list.contexts.into_iter().map(shown).collect() }))
}

/// `POST .../contexts`
pub(super) async fn create(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<Option<wire::NewContext>>,
) -> Answer<Json<wire::Context>> {
    let body = body.unwrap_or_default();
    let new = NewContext { language: body.language.unwrap_or_default(), cwd: body.cwd.filter(|cwd| !cwd.is_empty()) };
    Ok(Json(shown(guest(&edge, &caller, &key).new_context(&new).await?)))
}

/// `DELETE .../contexts/{context}`
pub(super) async fn delete(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key, context]): Segments<2>,
) -> Answer<StatusCode> {
    guest(&edge, &caller, &key).delete_context(&context).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST .../contexts/{context}/interrupt`
pub(super) async fn interrupt(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key, context]): Segments<2>,
) -> Answer<StatusCode> {
    guest(&edge, &caller, &key).interrupt(&context).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST .../interpret`: one JSON object at the end, or with `Accept: application/x-ndjson` the events as they come.
pub(super) async fn interpret(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<wire::Interpret>,
) -> Answer<Response> {
    let request = InterpreterRequest {
        code: body.code,
        context_id: body.context.filter(|id| !id.is_empty()),
        env: intake::env(body.env)?,
        timeout_seconds: intake::timeout(body.timeout_seconds.map(i64::from))?,
    };
    let events = guest(&edge, &caller, &key).interpret(&request).await?;
    if !wants_lines(&headers) {
        let gathered = timeout(run_within(request.timeout_seconds), gather(Lines::of(events))).await;
        let told = gathered.map_err(|_| Refusal::unavailable("the interpreter did not tell its end in time"))?;
        return Ok(Json(told?).into_response());
    }
    let mut response = Response::new(Body::new(Named(events.into_body())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Reads events up to the end.
async fn gather(mut lines: Lines) -> Result<wire::Interpreted, ApiError> {
    let mut gathered = wire::Interpreted::default();
    while let Some(event) = lines.next().await? {
        if take(&mut gathered, event) {
            return Ok(gathered);
        }
    }
    let message = "the interpreter's events ended without its end; whether the code ran is unknown";
    Err(ApiError::new(ErrorCode::Unavailable, message))
}

/// Takes an event; true when it is the last.
fn take(gathered: &mut wire::Interpreted, event: InterpreterEvent) -> bool {
    match event {
        InterpreterEvent::Stdout { text } => gathered.truncated |= append(&mut gathered.stdout, &text),
        InterpreterEvent::Stderr { text } => gathered.truncated |= append(&mut gathered.stderr, &text),
        InterpreterEvent::Result { text } => gathered.result = Some(text),
        InterpreterEvent::Error { name, value, traceback } => {
            gathered.error = Some(wire::InterpretError { name, value, traceback });
        }
        InterpreterEvent::End { outcome, execution_count, truncated } => {
            gathered.outcome = word(outcome).to_owned();
            gathered.execution_count = execution_count;
            gathered.truncated |= truncated;
            return true;
        }
    }
    false
}

/// Appends as much as there is room for; true where some was dropped.
fn append(output: &mut String, text: &str) -> bool {
    let mut end = OUTPUT_BYTES_MAX.saturating_sub(output.len()).min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    output.push_str(&text[..end]);
    end < text.len()
}

fn word(outcome: InterpreterOutcome) -> &'static str {
    match outcome {
        InterpreterOutcome::Completed => "completed",
        InterpreterOutcome::Interrupted => "interrupted",
        InterpreterOutcome::TimedOut => "timed_out",
        InterpreterOutcome::Died => "died",
    }
}

fn shown(context: Context) -> wire::Context {
    wire::Context {
        id: context.id,
        language: context.language,
        cwd: context.cwd,
        created_at: rfc3339_seconds(context.created_at),
        busy: context.busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_become_one_result_and_too_much_output_is_told() {
        let mut gathered = wire::Interpreted::default();
        let half = "x".repeat(OUTPUT_BYTES_MAX - 1);
        for text in [half, "\u{e9}".into(), "more".into()] {
            assert!(!take(&mut gathered, InterpreterEvent::Stdout { text }));
        }
        assert!(gathered.truncated && gathered.stdout.len() <= OUTPUT_BYTES_MAX);
        assert!(!take(&mut gathered, InterpreterEvent::Result { text: "3".into() }));
        let outcome = InterpreterOutcome::TimedOut;
        assert!(take(&mut gathered, InterpreterEvent::End { outcome, execution_count: 7, truncated: false }));
        assert_eq!((gathered.outcome.as_str(), gathered.execution_count), ("timed_out", 7));
        assert_eq!(gathered.result.as_deref(), Some("3"));
    }
}
