//! The façades over made-up nodes: what clients send, what they get.

mod support;

use http::StatusCode;
use serde_json::{Value, json};
use support::{OTHER_KEY, World};

/// Without any one of these the stock client refuses a sandbox.
const REQUIRED: [&str; 15] = [
    "id",
    "organizationId",
    "name",
    "user",
    "env",
    "labels",
    "public",
    "networkBlockAll",
    "kvm",
    "target",
    "cpu",
    "gpu",
    "memory",
    "disk",
    "toolboxProxyUrl",
];

#[tokio::test]
async fn a_sandbox_is_created_used_and_deleted_over_the_daytona_wire() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let created = fra
        .call("POST", "/api/sandbox", r#"{"env":{},"labels":{"code-toolbox-language":"python"},"volumes":[]}"#)
        .await;
    assert_eq!(created.status, StatusCode::OK, "{created:?}");
    let sandbox = created.json();
    for field in REQUIRED {
        assert!(!sandbox[field].is_null(), "{field} is missing: {sandbox}");
    }
    assert_eq!(sandbox["state"], "started");
    assert_eq!((&sandbox["cpu"], &sandbox["memory"], &sandbox["disk"]), (&json!(1), &json!(1), &json!(3)));
    assert_eq!(sandbox["toolboxProxyUrl"], "http://127.0.0.1:7080/toolbox");
    let id = created.text("id");
    let run = fra
        .call(
            "POST",
            &format!("/toolbox/{id}/process/code-run"),
            r#"{"code":"print(\"Hello World!\")","language":"python"}"#,
        )
        .await;
    assert_eq!(run.json(), json!({"exitCode": 0, "result": "Hello World!\n", "artifacts": {"charts": []}}));
    let run = fra.call("POST", &format!("/toolbox/{id}/process/execute"), r#"{"command":"fail now"}"#).await;
    assert_eq!(run.json(), json!({"exitCode": 3, "result": "out\nerr\n"}));
    let deleted = fra.call("DELETE", &format!("/api/sandbox/{id}"), "").await;
    assert_eq!((deleted.status, deleted.json()["state"].clone()), (StatusCode::OK, json!("destroyed")));
    assert_eq!(fra.call("GET", &format!("/api/sandbox/{id}"), "").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_command_past_its_timeout_is_408_and_an_unknown_language_400() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let id = fra.create("{}").await;
    let late =
        fra.call("POST", &format!("/toolbox/{id}/process/execute"), r#"{"command":"sleep 9","timeout":1}"#).await;
    assert_eq!(late.status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(late.json()["statusCode"], 408);
    let odd = fra.call("POST", &format!("/toolbox/{id}/process/code-run"), r#"{"code":"","language":"cobol"}"#).await;
    assert_eq!(odd.status, StatusCode::BAD_REQUEST);
    assert!(odd.message().contains("cobol"));
    let v1 = fra.call("POST", &format!("/v1/sandboxes/{id}/exec"), r#"{"command":"sleep 9","timeoutSeconds":1}"#).await;
    assert_eq!(
        v1.json(),
        json!({"exitCode": 124, "stdout": "before\n", "stderr": "", "timedOut": true, "truncated": false})
    );
}

#[tokio::test]
async fn labels_intervals_and_phases_change_as_asked() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let id = fra.create(r#"{"name":"box"}"#).await;
    let labels = fra.call("PUT", "/api/sandbox/box/labels", r#"{"labels":{"a":"b"}}"#).await;
    assert_eq!(labels.json(), json!({"labels": {"a": "b"}}));
    let stop = fra.call("POST", &format!("/api/sandbox/{id}/autostop/15"), "").await;
    assert_eq!(stop.json()["autoStopInterval"], 15);
    let delete = fra.call("POST", &format!("/api/sandbox/{id}/autodelete/0"), "").await;
    assert_eq!((&delete.json()["autoStopInterval"], &delete.json()["autoDeleteInterval"]), (&json!(15), &json!(0)));
    let never = fra.call("POST", &format!("/api/sandbox/{id}/autodelete/-1"), "").await;
    assert_eq!(never.json()["autoDeleteInterval"], -1);
    for (verb, state) in
        [("stop?force=true", "stopped"), ("start", "started"), ("pause", "paused"), ("start", "started")]
    {
        assert_eq!(fra.call("POST", &format!("/api/sandbox/{id}/{verb}"), "").await.json()["state"], state, "{verb}");
    }
    assert_eq!(fra.call("POST", &format!("/api/sandbox/{id}/last-activity"), "").await.status, StatusCode::CREATED);
    fra.call("POST", &format!("/api/sandbox/{id}/stop"), "").await;
    let stopped = fra.call("POST", &format!("/toolbox/{id}/process/execute"), r#"{"command":"echo x"}"#).await;
    assert_eq!(stopped.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_list_is_filtered_sorted_and_paged_without_gaps() {
    let world = World::new(&["fra-1", "iad-1"]);
    let (fra, iad) = (world.at("fra-1"), world.at("iad-1"));
    for number in 0..5 {
        fra.create(&format!(r#"{{"name":"f{number}","labels":{{"n":"{number}"}}}}"#)).await;
        iad.create(&format!(r#"{{"name":"i{number}"}}"#)).await;
    }
    let mut names = Vec::new();
    let mut cursor = String::new();
    loop {
        let page =
            fra.call("GET", &format!("/api/sandbox?limit=3&sort=name&order=asc&cursor={cursor}"), "").await.json();
        names.extend(
            page["items"]
                .as_array()
                .expect("items")
                .iter()
                .map(|item| item["name"].as_str().expect("a name").to_owned()),
        );
        match page["nextCursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(names, ["f0", "f1", "f2", "f3", "f4", "i0", "i1", "i2", "i3", "i4"]);
    let labelled = fra.call("GET", "/api/sandbox?labels=%7B%22n%22%3A%223%22%7D", "").await.json();
    assert_eq!(labelled["items"].as_array().map(Vec::len), Some(1));
    let one = fra.call("GET", "/api/sandbox?regionIds=iad&states=started&states=stopped", "").await.json();
    assert_eq!(one["items"].as_array().map(Vec::len), Some(5));
    let numbered = fra.call("GET", "/api/sandbox/paginated?page=4&limit=3", "").await.json();
    assert_eq!(
        (&numbered["total"], &numbered["totalPages"], numbered["items"].as_array().map(Vec::len)),
        (&json!(10), &json!(4), Some(1))
    );
    for odd in [
        "labels=x",
        "states=asleep",
        "limit=0",
        "limit=201",
        "sort=color",
        "order=up",
        "cursor=zzz",
        "createdAtAfter=monday",
    ] {
        assert_eq!(fra.call("GET", &format!("/api/sandbox?{odd}"), "").await.status, StatusCode::BAD_REQUEST, "{odd}");
    }
}

#[tokio::test]
async fn files_pass_unchanged_in_every_form() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let id = fra.create("{}").await;
    let put = fra.call("PUT", &format!("/v1/sandboxes/{id}/files?path=/a"), "\"bytes\"").await;
    assert_eq!(put.status, StatusCode::OK, "{put:?}");
    assert_eq!(&fra.call("GET", &format!("/v1/sandboxes/{id}/files?path=/a"), "").await.bytes[..], b"\"bytes\"");
    assert_eq!(&fra.call("GET", &format!("/toolbox/{id}/files/download?path=/a"), "").await.bytes[..], b"\"bytes\"");
    let form = "--B\r\nContent-Disposition: form-data; name=\"files[0].path\"\r\n\r\n/b\r\n--B\r\nContent-Disposition: form-data; name=\"files[0].file\"; filename=\"x\"\r\n\r\nhello\r\n--B--\r\n";
    let request = http::Request::post(format!("/toolbox/{id}/files/bulk-upload"))
        .header("authorization", format!("Bearer {}", support::KEY))
        .header("content-type", "multipart/form-data; boundary=B")
        .body(axum::body::Body::from(form))
        .expect("a request");
    let uploaded = fra.send(request).await;
    assert_eq!(uploaded.json(), json!({"files": [{"name": "b", "path": "/b", "type": "file"}]}));
    let bulk = fra.call("POST", &format!("/toolbox/{id}/files/bulk-download"), r#"{"paths":["/b","/ä"]}"#).await;
    let text = String::from_utf8_lossy(&bulk.bytes).into_owned();
    assert!(text.contains("name=\"file\"; filename=\"/b\"") && text.contains("\r\n\r\nhello\r\n--"), "{text}");
    assert!(text.contains("filename*=UTF-8''/%C3%A4") && text.contains("FILE_NOT_FOUND"), "{text}");
    assert_eq!(fra.call("DELETE", &format!("/toolbox/{id}/files?path=/b"), "").await.status, StatusCode::NO_CONTENT);
    let gone = fra.call("GET", &format!("/toolbox/{id}/files/info?path=/b"), "").await;
    assert_eq!((gone.status, gone.message().contains("/b")), (StatusCode::NOT_FOUND, true));
    let found = fra.call("GET", &format!("/toolbox/{id}/files/search?path=.&pattern=*.txt"), "").await;
    assert_eq!(found.json(), json!({"files": ["/a.txt", "/b.txt"]}));
    let found = fra.call("GET", &format!("/toolbox/{id}/files/find?path=.&pattern=hello"), "").await;
    assert_eq!(found.json(), json!([{"file": "/a.txt", "line": 1, "content": "hello"}]));
}

#[tokio::test]
async fn snapshots_are_taken_listed_restored_and_deleted() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let id = fra.create("{}").await;
    let taken = fra.call("POST", &format!("/v1/sandboxes/{id}/snapshots"), r#"{"name":"before"}"#).await;
    assert_eq!(taken.json()["stopMs"], 41.25);
    assert_eq!(taken.json()["replicas"][0]["state"], "complete");
    let again =
        fra.call("POST", &format!("/api/sandbox/{id}/snapshot"), r#"{"name":"before","includeMemory":false}"#).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    let restored = fra.call("POST", "/v1/snapshots/before/restore", r#"{"region":"fra"}"#).await.json();
    assert_ne!(restored["id"], Value::String(id.clone()));
    assert_eq!(restored["id"], restored["sandbox"]);
    assert_eq!(restored["snapshot"], taken.json()["id"]);
    let listed = fra.call("GET", "/api/snapshots", "").await.json();
    assert_eq!((&listed["total"], &listed["items"][0]["general"]), (&json!(2), &json!(true)));
    assert_eq!(fra.call("GET", "/api/snapshots/default", "").await.json()["state"], "active");
    assert_eq!(fra.call("DELETE", "/v1/snapshots/before", "").await.status, StatusCode::OK);
    assert_eq!(fra.call("GET", "/v1/snapshots/before", "").await.status, StatusCode::NOT_FOUND);
    assert_eq!(fra.call("POST", "/v1/snapshots/before/restore", "").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_own_api_answers_exec_keys_regions_and_the_mesh() {
    let world = World::new(&["fra-1", "iad-1"]);
    let fra = world.at("fra-1");
    let id = fra.call("POST", "/v1/sandboxes", "").await.text("id");
    let exec = fra.call("POST", &format!("/v1/sandboxes/{id}/exec"), r#"{"argv":["fail"]}"#).await;
    assert_eq!(
        exec.json(),
        json!({"exitCode": 3, "stdout": "out\n", "stderr": "err\n", "timedOut": false, "truncated": false})
    );
    let request = http::Request::post(format!("/v1/sandboxes/{id}/exec"))
        .header("x-api-key", support::KEY)
        .header("accept", "application/x-ndjson")
        .body(axum::body::Body::from(r#"{"command":"echo hi"}"#))
        .expect("a request");
    let streamed = fra.send(request).await;
    assert_eq!(streamed.headers["content-type"], "application/x-ndjson");
    let lines: Vec<Value> = streamed
        .bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("JSON"))
        .collect();
    assert_eq!(
        (&lines[0]["type"], &lines[0]["data"], &lines[2]["exitCode"]),
        (&json!("stdout"), &json!("aGkK"), &json!(0))
    );
    assert_eq!(&fra.call("GET", &format!("/v1/sandboxes/{id}/logs?tail=5"), "").await.bytes[..], b"booted\n");
    assert_eq!(fra.call("POST", "/v1/keys", r#"{"name":"ci"}"#).await.json()["name"], "ci");
    assert_eq!(fra.call("GET", "/v1/keys", "").await.json()["items"][0]["shown"], "e2b_0123");
    assert_eq!(fra.call("DELETE", "/v1/keys/first", "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(fra.call("DELETE", "/v1/keys/second", "").await.status, StatusCode::NOT_FOUND);
    let regions = fra.call("GET", "/v1/regions", "").await.json();
    assert_eq!(
        (&regions["items"][0]["code"], &regions["items"][0]["home"], &regions["items"][1]["endpoint"]),
        (&json!("fra"), &json!(true), &json!("http://127.0.0.1:7081"))
    );
    let mesh = fra.call("GET", "/v1/mesh", "").await.json();
    let groups: Vec<_> =
        mesh["groups"].as_array().expect("groups").iter().map(|group| group["group"].clone()).collect();
    assert_eq!(groups, [json!("placement-fra"), json!("placement-iad")]);
    assert_eq!(mesh["nodes"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn no_key_reaches_another_organizations_sandbox() {
    let world = World::new(&["fra-1", "iad-1"]);
    let id = world.at("iad-1").create(r#"{"name":"mine"}"#).await;
    for gateway in ["fra-1", "iad-1"] {
        let gateway = world.at(gateway);
        for key in [id.as_str(), "mine"] {
            for (method, path, body) in [
                ("GET", format!("/api/sandbox/{key}"), ""),
                ("DELETE", format!("/api/sandbox/{key}"), ""),
                ("POST", format!("/toolbox/{key}/process/execute"), r#"{"command":"echo x"}"#),
                ("GET", format!("/v1/sandboxes/{key}/files?path=/a"), ""),
                ("POST", format!("/v1/sandboxes/{key}/snapshots"), "{}"),
            ] {
                let answer = gateway.call_as(OTHER_KEY, method, &path, body).await;
                assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}: {answer:?}");
            }
        }
        assert_eq!(gateway.call_as(OTHER_KEY, "GET", "/api/sandbox", "").await.json()["items"], json!([]));
    }
}

#[tokio::test]
async fn paths_of_the_wire_that_are_not_built_say_so() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let id = fra.create("{}").await;
    for (method, path) in [
        ("POST", format!("/api/sandbox/{id}/recover")),
        ("GET", format!("/api/sandbox/{id}/ports/3000/preview-url")),
        ("POST", format!("/api/sandbox/{id}/ssh-access")),
        ("GET", "/api/volumes".into()),
        ("GET", "/api/organizations/x/members".into()),
        ("POST", "/api/snapshots".into()),
        ("POST", format!("/toolbox/{id}/process/session")),
        ("GET", format!("/toolbox/{id}/git/status?path=x")),
        ("POST", format!("/toolbox/{id}/lsp/start")),
        ("GET", format!("/toolbox/{id}/process/pty")),
    ] {
        let answer = fra.call(method, &path, "").await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED, "{method} {path}");
        assert!(answer.message().len() > 20, "{}", answer.message());
    }
    assert_eq!(fra.call("GET", "/api/socket.io/?EIO=4&transport=websocket", "").await.status, StatusCode::NOT_FOUND);
}
