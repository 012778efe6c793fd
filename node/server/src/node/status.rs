//! `DIR/<node>/status.json`: what a node says of its readiness, for whoever started it. Written on each change.

use std::path::{Path, PathBuf};

use fabric_types::NodeId;
use serde::{Deserialize, Serialize};

const SCHEMA: u32 = 1;

/// A node's readiness.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// The file's schema version.
    pub(crate) schema: u32,
    /// The process that says it.
    pub(crate) pid: u32,
    /// The catalog group's leader, as this node knows it.
    pub(crate) catalog_leader: Option<NodeId>,
    /// Its region's leader, as this node knows it.
    pub(crate) region_leader: Option<NodeId>,
    /// Nodes that gossip has heard of lately, itself among them.
    pub(crate) live: Vec<NodeId>,
    /// Warm clones ready and wanted.
    pub(crate) warm: u32,
    /// Warm clones wanted.
    pub(crate) target: u32,
    /// What it is doing now, for people.
    pub(crate) doing: String,
    /// Whether HTTP is served and the node is registered with its groups.
    pub(crate) serving: bool,
    /// Whether it has deleted its sandboxes and pool, as SIGUSR1 asks.
    pub(crate) emptied: bool,
    /// Which isolation is in force; why is in the API.
    pub(crate) isolation: Option<String>,
    /// How guests reach networks.
    #[serde(default)]
    pub(crate) network: Option<String>,
}

impl Status {
    /// The status of a process that has just begun.
    pub(crate) fn begun(doing: &str) -> Self {
        Self { schema: SCHEMA, pid: std::process::id(), doing: doing.to_owned(), ..Self::default() }
    }

    /// Whether this node has nothing left to wait for, in a mesh of so many nodes.
    pub(crate) fn is_ready(&self, nodes: usize) -> bool {
        self.serving
            && self.catalog_leader.is_some()
            && self.region_leader.is_some()
            && self.live.len() >= nodes
            && self.warm >= self.target
    }

    /// The status in a node folder, if there is one that can be read.
    pub(crate) fn load(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file(folder)).ok()?).ok()
    }

    /// Replaces the file. It says nothing that must survive a crash, so it isn't synced.
    pub(crate) fn save(&self, folder: &Path) -> std::io::Result<()> {
        let temporary = folder.join(".status.json.new");
        std::fs::write(&temporary, serde_json::to_vec(self)?)?;
        std::fs::rename(temporary, file(folder))
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("status.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_only_with_leaders_peers_and_a_full_pool() {
        let node: NodeId = "fra-1".parse().expect("a node id");
        let ready = Status {
            serving: true,
            catalog_leader: Some(node.clone()),
            region_leader: Some(node.clone()),
            live: vec![node],
            warm: 4,
            target: 4,
            ..Status::begun("full")
        };
        assert!(ready.is_ready(1));
        assert!(!ready.is_ready(2));
        assert!(!Status { warm: 3, ..ready.clone() }.is_ready(1));
        assert!(!Status { catalog_leader: None, ..ready.clone() }.is_ready(1));
        assert!(!Status { serving: false, ..ready }.is_ready(1));
    }
}
