//! The whole surface over an in-memory session, in a folder of its own.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use guest_proto::session::guest::Listener;
use guest_proto::session::host;
use guest_proto::surface::{
    AgentError, AgentErrorCode, CodeRunRequest, ExecEvent, ExecReply, ExecRequest, FileInfo, FileList,
    GENERATION_HEADER, Health, IdentityAck, JSON_BYTES_MAX, OUTPUT_BYTES_MAX,
};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Agent, serve};
use crate::exec::{Engine, Reaper, Scope};
use crate::identity::IdentityCell;
use crate::identity::tests::{Recorder, identity};
use crate::interpreter::Contexts;
use crate::limits::Bounds;
use crate::warm::{Place, Warm};

const GENERATION: u64 = 4;

/// An agent with an identity, a host that talks to it, and their folder.
struct Pair {
    client: SendRequest<Full<Bytes>>,
    machine: Arc<Recorder>,
    folder: tempfile::TempDir,
    own: tempfile::TempDir,
}

struct Got {
    status: StatusCode,
    body: Bytes,
}

impl Got {
    fn json<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, StatusCode::OK, "{}", String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }

    fn refused(&self, code: AgentErrorCode) -> String {
        let error: AgentError = serde_json::from_slice(&self.body).unwrap();
        assert_eq!((error.code, self.status.as_u16()), (code, code.status()), "{}", error.message);
        error.message
    }
}

impl Pair {
    async fn without_identity() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let machine = Arc::new(Recorder::default());
        let bounds = Arc::new(Bounds::none());
        let reaper = Reaper::start(Scope::Registered).unwrap();
        let own = tempfile::tempdir().unwrap();
        let path = |name: &str| own.path().join(name);
        let place = Place::new(folder.path().to_owned(), path("scratch"), path("scripts")).unwrap();
        let agent = Arc::new(Agent {
            machine: machine.clone(),
            identity: IdentityCell::default(),
            engine: Engine::new(reaper, bounds),
            contexts: Contexts::default(),
            warm: Warm::none(),
            place,
        });
        let (host_io, guest_io) = tokio::io::duplex(64 << 10);
        tokio::spawn(async move {
            let mut listener = Listener::new(guest_io);
            while let Ok(session) = listener.accept().await {
                tokio::spawn(serve(Arc::clone(&agent), session));
            }
        });
        let session = host::open(host_io, [1; 16], Duration::from_secs(30)).await.unwrap();
        let (client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(session)).await.unwrap();
        tokio::spawn(connection);
        Self { client, machine, folder, own }
    }

    async fn new() -> Self {
        let pair = Self::without_identity().await;
        let ack: IdentityAck = pair.post("/v1/identity", &identity("box", GENERATION)).await.json();
        assert_eq!(ack.generation, GENERATION);
        pair
    }

    async fn send(&self, method: Method, uri: &str, generation: u64, body: impl Into<Bytes>) -> Got {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://guest{uri}"))
            .header(GENERATION_HEADER, generation)
            .body(Full::new(body.into()))
            .unwrap();
        let response = self.client.clone().send_request(request).await.unwrap();
        let status = response.status();
        Got { status, body: response.into_body().collect().await.unwrap().to_bytes() }
    }

    async fn post(&self, uri: &str, body: &impl Serialize) -> Got {
        self.send(Method::POST, uri, GENERATION, serde_json::to_vec(body).unwrap()).await
    }

    async fn get(&self, uri: &str) -> Got {
        self.send(Method::GET, uri, GENERATION, "").await
    }

    async fn exec(&self, request: ExecRequest) -> Got {
        self.post("/v1/exec", &request).await
    }

    async fn sh(&self, command: &str) -> ExecReply {
        self.exec(ExecRequest { command: command.to_owned(), ..ExecRequest::default() }).await.json()
    }

    async fn stream(&self, request: ExecRequest) -> Vec<ExecEvent> {
        let got = self.post("/v1/exec/stream", &request).await;
        assert_eq!(got.status, StatusCode::OK);
        got.body
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }
}

fn plain(base64: &str) -> String {
    String::from_utf8(STANDARD.decode(base64).unwrap()).unwrap()
}

fn command(command: &str) -> ExecRequest {
    ExecRequest { command: command.to_owned(), ..ExecRequest::default() }
}

