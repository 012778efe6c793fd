//! Several gateways over the in-memory fabric: any serves any sandbox, and says what it can't reach.

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fabric_api::node::NodeRequest;
use http::StatusCode;
use serde_json::json;
use support::World;

/// A command on the toolbox and what it must print.
async fn echo(world: &World, gateway: &str, key: &str) -> support::Answer {
    let path = format!("/toolbox/{key}/process/execute");
    world.at(gateway).call("POST", &path, r#"{"command":"echo hi"}"#).await
}

#[tokio::test]
async fn any_gateway_serves_any_sandbox_by_id_and_by_name() {
    let world = World::new(&["fra-1", "fra-2", "iad-1", "sin-1"]);
    let id = world.at("iad-1").create(r#"{"name":"box"}"#).await;
    for gateway in ["fra-1", "fra-2", "iad-1", "sin-1"] {
        for key in [id.as_str(), "box"] {
            let answer = echo(&world, gateway, key).await;
            assert_eq!(answer.json()["result"], "hi\n", "{gateway} {key}: {answer:?}");
            let shown = world.at(gateway).call("GET", &format!("/api/sandbox/{key}"), "").await;
            assert_eq!(
                (&shown.json()["target"], &shown.json()["toolboxProxyUrl"]),
                (&json!("iad"), &json!("http://127.0.0.1:7082/toolbox"))
            );
        }
    }
    let asked = world.at("iad-1").node.calls.lock().expect("calls").iter().all(|call| !call.request_id.is_empty());
    assert!(asked, "a call came without the client's request id");
}

#[tokio::test]
async fn target_chooses_the_region_and_files_reach_it() {
    let world = World::new(&["fra-1", "sin-1"]);
    let id = world.at("fra-1").create(r#"{"target":"sin"}"#).await;
    assert!(id.starts_with("sin"));
    let body = "x".repeat(3 << 20);
    let put = world.at("fra-1").call("PUT", &format!("/v1/sandboxes/{id}/files?path=/big"), &body).await;
    assert_eq!(put.json()["size"], 3 << 20, "{put:?}");
    let got = world.at("fra-1").call("GET", &format!("/v1/sandboxes/{id}/files?path=/big"), "").await;
    assert!(got.bytes == body.as_bytes(), "the file came back changed");
    let missing = world.at("fra-1").call("GET", &format!("/v1/sandboxes/{id}/files?path=/no"), "").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let odd = world.at("fra-1").call("POST", "/api/sandbox", r#"{"target":"mars"}"#).await;
    assert_eq!(
        (odd.status, odd.message()),
        (StatusCode::BAD_REQUEST, "unknown region 'mars'; this mesh has fra, sin".into())
    );
}

#[tokio::test]
async fn a_full_region_sends_a_create_without_target_to_the_next() {
    let world = World::new(&["fra-1", "iad-1"]);
    world.at("fra-1").node.full.store(true, Ordering::Relaxed);
    assert!(world.at("fra-1").create("{}").await.starts_with("iad"));
    let named = world.at("fra-1").call("POST", "/api/sandbox", r#"{"target":"fra"}"#).await;
    assert_eq!((named.status, named.json()["code"].clone()), (StatusCode::SERVICE_UNAVAILABLE, json!("no_capacity")));
    world.at("iad-1").node.full.store(true, Ordering::Relaxed);
    let nowhere = world.at("fra-1").call("POST", "/api/sandbox", "{}").await;
    assert_eq!((nowhere.status, nowhere.message()), (StatusCode::SERVICE_UNAVAILABLE, "fra has no room".into()));
}

#[tokio::test]
async fn a_name_is_taken_mesh_wide() {
    let world = World::new(&["fra-1", "iad-1"]);
    world.at("iad-1").create(r#"{"name":"box"}"#).await;
    let again = world.at("fra-1").call("POST", "/api/sandbox", r#"{"name":"box"}"#).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    let id_like = world.at("fra-1").call("POST", "/api/sandbox", r#"{"name":"iad0123456789abcdef"}"#).await;
    assert_eq!(id_like.status, StatusCode::BAD_REQUEST);
    world.at("fra-1").create(r#"{"name":"integrationtest12345"}"#).await;
    assert_eq!(echo(&world, "iad-1", "integrationtest12345").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_loop_of_commands_asks_the_home_region_once() {
    let world = World::new(&["fra-1", "iad-1"]);
    let id = world.at("iad-1").create("{}").await;
    let gets = |request: &NodeRequest| matches!(request, NodeRequest::Get { .. });
    for _ in 0..10 {
        assert_eq!(echo(&world, "fra-1", &id).await.status, StatusCode::OK);
    }
    assert_eq!(world.at("iad-1").node.handled(gets), 1);
}

#[tokio::test]
async fn a_moved_sandbox_is_found_again_by_one_retry() {
    let world = World::new(&["fra-1", "iad-1", "iad-2"]);
    let id = world.at("iad-1").create("{}").await;
    assert_eq!(echo(&world, "fra-1", &id).await.status, StatusCode::OK);
    world.at("iad-1").node.move_to(&id, "iad-2");
    assert_eq!(echo(&world, "fra-1", &id).await.status, StatusCode::OK, "a moved sandbox");
    // The old owner has it again, under a higher generation than the gateway remembers.
    world.at("iad-1").node.move_to(&id, "iad-1");
    world.at("iad-1").node.move_to(&id, "iad-2");
    assert_eq!(echo(&world, "fra-1", &id).await.status, StatusCode::OK, "a newer generation");
}

#[tokio::test]
async fn a_node_whose_copy_lags_asks_before_it_says_no() {
    let world = World::new(&["fra-1", "fra-2", "iad-1"]);
    let id = world.at("fra-1").create("{}").await;
    world.at("fra-2").node.lagging.store(true, Ordering::Relaxed);
    assert_eq!(echo(&world, "fra-2", &id).await.status, StatusCode::OK);
    // The owner's own copy lags too: it asks whose the sandbox is.
    world.at("fra-1").node.lagging.store(true, Ordering::Relaxed);
    assert_eq!(echo(&world, "iad-1", &id).await.status, StatusCode::OK);
}

#[tokio::test]
async fn another_node_of_a_region_answers_when_its_leader_is_gone() {
    let world = World::new(&["fra-1", "iad-1", "iad-2"]);
    let id = world.at("iad-2").create("{}").await;
    world.network.leave(&"iad-1".parse().expect("a node"));
    let shown = world.at("fra-1").call("GET", &format!("/api/sandbox/{id}"), "").await;
    assert_eq!(shown.status, StatusCode::OK, "{shown:?}");
    assert_eq!(echo(&world, "fra-1", &id).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_region_cut_off_is_said_to_be_and_the_rest_goes_on() {
    let world = World::new(&["fra-1", "iad-1", "sin-1"]);
    let far = world.at("iad-1").create(r#"{"name":"far"}"#).await;
    world.at("fra-1").create(r#"{"name":"near"}"#).await;
    let list = world.at("fra-1").call("GET", "/v1/sandboxes", "").await.json();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2));
    world.network.isolate(&"iad-1".parse().expect("a node"));
    for _ in 0..2 {
        let list = world.at("fra-1").call("GET", "/v1/sandboxes", "").await.json();
        assert_eq!(list["unreachableRegions"], json!(["iad"]));
        let stale: Vec<_> = list["items"]
            .as_array()
            .expect("items")
            .iter()
            .filter(|item| item["stale"] == true)
            .map(|item| item["name"].clone())
            .collect();
        assert_eq!(stale, [json!("far")]);
        let daytona = world.at("fra-1").call("GET", "/api/sandbox", "").await;
        assert_eq!(
            (
                daytona.headers["x-atoll-unreachable-regions"].as_bytes(),
                daytona.json()["items"].as_array().map(Vec::len)
            ),
            (&b"iad"[..], Some(2))
        );
        for (path, body) in [
            (format!("/toolbox/{far}/process/execute"), r#"{"command":"echo x"}"#),
            ("/api/sandbox".into(), r#"{"target":"iad"}"#),
        ] {
            let answer = world.at("fra-1").call("POST", &path, body).await;
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert!(answer.message().contains("region iad can't be reached"), "{}", answer.message());
            assert_eq!(answer.headers["retry-after"], "1");
        }
        // A name that no reachable region knows may be in the other one.
        assert_eq!(
            world.at("fra-1").call("GET", "/api/sandbox/nobody", "").await.status,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(echo(&world, "fra-1", "near").await.status, StatusCode::OK);
        world.see_dead("iad-1");
    }
    world.at("fra-1").create(r#"{"name":"made-meanwhile"}"#).await;
    assert!(world.at("iad-1").create("{}").await.starts_with("iad"), "a region cut off goes on creating");
}

#[tokio::test]
async fn a_region_that_is_silent_holds_a_list_for_two_seconds_only() {
    let world = World::new(&["fra-1", "iad-1", "sin-1"]);
    let names = ["box", "crate", "case"];
    for name in names {
        world.at("sin-1").create(&format!(r#"{{"name":"{name}"}}"#)).await;
    }
    let (fra, iad) = ("fra-1".parse().expect("a node"), "iad-1".parse().expect("a node"));
    world.network.delay(&fra, &iad, Duration::from_secs(30));
    // A pause of the machine makes one of them longer, and none shorter.
    let mut quickest = Duration::MAX;
    for name in names {
        let began = Instant::now();
        assert_eq!(world.at("fra-1").call("GET", &format!("/api/sandbox/{name}"), "").await.status, StatusCode::OK);
        quickest = quickest.min(began.elapsed());
    }
    assert!(quickest < Duration::from_millis(1900), "a name that is found does not wait for the silent region");
    let began = Instant::now();
    let list = world.at("fra-1").call("GET", "/v1/sandboxes", "").await.json();
    assert_eq!(list["unreachableRegions"], json!(["iad"]));
    assert!(began.elapsed() <= Duration::from_secs(15), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_relayed_command_costs_little() {
    let world = World::new(&["fra-1", "iad-1"]);
    let id = world.at("iad-1").create("{}").await;
    echo(&world, "fra-1", &id).await;
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let began = Instant::now();
        for _ in 0..50 {
            assert_eq!(echo(&world, "fra-1", &id).await.status, StatusCode::OK);
        }
        let cost = began.elapsed() / 50;
        // Unoptimized, beside other tests: an order of magnitude above what is measured.
        if cost < Duration::from_millis(50) {
            break;
        }
        assert!(Instant::now() < end, "{cost:?} for one relayed command");
    }
}
