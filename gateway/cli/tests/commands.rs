//! The commands against a small gateway in the test: what they print, and with which code they end.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use clap::Parser;
use gateway_cli::{ClientCommand, GlobalArgs, Streams, run_with};
use serde_json::{Value, json};

#[derive(Parser)]
#[command(name = "atoll")]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: ClientCommand,
}

/// What the small gateway was asked, as `METHOD path body`.
type Asked = Arc<Mutex<Vec<String>>>;

struct Gateway {
    endpoint: String,
    asked: Asked,
}

const KEY: &str = "e2b_0123";

fn sandbox(id: &str) -> Value {
    json!({
        "id": id, "name": "w", "region": "fra", "node": "fra-1", "state": "started", "generation": 1,
        "createdAt": "2026-01-01T00:00:00Z", "labels": {"team": "search"}, "cpu": 1, "memoryMib": 1024, "diskGib": 3,
        "endpoint": "", "toolboxProxyUrl": "http://127.0.0.1:1/toolbox", "network": "none",
    })
}

fn refuse(status: u16, code: &str, message: &str) -> Response {
    let body = json!({"statusCode": status, "message": message, "error": "x", "code": code, "requestId": "r1"});
    (StatusCode::from_u16(status).expect("a status"), Json(body)).into_response()
}

async fn create(State(asked): State<Asked>, headers: HeaderMap, body: String) -> Response {
    if headers.get("authorization").and_then(|value| value.to_str().ok()) != Some(&format!("Bearer {KEY}")) {
        return refuse(401, "unauthorized", "the API key is not known");
    }
    asked.lock().expect("not poisoned").push(format!("POST /sandboxes {body}"));
    let ask: Value = serde_json::from_str(&body).expect("JSON");
    match ask["name"].as_str() {
        Some("taken") => refuse(409, "conflict", "the name 'taken' is in use"),
        Some("slow") => {
            tokio::time::sleep(Duration::from_secs(30)).await;
            Json(sandbox("fra0000000000000001")).into_response()
        }
        _ => Json(sandbox("fra0000000000000001")).into_response(),
    }
}

async fn exec(Path(_): Path<String>, headers: HeaderMap, Json(ask): Json<Value>) -> Response {
    assert_eq!(headers["accept"], "application/x-ndjson");
    let lines = match ask["command"].as_str().unwrap_or_default() {
        "fail" => {
            "{\"type\":\"stdout\",\"data\":\"b3V0Cg==\"}\n{\"type\":\"stderr\",\"data\":\"ZXJyCg==\"}\n{\"type\":\"exit\",\"exitCode\":7,\"signal\":null,\"timedOut\":false,\"truncated\":false}\n"
        }
        "killed" => "{\"type\":\"exit\",\"exitCode\":137,\"signal\":9,\"timedOut\":false,\"truncated\":false}\n",
        "late" => "{\"type\":\"exit\",\"exitCode\":137,\"signal\":9,\"timedOut\":true,\"truncated\":false}\n",
        "cut" => "{\"type\":\"stdout\",\"data\":\"b3V0Cg==\"}\n",
        "odd" => "<html>\n",
        _ => "{\"type\":\"exit\",\"exitCode\":0}",
    };
    // In pieces of three bytes, so that lines and events never end together.
    let pieces: Vec<_> = lines.as_bytes().chunks(3).map(|piece| io::Result::Ok(Bytes::from_static(piece))).collect();
    Body::from_stream(futures::stream::iter(pieces)).into_response()
}

async fn code_run(State(asked): State<Asked>, Json(ask): Json<Value>) -> Response {
    asked.lock().expect("not poisoned").push(format!("code-run {}", ask["language"]));
    match ask["code"].as_str() {
        Some("late") => refuse(408, "command_timeout", "the program passed its timeout of 1 s"),
        Some("hang") => {
            tokio::time::sleep(Duration::from_secs(30)).await;
            StatusCode::OK.into_response()
        }
        _ => Json(
            json!({"exitCode": 3, "stdout": "Hello World!\n", "stderr": "", "timedOut": false, "truncated": false}),
        )
        .into_response(),
    }
}

