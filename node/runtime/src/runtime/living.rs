//! What can be asked of sandboxes that live here, beyond one verb of one sandbox: forks and changes of their specs.

use std::collections::BTreeSet;
use std::sync::Arc;

use fabric_types::{Digest, Generation, SandboxId, SandboxSpec, Source};
use tokio::time::Instant;
use tracing::Instrument;

use super::{Entered, RUN_TRIES, Runtime, run};
use crate::context::Context;
use crate::durable;
use crate::network::Plug;
use crate::sandbox::{Handle, Request, Way};
use crate::{FORK_CHILDREN_MAX, ForkOutcome, Observed, RunRequest, RuntimeError, Verb};

impl Runtime {
    /// Makes children of a running or paused sandbox in one stop of it: memory, processes and disk as they were at that
    /// moment, each with an identity, a home and a network port of its own. The parent goes on at once. A child is a
    /// sandbox like any other from then on; one that fails fails alone, and nothing of it is left.
    ///
    /// Children are told apart by their specs, whose source is [`Source::Fork`] of this parent and placement. Idempotent
    /// for a child that lives already under the same generation.
    ///
    /// # Errors
    /// When the parent can't be forked: [`RuntimeError::Phase`], or [`RuntimeError::Refused`] for no children, more than
    /// [`FORK_CHILDREN_MAX`] or two of one id. Then no child is left.
    ///
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub async fn fork(
        &self,
        parent: &SandboxId,
        generation: Generation,
        children: Vec<RunRequest>,
    ) -> Result<ForkOutcome, RuntimeError> {
        self.inner.context.admit()?;
        let handle = self.find(parent, generation)?;
        check_children(parent, &children)?;
        let work = fork(self.inner.context.clone(), handle, children).in_current_span();
        match tokio::spawn(work).await {
            Ok(outcome) => outcome,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(RuntimeError::Stopping),
            },
        }
    }

    /// Gives a sandbox a new spec, in force when this returns: labels, intervals, name, network policy; a larger disk at
    /// once where it runs and at the next start where it is stopped; vCPU and memory at the next start of a stopped one.
    ///
    /// # Errors
    /// [`RuntimeError::Refused`] with a sentence on what to do, for a smaller disk, for vCPU and memory of one that isn't
    /// stopped, and for the disk of a paused one. Nothing has changed then.
    ///
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub async fn update(&self, spec: SandboxSpec, generation: Generation) -> Result<Observed, RuntimeError> {
        let handle = self.find(&spec.id, generation)?;
        let newest = self.inner.context.board.intents_seen();
        handle.ask_directly(newest, |reply| Request::Update(Box::new(spec), reply)).await
    }

    /// The manifests that archived sandboxes of this node stand on. Whoever removes from the snapshot store what the catalog
    /// doesn't know must leave these: they are in no catalog, and nowhere else.
    pub fn archives(&self) -> BTreeSet<Digest> {
        self.inner.context.board.archives()
    }
}

fn check_children(parent: &SandboxId, children: &[RunRequest]) -> Result<(), RuntimeError> {
    let refused = |why: String| Err(RuntimeError::Refused { id: parent.clone(), verb: "be forked", why });
    if children.is_empty() || children.len() > FORK_CHILDREN_MAX {
        return refused(format!(
            "{} children were asked for, and 1 to {FORK_CHILDREN_MAX} are possible",
            children.len()
        ));
    }
    let ids: BTreeSet<_> = children.iter().map(|child| &child.spec.id).collect();
    if ids.len() < children.len() || ids.contains(parent) {
        return refused("each child needs an id of its own".to_owned());
    }
    Ok(())
}

/// Children whose copies came to nothing are made from files of the parent's memory: it is stopped once more for them.
async fn fork(context: Arc<Context>, parent: Handle, children: Vec<RunRequest>) -> Result<ForkOutcome, RuntimeError> {
    let (mut outcome, copied) = attempt(&context, &parent, children.clone(), Way::Best).await?;
    let Some(plug) = copied else { return Ok(outcome) };
    let mut failed = Vec::new();
    for (number, child) in children.into_iter().enumerate() {
        if let Err(error @ (RuntimeError::Machine(_) | RuntimeError::Guest { .. } | RuntimeError::File { .. })) =
            &outcome.children[number]
        {
            context.checkpoints.failed(&context.checkpoints.of_forks(plug), error, Instant::now());
            failed.push((number, child));
        }
    }
    if failed.is_empty() {
        context.checkpoints.succeeded(&context.checkpoints.of_forks(plug));
        return Ok(outcome);
    }
    let (numbers, again): (Vec<_>, Vec<_>) = failed.into_iter().unzip();
    let Ok((second, _)) = attempt(&context, &parent, again, Way::Files).await else { return Ok(outcome) };
    outcome.stop_us += second.stop_us;
    for (number, child) in numbers.into_iter().zip(second.children) {
        outcome.children[number] = child;
    }
    Ok(outcome)
}

/// One stop of the parent and its children; with the kind of plug that they have where they are copies of it.
async fn attempt(
    context: &Arc<Context>,
    parent: &Handle,
    children: Vec<RunRequest>,
    way: Way,
) -> Result<(ForkOutcome, Option<Plug>), RuntimeError> {
    // Known before the parent stands still: an intent that comes meanwhile finds them being made, and one that has no room
    // here costs no stop.
    let entering = children.into_iter().map(|child| enter(context, parent, child));
    let entered = futures::future::join_all(entering).await;
    let frozen = if entered.iter().any(Result::is_ok) {
        parent.ask(|reply| Request::Freeze(way, reply)).await.map(|frozen| Some(Arc::new(frozen)))
    } else {
        Ok(None)
    };
    let shared = frozen.as_ref().ok().cloned().flatten();
    let making = entered.into_iter().map(|entered| {
        let shared = shared.clone();
        async move {
            let handle = entered?;
            handle.ask(|reply| Request::Fork(shared, reply)).await
        }
    });
    let children = futures::future::join_all(making).await;
    if let Some(frozen) = shared {
        durable::remove_beside(frozen.dir.clone()).await;
    }
    let frozen = frozen?;
    let stop_us = frozen.as_ref().map_or(0, |frozen| frozen.stop_us);
    Ok((ForkOutcome { stop_us, children }, frozen.and_then(|frozen| frozen.copied())))
}

/// The driver of a child, which waits for what its parent was.
async fn enter(context: &Arc<Context>, parent: &Handle, child: RunRequest) -> Result<Handle, RuntimeError> {
    let of_parent = Source::Fork { parent: parent.id.clone(), generation: parent.generation };
    if child.spec.source != of_parent {
        let why = format!("its spec doesn't say that it is a fork of {} at {}", parent.id, parent.generation);
        return Err(RuntimeError::Refused { id: child.spec.id, verb: "be forked", why });
    }
    for _ in 0..RUN_TRIES {
        match run(context, child.clone())? {
            Entered::At(handle) => return Ok(handle),
            Entered::Older(handle) => {
                handle.ask(|reply| Request::Act(Verb::Delete, reply)).await?;
            }
        }
    }
    Err(RuntimeError::Busy(child.spec.id))
}
