//! Stateful interpreters of the toolbox: contexts over HTTP, executions over WebSocket.
//!
//! ```text
//! client                               gateway                            agent
//! {"code":..,"contextId":..} ------->  POST /v1/interpreter/execute  -->
//!            <-- {"type":"stdout",..}  <------------------- events, a line each
//!            <-- {"type":"control",..}, then the close: 1000 done, 4008 past its timeout, 1011 failed
//! ```
//! A client that goes away in the middle has its execution interrupted: nobody would read what it still prints.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use fabric_api::daytona as wire;
use fabric_api::{ApiError, ErrorCode};
use guest_proto::surface::{Context, InterpreterEvent, InterpreterOutcome, InterpreterRequest, NewContext};
use http::StatusCode;
use tokio::time::{interval, timeout};

use super::process::guest;
use crate::edge::Edge;
use crate::guest::{DEFAULT_CONTEXT, Lines};
use crate::instant::rfc3339_seconds;
use crate::intake;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Segments};
use crate::sandboxes::LOOK_UP;

/// How long a client may take to say what is to run.
const ASKED_WITHIN: Duration = Duration::from_secs(30);
/// How long one frame may wait for a client that doesn't read.
const SENT_WITHIN: Duration = Duration::from_secs(60);
/// How often a quiet client is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(30);
/// The timeout of an execution that names none, seconds: the wire's ten minutes.
const TIMEOUT_DEFAULT: i64 = 600;
/// Longest reason of a close, bytes (RFC 6455, section 5.5: 125 with the code).
const REASON_BYTES_MAX: usize = 123;

/// Close codes: RFC 6455, section 7.4.1, and the wire's own for a timeout.
mod close {
    pub(super) const DONE: u16 = 1000;
    pub(super) const UNREADABLE: u16 = 1007;
    pub(super) const REFUSED: u16 = 1008;
    pub(super) const FAILED: u16 = 1011;
    pub(super) const TIMED_OUT: u16 = 4008;
}