#[tokio::test]
async fn only_health_is_answered_before_an_identity() {
    let pair = Pair::without_identity().await;
    let health: Health = pair.get("/v1/health").await.json();
    assert!(!health.ready);
    pair.exec(command("true")).await.refused(AgentErrorCode::NoIdentity);
    pair.get("/v1/files").await.refused(AgentErrorCode::NoIdentity);
    pair.get("/v1/logs").await.refused(AgentErrorCode::NoIdentity);
    let _: IdentityAck = pair.post("/v1/identity", &identity("box", GENERATION)).await.json();
    let health: Health = pair.get("/v1/health").await.json();
    assert!(health.ready && health.generation == GENERATION);
    pair.send(Method::GET, "/v1/files", GENERATION - 1, "").await.refused(AgentErrorCode::StaleGeneration);
    pair.post("/v1/identity", &identity("box", GENERATION - 1)).await.refused(AgentErrorCode::StaleGeneration);
}

#[tokio::test]
async fn a_command_answers_with_both_outputs_and_its_code() {
    let pair = Pair::new().await;
    let reply = pair.sh("echo out; echo err >&2; exit 3").await;
    assert_eq!((plain(&reply.stdout), plain(&reply.stderr)), ("out\n".to_owned(), "err\n".to_owned()));
    assert_eq!((reply.exit_code, reply.signal, reply.truncated), (3, None, false));
    let reply = pair.sh("kill -TERM $$").await;
    assert_eq!((reply.exit_code, reply.signal), (143, Some(15)));
    assert_eq!(
        plain(&pair.sh("echo $FROM; pwd").await.stdout),
        format!("identity\n{}\n", pair.folder.path().display())
    );

    let merged = ExecRequest { merge: true, ..command("echo 1; echo 2 >&2; echo 3") };
    let reply: ExecReply = pair.exec(merged).await.json();
    assert_eq!((plain(&reply.stdout), plain(&reply.stderr)), ("1\n2\n3\n".to_owned(), String::new()));

    let stdin = ExecRequest { stdin: Some(STANDARD.encode("x".repeat(300_000))), ..command("wc -c") };
    let reply: ExecReply = pair.exec(stdin).await.json();
    assert_eq!(plain(&reply.stdout).trim(), "300000");
    // A command that leaves its input unread ends all the same.
    let stdin = ExecRequest { stdin: Some(STANDARD.encode("x".repeat(300_000))), ..command("true") };
    let reply: ExecReply = pair.exec(stdin).await.json();
    assert_eq!(reply.exit_code, 0);
    assert_eq!(plain(&pair.sh("cat").await.stdout), "", "no input is an empty one");

    let argv = vec!["printf".to_owned(), "%s|".to_owned(), "a b".to_owned(), "$HOME".to_owned()];
    let reply: ExecReply =
        pair.exec(ExecRequest { argv, cwd: Some("/".to_owned()), ..ExecRequest::default() }).await.json();
    assert_eq!(plain(&reply.stdout), "a b|$HOME|");
}

