//! Stateful interpreters: contexts over HTTP, executions as JSON, as lines and over WebSocket.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gateway_edge::{EdgeLimits, serve};
use http::StatusCode;
use serde_json::{Value, json};
use support::node::FakeNode;
use support::{KEY, OTHER_KEY, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long anything may take that isn't awaited for a reason.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn contexts_are_made_listed_and_deleted_on_both_facades() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let id = fra.create("{}").await;
    let toolbox = format!("/toolbox/{id}/process/interpreter/context");
    let made = fra.call("POST", &toolbox, r#"{"cwd":"/tmp","language":null}"#).await.json();
    assert_eq!(
        made,
        json!({"id":"c1","cwd":"/tmp","language":"python","active":true,"createdAt":"2026-11-18T11:06:40Z"})
    );
    let listed = fra.call("GET", &toolbox, "").await.json();
    assert_eq!(listed["contexts"].as_array().map(Vec::len), Some(1), "the default one is not the client's: {listed}");
    assert_eq!(fra.call("DELETE", &format!("{toolbox}/c1"), "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(fra.call("DELETE", &format!("{toolbox}/default"), "").await.status, StatusCode::BAD_REQUEST);
    let v1 = format!("/v1/sandboxes/{id}/contexts");
    assert_eq!(fra.call("GET", &v1, "").await.json()["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(fra.call("POST", &format!("{v1}/c1/interrupt"), "").await.status, StatusCode::NO_CONTENT);
    for odd in ["..%2Fexec", "a%20b", "%3Fx"] {
        assert_eq!(fra.call("DELETE", &format!("{v1}/{odd}"), "").await.status, StatusCode::NOT_FOUND, "{odd}");
    }
    assert_eq!(fra.call_as(OTHER_KEY, "GET", &v1, "").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_execution_is_one_object_or_lines() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let v1 = format!("/v1/sandboxes/{}/interpret", fra.create("{}").await);
    let told = fra.call("POST", &v1, r#"{"code":"x","context":"c1"}"#).await.json();
    let expected = json!({
        "stdout": "x\n", "stderr": "", "result": "7", "outcome": "completed", "executionCount": 3, "truncated": false
    });
    assert_eq!(told, expected);
    let told = fra.call("POST", &v1, r#"{"code":"boom"}"#).await.json();
    assert_eq!(told["error"], json!({"name":"ValueError","value":"boom","traceback":"Traceback: boom\n"}));
    assert_eq!(fra.call("POST", &v1, r#"{"code":"sleep","timeoutSeconds":1}"#).await.json()["outcome"], "timed_out");
    assert_eq!(fra.call("POST", &v1, r#"{"code":"cut"}"#).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(fra.call("POST", &v1, r#"{"code":"x","context":"c9"}"#).await.status, StatusCode::NOT_FOUND);
    let request = http::Request::post(&v1)
        .header("authorization", format!("Bearer {KEY}"))
        .header("accept", "application/x-ndjson")
        .body(axum::body::Body::from(r#"{"code":"x"}"#))
        .expect("a request");
    let lines = fra.send(request).await;
    assert_eq!(lines.headers["content-type"], "application/x-ndjson");
    let lines = String::from_utf8(lines.bytes.to_vec()).expect("text");
    let kinds: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(
        kinds.iter().map(|line| line["type"].as_str()).collect::<Vec<_>>(),
        [Some("stdout"), Some("result"), Some("end")]
    );
}

/// A gateway on a port of its own, with one sandbox.
struct Served {
    address: SocketAddr,
    sandbox: String,
    node: Arc<FakeNode>,
    stop: CancellationToken,
    _world: World,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn served() -> Served {
    let world = World::with(&["fra-1"], EdgeLimits::default(), |_| "http://127.0.0.1:1".into());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let (place, stop) = (world.at("fra-1"), CancellationToken::new());
    let (sandbox, node) = (place.create("{}").await, place.node.clone());
    let view = world.view.subscribe();
    let serving = serve(place.config.clone(), listener, node.clone(), place.fabric.clone(), view, stop.clone());
    tokio::spawn(async move { serving.await.expect("a listener") });
    Served { address, sandbox, node, stop, _world: world }
}

/// As much of a WebSocket client as these tests need (RFC 6455): short frames, masked with zeros.
struct Socket(TcpStream);

impl Socket {
    /// Opens a socket, or answers the refusal.
    async fn open(served: &Served, sandbox: &str, key: &str) -> Result<Self, String> {
        let mut stream = TcpStream::connect(served.address).await.expect("a connection");
        let head = format!(
            "GET /toolbox/{sandbox}/process/interpreter/execute HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
             connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(timeout(SOON, stream.read_u8()).await.expect("an answer").expect("a byte"));
        }
        let answer = String::from_utf8(answer).expect("text");
        if answer.starts_with("HTTP/1.1 101") { Ok(Self(stream)) } else { Err(answer) }
    }

    async fn frame(&mut self, opcode: u8, payload: &[u8]) {
        let length = u16::try_from(payload.len()).expect("short");
        let mut frame = vec![0x80 | opcode, 0x80 | 126];
        frame.extend(length.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(payload);
        self.0.write_all(&frame).await.expect("written");
    }

    async fn next(&mut self) -> (u8, Vec<u8>) {
        let read = async {
            let opcode = self.0.read_u8().await? & 0x0f;
            let length = match self.0.read_u8().await? {
                126 => self.0.read_u16().await?.into(),
                length => usize::from(length),
            };
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).await?;
            Ok::<_, std::io::Error>((opcode, payload))
        };
        timeout(SOON, read).await.expect("a frame in time").expect("a frame")
    }

    /// Sends what is to run and reads until the close: the frames, the code and the reason.
    async fn run(mut self, request: &str) -> (Vec<Value>, u16, String) {
        self.frame(1, request.as_bytes()).await;
        let mut frames = Vec::new();
        loop {
            match self.next().await {
                (1, payload) => frames.push(serde_json::from_slice(&payload).expect("JSON")),
                (8, payload) => {
                    let (code, reason) = payload.split_first_chunk::<2>().expect("a code");
                    return (frames, u16::from_be_bytes(*code), String::from_utf8_lossy(reason).into_owned());
                }
                (other, _) => panic!("a frame of kind {other}"),
            }
        }
    }
}

#[tokio::test]
async fn an_execution_over_websocket_streams_and_closes_as_it_ended() {
    let served = served().await;
    let open = async || Socket::open(&served, &served.sandbox, KEY).await.expect("a socket");
    let (frames, code, _) = open().await.run(r#"{"code":"x"}"#).await;
    assert_eq!(frames, [json!({"type":"stdout","text":"x\n"}), json!({"type":"control","text":"completed"})]);
    assert_eq!(code, 1000);
    let (frames, code, _) = open().await.run(r#"{"code":"boom"}"#).await;
    let error = json!({"type":"error","name":"ValueError","value":"boom","traceback":"Traceback: boom\n"});
    assert_eq!((&frames[0], code), (&error, 1000));
    assert_eq!(open().await.run(r#"{"code":"sleep","timeout":1}"#).await.1, 4008);
    let (_, code, reason) = open().await.run(r#"{"code":"die"}"#).await;
    assert!(code == 1011 && reason.contains("state is lost"), "{code} {reason}");
    let (_, code, reason) = open().await.run(r#"{"code":"cut"}"#).await;
    assert!(code == 1011 && reason.contains("without its end"), "{code} {reason}");
    let (_, code, reason) = open().await.run(r#"{"code":"x","contextId":"c9"}"#).await;
    assert!(code == 1008 && reason.contains("no such context"), "{code} {reason}");
}

#[tokio::test]
async fn what_no_client_should_send_over_websocket_closes_it_with_a_reason() {
    let served = served().await;
    for (request, code) in [("{", 1007), ("{}", 1007), ("[1]", 1007), (r#"{"code":1}"#, 1007), ("", 1007)] {
        let socket = Socket::open(&served, &served.sandbox, KEY).await.expect("a socket");
        let (frames, closed, reason) = socket.run(request).await;
        assert_eq!((frames.len(), closed), (0, code), "{request}: {reason}");
    }
    for request in [r#"{"code":"x","timeout":-1}"#, r#"{"code":"x","envs":{"A=":""}}"#] {
        let socket = Socket::open(&served, &served.sandbox, KEY).await.expect("a socket");
        assert_eq!(socket.run(request).await.1, 1008, "{request}");
    }
    // A frame that says it is larger than any body may be ends the connection, and is not waited for.
    let mut socket = Socket::open(&served, &served.sandbox, KEY).await.expect("a socket");
    socket.0.write_all(&[0x81, 0xff, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]).await.expect("written");
    let mut rest = Vec::new();
    timeout(SOON, socket.0.read_to_end(&mut rest)).await.expect("an end").unwrap_or_default();
}

#[tokio::test]
async fn who_may_not_and_what_is_not_there_is_refused_before_the_upgrade() {
    let served = served().await;
    let refused = |sandbox: &'static str, key: &'static str| {
        let served = &served;
        async move { Socket::open(served, sandbox, key).await.err().expect("refused") }
    };
    assert!(refused("nope", KEY).await.starts_with("HTTP/1.1 404"));
    assert!(refused("nope", "e2b_no").await.starts_with("HTTP/1.1 401"));
    let other = Socket::open(&served, &served.sandbox, OTHER_KEY).await.err().expect("refused");
    assert!(other.starts_with("HTTP/1.1 404"), "{other}");
}

#[tokio::test]
async fn a_client_that_goes_away_has_its_execution_interrupted() {
    let served = served().await;
    let mut socket = Socket::open(&served, &served.sandbox, KEY).await.expect("a socket");
    socket.frame(1, br#"{"code":"hang"}"#).await;
    assert_eq!(socket.next().await.0, 1, "its first output");
    drop(socket);
    let interrupted = async {
        while served.node.agent.interrupts.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, interrupted).await.expect("interrupted");
}
