//! Which region and node a request goes to, and the call to it.
//!
//! ```text
//! call      one node call: to this node, or over the fabric to one of another region's nodes
//! sandbox   a sandbox by id or name: its home, its view, its route
//! routes    routes to other regions, remembered for two seconds
//! fanout    the same question to every region, and the last known answers
//! ```

mod call;
mod fanout;
mod routes;
mod sandbox;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fabric_gossip::{ClusterView, NodeView};
use fabric_quic::{Fabric, Peer};
use fabric_types::{NodeId, OrganizationId, RegionCode};
use regions::RegionDescriptor;
use tokio::sync::watch;

pub(crate) use call::odd_reply;
use fanout::LastKnown;
pub(crate) use fanout::{Listed, REGION_DEADLINE};
use routes::RouteCache;
pub(crate) use sandbox::not_found;

use crate::LocalNode;

/// What a call on a client's behalf carries.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// The request's id.
    pub(crate) request_id: String,
    /// For whom.
    pub(crate) organization: OrganizationId,
    /// How long the answer may take.
    pub(crate) deadline: Duration,
}

impl Scope {
    /// The same with another deadline.
    pub(crate) fn within(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }
}

/// The mesh as this gateway reaches it.
pub(crate) struct Mesh {
    node: NodeId,
    region: RegionCode,
    local: Arc<dyn LocalNode>,
    fabric: Arc<dyn Fabric>,
    view: watch::Receiver<Arc<ClusterView>>,
    routes: RouteCache,
    last_known: LastKnown,
}

impl Mesh {
    pub(crate) fn new(
        node: NodeId,
        region: RegionCode,
        local: Arc<dyn LocalNode>,
        fabric: Arc<dyn Fabric>,
        view: watch::Receiver<Arc<ClusterView>>,
    ) -> Self {
        let (routes, last_known) = (RouteCache::default(), LastKnown::default());
        Self { node, region, local, fabric, view, routes, last_known }
    }

    /// The node that the gateway runs in.
    pub(crate) fn local(&self) -> &dyn LocalNode {
        &*self.local
    }

    /// The mesh as this node sees it now.
    pub(crate) fn view(&self) -> Arc<ClusterView> {
        self.view.borrow().clone()
    }

    /// Every region that is known, this one among them.
    pub(crate) fn regions(&self) -> BTreeSet<RegionCode> {
        let view = self.view();
        view.regions().into_iter().cloned().chain([self.region.clone()]).collect()
    }

    /// The regions from the nearest to the farthest, this one first: by measured round trip, else by where they lie.
    pub(crate) fn nearest(&self) -> Vec<RegionCode> {
        let view = self.view();
        let known: Vec<_> = self.regions().into_iter().map(describe).collect();
        let rtt = |region: &RegionCode| view.region_rtt_ms(region).map(|ms| Duration::from_millis(ms.into()));
        let ranked = regions::rank(&describe(self.region.clone()), &known, rtt);
        ranked.into_iter().map(|region| region.code.clone()).collect()
    }

    /// The base URL of a region's gateway: its first live node's, else its first known one's.
    pub(crate) fn endpoint(&self, region: &RegionCode) -> Option<String> {
        let view = self.view();
        let nodes = view.nodes.values().filter(|node| node.report.region == *region);
        let first = nodes.min_by_key(|node| (!node.live, number(&node.report.node)))?;
        Some(first.report.http_endpoint.trim_end_matches('/').to_owned())
    }

    /// Whether a node is this one.
    pub(crate) fn is_here(&self, node: &NodeId) -> bool {
        self.node == *node
    }

    /// The way to other nodes.
    pub(crate) fn fabric(&self) -> &dyn Fabric {
        &*self.fabric
    }

    /// A node of the mesh as the fabric dials it.
    pub(crate) fn peer(&self, node: &NodeId) -> Option<Peer> {
        let view = self.view();
        let known: &NodeView = view.node(node)?;
        Some(Peer { address: known.report.fabric_address, node: Some(node.clone()) })
    }
}

/// A region as it is known beforehand, or by its code alone.
pub(crate) fn describe(region: RegionCode) -> RegionDescriptor {
    regions::builtin(&region).cloned().unwrap_or_else(|| RegionDescriptor::unknown(region))
}

/// A node's number in its region: `fra-2` comes before `fra-10`.
fn number(node: &NodeId) -> u32 {
    node.as_str().rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(u32::MAX)
}