/// `pause`, `fork`, `network` and the like: notes what was asked, answers a sandbox, or two for a fork.
async fn verb(State(asked): State<Asked>, method: Method, uri: Uri, body: String) -> Response {
    let path = uri.path().trim_start_matches("/v1/sandboxes/");
    asked.lock().expect("not poisoned").push(format!("{method} {path} {body}"));
    let (id, what) = path.split_once('/').expect("a verb");
    match what {
        "fork" => {
            Json(json!({"stopMs": 41.25, "items": [sandbox("fra0000000000000002"), sandbox("fra0000000000000003")]}))
                .into_response()
        }
        "contexts" => Json(context("c1")).into_response(),
        "archive" if id == "running" => refuse(409, "conflict", "it must be stopped for this"),
        _ => Json(sandbox(id)).into_response(),
    }
}

async fn verb_in(State(asked): State<Asked>, method: Method, uri: Uri) -> StatusCode {
    let path = uri.path().trim_start_matches("/v1/sandboxes/");
    asked.lock().expect("not poisoned").push(format!("{method} {path}"));
    StatusCode::NO_CONTENT
}

fn context(id: &str) -> Value {
    json!({"id": id, "language": "python", "cwd": "/root", "createdAt": "2026-01-01T00:00:00Z", "busy": false})
}

async fn contexts() -> Response {
    Json(json!({"items": [context("default"), context("c1")]})).into_response()
}

async fn interpret(Json(ask): Json<Value>) -> Response {
    let (outcome, error) = match ask["code"].as_str().unwrap_or_default() {
        "boom" => ("completed", json!({"name": "ValueError", "value": "boom", "traceback": "Traceback: boom\n"})),
        "late" => ("timed_out", Value::Null),
        "die" => ("died", Value::Null),
        _ => ("completed", Value::Null),
    };
    Json(json!({
        "stdout": "out\n", "stderr": "", "result": "42", "error": error, "outcome": outcome, "executionCount": 1,
        "truncated": false,
    }))
    .into_response()
}

async fn remove(State(asked): State<Asked>, Path(id): Path<String>) -> Response {
    asked.lock().expect("not poisoned").push(format!("DELETE {id}"));
    if id == "nosuch" {
        return refuse(404, "not_found", "there is no sandbox 'nosuch'");
    }
    Json(sandbox(&id)).into_response()
}

#[derive(serde::Deserialize)]
struct FilePath {
    path: String,
}

async fn put_file(State(asked): State<Asked>, Query(query): Query<FilePath>, body: Bytes) -> Response {
    asked.lock().expect("not poisoned").push(format!("PUT {} {} bytes", query.path, body.len()));
    Json(json!({})).into_response()
}

async fn get_file(Query(query): Query<FilePath>) -> Response {
    if query.path == "/none" {
        return refuse(404, "not_found", "there is no file '/none'");
    }
    vec![b'x'; 300_000].into_response()
}

async fn start() -> Gateway {
    let asked = Asked::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let own = endpoint.clone();
    let info = move |Path(id): Path<String>| async move {
        if id == "nosuch" {
            return refuse(404, "not_found", "there is no sandbox 'nosuch'");
        }
        let mut sandbox = sandbox(&id);
        sandbox["endpoint"] = json!(own);
        Json(sandbox).into_response()
    };
    let usage = |Path(id): Path<String>| async move {
        match id.as_str() {
            "nosuch" => refuse(404, "not_found", "there is no sandbox 'nosuch'"),
            "idle" => Json(json!({"id": id, "machine": null})).into_response(),
            _ => Json(json!({"id": id, "machine": {"cpuMs": 1500, "memoryPrivateBytes": 3 << 20, "memoryResidentBytes": 5 << 20,
                "diskReadBytes": 10, "diskWrittenBytes": 2048, "diskReads": 1, "diskWrites": 2}}))
            .into_response(),
        }
    };
    let list = || async { Json(json!({"items": [sandbox("fra0000000000000001")], "unreachableRegions": ["sin"]})) };
    let router = Router::new()
        .route("/v1/sandboxes", post(create).get(list))
        .route("/v1/sandboxes/{id}", get(info).delete(remove))
        .route("/v1/sandboxes/{id}/exec", post(exec))
        .route("/v1/sandboxes/{id}/code-run", post(code_run))
        .route("/v1/sandboxes/{id}/{verb}", post(verb).put(verb))
        .route("/v1/sandboxes/{id}/contexts", post(verb).get(contexts))
        .route("/v1/sandboxes/{id}/contexts/{context}", delete(verb_in))
        .route("/v1/sandboxes/{id}/contexts/{context}/interrupt", post(verb_in))
        .route("/v1/sandboxes/{id}/interpret", post(interpret))
        .route("/v1/sandboxes/{id}/files", get(get_file).put(put_file))
        .route("/v1/sandboxes/{id}/usage", get(usage))
        .route("/v1/sandboxes/{id}/logs", get(|| async { "a line\n" }))
        .with_state(Arc::clone(&asked));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Gateway { endpoint, asked }
}

