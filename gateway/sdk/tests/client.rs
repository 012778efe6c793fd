//! The client against a small gateway in the test: where it goes, and what it makes of answers.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt as _;
use gateway_sdk::{Client, ClientError, ErrorCode, ExecEvent, ListFilter, v1};
use serde_json::json;

const KEY: &str = "e2b_0123";

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    endpoint
}

/// An endpoint where nobody listens.
async fn nobody() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    format!("http://{}", listener.local_addr().expect("an address"))
}

fn regions() -> Router {
    Router::new().route("/v1/regions", get(|| async { Json(json!({"items": []})) }))
}

#[tokio::test]
async fn a_gateway_that_is_gone_is_passed_over() {
    let endpoints = format!("fra={},iad={}", nobody().await, serve(regions()).await);
    let client = Client::new(&endpoints, KEY).expect("a client");
    assert!(client.regions().await.expect("an answer of the second").items.is_empty());
}

#[tokio::test]
async fn nobody_at_all_is_unreachable() {
    let client = Client::new(&format!("fra={},iad={}", nobody().await, nobody().await), KEY).expect("a client");
    let error = client.regions().await.expect_err("nobody is there");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_request_about_a_sandbox_goes_to_its_region() {
    let answer = |region: &'static str| {
        let body = json!({"error": "x", "message": region, "statusCode": 404});
        Router::new().route("/v1/sandboxes/{id}", get(move || async move { (StatusCode::NOT_FOUND, Json(body)) }))
    };
    let endpoints = format!("fra={},iad={}", serve(answer("fra")).await, serve(answer("iad")).await);
    let client = Client::new(&endpoints, KEY).expect("a client");
    for (sandbox, region) in [("iad0123456789abcdef", "iad"), ("fra0123456789abcdef", "fra"), ("a-name", "fra")] {
        let error = client.sandbox(sandbox).await.expect_err("not found");
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), region, "{sandbox}");
    }
}

#[tokio::test]
async fn the_key_travels_as_a_bearer_and_never_to_where_a_redirect_points() {
    let stolen = Router::new().route("/v1/regions", get(|| async { Json(json!({"items": []})) }));
    let elsewhere = format!("{}/v1/regions", serve(stolen).await);
    let guarded = get(move |headers: HeaderMap| async move {
        assert_eq!(headers["authorization"], format!("Bearer {KEY}"));
        (StatusCode::TEMPORARY_REDIRECT, [("location", elsewhere)]).into_response()
    });
    let client = Client::new(&serve(Router::new().route("/v1/regions", guarded)).await, KEY).expect("a client");
    let error = client.regions().await.expect_err("a redirect is not followed");
    assert!(matches!(&error, ClientError::Api(failure) if failure.body.status_code == 307), "{error:?}");
    assert!(!format!("{client:?}{error:?}").contains(KEY));
}

#[tokio::test]
async fn errors_keep_code_status_and_request_id() {
    let body = json!({"statusCode": 503, "message": "no node of fra has room", "error": "x", "code": "no_capacity"});
    let refusal = move || async move { (StatusCode::SERVICE_UNAVAILABLE, [("x-request-id", "r7")], Json(body)) };
    let router = Router::new().route("/v1/sandboxes", post(refusal));
    let client = Client::new(&serve(router).await, KEY).expect("a client");
    let error = client.create(&v1::CreateSandbox::default()).await.expect_err("no room");
    assert_eq!(error.code(), Some(ErrorCode::NoCapacity));
    let ClientError::Api(failure) = error else { panic!("{error:?}") };
    assert_eq!(failure.body.request_id.as_deref(), Some("r7"));
}

#[tokio::test]
async fn an_answer_that_never_comes_is_a_deadline() {
    let hang = || async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        "late"
    };
    let router = Router::new().route("/v1/regions", get(hang));
    let client = Client::new(&serve(router).await, KEY).expect("a client").with_timeout(Duration::from_millis(200));
    let error = client.regions().await.expect_err("too late");
    assert!(error.is_timeout(), "{error:?}");
}

#[tokio::test]
async fn an_answer_of_another_kind_is_malformed() {
    let router = Router::new().route("/v1/regions", get(|| async { "<html>a proxy's page</html>" }));
    let client = Client::new(&serve(router).await, KEY).expect("a client");
    assert!(matches!(client.regions().await, Err(ClientError::Malformed { .. })));
}

#[tokio::test]
async fn filters_become_query_pairs() {
    let echo = get(|RawQuery(query): RawQuery| async move {
        let body = json!({"items": [], "unreachableRegions": [query.unwrap_or_default()]});
        Json(body)
    });
    let client = Client::new(&serve(Router::new().route("/v1/sandboxes", echo)).await, KEY).expect("a client");
    let labels = BTreeMap::from([("a b".to_owned(), "c&d".to_owned())]);
    let filter = ListFilter { region: Some("fra".into()), labels, state: None };
    let list = client.sandboxes(&filter).await.expect("a list");
    assert_eq!(list.unreachable_regions, ["region=fra&label=a+b%3Dc%26d"]);
}

#[tokio::test]
async fn a_stream_gives_events_and_then_its_end() {
    let lines = "{\"type\":\"stdout\",\"data\":\"aGk=\"}\n\n{\"type\":\"stderr\",\"data\":\"//8=\"}\n{\"type\":\"exit\",\"exitCode\":143,\"signal\":15,\"timedOut\":false,\"truncated\":true}\n";
    let router = Router::new().route("/v1/sandboxes/{id}/exec", post(move || async move { lines }));
    let client = Client::new(&serve(router).await, KEY).expect("a client");
    let ask = v1::Exec { command: Some("x".into()), ..v1::Exec::default() };
    let stream = client.exec_stream("w", &ask).await.expect("a stream");
    let events: Vec<_> = stream.map(|event| event.expect("an event")).collect().await;
    assert_eq!(events[0], ExecEvent::Stdout(Bytes::from_static(b"hi")));
    assert_eq!(events[1], ExecEvent::Stderr(Bytes::from_static(b"\xff\xff")));
    let ExecEvent::Exit(exit) = &events[2] else { panic!("{:?}", events[2]) };
    assert_eq!((exit.exit_code, exit.signal, exit.truncated, events.len()), (143, Some(15), true, 3));
}

#[tokio::test]
async fn a_stream_without_its_end_is_cut_short() {
    let router = Router::new().route("/v1/sandboxes/{id}/exec", post(|| async { "" }));
    let client = Client::new(&serve(router).await, KEY).expect("a client");
    let stream = client.exec_stream("w", &v1::Exec::default()).await.expect("a stream");
    assert!(matches!(stream.collect().await, Err(ClientError::CutShort)));
}

#[tokio::test]
async fn following_a_sandbox_prefers_its_endpoint() {
    let near = serve(regions()).await;
    let client = Client::new(&nobody().await, KEY).expect("a client");
    let sandbox: v1::Sandbox = serde_json::from_value(json!({
        "id": "iad0123456789abcdef", "name": "w", "region": "iad", "node": "iad-1", "state": "started",
        "generation": 1, "createdAt": "2026-01-01T00:00:00Z", "labels": {}, "cpu": 1, "memoryMib": 1024, "diskGib": 3,
        "endpoint": near, "toolboxProxyUrl": "http://x/toolbox", "network": "none",
    }))
    .expect("a sandbox");
    let following = client.following(&sandbox).expect("a client");
    assert_eq!(following.endpoints().first().region.as_deref(), Some("iad"));
    following.regions().await.expect("an answer of its region");
}
