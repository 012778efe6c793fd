//! Forks, shapes, archives, networks and intervals on both façades.

mod support;

use http::StatusCode;
use serde_json::{Value, json};
use support::{OTHER_KEY, Place, World};

async fn done(place: &Place, method: &str, path: &str, body: &str) -> Value {
    let answer = place.call(method, path, body).await;
    assert_eq!(answer.status, StatusCode::OK, "{method} {path}: {answer:?}");
    answer.json()
}

#[tokio::test]
async fn a_fork_is_a_sandbox_of_its_own_that_knows_its_parent() {
    let world = World::new(&["fra-1", "iad-1"]);
    let (fra, iad) = (world.at("fra-1"), world.at("iad-1"));
    let parent = fra.create(r#"{"labels":{"team":"a"}}"#).await;
    // From another region's gateway too.
    let child = done(iad, "POST", &format!("/api/sandbox/{parent}/fork"), r#"{"name":"kid"}"#).await;
    assert_eq!((&child["name"], &child["state"], &child["target"]), (&json!("kid"), &json!("started"), &json!("fra")));
    assert_eq!((&child["labels"]["team"], &child["snapshot"]), (&json!("a"), &json!(parent)));
    let child = child["id"].as_str().expect("an id");
    let grandchild = done(fra, "POST", &format!("/api/sandbox/{child}/fork"), "{}").await;
    let grandchild = grandchild["id"].as_str().expect("an id");
    let ids = |list: Value| -> Vec<String> {
        list.as_array().expect("a list").iter().map(|one| one["id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(ids(done(fra, "GET", &format!("/api/sandbox/{parent}/forks"), "").await), [child]);
    assert_eq!(done(fra, "GET", &format!("/api/sandbox/{child}/parent"), "").await["id"], json!(parent));
    assert_eq!(ids(done(fra, "GET", &format!("/api/sandbox/{grandchild}/ancestors"), "").await), [child, &parent]);
    let none = fra.call("GET", &format!("/api/sandbox/{parent}/parent"), "").await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
    assert!(none.message().contains("no fork"), "{}", none.message());
    for path in ["fork", "resize", "archive", "network-settings"] {
        let answer = fra.call_as(OTHER_KEY, "POST", &format!("/api/sandbox/{parent}/{path}"), r#"{"disk":9}"#).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}: {answer:?}");
    }
}

#[tokio::test]
async fn several_children_come_from_one_stop() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let id = fra.create("{}").await;
    let forked = done(fra, "POST", &format!("/v1/sandboxes/{id}/fork"), r#"{"count":3,"names":["a"]}"#).await;
    assert_eq!(forked["stopMs"], json!(41.25));
    let items = forked["items"].as_array().expect("children");
    assert_eq!((items.len(), &items[0]["name"], &items[2]["parent"]), (3, &json!("a"), &json!(id)));
    assert_eq!(
        done(fra, "POST", &format!("/v1/sandboxes/{id}/fork"), "").await["items"].as_array().map(Vec::len),
        Some(1)
    );
}

#[tokio::test]
async fn networks_intervals_ports_and_shapes_change_as_asked() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let id = fra.create(r#"{"networkAllowList":"203.0.113.7/24","autoPauseInterval":5,"ttlMinutes":60}"#).await;
    let api = format!("/api/sandbox/{id}");
    let shown = done(fra, "GET", &api, "").await;
    assert_eq!((&shown["networkAllowList"], &shown["domainAllowList"]), (&json!("203.0.113.0/24"), &Value::Null));
    assert_eq!((&shown["autoPauseInterval"], &shown["autoArchiveInterval"]), (&json!(5), &json!(0)));
    assert!(shown["autoDestroyAt"].is_string(), "{shown}");
    // What a client doesn't name stays; an empty list is emptied.
    let set = format!("{api}/network-settings");
    let shown = done(fra, "POST", &set, r#"{"domainAllowList":"*.example.com"}"#).await;
    assert_eq!(shown["networkAllowList"], "203.0.113.0/24");
    let shown = done(fra, "POST", &set, r#"{"networkAllowList":"","networkBlockAll":true}"#).await;
    assert_eq!((&shown["networkAllowList"], &shown["networkBlockAll"]), (&Value::Null, &json!(true)));
    assert_eq!(shown["domainAllowList"], "*.example.com");
    for (path, field, value) in [
        ("autopause/7", "autoPauseInterval", json!(7)),
        ("autoarchive/9", "autoArchiveInterval", json!(9)),
        ("autodelete/0", "autoDeleteInterval", json!(0)),
        ("autostop/0", "autoStopInterval", json!(0)),
        ("ttl/0", "autoDestroyAt", Value::Null),
        ("public/true", "public", json!(true)),
    ] {
        assert_eq!(done(fra, "POST", &format!("{api}/{path}"), "").await[field], value, "{path}");
    }
    let shown = done(fra, "POST", &format!("{api}/resize"), r#"{"memory":2,"disk":10}"#).await;
    assert_eq!((&shown["cpu"], &shown["memory"], &shown["disk"]), (&json!(1), &json!(2), &json!(10)));
    let empty = fra.call("POST", &format!("{api}/resize"), "{}").await;
    assert_eq!(empty.status, StatusCode::BAD_REQUEST, "{empty:?}");
    assert_eq!(done(fra, "POST", &format!("{api}/archive"), "").await["state"], "archived");
}

#[tokio::test]
async fn the_own_api_shows_what_it_was_told() {
    let world = World::new(&["fra-1"]);
    let fra = world.at("fra-1");
    let network = r#"{"allow":["203.0.113.0/24"],"denyDomains":["*.bad.example"]}"#;
    let body = format!(r#"{{"network":{network},"autoArchiveMinutes":60,"ttlMinutes":5,"public":true}}"#);
    let made = done(fra, "POST", "/v1/sandboxes", &body).await;
    let v1 = format!("/v1/sandboxes/{}", made["id"].as_str().expect("an id"));
    assert_eq!(made["networkPolicy"]["denyDomains"], json!(["*.bad.example"]));
    assert_eq!(made["intervals"], json!({"autoArchiveMinutes": 60, "ttlMinutes": 5}));
    assert_eq!((&made["public"], &made["network"]), (&json!(true), &json!("none")));
    let shown = done(fra, "PUT", &format!("{v1}/intervals"), r#"{"ttlMinutes":0,"autoDeleteMinutes":0}"#).await;
    assert_eq!(shown["intervals"], json!({"autoArchiveMinutes": 60, "autoDeleteMinutes": 0}));
    let shown = done(fra, "PUT", &format!("{v1}/network"), r#"{"blockAll":true}"#).await;
    assert_eq!(shown["networkPolicy"], json!({"blockAll": true}));
    assert_eq!(done(fra, "PUT", &format!("{v1}/public"), "false").await["public"], json!(false));
    assert_eq!(done(fra, "POST", &format!("{v1}/resize"), r#"{"diskGib":9}"#).await["diskGib"], json!(9));
    let used = done(fra, "GET", &format!("{v1}/usage"), "").await;
    assert_eq!((&used["id"], &used["machine"]["cpuMs"]), (&made["id"], &json!(7)));
    assert_eq!(
        (&used["machine"]["networkReceivedBytes"], &used["machine"]["networkSentBytes"]),
        (&json!(8), &json!(9))
    );
    assert_eq!(done(fra, "POST", &format!("{v1}/stop"), "").await["state"], "stopped");
    let used = done(fra, "GET", &format!("{v1}/usage"), "").await;
    assert_eq!(used, json!({"id": made["id"], "machine": null}));
    assert_eq!(done(fra, "POST", &format!("{v1}/archive"), "").await["state"], "archived");
    assert_eq!(done(fra, "GET", "/v1/sandboxes?state=archived", "").await["items"].as_array().map(Vec::len), Some(1));
}
