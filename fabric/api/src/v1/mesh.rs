//! The mesh on `/v1`, as one node sees it: regions, nodes with their pools, consensus groups.

use fabric_types::{Capacity, Fit, Isolation, NodeLimits};
use serde::{Deserialize, Serialize};

/// A region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Region {
    /// Its code.
    pub code: String,
    /// Its name for people.
    pub name: String,
    /// Its endpoint.
    pub endpoint: String,
    /// Live nodes.
    pub live_nodes: u32,
    /// The round trip from the answering node, ms, where measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// Whether it is the answering gateway's own.
    pub home: bool,
}

/// Regions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RegionList {
    /// The regions.
    pub items: Vec<Region>,
}

/// The mesh as one node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// The answering node.
    pub node: String,
    /// Its version.
    pub version: String,
    /// The regions.
    pub regions: Vec<Region>,
    /// The nodes.
    pub nodes: Vec<MeshNode>,
    /// The consensus groups.
    pub groups: Vec<crate::node::GroupStatus>,
}

/// A node of the mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshNode {
    /// Its id.
    pub id: String,
    /// Its region.
    pub region: String,
    /// Whether gossip has heard of it lately.
    pub live: bool,
    /// Its version.
    pub version: String,
    /// Its HTTP endpoint.
    pub endpoint: String,
    /// Its fabric address.
    pub fabric: String,
    /// Its limits, with the overcommit factors.
    pub limits: NodeLimits,
    /// What may be reserved: limits times factors.
    pub reservable: Capacity,
    /// What is reserved.
    pub reserved: Capacity,
    /// Sandboxes on it.
    pub sandboxes: u32,
    /// Warm pools.
    pub pools: Vec<Pool>,
    /// What its snapshots need.
    pub fit: Fit,
    /// The isolation in force, with its reason.
    pub isolation: Isolation,
    /// Groups that it leads.
    pub leads: Vec<String>,
}

/// A warm pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The template's name.
    pub template: String,
    /// The shape, as `1x1024x3`.
    pub shape: String,
    /// Clones ready.
    pub warm: u32,
    /// Clones wanted.
    pub target: u32,
}
