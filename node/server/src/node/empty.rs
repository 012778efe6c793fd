//! Deletes everything that lives on this node: its sandboxes from the ledger, then machines, pool and folders.

use std::time::Duration;

use raft_placement::region::Command;

use super::build::Node;

/// Taking all sandboxes out of the ledger; a group without its majority can't, and the machines end all the same.
const LEDGER_LIMIT: Duration = Duration::from_secs(10);
/// Ending all machines.
const MACHINES_LIMIT: Duration = Duration::from_secs(20);

impl Node {
    /// Empties the node, and says so in its status when it is done.
    pub(crate) async fn empty(&self) {
        self.publisher.emptying();
        let ledger = self.service.ledger();
        let deletes = ledger.on_node(&self.service.node).map(|record| {
            let command = Command::Delete { id: record.spec.id.clone(), generation: Some(record.generation) };
            self.service.placement.propose(command, LEDGER_LIMIT)
        });
        let failed = futures::future::join_all(deletes).await.into_iter().filter(Result::is_err).count();
        if failed > 0 {
            tracing::warn!(failed, "sandboxes could not be taken out of the ledger");
        }
        self.service.runtime.destroy_all(MACHINES_LIMIT).await;
        self.networks.stop(true).await;
        self.publisher.emptied();
    }
}