/// A stream that the test can read afterwards, or that has no reader.
#[derive(Clone, Default)]
struct Captured {
    bytes: Arc<Mutex<Vec<u8>>>,
    broken: bool,
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.bytes.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.bytes.lock().expect("not poisoned").clone()).expect("UTF-8")
    }
}

struct Ended {
    code: u8,
    out: String,
    err: String,
}

impl Ended {
    /// The one object that `--json` printed.
    fn json(&self) -> Value {
        assert_eq!(self.out.lines().count(), 1, "exactly one line: {}", self.out);
        serde_json::from_str(&self.out).expect("one object")
    }
}

async fn atoll_to(out: Captured, gateway: &Gateway, arguments: &[&str]) -> Ended {
    let err = Captured::default();
    let streams = Streams { out: Box::new(out.clone()), err: Box::new(err.clone()), interactive: false };
    let given = ["atoll", "--endpoint", &gateway.endpoint, "--api-key", KEY];
    let cli = Cli::try_parse_from(given.iter().chain(arguments)).expect("a command line");
    let code = run_with(cli.command, cli.global, streams).await;
    Ended { code, out: out.text(), err: err.text() }
}

async fn atoll(gateway: &Gateway, arguments: &[&str]) -> Ended {
    atoll_to(Captured::default(), gateway, arguments).await
}

