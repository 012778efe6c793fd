//! Resume on request: a request to a sandbox that is paused resumes it through the ledger first, once for all requests
//! that wait for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fabric_api::ApiError;
use fabric_types::{Desired, Generation, Phase, SandboxId};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use node_runtime::Verb;
use raft_placement::region::Command;

use super::{Service, errors};

/// The commit of a resume. The client waits for it with its request.
const WAKE_COMMIT_LIMIT: Duration = Duration::from_secs(10);

/// How a resume ends, for everyone who waits for it.
type Waked = Shared<BoxFuture<'static, Result<(), ApiError>>>;

/// The resumes under way. The lock is held only for a look.
#[derive(Default)]
pub(super) struct Waking(Mutex<BTreeMap<SandboxId, Waked>>);

impl Waking {
    /// The resume that is under way, or a new one by `begin`.
    fn join(&self, id: &SandboxId, begin: impl FnOnce() -> BoxFuture<'static, Result<(), ApiError>>) -> Waked {
        let mut waking = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waking.entry(id.clone()).or_insert_with(|| begin().shared()).clone()
    }

    fn done(&self, id: &SandboxId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl Service {
    /// Resumes a sandbox of this node if it is paused, or about to be. Of any other nothing is asked.
    pub(super) async fn wake(self: &Arc<Self>, id: &SandboxId, generation: Generation) -> Result<(), ApiError> {
        if !self.sleeps(id, generation) {
            return Ok(());
        }
        let (service, sandbox) = (Arc::clone(self), id.clone());
        let begin = || {
            // A task of its own: the first of several waiting requests may go away.
            let task = tokio::spawn(async move {
                let outcome = service.resume_through_ledger(&sandbox, generation).await;
                service.waking.done(&sandbox);
                outcome
            });
            task.map(|ended| ended.unwrap_or_else(|_| Err(super::pass::unexpected("a resume that panicked")))).boxed()
        };
        self.waking.join(id, begin).await
    }

    /// Whether the machine is paused, or the ledger means it to be: a pause that is on its way is called off.
    fn sleeps(&self, id: &SandboxId, generation: Generation) -> bool {
        let seen = self.runtime.observed().borrow().get(id).map(|seen| (seen.generation, seen.phase.clone()));
        match seen {
            Some((current, _)) if current != generation => false,
            Some((_, Phase::Paused)) => true,
            Some((_, Phase::Running)) => {
                let ledger = self.ledger();
                let record = ledger.sandboxes().get(id);
                record.is_some_and(|record| record.generation == generation && record.desired == Desired::Paused)
            }
            Some(_) | None => false,
        }
    }

    async fn resume_through_ledger(&self, id: &SandboxId, generation: Generation) -> Result<(), ApiError> {
        let command = Command::SetDesired { id: id.clone(), generation, desired: Desired::Running };
        self.placement.propose(command, WAKE_COMMIT_LIMIT).await.map_err(|error| errors::placement(&error))?;
        self.runtime.act(id, generation, Verb::Resume).await.map_err(errors::runtime)?;
        tracing::info!(sandbox_id = %id, generation = generation.0, "resumed by a request");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn requests_that_come_together_share_one_resume() {
        let (waking, begun) = (Arc::new(Waking::default()), Arc::new(AtomicU32::new(0)));
        let id = SandboxId::new(&"fra".parse().expect("a region"), [1; 16]);
        let resume = || {
            let (waking, begun, id) = (waking.clone(), begun.clone(), id.clone());
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                waking.done(&id);
                Ok(())
            }
            .boxed()
        };
        let waiting: Vec<_> = (0..20).map(|_| waking.join(&id, resume)).collect();
        assert!(futures::future::join_all(waiting).await.iter().all(Result::is_ok));
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        waking.join(&id, resume).await.expect("resumed again");
        assert_eq!(begun.load(Ordering::Relaxed), 2, "a later pause is another one");
    }
}
