//! What a node says about itself. All of it is a hint: consensus re-checks what is decided from it.

use std::net::SocketAddr;

use fabric_types::{Capacity, Fit, HypervisorKind, Isolation, Name, NodeId, NodeLimits, RegionCode, Shape, UnixMillis};
use serde::{Deserialize, Serialize};

/// Clones of one template at one shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolReport {
    /// The template.
    pub template: Name,
    /// The shape.
    pub shape: Shape,
    /// Clones that are ready now.
    pub warm: u32,
    /// Clones that the node keeps ready.
    pub target: u32,
}

/// A node's account of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Who.
    pub node: NodeId,
    /// The region it stands in.
    pub region: RegionCode,
    /// Where its fabric endpoint is reached.
    pub fabric_address: SocketAddr,
    /// The base of its HTTP endpoint, as in `http://127.0.0.1:7080`.
    pub http_endpoint: String,
    /// What it has, and how much more it promises.
    pub limits: NodeLimits,
    /// What is reserved on it.
    pub reserved: Capacity,
    /// Sandboxes on it.
    pub sandboxes: u32,
    /// Its warm clones.
    pub pools: Vec<PoolReport>,
    /// What a memory image needs to resume there.
    pub fit: Fit,
    /// The isolation in force.
    pub isolation: Isolation,
    /// The monitor that it runs.
    pub hypervisor: HypervisorKind,
    /// The version of Atoll that it runs.
    pub version: String,
    /// The wire versions that it speaks, as ALPN names.
    pub protocols: Vec<String>,
    /// The names of the consensus groups that it leads.
    pub leads: Vec<String>,
    /// The names of the consensus groups in which it votes.
    pub votes: Vec<String>,
    /// Whether it is being emptied and takes nothing new.
    pub draining: bool,
    /// When its process started.
    pub started_at: UnixMillis,
}

impl NodeReport {
    /// What may still be reserved on the node, by its own account.
    pub fn free(&self) -> Capacity {
        self.limits.reservable().minus(self.reserved)
    }

    /// Warm clones of a template at a shape.
    pub fn warm(&self, template: &Name, shape: Shape) -> u32 {
        self.pools.iter().filter(|pool| pool.template == *template && pool.shape == shape).map(|pool| pool.warm).sum()
    }

    /// Whether every pool holds as many clones as it should.
    pub fn pools_are_full(&self) -> bool {
        self.pools.iter().all(|pool| pool.warm >= pool.target)
    }
}