#[tokio::test]
async fn create_prints_the_id_or_the_whole_object() {
    let gateway = start().await;
    let ended = atoll(&gateway, &["create", "--region", "fra", "--shape", "memory=512", "-l", "a=b"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (0, "fra0000000000000001\n"));
    let asked = gateway.asked.lock().expect("not poisoned").join("\n");
    assert!(asked.contains("\"memoryMib\":512") && !asked.contains("\"cpu\""), "{asked}");
    let object = atoll(&gateway, &["create", "--json"]).await.json();
    for name in [
        "id",
        "name",
        "region",
        "node",
        "state",
        "generation",
        "createdAt",
        "labels",
        "cpu",
        "memoryMib",
        "diskGib",
        "endpoint",
        "toolboxProxyUrl",
    ] {
        assert!(object.get(name).is_some(), "{name} in {object}");
    }
}

#[tokio::test]
async fn an_error_of_the_mesh_is_its_sentence_and_125() {
    let gateway = start().await;
    let ended = atoll(&gateway, &["create", "--name", "taken"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (125, ""));
    assert_eq!(ended.err, "atoll: the name 'taken' is in use\n");
    let ended = atoll(&gateway, &["create", "--name", "taken", "--json"]).await;
    assert_eq!(ended.code, 125);
    assert_eq!(ended.json()["error"]["code"], "conflict");
    assert_eq!(ended.json()["error"]["statusCode"], 409);
}

#[tokio::test]
async fn exec_passes_output_and_codes_on() {
    let gateway = start().await;
    let ended = atoll(&gateway, &["exec", "w", "-c", "fail"]).await;
    assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (7, "out\n", "err\n"));
    for (command, code) in [("true", 0), ("killed", 137), ("late", 124), ("cut", 125), ("odd", 125)] {
        assert_eq!(atoll(&gateway, &["exec", "w", "-c", command]).await.code, code, "{command}");
    }
    let ended = atoll(&gateway, &["exec", "w", "--json", "-c", "fail"]).await;
    let expected = json!({"exitCode": 7, "stdout": "out\n", "stderr": "err\n", "timedOut": false, "truncated": false});
    assert_eq!((ended.code, ended.json()), (7, expected));
}

#[tokio::test]
async fn run_deletes_the_sandbox_that_it_made() {
    let gateway = start().await;
    let ended = atoll(&gateway, &["run", "-c", "print(1)"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (3, "Hello World!\n"));
    let asked = gateway.asked.lock().expect("not poisoned").clone();
    assert_eq!(asked[1..], ["code-run \"python\"".to_owned(), "DELETE fra0000000000000001".to_owned()]);
    assert_eq!(atoll(&gateway, &["run", "--lang", "js", "-c", "late"]).await.code, 124);
    let asked = gateway.asked.lock().expect("not poisoned").clone();
    assert_eq!(asked.last().map(String::as_str), Some("DELETE fra0000000000000001"), "also after a failure");
}

#[tokio::test]
async fn run_in_a_sandbox_that_exists_leaves_it() {
    let gateway = start().await;
    assert_eq!(atoll(&gateway, &["run", "--sandbox", "w", "-c", "print(1)"]).await.code, 3);
    assert_eq!(*gateway.asked.lock().expect("not poisoned"), ["code-run \"python\""]);
}

#[tokio::test]
async fn rm_goes_on_after_a_failure_and_tells_it() {
    let gateway = start().await;
    let ended = atoll(&gateway, &["rm", "a", "nosuch", "b"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (125, "a\nb\n"));
    assert_eq!(ended.err, "atoll: nosuch: there is no sandbox 'nosuch'\n");
    assert_eq!(atoll(&gateway, &["rm", "--force", "nosuch"]).await.code, 0);
    let object = atoll(&gateway, &["rm", "--json", "a", "nosuch"]).await.json();
    assert_eq!((&object["removed"], &object["failed"][0]["id"]), (&json!(["a"]), &json!("nosuch")));
}

#[tokio::test]
async fn usage_is_of_those_named_or_of_all() {
    let gateway = start().await;
    let ended = atoll(&gateway, &["usage"]).await;
    let lines: Vec<Vec<&str>> = ended.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..3], ["ID", "CPU", "PRIVATE"]);
    assert_eq!(lines[1][..5], ["fra0000000000000001", "1.500", "s", "3.0", "MiB"]);
    let object = atoll(&gateway, &["usage", "--json", "idle", "busy"]).await.json();
    assert_eq!(
        (&object["items"][0]["machine"], &object["items"][1]["machine"]["diskWrites"]),
        (&json!(null), &json!(2))
    );
    let ended = atoll(&gateway, &["usage", "busy", "nosuch"]).await;
    assert_eq!((ended.code, ended.err.as_str()), (125, "atoll: there is no sandbox 'nosuch'\n"));
}

#[tokio::test]
async fn ls_names_regions_that_gave_no_answer() {
    let gateway = start().await;
    let ended = atoll(&gateway, &["ls"]).await;
    assert!(ended.out.starts_with("ID "), "{}", ended.out);
    assert!(ended.out.contains("team=search"), "{}", ended.out);
    assert_eq!(ended.err, "atoll: no answer from sin: shown as last known\n");
    assert_eq!(atoll(&gateway, &["ls", "-q"]).await.out, "fra0000000000000001\n");
    assert_eq!(atoll(&gateway, &["ls", "--json"]).await.json()["unreachableRegions"], json!(["sin"]));
}

#[tokio::test]
async fn info_says_that_the_guest_has_no_network() {
    let gateway = start().await;
    let ended = atoll(&gateway, &["info", "w"]).await;
    assert!(ended.out.contains("network") && ended.out.contains("none"), "{}", ended.out);
}

#[tokio::test]
async fn files_go_both_ways() {
    let gateway = start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let local = folder.path().join("data.bin");
    std::fs::write(&local, vec![7; 1_000_000]).expect("a file");
    let local = local.to_str().expect("UTF-8");
    assert_eq!(atoll(&gateway, &["cp", local, "w:/root/"]).await.code, 0);
    assert_eq!(*gateway.asked.lock().expect("not poisoned"), ["PUT /root/data.bin 1000000 bytes"]);
    let ended = atoll(&gateway, &["cp", "--json", "w:/root/x", folder.path().to_str().expect("UTF-8")]).await;
    assert_eq!(ended.json()["bytes"], 300_000);
    assert_eq!(std::fs::read(folder.path().join("x")).expect("the copy").len(), 300_000);
    assert_eq!(atoll(&gateway, &["cp", "w:/root/x", "-"]).await.out.len(), 300_000);
}

#[tokio::test]
async fn a_copy_that_fails_leaves_nothing_and_says_why() {
    let gateway = start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let to = folder.path().to_str().expect("UTF-8");
    let ended = atoll(&gateway, &["cp", "w:/none", to]).await;
    assert_eq!((ended.code, ended.err.as_str()), (125, "atoll: there is no file '/none'\n"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
    assert_eq!(atoll(&gateway, &["cp", to, "w:/root/x"]).await.code, 2, "a folder");
    assert_eq!(atoll(&gateway, &["cp", "/nosuch", "w:/root/x"]).await.code, 125);
    assert_eq!(atoll(&gateway, &["cp", "w:/a", "w:/b"]).await.code, 2);
    assert_eq!(atoll(&gateway, &["cp", "/a", "/b"]).await.code, 2);
    assert!(gateway.asked.lock().expect("not poisoned").is_empty(), "nothing was sent");
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_quietly() {
    let gateway = start().await;
    let broken = Captured { broken: true, ..Captured::default() };
    let ended = atoll_to(broken, &gateway, &["exec", "w", "-c", "fail"]).await;
    assert_eq!((ended.code, ended.err.as_str()), (141, ""));
}

#[tokio::test]
async fn a_wait_that_was_limited_ends_with_124() {
    let gateway = start().await;
    let ended = atoll(&gateway, &["create", "--name", "slow", "--timeout", "1"]).await;
    assert_eq!(ended.code, 124, "{}", ended.err);
    assert!(ended.err.contains("within 1 s"), "{}", ended.err);
}

#[tokio::test]
async fn nobody_there_is_a_sentence() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let gone = Gateway { endpoint, asked: Asked::default() };
    let ended = atoll(&gone, &["ls"]).await;
    assert_eq!(ended.code, 125);
    assert!(ended.err.contains("no gateway can be reached") && ended.err.contains("refused"), "{}", ended.err);
}

#[tokio::test]
async fn the_engines_verbs_send_what_was_typed() {
    let gateway = start().await;
    for (arguments, asked) in [
        (&["pause", "w"][..], "POST w/pause "),
        (&["resume", "w"], "POST w/resume "),
        (&["archive", "w"], "POST w/archive "),
        (&["fork", "w", "-n", "2", "--name", "a"], r#"POST w/fork {"count":2,"names":["a"]}"#),
        (&["resize", "w", "--shape", "disk=9"], r#"POST w/resize {"diskGib":9}"#),
        (&["network", "w", "--no-network"], r#"PUT w/network {"blockAll":true}"#),
        (&["network", "w", "--open"], r#"PUT w/network {"blockAll":false}"#),
        (
            &["network", "w", "--allow", "203.0.113.0/24", "--deny-domain", "*.bad.example"],
            r#"PUT w/network {"blockAll":false,"allow":["203.0.113.0/24"],"denyDomains":["*.bad.example"]}"#,
        ),
        (
            &["intervals", "w", "--auto-pause", "5", "--auto-delete", "-1"],
            r#"PUT w/intervals {"autoPauseMinutes":5,"autoDeleteMinutes":-1}"#,
        ),
        (&["code", "w", "--new"], "POST w/contexts {}"),
        (&["code", "w", "--delete", "c1"], "DELETE w/contexts/c1"),
        (&["code", "w", "--interrupt", "c1"], "POST w/contexts/c1/interrupt"),
    ] {
        let ended = atoll(&gateway, arguments).await;
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.err);
        assert_eq!(gateway.asked.lock().expect("not poisoned").pop().as_deref(), Some(asked));
    }
    let ended = atoll(&gateway, &["fork", "w"]).await;
    assert_eq!(ended.out, "fra0000000000000002\nfra0000000000000003\n");
    assert_eq!(atoll(&gateway, &["fork", "w", "--json"]).await.json()["stopMs"], json!(41.25));
    let ended = atoll(&gateway, &["archive", "running"]).await;
    assert!(ended.code == 125 && ended.err.contains("stopped"), "{} {}", ended.code, ended.err);
    let ended = atoll(&gateway, &["network", "w"]).await;
    assert!(ended.out.contains("none"), "{}", ended.out);
}

#[tokio::test]
async fn a_text_in_an_interpreter_ends_as_it_went() {
    let gateway = start().await;
    let ended = atoll(&gateway, &["code", "w", "-c", "6*7"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (0, "out\n42\n"));
    for (code, exit, says) in [("boom", 1, "Traceback"), ("late", 124, "timeout"), ("die", 125, "state is lost")] {
        let ended = atoll(&gateway, &["code", "w", "-c", code]).await;
        assert!(ended.code == exit && ended.err.contains(says), "{code}: {} {}", ended.code, ended.err);
    }
    assert_eq!(atoll(&gateway, &["code", "w", "-c", "x", "--json"]).await.json()["outcome"], "completed");
    assert!(atoll(&gateway, &["code", "w", "--list"]).await.out.contains("c1"));
}
