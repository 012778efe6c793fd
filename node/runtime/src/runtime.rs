//! The runtime's door.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fabric_types::{Generation, SandboxId, SnapshotId};
use node_hypervisor::Hypervisor;
use tokio::sync::watch;

use crate::{
    AutoAction, GuestClient, Intent, Observed, PoolStatus, RunRequest, RuntimeConfig, RuntimeError, SnapshotOutcome,
    SnapshotStore, Verb,
};

/// All sandboxes of one node.
#[derive(Clone)]
pub struct Runtime {
    observed: watch::Receiver<Arc<BTreeMap<SandboxId, Observed>>>,
    pools: watch::Receiver<Arc<Vec<PoolStatus>>>,
    due: watch::Receiver<Arc<Vec<AutoAction>>>,
}

#[allow(unused_variables, missing_docs)]
impl Runtime {
    pub async fn start(
        config: RuntimeConfig,
        driver: Arc<dyn Hypervisor>,
        snapshots: Arc<SnapshotStore>,
    ) -> Result<Self, RuntimeError> {
        Err(RuntimeError::Stopping)
    }
    pub async fn run(&self, request: RunRequest) -> Result<Observed, RuntimeError> {
        Err(RuntimeError::Stopping)
    }
    pub async fn act(&self, id: &SandboxId, generation: Generation, verb: Verb) -> Result<Observed, RuntimeError> {
        Err(RuntimeError::Stopping)
    }
    pub async fn snapshot(
        &self,
        id: &SandboxId,
        generation: Generation,
        snapshot: SnapshotId,
    ) -> Result<SnapshotOutcome, RuntimeError> {
        Err(RuntimeError::Stopping)
    }
    pub async fn guest(&self, id: &SandboxId, generation: Generation) -> Result<GuestClient, RuntimeError> {
        Err(RuntimeError::Stopping)
    }
    pub fn reconcile(&self, intents: Vec<Intent>) {}
    pub fn observed(&self) -> watch::Receiver<Arc<BTreeMap<SandboxId, Observed>>> {
        self.observed.clone()
    }
    pub fn pools(&self) -> watch::Receiver<Arc<Vec<PoolStatus>>> {
        self.pools.clone()
    }
    pub fn due(&self) -> watch::Receiver<Arc<Vec<AutoAction>>> {
        self.due.clone()
    }
    pub async fn drain(&self, deadline: Duration) {}
    pub async fn destroy_all(&self, deadline: Duration) {}
}
