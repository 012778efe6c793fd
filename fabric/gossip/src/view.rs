//! The mesh as one node sees it.

use std::collections::{BTreeMap, BTreeSet};

use fabric_types::{NodeId, RegionCode, UnixMillis};

use crate::NodeReport;

/// One node as it is seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Its newest verified account of itself.
    pub report: NodeReport,
    /// Whether its heart beats, as far as is known here.
    pub live: bool,
    /// Since when it has been as `live` says.
    pub since: UnixMillis,
    /// Which start of its process this is: the number grows with each.
    pub incarnation: u64,
    /// The measured round trip from here, milliseconds rounded up; 0 to this node itself; `None` where nothing has been
    /// measured.
    pub rtt_ms: Option<u32>,
}

/// All nodes as they are seen from here, this one among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// Live nodes, and dead ones until they are forgotten.
    pub nodes: BTreeMap<NodeId, NodeView>,
}

impl ClusterView {
    /// One node, dead or alive.
    pub fn node(&self, node: &NodeId) -> Option<&NodeView> {
        self.nodes.get(node)
    }

    /// One node's account of itself, if it is live.
    pub fn live(&self, node: &NodeId) -> Option<&NodeReport> {
        self.nodes.get(node).filter(|view| view.live).map(|view| &view.report)
    }

    /// The live nodes, in order of their ids.
    pub fn live_nodes(&self) -> impl Iterator<Item = &NodeView> {
        self.nodes.values().filter(|view| view.live)
    }

    /// The live nodes of a region.
    pub fn live_in<'view>(&'view self, region: &RegionCode) -> impl Iterator<Item = &'view NodeView> + use<'view> {
        let region = region.clone();
        self.live_nodes().filter(move |view| view.report.region == region)
    }

    /// The regions of which any node is known, dead or alive.
    pub fn regions(&self) -> BTreeSet<&RegionCode> {
        self.nodes.values().map(|view| &view.report.region).collect()
    }

    /// The least measured round trip to a live node of a region, milliseconds.
    pub fn region_rtt_ms(&self, region: &RegionCode) -> Option<u32> {
        self.live_in(region).filter_map(|view| view.rtt_ms).min()
    }

    /// A live node that says it leads a group. Around an election two may say so, and consensus knows better.
    pub fn leader(&self, group: &str) -> Option<&NodeReport> {
        self.live_nodes().map(|view| &view.report).find(|report| report.leads.iter().any(|led| led == group))
    }
}