/// `GET /process/interpreter/context`: those that clients made.
pub(super) async fn contexts(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<Json<wire::ContextList>> {
    let list = guest(&edge, &caller, &key).contexts().await?;
    let made = list.contexts.into_iter().filter(|context| context.id != DEFAULT_CONTEXT);
    Ok(Json(wire::ContextList { contexts: made.map(shown).collect() }))
}

/// `POST /process/interpreter/context`
pub(super) async fn new_context(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<Option<wire::CreateContext>>,
) -> Answer<Json<wire::InterpreterContext>> {
    let body = body.unwrap_or_default();
    let new = NewContext { language: body.language.unwrap_or_default(), cwd: body.cwd.filter(|cwd| !cwd.is_empty()) };
    Ok(Json(shown(guest(&edge, &caller, &key).new_context(&new).await?)))
}

/// `DELETE /process/interpreter/context/{context}`: not the default one.
pub(super) async fn delete_context(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key, context]): Segments<2>,
) -> Answer<StatusCode> {
    if context == DEFAULT_CONTEXT {
        return Err(Refusal::bad("the default context can't be deleted; make contexts of your own and delete those"));
    }
    guest(&edge, &caller, &key).delete_context(&context).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /process/interpreter/execute`, a WebSocket: one execution.
pub(super) async fn execute(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer<Response> {
    let upgrade = upgrade.map_err(|rejected| {
        let why = rejected.body_text();
        Refusal::bad(format!("this path takes a WebSocket over HTTP/1.1, and this request is none: {why}"))
    })?;
    // An unknown sandbox is a 404 still, not a WebSocket that closes.
    edge.mesh().route(&key, &caller.scope(LOOK_UP)).await?;
    let Ok(permit) = edge.requests().clone().try_acquire_owned() else {
        let message = "this gateway is at its limit of requests at once; try again a little later";
        return Err(ApiError::new(ErrorCode::Busy, message).into());
    };
    let most = edge.config().limits.json_bytes;
    let upgrade = upgrade.max_message_size(most).max_frame_size(most);
    Ok(upgrade.on_upgrade(async move |mut socket| {
        let end = converse(&edge, &caller, &key, &mut socket).await;
        if let Some(frame) = end
            && let Err(error) = send(&mut socket, Message::Close(Some(frame))).await
        {
            tracing::debug!(request_id = caller.request_id, error, "an execution's end was not told");
        }
        drop(permit);
    }))
}

/// One execution, from its request to its end: how the socket is to be closed, unless it is gone.
async fn converse(edge: &Edge, caller: &Caller, key: &str, socket: &mut WebSocket) -> Option<CloseFrame> {
    let request = match timeout(ASKED_WITHIN, asked(socket)).await {
        Ok(Asked::Request(request)) => request,
        Ok(Asked::Odd(code, why)) => return Some(frame(code, &why)),
        Ok(Asked::Gone) => return None,
        Err(_) => {
            let why = format!("nothing to run was sent within {} s", ASKED_WITHIN.as_secs());
            return Some(frame(close::REFUSED, &why));
        }
    };
    let guest = guest(edge, caller, key);
    let mut events = match guest.interpret(&request).await {
        Ok(response) => Lines::of(response),
        Err(error) => return Some(frame(close_code(error.code), &error.message)),
    };
    let end = relay(&mut events, socket).await;
    if end.is_none() {
        let context = request.context_id.as_deref().unwrap_or(DEFAULT_CONTEXT);
        if let Err(error) = guest.interrupt(context).await {
            tracing::debug!(request_id = caller.request_id, %error, "an abandoned execution was not interrupted");
        }
    }
    end
}

/// Passes events on until the end. None where the client is gone.
async fn relay(events: &mut Lines, socket: &mut WebSocket) -> Option<CloseFrame> {
    let mut pings = interval(PING_EVERY);
    pings.reset();
    loop {
        let event = tokio::select! {
            event = events.next::<InterpreterEvent>() => event,
            message = socket.recv() => match message {
                // Nothing is expected; what comes is answered by the protocol itself or ignored.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Binary(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
            },
            _ = pings.tick() => {
                send(socket, Message::Ping(bytes::Bytes::new())).await.ok()?;
                continue;
            }
        };
        let (shown, end) = match event {
            Ok(Some(event)) => step(event),
            Ok(None) => (None, Some(frame(close::FAILED, "the interpreter's events ended without its end"))),
            Err(error) => (None, Some(frame(close::FAILED, &error.message))),
        };
        if let Some(shown) = shown {
            let text = serde_json::to_string(&shown).unwrap_or_default();
            send(socket, Message::Text(text.into())).await.ok()?;
        }
        if end.is_some() {
            return end;
        }
    }
}

/// What an event is to the client, and how the socket closes if it was the last.
fn step(event: InterpreterEvent) -> (Option<wire::InterpretFrame>, Option<CloseFrame>) {
    use wire::InterpretFrame as Frame;
    match event {
        InterpreterEvent::Stdout { text } => (Some(Frame::Stdout { text }), None),
        InterpreterEvent::Stderr { text } => (Some(Frame::Stderr { text }), None),
        // The wire has no frame for the value of an expression.
        InterpreterEvent::Result { .. } => (None, None),
        InterpreterEvent::Error { name, value, traceback } => (Some(Frame::Error { name, value, traceback }), None),
        InterpreterEvent::End { outcome, .. } => match outcome {
            InterpreterOutcome::Completed => {
                (Some(Frame::Control { text: "completed" }), Some(frame(close::DONE, "done")))
            }
            InterpreterOutcome::Interrupted => {
                (Some(Frame::Control { text: "interrupted" }), Some(frame(close::DONE, "interrupted")))
            }
            InterpreterOutcome::TimedOut => {
                (Some(Frame::Control { text: "timeout" }), Some(frame(close::TIMED_OUT, "it passed its timeout")))
            }
            InterpreterOutcome::Died => {
                (None, Some(frame(close::FAILED, "the interpreter ended: its state is lost; run again in a new one")))
            }
        },
    }
}

/// What came first.
enum Asked {
    Request(InterpreterRequest),
    Odd(u16, String),
    Gone,
}

async fn asked(socket: &mut WebSocket) -> Asked {
    loop {
        let bytes = match socket.recv().await {
            Some(Ok(Message::Text(text))) => bytes::Bytes::from(text),
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Asked::Gone,
        };
        return match parse(&bytes) {
            Ok(request) => Asked::Request(request),
            Err((code, why)) => Asked::Odd(code, why),
        };
    }
}

fn parse(bytes: &[u8]) -> Result<InterpreterRequest, (u16, String)> {
    let body: wire::Interpret = serde_json::from_slice(bytes)
        .map_err(|error| (close::UNREADABLE, format!("the first frame is not {{\"code\":..}}: {error}")))?;
    let refused = |refusal: Refusal| (close::REFUSED, refusal.0.message);
    Ok(InterpreterRequest {
        code: body.code,
        context_id: body.context_id.filter(|id| !id.is_empty()),
        env: intake::env(body.envs.unwrap_or_default()).map_err(refused)?,
        timeout_seconds: intake::timeout(Some(body.timeout.unwrap_or(TIMEOUT_DEFAULT))).map_err(refused)?,
    })
}

fn close_code(code: ErrorCode) -> u16 {
    match (code, code.fault()) {
        (ErrorCode::CommandTimeout, _) => close::TIMED_OUT,
        (_, fabric_api::Fault::Caller) => close::REFUSED,
        (_, fabric_api::Fault::Mesh) => close::FAILED,
    }
}

fn frame(code: u16, why: &str) -> CloseFrame {
    let mut end = why.len().min(REASON_BYTES_MAX);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    CloseFrame { code, reason: why[..end].into() }
}

async fn send(socket: &mut WebSocket, message: Message) -> Result<(), String> {
    match timeout(SENT_WITHIN, socket.send(message)).await {
        Ok(sent) => sent.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the client read nothing for {} s", SENT_WITHIN.as_secs())),
    }
}

fn shown(context: Context) -> wire::InterpreterContext {
    wire::InterpreterContext {
        id: context.id,
        cwd: context.cwd,
        language: context.language,
        active: true,
        created_at: rfc3339_seconds(context.created_at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_frame_is_read_or_told_what_is_wrong_with_it() {
        let request = parse(br#"{"code":"x","contextId":"","envs":{"A":"b"},"somethingNew":1}"#).expect("read");
        assert_eq!((request.context_id, request.timeout_seconds), (None, Some(600)));
        assert_eq!(parse(br#"{"code":"x","timeout":0}"#).expect("read").timeout_seconds, None);
        assert_eq!(parse(b"{}").expect_err("no code").0, close::UNREADABLE);
        assert_eq!(parse(b"\xff").expect_err("no text").0, close::UNREADABLE);
        assert_eq!(parse(br#"{"code":"x","timeout":-1}"#).expect_err("no time").0, close::REFUSED);
        assert_eq!(parse(br#"{"code":"x","envs":{"A=":""}}"#).expect_err("no name").0, close::REFUSED);
    }

    #[test]
    fn each_outcome_has_its_close_and_a_reason_fits_into_its_frame() {
        let end = |outcome| step(InterpreterEvent::End { outcome, execution_count: 1, truncated: false });
        let codes = [
            (InterpreterOutcome::Completed, close::DONE),
            (InterpreterOutcome::Interrupted, close::DONE),
            (InterpreterOutcome::TimedOut, close::TIMED_OUT),
            (InterpreterOutcome::Died, close::FAILED),
        ];
        for (outcome, code) in codes {
            assert_eq!(end(outcome).1.expect("an end").code, code);
        }
        let long = frame(close::FAILED, &"\u{e9}".repeat(200));
        assert!(long.reason.len() <= REASON_BYTES_MAX && !long.reason.is_empty());
    }
}
