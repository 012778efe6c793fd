//! What every part of one runtime shares: configuration and handles, no state of a sandbox.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use node_hypervisor::Hypervisor;
use node_snapshot::SnapshotStore;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::budget::Budgets;
use crate::checkpoint::Checkpoints;
use crate::folder::Folders;
use crate::network::Network;
use crate::pool::Pool;
use crate::room::Room;
use crate::template::Templates;
use crate::{RuntimeConfig, RuntimeError};

/// Shared by the runtime's tasks.
pub(crate) struct Context {
    pub(crate) config: RuntimeConfig,
    pub(crate) folders: Folders,
    pub(crate) driver: Arc<dyn Hypervisor>,
    pub(crate) store: Arc<SnapshotStore>,
    pub(crate) network: Network,
    pub(crate) room: Room,
    pub(crate) budgets: Budgets,
    pub(crate) templates: Templates,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) board: Board,
    pub(crate) pool: Pool,
    /// Boots, restores and clones on demand take turns: a node that starts again may have a hundred to boot.
    pub(crate) heavy: Semaphore,
    /// Warm clones that are made sandboxes at once take turns.
    pub(crate) claims: Semaphore,
    /// No new work is begun; what is under way is finished.
    pub(crate) draining: CancellationToken,
    /// Every task ends; machines live on for the next process of the node.
    pub(crate) ended: CancellationToken,
}

/// Machines that are made at once on a request's own time: two for each core of the smallest host.
pub(crate) const HEAVY_MAX: usize = 4;

/// How long a warm clone waits for its turn: some times what each takes. A guest that doesn't answer holds up no other for
/// longer.
const CLAIM_TURN_MAX: Duration = Duration::from_millis(100);

/// Warm clones that are made sandboxes at once: one for each core, and one whose record is on its way to the disk. Many at
/// once only push each other out of the processor's caches.
pub(crate) fn claims_max() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get) + 1
}

impl Context {
    /// Waits for a turn to make a warm clone a sandbox, for a moment; none if that has passed.
    pub(crate) async fn claim_turn(&self) -> Option<SemaphorePermit<'_>> {
        tokio::time::timeout(CLAIM_TURN_MAX, self.claims.acquire()).await.ok().and_then(Result::ok)
    }

    /// Waits for a turn to make a machine.
    pub(crate) async fn turn(&self) -> SemaphorePermit<'_> {
        self.heavy.acquire().await.expect("the semaphore is never closed")
    }

    /// Refuses work that writes once the runtime drains, or when the host's disk is full.
    pub(crate) fn admit(&self) -> Result<(), RuntimeError> {
        self.open()?;
        Room::check_disk(&self.config)
    }

    /// Refuses work once the runtime drains.
    pub(crate) fn open(&self) -> Result<(), RuntimeError> {
        if self.draining.is_cancelled() || self.ended.is_cancelled() { Err(RuntimeError::Stopping) } else { Ok(()) }
    }
}
