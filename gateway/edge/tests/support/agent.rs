//! A made-up agent: files in a map, and commands that it knows by heart.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fabric_types::SandboxId;
use gateway_edge::RelayBody;
use guest_proto::surface::*;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use serde::Serialize;

/// The agents of one node's sandboxes.
#[derive(Default)]
pub struct Agent {
    files: Mutex<HashMap<(SandboxId, String), Bytes>>,
    /// Interrupts that were asked for.
    pub interrupts: AtomicUsize,
}

type Outcome = Result<Response<RelayBody>, (AgentErrorCode, String)>;

impl Agent {
    pub async fn answer(&self, id: &SandboxId, request: Request<RelayBody>) -> Response<RelayBody> {
        let (parts, body) = request.into_parts();
        let query: HashMap<String, String> =
            url::form_urlencoded::parse(parts.uri.query().unwrap_or("").as_bytes()).into_owned().collect();
        let Ok(body) = body.collect().await else {
            return error(AgentErrorCode::BadRequest, "the body broke off".into());
        };
        let body = body.to_bytes();
        let path = query.get("path").cloned().unwrap_or_default();
        self.route(id, &parts.method, parts.uri.path(), path, body).unwrap_or_else(|(code, text)| error(code, text))
    }

    fn route(&self, id: &SandboxId, method: &Method, path: &str, file: String, body: Bytes) -> Outcome {
        let mut files = self.files.lock().expect("files");
        let key = (id.clone(), file.clone());
        let missing = || (AgentErrorCode::NotFound, format!("no file '{file}'"));
        match (method.as_str(), path) {
            ("GET", "/v1/health") => Ok(json(&Health {
                protocol: PROTOCOL,
                agent: "0.0.0-test".into(),
                ready: true,
                generation: 1,
                kernel: "test".into(),
                uptime_ms: 1,
                address_randomization: false,
                processes: 1,
            })),
            ("POST", "/v1/exec") => exec(parse(&body)?).map(|reply| json(&reply)),
            ("POST", "/v1/exec/stream") => events(parse(&body)?),
            ("POST", "/v1/code-run") => code_run(parse(&body)?).map(|reply| json(&reply)),
            ("GET", "/v1/interpreter/contexts") => Ok(json(&ContextList {
                contexts: vec![context(&NewContext::default(), "default"), context(&NewContext::default(), "c1")],
            })),
            ("POST", "/v1/interpreter/contexts") => Ok(json(&context(&parse(&body)?, "c1"))),
            ("DELETE", "/v1/interpreter/contexts/c1") => Ok(bytes(Bytes::new())),
            ("POST", "/v1/interpreter/contexts/c1/interrupt" | "/v1/interpreter/contexts/default/interrupt") => {
                self.interrupts.fetch_add(1, Ordering::Relaxed);
                Ok(bytes(Bytes::new()))
            }
            ("POST", "/v1/interpreter/execute") => interpret(&parse(&body)?),
            ("PUT", "/v1/files/content") => {
                files.insert(key, body.clone());
                Ok(json(&info(&file, body.len(), false)))
            }
            ("GET", "/v1/files/content") => files.get(&key).cloned().map(bytes).ok_or_else(missing),
            ("GET", "/v1/files/info") if file.ends_with('/') || file == "." => Ok(json(&info(&file, 0, true))),
            ("GET", "/v1/files/info") => {
                files.get(&key).map(|found| json(&info(&file, found.len(), false))).ok_or_else(missing)
            }
            ("GET", "/v1/files") => {
                let entries = files.iter().filter(|((owner, _), _)| owner == id);
                let entries = entries.map(|((_, path), bytes)| info(path, bytes.len(), false)).collect();
                Ok(json(&FileList { entries, truncated: false }))
            }
            ("POST", "/v1/files/folder") => Ok(json(&info(&file, 0, true))),
            ("DELETE", "/v1/files") => files.remove(&key).map(|_| bytes(Bytes::new())).ok_or_else(missing),
            ("GET", "/v1/logs") => Ok(bytes(Bytes::from_static(b"booted\n"))),
            _ => Err((AgentErrorCode::NotFound, format!("no path {method} {path}"))),
        }
    }
}

fn exec(request: ExecRequest) -> Result<ExecReply, (AgentErrorCode, String)> {
    if let Some(seconds) = request.timeout_seconds.filter(|_| request.command.starts_with("sleep")) {
        return Err((AgentErrorCode::Timeout, format!("the command passed its timeout of {seconds} s")));
    }
    let (exit_code, stdout, stderr) = run(&request);
    let merged = request.merge;
    let stdout = if merged { format!("{stdout}{stderr}") } else { stdout };
    Ok(ExecReply {
        exit_code,
        stdout: STANDARD.encode(stdout),
        stderr: STANDARD.encode(if merged { String::new() } else { stderr }),
        ..ExecReply::default()
    })
}

