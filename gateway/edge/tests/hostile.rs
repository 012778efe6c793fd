//! What no client should send: nothing of it may panic, hang, or be answered as a fault of ours.

mod support;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use gateway_edge::EdgeLimits;
use http::{Request, StatusCode};
use proptest::prelude::*;
use support::{Answer, KEY, Place, World};

/// Holds an answer against what every answer must be.
fn check(answer: &Answer, what: &str) {
    assert!(answer.headers.contains_key("x-request-id"), "{what}: no request id");
    if answer.status.is_client_error() || answer.status.is_server_error() {
        let body = answer.json();
        assert_eq!(body["statusCode"], answer.status.as_u16(), "{what}");
        assert!(body["message"].as_str().is_some_and(|message| message.len() > 5), "{what}: {body}");
        assert!(
            body["error"].is_string() && body["path"].is_string() && body["timestamp"].is_string(),
            "{what}: {body}"
        );
        assert_eq!(body["requestId"].as_str(), answer.headers["x-request-id"].to_str().ok(), "{what}");
    }
    let fine = [StatusCode::NOT_IMPLEMENTED, StatusCode::SERVICE_UNAVAILABLE];
    assert!(!answer.status.is_server_error() || fine.contains(&answer.status), "{what}: {answer:?}");
}

#[tokio::test]
async fn errors_say_what_was_wrong() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let id = fra.create("{}").await;
    for (method, path, body, status, says) in [
        ("POST", "/api/sandbox", "{", 400, "line 1 column 1"),
        ("POST", "/api/sandbox", r#"{"cpu":"two"}"#, 400, "field 'cpu'"),
        ("POST", "/api/sandbox", r#"{"cpu":-1}"#, 400, "cpu -1 is not possible"),
        ("POST", "/api/sandbox", r#"{"memory":100000}"#, 400, "memory 100000 is not possible"),
        ("POST", "/api/sandbox", r#"{"labels":{"a":"1","a":"2"}}"#, 400, "there twice"),
        ("POST", "/api/sandbox", r#"{"env":{"A":"\u0000"}}"#, 400, "NUL"),
        ("POST", "/api/sandbox", r#"{"networkAllowList":"10.0.0.300"}"#, 400, "'10.0.0.300' is no network"),
        ("POST", "/api/sandbox", r#"{"domainAllowList":"http://a.com"}"#, 400, "is no domain name"),
        ("POST", "/api/sandbox", r#"{"ttlMinutes":-5}"#, 400, "time to live of -5 minutes"),
        ("POST", "/v1/sandboxes", r#"{"network":{"allows":[]}}"#, 400, "unknown field"),
        ("POST", "/v1/sandboxes/nope/fork", r#"{"count":17}"#, 400, "1 to 16"),
        ("POST", "/v1/sandboxes/nope/fork", r#"{"count":0}"#, 400, "1 to 16"),
        ("POST", "/v1/sandboxes/nope/fork", r#"{"count":1,"names":["a","b"]}"#, 400, "2 names are given"),
        ("POST", "/v1/sandboxes/nope/fork", "{}", 404, "no sandbox"),
        ("PUT", "/v1/sandboxes/nope/public", r#""maybe""#, 400, "boolean"),
        ("POST", "/api/sandbox", r#"{"target":"mars"}"#, 400, "unknown region"),
        ("POST", "/api/sandbox", r#"{"snapshot":"nope"}"#, 404, "no snapshot"),
        ("POST", "/api/sandbox", "", 400, "empty"),
        ("GET", "/api/sandbox/nope", "", 404, "no sandbox 'nope'"),
        ("GET", "/api/sandbox/fra0000000000000000", "", 404, "no sandbox"),
        ("GET", "/api/sandbox/%ff", "", 400, "UTF-8"),
        ("GET", "/api/sandbox/%00", "", 400, "NUL"),
        ("GET", "/api/sandbox/..%2F..%2Fetc", "", 404, "no sandbox"),
        ("GET", "/api/sandbox?limit=many", "", 400, "whole number"),
        ("GET", "/api/sandbox?limit=%f", "", 400, "hexadecimal"),
        ("GET", "/v1/sandboxes?stat=started", "", 400, "unknown query parameter 'stat'"),
        ("GET", "/nowhere", "", 404, "no such path"),
        ("PATCH", "/api/sandbox", "", 405, "takes no PATCH"),
        ("DELETE", "/api/config", "", 405, "takes no DELETE"),
        ("POST", "/v1/keys", r#"{"name":"a b"}"#, 400, "is not a name"),
        ("POST", "/v1/keys", r#"{"nam":"a"}"#, 400, "unknown field"),
    ] {
        let answer = fra.call(method, path, body).await;
        check(&answer, path);
        assert_eq!(answer.status.as_u16(), status, "{method} {path} {body}: {answer:?}");
        assert!(answer.message().contains(says), "{method} {path} {body}: {}", answer.message());
    }
    assert_eq!(fra.call("PATCH", "/api/sandbox", "").await.headers["allow"], "POST,GET,HEAD");
    for (path, body, says) in [
        ("process/execute", r#"{"command":"x","timeout":-1}"#, "timeout of -1"),
        ("process/execute", r#"{"command":""}"#, "empty"),
        ("process/execute", r#"{}"#, "missing field `command`"),
        ("process/interpreter/context", r#"{"cwd":1}"#, "field 'cwd'"),
        ("files/folder?path=/x&mode=rwx", "", "octal"),
        ("files/folder?mode=755", "", "'path' is missing"),
        ("files/bulk-download", r#"{"paths":[]}"#, "1 to 1000"),
        ("files/bulk-upload", "", "multipart/form-data"),
    ] {
        let answer = fra.call("POST", &format!("/toolbox/{id}/{path}"), body).await;
        check(&answer, path);
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {body}: {answer:?}");
        assert!(answer.message().contains(says), "{path} {body}: {}", answer.message());
    }
}

#[tokio::test]
async fn a_missing_key_is_told_from_an_unknown_one() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    for path in ["/api/sandbox", "/v1/mesh", "/toolbox/x/process/execute", "/api/volumes"] {
        let bare = fra.send(Request::get(path).body(Body::empty()).expect("a request")).await;
        check(&bare, path);
        assert!(bare.status == StatusCode::UNAUTHORIZED || bare.status == StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let unknown = fra.call_as("nope", "GET", path, "").await;
        assert!(unknown.message().contains("unknown") || unknown.status == StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
    let bare = fra.send(Request::get("/api/sandbox").body(Body::empty()).expect("a request")).await;
    assert!(bare.message().contains("missing"), "{}", bare.message());
    for path in ["/health", "/api/health", "/api/config"] {
        let open = fra.send(Request::get(path).body(Body::empty()).expect("a request")).await;
        assert_eq!(open.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_body_over_its_limit_is_drained_and_refused() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    for announced in [true, false] {
        let chunk = Bytes::from(vec![b' '; 256 << 10]);
        let chunks = 12;
        let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        let body = Body::from_stream(stream::iter(0..chunks).map(move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, std::io::Error>(chunk.clone())
        }));
        let mut request = Request::post("/api/sandbox").header("authorization", format!("Bearer {KEY}"));
        if announced {
            request = request.header("content-length", chunks * (256 << 10));
        }
        let answer = fra.send(request.body(body).expect("a request")).await;
        check(&answer, "a large body");
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(sent.load(std::sync::atomic::Ordering::Relaxed), chunks, "what the client sends is read");
    }
}

use futures::StreamExt as _;

#[tokio::test]
async fn a_body_that_never_comes_is_not_awaited_for_ever() {
    let short = Duration::from_millis(100);
    let limits = EdgeLimits { body_within: short, drained_for: short, ..EdgeLimits::default() };
    let world = World::with(&["fra-1"], limits, |_| "http://127.0.0.1:7080".into());
    let fra = world.at("fra-1");
    let hang = || Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let slow = Request::post("/api/sandbox").header("authorization", format!("Bearer {KEY}")).body(hang());
    assert_eq!(fra.send(slow.expect("a request")).await.status, StatusCode::BAD_REQUEST);
    let keyless = Request::put("/v1/sandboxes/x/files?path=/a").body(hang());
    assert_eq!(fra.send(keyless.expect("a request")).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_upload_over_its_limit_or_cut_short_leaves_no_file() {
    let limits = EdgeLimits { upload_bytes: 1000, ..EdgeLimits::default() };
    let world = World::with(&["fra-1", "iad-1"], limits, |index| format!("http://127.0.0.1:{}", 7080 + index));
    let fra = world.at("fra-1");
    for target in ["fra", "iad"] {
        let id = fra.create(&format!(r#"{{"target":"{target}"}}"#)).await;
        let path = format!("/v1/sandboxes/{id}/files?path=/a");
        let large = fra.call("PUT", &path, &"x".repeat(1001)).await;
        check(&large, "an upload");
        assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE, "{target}: {large:?}");
        let chunks = [Ok(Bytes::from("half")), Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))];
        let cut = Request::put(&path).header("x-api-key", KEY).body(Body::from_stream(stream::iter(chunks)));
        let cut = fra.send(cut.expect("a request")).await;
        assert_eq!(cut.status, StatusCode::BAD_REQUEST, "{target}: {cut:?}");
        assert_eq!(fra.call("GET", &path, "").await.status, StatusCode::NOT_FOUND, "{target}");
    }
}

#[tokio::test]
async fn one_request_too_many_is_told_to_wait() {
    let limits = EdgeLimits { requests: 1, ..EdgeLimits::default() };
    let world = World::with(&["fra-1"], limits, |_| "http://127.0.0.1:7080".into());
    let fra = world.at("fra-1");
    let hang = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let slow = fra.send(Request::post("/api/sandbox").body(hang).expect("a request"));
    tokio::pin!(slow);
    assert!(tokio::time::timeout(Duration::from_millis(50), slow.as_mut()).await.is_err(), "the first one waits");
    let second = fra.call("GET", "/api/sandbox", "").await;
    check(&second, "the second");
    assert_eq!(second.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn headers_are_limited_and_a_sane_request_id_kept() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let huge = Request::get("/api/config").header("x-much", "y".repeat(40 << 10)).body(Body::empty());
    let answer = fra.send(huge.expect("a request")).await;
    check(&answer, "huge headers");
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let named = Request::get("/nowhere").header("x-request-id", "mine-1").body(Body::empty()).expect("a request");
    let answer = fra.send(named).await;
    assert_eq!(
        (answer.headers["x-request-id"].as_bytes(), answer.text("requestId")),
        (&b"mine-1"[..], "mine-1".into())
    );
}

/// Paths that exist, for the storm below; `{}` is a sandbox.
const PATHS: [&str; 59] = [
    "/api/sandbox",
    "/api/sandbox/{}",
    "/api/sandbox/{}/start",
    "/api/sandbox/{}/stop",
    "/api/sandbox/{}/pause",
    "/api/sandbox/{}/autostop/5",
    "/api/sandbox/{}/autodelete/-1",
    "/api/sandbox/{}/labels",
    "/api/sandbox/paginated",
    "/api/sandbox/{}/snapshot",
    "/api/sandbox/{}/network-settings",
    "/api/sandbox/{}/fork",
    "/api/sandbox/{}/forks",
    "/api/sandbox/{}/parent",
    "/api/sandbox/{}/ancestors",
    "/api/sandbox/{}/resize",
    "/api/sandbox/{}/archive",
    "/api/sandbox/{}/autopause/5",
    "/api/sandbox/{}/ttl/-1",
    "/api/sandbox/{}/public/maybe",
    "/toolbox/{}/process/interpreter/context",
    "/toolbox/{}/process/interpreter/context/c1",
    "/toolbox/{}/process/interpreter/execute",
    "/v1/sandboxes/{}/fork",
    "/v1/sandboxes/{}/resize",
    "/v1/sandboxes/{}/network",
    "/v1/sandboxes/{}/intervals",
    "/v1/sandboxes/{}/public",
    "/v1/sandboxes/{}/contexts",
    "/v1/sandboxes/{}/contexts/..%2Fx",
    "/v1/sandboxes/{}/interpret",
    "/api/snapshots",
    "/api/snapshots/default",
    "/api/regions",
    "/api/config",
    "/api/health",
    "/api/volumes",
    "/toolbox/{}/process/execute",
    "/toolbox/{}/process/code-run",
    "/toolbox/{}/files",
    "/toolbox/{}/files/info",
    "/toolbox/{}/files/folder",
    "/toolbox/{}/files/upload",
    "/toolbox/{}/files/bulk-upload",
    "/toolbox/{}/files/download",
    "/toolbox/{}/files/bulk-download",
    "/toolbox/{}/files/replace",
    "/toolbox/{}/files/permissions",
    "/toolbox/{}/process/session",
    "/v1/sandboxes",
    "/v1/sandboxes/{}/exec",
    "/v1/sandboxes/{}/code-run",
    "/v1/sandboxes/{}/files",
    "/v1/sandboxes/{}/snapshots",
    "/v1/snapshots/x/restore",
    "/v1/keys",
    "/v1/keys/first",
    "/v1/mesh",
    "/v1/regions",
];
const METHODS: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"];
const FIELDS: [&str; 38] = [
    "name",
    "snapshot",
    "target",
    "cpu",
    "memory",
    "disk",
    "gpu",
    "labels",
    "env",
    "envs",
    "command",
    "code",
    "language",
    "timeout",
    "argv",
    "stdin",
    "paths",
    "files",
    "pattern",
    "newValue",
    "autoStopInterval",
    "autoDeleteInterval",
    "volumes",
    "buildInfo",
    "region",
    "memoryMib",
    "timeoutSeconds",
    "user",
    "networkAllowList",
    "domainAllowList",
    "network",
    "allow",
    "allowDomains",
    "blockAll",
    "autoPauseInterval",
    "ttlMinutes",
    "count",
    "names",
];

/// JSON that is nearly what a path takes.
fn odd_json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        any::<f64>().prop_map(|value| format!("{value:e}")),
        ".{0,12}".prop_map(|text| serde_json::Value::String(text).to_string()),
        Just("\"default\"".to_owned()),
    ];
    let value = leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            proptest::collection::vec((proptest::sample::select(&FIELDS[..]), inner), 0..4).prop_map(object),
        ]
    });
    proptest::collection::vec((proptest::sample::select(&FIELDS[..]), value), 0..5).prop_map(object)
}

fn object(fields: Vec<(&'static str, String)>) -> String {
    let fields: Vec<_> = fields.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        odd_json().prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..200),
        Just(b"--B\r\nContent-Disposition: form-data; name=\"files[0].file\"\r\n\r\nx\r\n--B--\r\n".to_vec()),
        Just(b"--B\r\nContent-Disposition: form-data; name=\"files[0].path\"\r\n\r\n/a\r\n--B".to_vec()),
    ]
}

async fn storm(place: &Place, method: &str, path: &str, kind: &str, body: Vec<u8>) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", kind)
        .body(Body::from(body.clone()));
    let Ok(request) = request else { return };
    let what = format!("{method} {path} {kind} {:?}", String::from_utf8_lossy(&body));
    let answer = tokio::time::timeout(Duration::from_secs(20), place.send(request)).await.expect("a hang");
    check_unless_head(method, &answer, &what);
}

fn check_unless_head(method: &str, answer: &Answer, what: &str) {
    if method != "HEAD" {
        check(answer, what);
    }
    assert!(!answer.status.is_server_error() || answer.status == 501 || answer.status == 503, "{what}: {answer:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_request_is_answered_as_a_fault_of_ours(
        method in proptest::sample::select(&METHODS[..]),
        path in proptest::sample::select(&PATHS[..]),
        key in prop_oneof![Just("box".to_owned()), "[a-z0-9%/.-]{0,24}", Just("fra0000000000000000".to_owned())],
        query in prop_oneof![Just(String::new()), "[a-z=&%0-9+]{0,30}", Just("path=/a".to_owned()), Just("path=/a&mode=644".to_owned())],
        kind in proptest::sample::select(&["application/json", "text/plain", "multipart/form-data; boundary=B", "multipart/form-data", ""][..]),
        body in body(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let world = World::new(&["fra-1", "iad-1"]);
            world.at("iad-1").create(r#"{"name":"box"}"#).await;
            let path = format!("{}?{query}", path.replace("{}", &key));
            storm(world.at("fra-1"), method, &path, kind, body).await;
        });
    }
}
