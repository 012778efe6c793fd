//! The listener over real sockets: both versions of HTTP, odd bytes, the drain.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway_edge::{EdgeLimits, serve};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{KEY, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A gateway on a port of its own.
struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
    _world: World,
}

fn served(limits: EdgeLimits) -> Served {
    let world = World::with(&["fra-1"], limits, |_| "http://127.0.0.1:1".into());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let (place, stop) = (world.at("fra-1"), CancellationToken::new());
    let view = world.view.subscribe();
    let serving = serve(place.config.clone(), listener, place.node.clone(), place.fabric.clone(), view, stop.clone());
    let task = tokio::spawn(async move { serving.await.expect("a listener") });
    Served { address, stop, task, _world: world }
}

/// Sends raw bytes and reads until the other side closes, or says nothing for a second after it said something.
async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    // A server that has heard enough may close before all is written.
    drop(stream.write_all(bytes).await);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let wait = Duration::from_secs(if answer.is_empty() { 30 } else { 1 });
        let Ok(Ok(count)) = tokio::time::timeout(wait, stream.read(&mut buffer)).await else { break };
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn both_versions_of_http_are_served_on_one_port() {
    let served = served(EdgeLimits::default());
    let answer = raw(served.address, b"GET /api/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-request-id"), "{answer}");
    assert!(answer.contains("content-length") && !answer.contains("chunked"), "{answer}");
    let stream = TcpStream::connect(served.address).await.expect("a connection");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}/api/sandbox", served.address))
        .header("authorization", format!("Bearer {KEY}"))
        .body(Full::new(Bytes::from_static(b"{}")))
        .expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    assert!(serde_json::from_slice::<serde_json::Value>(&body).expect("JSON")["id"].is_string());
}

#[tokio::test]
async fn a_large_body_is_answered_413_over_a_real_socket() {
    let served = served(EdgeLimits::default());
    let mut request = format!("POST /api/sandbox HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 3000000\r\nconnection: close\r\n\r\n").into_bytes();
    request.resize(request.len() + 3_000_000, b' ');
    let answer = raw(served.address, &request).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("\"statusCode\":413"), "{answer}");
    let asks = format!(
        "POST /api/sandbox HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 3000000\r\nexpect: 100-continue\r\n\r\n"
    );
    let answer = raw(served.address, asks.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn bytes_that_are_no_http_end_their_connection_and_nothing_else() {
    let served = served(EdgeLimits { headers_within: Duration::from_millis(300), ..EdgeLimits::default() });
    for odd in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nrubbish that is no frame",
    ] {
        raw(served.address, odd).await;
    }
    for (odd, status) in [
        ("GET /a b HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), 400),
        ("GET /api/health HTTP/1.1\r\nno header\r\n\r\n".to_owned(), 400),
        ("POST /api/sandbox HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n{}".to_owned(), 400),
        (format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(70_000)), 414),
        (format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(2000)), 431),
    ] {
        let answer = raw(served.address, odd.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains("x-request-id"), "{answer}");
        assert!(answer.contains(&format!("\"statusCode\":{status}")) && answer.contains("\"message\":\""), "{answer}");
    }
    let huge = format!("GET /api/health HTTP/1.1\r\nhost: x\r\nx-much: {}\r\n\r\n", "y".repeat(100 << 10));
    let answer = raw(served.address, huge.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("headers hold"), "{answer}");
    let answer = raw(served.address, b"GET /api/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_connection_that_says_nothing_or_half_is_closed() {
    let served = served(EdgeLimits { headers_within: Duration::from_millis(200), ..EdgeLimits::default() });
    for half in [&b""[..], b"P", b"GET /api/hea", b"PRI * HTTP/2.0\r\n"] {
        let mut stream = TcpStream::connect(served.address).await.expect("a connection");
        stream.write_all(half).await.expect("written");
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{half:?} holds a connection open");
    }
}

#[tokio::test]
async fn a_connection_that_has_sent_a_request_outlives_the_limit_for_the_first() {
    let served = served(EdgeLimits { headers_within: Duration::from_millis(200), ..EdgeLimits::default() });
    let mut stream = TcpStream::connect(served.address).await.expect("a connection");
    let mut buffer = [0; 4096];
    for _ in 0..3 {
        stream.write_all(b"GET /api/health HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
        let count = stream.read(&mut buffer).await.expect("an answer");
        assert!(buffer[..count].starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&buffer[..count]));
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[tokio::test]
async fn a_stop_drains_in_a_bounded_time() {
    let served = served(EdgeLimits { drain: Duration::from_millis(500), ..EdgeLimits::default() });
    let mut idle = TcpStream::connect(served.address).await.expect("a connection");
    idle.write_all(b"GET /api/health HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    let mut buffer = [0; 4096];
    assert!(idle.read(&mut buffer).await.expect("an answer") > 0);
    let mut half = TcpStream::connect(served.address).await.expect("a connection");
    let begun =
        format!("POST /api/sandbox HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: 10\r\n\r\n{{");
    half.write_all(begun.as_bytes()).await.expect("written");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let began = Instant::now();
    served.stop.cancel();
    served.task.await.expect("no panic");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(TcpStream::connect(served.address).await.is_err(), "the port is free again");
    assert_eq!(idle.read(&mut buffer).await.expect("closed"), 0);
}
