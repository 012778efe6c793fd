//! What every part of one runtime shares: configuration and handles, no state of a sandbox.

use std::sync::Arc;

use node_hypervisor::Hypervisor;
use node_snapshot::SnapshotStore;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::folder::Folders;
use crate::pool::Pool;
use crate::template::Templates;
use crate::{RuntimeConfig, RuntimeError};

/// Shared by the runtime's tasks.
pub(crate) struct Context {
    pub(crate) config: RuntimeConfig,
    pub(crate) folders: Folders,
    pub(crate) driver: Arc<dyn Hypervisor>,
    pub(crate) store: Arc<SnapshotStore>,
    pub(crate) templates: Templates,
    pub(crate) board: Board,
    pub(crate) pool: Pool,
    /// No new work is begun; what is under way is finished.
    pub(crate) draining: CancellationToken,
    /// Every task ends; machines live on for the next process of the node.
    pub(crate) ended: CancellationToken,
}

impl Context {
    /// Refuses work once the runtime drains.
    pub(crate) fn open(&self) -> Result<(), RuntimeError> {
        if self.draining.is_cancelled() || self.ended.is_cancelled() { Err(RuntimeError::Stopping) } else { Ok(()) }
    }
}
