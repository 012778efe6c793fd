//! A mesh of made-up nodes over the in-memory fabric, for the gateway's tests: what they answer is real enough for a
//! client, and nothing of it runs.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses a part of it")]

pub mod agent;
pub mod node;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use fabric_gossip::{ClusterView, NodeReport, NodeView};
use fabric_quic::{Fabric, MemoryFabric, MemoryNetwork, Protocol};
use fabric_types::{
    Accelerator, Capacity, Fit, GuestNetwork, HypervisorKind, Isolation, NodeId, NodeLimits, Overcommit, Seal,
    UnixMillis,
};
use gateway_edge::{Edge, EdgeConfig, EdgeLimits, LocalNode, router, serve_node_api, serve_relay};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use node::FakeNode;

/// The key that every made-up node knows; it belongs to the organization `default`.
pub const KEY: &str = "e2b_0123456789abcdef0123456789abcdef01234567";
/// Another organization's key.
pub const OTHER_KEY: &str = "e2b_ffffffffffffffffffffffffffffffffffffffff";

/// One node of the mesh with its gateway.
pub struct Place {
    pub node: Arc<FakeNode>,
    pub fabric: Arc<MemoryFabric>,
    pub config: EdgeConfig,
    pub router: Router,
}

/// The mesh.
pub struct World {
    pub network: MemoryNetwork,
    pub places: Vec<Place>,
    pub view: watch::Sender<Arc<ClusterView>>,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    /// A mesh of these nodes, as `fra-1`; each leads its region's placement group if its number is 1.
    pub fn new(nodes: &[&str]) -> Self {
        Self::with(nodes, EdgeLimits::default(), |index| format!("http://127.0.0.1:{}", 7080 + index))
    }

    /// The same with limits and public URLs of one's own.
    pub fn with(nodes: &[&str], limits: EdgeLimits, url: impl Fn(usize) -> String) -> Self {
        let (network, stop) = (MemoryNetwork::new(), CancellationToken::new());
        let ids: Vec<NodeId> = nodes.iter().map(|id| id.parse().expect("a node id")).collect();
        let fabrics: Vec<_> = ids.iter().map(|id| network.join(id.clone())).collect();
        let mut view = ClusterView::default();
        for (index, (id, fabric)) in ids.iter().zip(&fabrics).enumerate() {
            view.nodes.insert(id.clone(), node_view(id, fabric.local_address(), url(index)));
        }
        let (sender, view) = watch::channel(Arc::new(view));
        let regions: BTreeMap<_, _> = ids.iter().map(|id| (id.region(), node::Region::default())).collect();
        let places = ids.into_iter().zip(fabrics).enumerate().map(|(index, (id, fabric))| {
            let node = Arc::new(FakeNode::new(id.clone(), regions[&id.region()].clone()));
            let local: Arc<dyn LocalNode> = node.clone();
            let calls = fabric.accept(Protocol::NodeApi).expect("calls");
            tokio::spawn(serve_node_api(calls, local.clone(), stop.clone()));
            let relays = fabric.accept(Protocol::Relay).expect("relays");
            tokio::spawn(serve_relay(relays, local.clone(), stop.clone()));
            let config = EdgeConfig {
                listen: ([127, 0, 0, 1], 0).into(),
                public_url: url(index),
                region: id.region(),
                node: id,
                version: "0.0.0-test".into(),
                limits: limits.clone(),
            };
            let router = router(Edge::new(config.clone(), local, fabric.clone(), view.clone()));
            Place { node, fabric, config, router }
        });
        let places = places.collect();
        Self { network, places, view: sender, stop }
    }

    /// The gateway of a node.
    pub fn at(&self, node: &str) -> &Place {
        self.places.iter().find(|place| place.config.node.as_str() == node).expect("a node of this mesh")
    }

    /// Lets every gateway see a node as dead.
    pub fn see_dead(&self, node: &str) {
        let mut view = (**self.view.borrow()).clone();
        view.nodes.get_mut(&node.parse().expect("a node id")).expect("a known node").live = false;
        self.view.send_replace(Arc::new(view));
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|error| panic!("no JSON: {error}: {:?}", self.bytes))
    }

    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }

    pub fn text(&self, field: &str) -> String {
        self.json()[field].as_str().unwrap_or_else(|| panic!("no text '{field}' in {}", self.json())).to_owned()
    }
}

impl Place {
    /// Sends a request as it is.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response: Response<Body> = self.router.clone().oneshot(request).await.expect("a router never fails");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        Answer { status: parts.status, headers: parts.headers, bytes }
    }

    /// Sends a request with the key and a body of JSON, if any.
    pub async fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        self.call_as(KEY, method, path, body).await
    }

    pub async fn call_as(&self, key: &str, method: &str, path: &str, body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {key}"));
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        self.send(request.body(Body::from(body.to_owned())).expect("a request")).await
    }

    /// Creates a sandbox and answers its id.
    pub async fn create(&self, body: &str) -> String {
        let answer = self.call("POST", "/api/sandbox", body).await;
        assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.bytes);
        answer.text("id")
    }
}

fn node_view(id: &NodeId, fabric_address: SocketAddr, http_endpoint: String) -> NodeView {
    let first = id.as_str().ends_with("-1");
    let report = NodeReport {
        node: id.clone(),
        region: id.region(),
        fabric_address,
        http_endpoint,
        limits: NodeLimits {
            physical: Capacity { vcpus: 2, memory_mib: 8192, disk_gib: 100 },
            overcommit: Overcommit::default(),
            sandboxes: None,
        },
        reserved: Capacity::default(),
        sandboxes: 0,
        pools: Vec::new(),
        fit: Fit {
            hypervisor: HypervisorKind::Qemu,
            version: "7.2".into(),
            machine: "pc-q35-7.2".into(),
            accelerator: Accelerator::Tcg,
            cpu_model: "qemu64".into(),
            cpu_features: Vec::new(),
        },
        isolation: Isolation {
            hypervisor: HypervisorKind::Qemu,
            accelerator: Accelerator::Tcg,
            reason: "a test".into(),
            guest_address_randomization: false,
            network: GuestNetwork::None,
            seal: Seal::default(),
        },
        hypervisor: HypervisorKind::Qemu,
        version: "0.0.0-test".into(),
        protocols: Protocol::ALL.iter().map(|protocol| protocol.alpn().to_owned()).collect(),
        leads: if first { vec![format!("placement-{}", id.region())] } else { Vec::new() },
        votes: Vec::new(),
        draining: false,
        started_at: UnixMillis(1_795_000_000_000),
    };
    NodeView { report, live: true, since: UnixMillis(1_795_000_000_000), incarnation: 1, rtt_ms: Some(0) }
}