/// `echo` echoes, `env` shows the environment, `fail` fails on both outputs; every other program is quiet.
fn run(request: &ExecRequest) -> (i32, String, String) {
    let line = if request.argv.is_empty() { request.command.clone() } else { request.argv.join(" ") };
    match line.split_once(' ').unwrap_or((&line, "")) {
        ("echo", text) => (0, format!("{}\n", text.trim_matches(['\'', '"'])), String::new()),
        ("env", _) => (0, request.env.iter().map(|(key, value)| format!("{key}={value}\n")).collect(), String::new()),
        ("fail", _) => (3, "out\n".into(), "err\n".into()),
        ("find", _) => (0, "/a.txt\0/b.txt\0".into(), String::new()),
        ("grep", _) => (0, "/a.txt\u{0}1:hello\n".into(), String::new()),
        _ => (0, String::new(), String::new()),
    }
}

fn events(request: ExecRequest) -> Outcome {
    let timed_out = request.timeout_seconds.is_some() && request.command.starts_with("sleep");
    let (exit_code, stdout, stderr) = if timed_out { (137, "before\n".into(), String::new()) } else { run(&request) };
    let events = [
        ExecEvent::Stdout { data: STANDARD.encode(stdout) },
        ExecEvent::Stderr { data: STANDARD.encode(stderr) },
        ExecEvent::Exit { exit_code, signal: timed_out.then_some(9), timed_out, truncated: false },
    ];
    let lines: String =
        events.iter().map(|event| format!("{}\n", serde_json::to_string(event).expect("JSON"))).collect();
    Ok(bytes(Bytes::from(lines)))
}

/// `print("...")` prints.
fn code_run(request: CodeRunRequest) -> Result<ExecReply, (AgentErrorCode, String)> {
    if !["python", "javascript", "typescript"].contains(&request.language.as_str()) {
        return Err((AgentErrorCode::BadRequest, format!("unknown language '{}'", request.language)));
    }
    if request.code.contains("sleep") {
        return Err((AgentErrorCode::Timeout, "the program passed its timeout".into()));
    }
    let printed = request.code.split('"').nth(1).unwrap_or_default();
    Ok(ExecReply { stdout: STANDARD.encode(format!("{printed}\n")), ..ExecReply::default() })
}

fn context(new: &NewContext, id: &str) -> Context {
    let cwd = new.cwd.clone().unwrap_or_else(|| HOME.into());
    Context { id: id.into(), language: "python".into(), cwd, created_at: 1_795_000_000, busy: false }
}

/// `boom` raises, `sleep` passes its timeout, `die` ends its process, `hang` never ends; anything else prints itself.
fn interpret(request: &InterpreterRequest) -> Outcome {
    let end = |outcome| InterpreterEvent::End { outcome, execution_count: 3, truncated: false };
    let (name, value, traceback) = ("ValueError".to_owned(), "boom".to_owned(), "Traceback: boom\n".to_owned());
    let mut events = vec![InterpreterEvent::Stdout { text: format!("{}\n", request.code) }];
    match request.code.as_str() {
        "boom" => {
            events = vec![InterpreterEvent::Error { name, value, traceback }, end(InterpreterOutcome::Completed)];
        }
        "sleep" => events.push(end(InterpreterOutcome::TimedOut)),
        "die" => events.push(end(InterpreterOutcome::Died)),
        "cut" | "hang" => {}
        _ if request.context_id.as_deref().is_some_and(|id| id != "c1") => {
            return Err((AgentErrorCode::NotFound, "no such context".into()));
        }
        _ => events.extend([InterpreterEvent::Result { text: "7".into() }, end(InterpreterOutcome::Completed)]),
    }
    let lines: String =
        events.iter().map(|event| format!("{}\n", serde_json::to_string(event).expect("JSON"))).collect();
    if request.code == "hang" {
        let first = futures::stream::iter([Ok(hyper::body::Frame::data(Bytes::from(lines)))]);
        let forever = futures::StreamExt::chain(first, futures::stream::pending());
        return Ok(Response::new(http_body_util::StreamBody::new(forever).boxed_unsync()));
    }
    Ok(bytes(Bytes::from(lines)))
}

fn parse<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, (AgentErrorCode, String)> {
    serde_json::from_slice(body).map_err(|error| (AgentErrorCode::BadRequest, error.to_string()))
}

fn info(path: &str, size: usize, is_dir: bool) -> FileInfo {
    FileInfo {
        name: path.rsplit('/').next().unwrap_or(path).to_owned(),
        path: path.to_owned(),
        is_dir,
        size: size as u64,
        modified: 1_795_000_000,
        mode: if is_dir { "drwxr-xr-x" } else { "-rw-r--r--" }.into(),
        permissions: if is_dir { "0755" } else { "0644" }.into(),
        owner: "root".into(),
        group: "root".into(),
    }
}

fn json<T: Serialize>(value: &T) -> Response<RelayBody> {
    bytes(Bytes::from(serde_json::to_vec(value).expect("JSON")))
}

fn bytes(bytes: Bytes) -> Response<RelayBody> {
    let length = bytes.len();
    let mut response = Response::new(Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync());
    response.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
    // A guest that says what only its node may say.
    response.headers_mut().insert("x-atoll-refusal", http::HeaderValue::from_static("1"));
    response
}

fn error(code: AgentErrorCode, message: String) -> Response<RelayBody> {
    let mut response = json(&AgentError { code, message });
    *response.status_mut() = http::StatusCode::from_u16(code.status()).expect("a status");
    response
}
