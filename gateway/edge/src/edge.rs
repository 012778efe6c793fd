//! What every handler shares.

use std::sync::Arc;

use fabric_gossip::ClusterView;
use fabric_quic::Fabric;
use fabric_types::RegionCode;
use tokio::sync::{Semaphore, watch};

use crate::mesh::Mesh;
use crate::{EdgeConfig, LocalNode};

/// A gateway without its listener: what every handler shares. Cloning shares it.
#[derive(Clone)]
pub struct Edge {
    inner: Arc<Inner>,
}

struct Inner {
    config: EdgeConfig,
    mesh: Mesh,
    requests: Arc<Semaphore>,
}

impl Edge {
    /// A gateway in a node: `local` is that node, `fabric` reaches the others, `view` says which there are.
    pub fn new(
        config: EdgeConfig,
        local: Arc<dyn LocalNode>,
        fabric: Arc<dyn Fabric>,
        view: watch::Receiver<Arc<ClusterView>>,
    ) -> Self {
        let mesh = Mesh::new(config.node.clone(), config.region.clone(), local, fabric, view);
        let requests = Arc::new(Semaphore::new(config.limits.requests));
        Self { inner: Arc::new(Inner { config, mesh, requests }) }
    }

    pub(crate) fn config(&self) -> &EdgeConfig {
        &self.inner.config
    }

    pub(crate) fn mesh(&self) -> &Mesh {
        &self.inner.mesh
    }

    /// One permit for each request under way.
    pub(crate) fn requests(&self) -> &Arc<Semaphore> {
        &self.inner.requests
    }

    /// The base URL of a region's gateway, the same from every node; this one's own where none is known.
    pub(crate) fn endpoint(&self, region: &RegionCode) -> String {
        self.mesh().endpoint(region).unwrap_or_else(|| self.config().public_url.clone())
    }
}