#[tokio::test]
async fn a_timeout_kills_the_whole_group() {
    let pair = Pair::new().await;
    let pids = pair.folder.path().join("pids");
    let script = format!("sleep 60 & echo $! > {0}; echo $$ >> {0}; wait", pids.display());
    let mut told = String::new();
    // One that is killed before it has told who it is gets more time.
    for seconds in [1, 5, 25] {
        let start = Instant::now();
        let got = pair.exec(ExecRequest { timeout_seconds: Some(seconds), ..command(&script) }).await;
        let message = got.refused(AgentErrorCode::Timeout);
        assert!(message.contains(&format!("{seconds} s")), "{message}");
        assert!(start.elapsed() < Duration::from_secs(50));
        told = fs::read_to_string(&pids).unwrap_or_default();
        if told.lines().count() == 2 {
            break;
        }
    }
    assert_eq!(told.lines().count(), 2, "{told}");
    for pid in told.lines() {
        // Killed, though whoever inherited it may not have collected it yet, and the kernel may still be at it.
        let alive = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        for _ in 0..600 {
            if !alive() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(!alive(), "{pid}");
    }
    let mut events = Vec::new();
    for seconds in [1, 5, 25] {
        let request = ExecRequest { timeout_seconds: Some(seconds), ..command("echo begun; sleep 60") };
        events = pair.stream(request).await;
        if events.len() > 1 {
            break;
        }
    }
    assert!(matches!(&events[0], ExecEvent::Stdout { data } if plain(data) == "begun\n"), "{events:?}");
    assert!(matches!(events[1], ExecEvent::Exit { timed_out: true, exit_code: 137, .. }), "{events:?}");
}

#[tokio::test]
async fn a_background_child_outlives_the_answer_and_may_go_on_writing() {
    let pair = Pair::new().await;
    let start = Instant::now();
    let mark = pair.folder.path().join("mark");
    let script = format!(
        "(for i in $(seq 400); do [ -e go ] && break; sleep 0.1; done; \
            for i in $(seq 2000); do echo 0123456789012345678901234567890123456789; done; echo done > {}) & echo started",
        mark.display()
    );
    let reply = pair.sh(&script).await;
    assert_eq!(plain(&reply.stdout), "started\n");
    assert!(!mark.exists(), "the answer waited for the child: {:?}", start.elapsed());
    fs::write(pair.folder.path().join("go"), b"").unwrap();
    for _ in 0..600 {
        if mark.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the child was stopped by its pipe");
}

#[tokio::test]
async fn output_is_bounded_and_says_so() {
    let pair = Pair::new().await;
    let reply = pair.sh(&format!("head -c {} /dev/zero; echo end >&2", OUTPUT_BYTES_MAX + 5000)).await;
    assert!(reply.truncated);
    assert_eq!(STANDARD.decode(&reply.stdout).unwrap().len(), OUTPUT_BYTES_MAX);
    assert_eq!(plain(&reply.stderr), "end\n");
}

#[tokio::test]
async fn a_stream_tells_events_as_they_come_and_ends_with_exit() {
    let pair = Pair::new().await;
    let events =
        pair.stream(command("echo one; sleep 0.1; echo two >&2; sleep 0.1; head -c 200000 /dev/zero; exit 5")).await;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    for event in &events[..events.len() - 1] {
        match event {
            ExecEvent::Stdout { data } => out.extend(STANDARD.decode(data).unwrap()),
            ExecEvent::Stderr { data } => err.extend(STANDARD.decode(data).unwrap()),
            ExecEvent::Exit { .. } => panic!("an exit before the last line"),
        }
    }
    assert_eq!((out.len(), &err[..]), (200_004, &b"two\n"[..]));
    let exit = ExecEvent::Exit { exit_code: 5, signal: None, timed_out: false, truncated: false };
    assert_eq!(events.last(), Some(&exit));
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_still_killed_in_time() {
    let pair = Pair::new().await;
    let begin = async |seconds: u32| {
        let request = ExecRequest { timeout_seconds: Some(seconds), ..command("echo $$ > pid; exec yes") };
        let request = Request::post("http://guest/v1/exec/stream")
            .header(GENERATION_HEADER, GENERATION)
            .body(Full::new(Bytes::from(serde_json::to_vec(&request).unwrap())))
            .unwrap();
        let response = pair.client.clone().send_request(request).await.unwrap();
        tokio::time::sleep(Duration::from_secs(u64::from(seconds) + 1)).await;
        response
    };
    let told = || fs::read_to_string(pair.folder.path().join("pid")).unwrap_or_default();
    let mut response = begin(1).await;
    if told().is_empty() {
        // It was killed before it had told who it is.
        response = begin(20).await;
    }
    let pid = told();
    assert!(pid.ends_with('\n'), "{pid}");
    let lives = || Path::new("/proc").join(pid.trim()).exists();
    for _ in 0..600 {
        if !lives() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!lives(), "{pid}");
    // What was held back is still there, and ends with the timeout.
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let last = body.trim_ascii_end().rsplit(|&byte| byte == b'\n').next().unwrap();
    assert!(matches!(serde_json::from_slice(last).unwrap(), ExecEvent::Exit { timed_out: true, .. }));
}

#[tokio::test]
async fn too_many_commands_are_refused_and_others_go_on() {
    let pair = Pair::new().await;
    let wait = pair.folder.path().join("wait");
    nix::unistd::mkfifo(&wait, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut all: FuturesUnordered<_> = (0..70).map(|_| pair.exec(command(": < wait"))).collect();
    for _ in 0..6 {
        let got = tokio::time::timeout(Duration::from_secs(30), all.next()).await.unwrap().unwrap();
        assert_eq!(got.status, StatusCode::TOO_MANY_REQUESTS);
    }
    // Now the others go on.
    let _open = fs::File::options().read(true).write(true).open(&wait).unwrap();
    let rest: Vec<Got> = all.collect().await;
    assert!(rest.len() == 64 && rest.iter().all(|got| got.status == StatusCode::OK));
    assert_eq!(pair.sh("exit 0").await.exit_code, 0);
}

#[tokio::test]
async fn programs_run_as_fresh_processes() {
    let pair = Pair::new().await;
    if !Path::new("/usr/bin/python3").exists() {
        // The guest has it; the machine test runs it there.
        return;
    }
    let run = async |code: &str| -> ExecReply {
        let argv = vec!["a".to_owned()];
        let request =
            CodeRunRequest { code: code.to_owned(), language: "python".to_owned(), argv, ..Default::default() };
        pair.post("/v1/code-run", &request).await.json()
    };
    fs::write(pair.folder.path().join("mine.py"), "VALUE = 5").unwrap();
    let reply = run("import sys, mine\nprint(sys.argv[1:], mine.VALUE)\nsys.exit(4)").await;
    assert_eq!((plain(&reply.stdout), reply.exit_code), ("['a'] 5\n".to_owned(), 4));
    let reply = run("x = 1\nraise ValueError('no')").await;
    let traceback = plain(&reply.stderr);
    assert!(traceback.contains("line 2") && traceback.ends_with("ValueError: no\n"), "{traceback}");
    let begun = Instant::now();
    while fs::read_dir(pair.own.path().join("scratch")).unwrap().count() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "a program's file is left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let request = CodeRunRequest { language: "ruby".to_owned(), ..Default::default() };
    pair.post("/v1/code-run", &request).await.refused(AgentErrorCode::BadRequest);
}

#[tokio::test]
async fn files_go_up_and_down_whole() {
    let pair = Pair::new().await;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|index| (index * 7 % 251) as u8).collect();
    let info: FileInfo =
        pair.send(Method::PUT, "/v1/files/content?path=a%2Fb&mode=600", GENERATION, bytes.clone()).await.json();
    assert_eq!((info.size, info.permissions.as_str(), info.name.as_str()), (3_000_000, "0600", "b"));
    assert_eq!(pair.get("/v1/files/content?path=a/b").await.body, bytes);
    let info: FileInfo = pair.get("/v1/files/info?path=a/b").await.json();
    assert_eq!(info.path, pair.folder.path().join("a/b").to_str().unwrap());
    let empty: FileInfo = pair.send(Method::PUT, "/v1/files/content?path=empty", GENERATION, "").await.json();
    assert_eq!(empty.size, 0);
    assert_eq!(pair.get("/v1/files/content?path=empty").await.body, "");
    assert!(!pair.get("/v1/files/content?path=/proc/self/status").await.body.is_empty());

    let made: FileInfo = pair.send(Method::POST, "/v1/files/folder?path=c/d&mode=750", GENERATION, "").await.json();
    assert!(made.is_dir && made.permissions == "0750");
    let list: FileList = pair.get("/v1/files").await.json();
    let names: Vec<&str> = list.entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a", "c", "empty"]);
    pair.send(Method::DELETE, "/v1/files?path=a", GENERATION, "").await.refused(AgentErrorCode::Conflict);
    assert_eq!(pair.send(Method::DELETE, "/v1/files?path=a&recursive=true", GENERATION, "").await.status, 204);
    pair.get("/v1/files/content?path=a/b").await.refused(AgentErrorCode::NotFound);
    pair.get("/v1/files?path=empty").await.refused(AgentErrorCode::Conflict);
    pair.get("/v1/files/content?path=c").await.refused(AgentErrorCode::Conflict);
}

#[tokio::test]
async fn hostile_requests_are_refused_with_sentences() {
    let pair = Pair::new().await;
    for body in ["", "{", "[]", "null", r#"{"command":5}"#, r#"{"timeoutSeconds":-1}"#, "\u{0}\u{1}"] {
        let got = pair.send(Method::POST, "/v1/exec", GENERATION, body).await;
        assert!(!got.refused(AgentErrorCode::BadRequest).is_empty(), "{body}");
    }
    let big = vec![b' '; JSON_BYTES_MAX + 1];
    pair.send(Method::POST, "/v1/exec", GENERATION, big).await.refused(AgentErrorCode::TooLarge);
    pair.get("/v2/exec").await.refused(AgentErrorCode::NotFound);
    pair.get("/v1/exec").await.refused(AgentErrorCode::MethodNotAllowed);
    let request = Request::get("http://guest/v1/logs").body(Full::new(Bytes::new())).unwrap();
    let response = pair.client.clone().send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST, "no generation");
    assert_eq!(pair.sh("exit 0").await.exit_code, 0);
}

#[tokio::test]
async fn a_shutdown_is_answered_first() {
    let pair = Pair::new().await;
    let got = pair.send(Method::POST, "/v1/shutdown", GENERATION, "").await;
    assert_eq!(got.status, StatusCode::NO_CONTENT);
    for _ in 0..3000 {
        if pair.machine.calls.lock().unwrap().iter().any(|call| call.starts_with("power_off")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it stays on");
}
