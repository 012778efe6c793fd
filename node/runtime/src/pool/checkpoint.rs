//! Making a template's checkpoint: a clone that has met every path of an owner's first seconds, and is then written down
//! with its monitor. Paid once for each boot of the host.
//!
//! ```text
//! a home of the pool --- clone, thorough rehearsal, no session, paused ---> <checkpoint>.new-* ---> machine ends
//!                                                                              |  rename, all under the lock
//!                                                                              v
//!                                                                         <checkpoint>
//! ```

use std::path::Path;
use std::sync::Arc;

use node_hypervisor::{CheckpointTaken, Copies, Vm, VmError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::base::Base;
use crate::checkpoint::new_of;
use crate::context::Context;
use crate::durable::{self, blocking};
use crate::machine;
use crate::network::Plug;
use crate::priority::Lowered;
use crate::room::Making;
use crate::template::Template;
use crate::{RuntimeError, clock, rehearsal};

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is a checkpoint for the plugs that this node gives.
    Ready,
    /// The driver or the host makes none, and why.
    Unsupported(String),
}

/// Makes sure that the template has a checkpoint for the plugs that this node gives, unless it can have none. Takes seconds,
/// or waits for the process that makes it. When cancelled or failed nothing runs of it; files that it left go when the next is
/// made.
pub(super) async fn ensure(
    context: &Context,
    template: &Template,
    cancel: &CancellationToken,
) -> Result<Outcome, RuntimeError> {
    context.admit()?;
    let _berth = context.room.enter(&context.config, Making::Anew)?;
    let base = Base::make(context, template).await?;
    let folder = context.checkpoints.folder(&template.name, Plug::of(base.port.as_ref()));
    let made = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(RuntimeError::Stopping),
        made = ensure_at(context, template, &base, &folder) => made,
    };
    base.clear(context).await;
    made
}

async fn ensure_at(
    context: &Context,
    template: &Template,
    base: &Base,
    folder: &Path,
) -> Result<Outcome, RuntimeError> {
    if context.checkpoints.is_good(folder).await {
        return Ok(Outcome::Ready);
    }
    // A cancelled or killed process leaves what it began under the lock to the next that holds it.
    let _lock = context.templates.lock(&template.name).await?;
    if context.checkpoints.is_good(folder).await {
        return Ok(Outcome::Ready);
    }
    context.checkpoints.clear(folder).await?;
    let begun = Instant::now();
    let new = new_of(folder)?;
    let taken = match write(context, template, base, &new).await {
        Ok(taken) => taken,
        Err(error) => {
            context.checkpoints.clear(folder).await?;
            return match error {
                RuntimeError::Machine(VmError::Unsupported { why, .. }) => Ok(Outcome::Unsupported(why)),
                error => Err(error),
            };
        }
    };
    context.checkpoints.publish(&new, folder).await?;
    let CheckpointTaken { stop_us, shared_bytes } = taken;
    tracing::info!(
        template = template.name, checkpoint = %folder.display(), stop_us, shared_bytes,
        took_ms = begun.elapsed().as_millis(), "checkpoint made"
    );
    Ok(Outcome::Ready)
}

/// Makes the clone, exercises it and writes it down; it has ended then.
async fn write(
    context: &Context,
    template: &Template,
    base: &Base,
    new: &Path,
) -> Result<CheckpointTaken, RuntimeError> {
    let plan = base.plan(context, template);
    let label = plan.label.clone();
    let vm = machine::make_clone(context.driver.as_ref(), template, plan).await?;
    let written = exercise_and_write(context, &label, &vm, base, new).await;
    machine::end(Some(vm.as_ref()), &base.folder).await;
    written
}

async fn exercise_and_write(
    context: &Context,
    label: &str,
    vm: &Arc<dyn Vm>,
    base: &Base,
    new: &Path,
) -> Result<CheckpointTaken, RuntimeError> {
    let begun = Instant::now();
    let lowered = match vm.counters().await {
        Ok(counters) if context.board.is_busy(clock::now()) => Lowered::of(counters.keeper_pid),
        Ok(_) | Err(_) => None,
    };
    vm.resume().await?;
    rehearsal::thoroughly(label, vm.as_ref(), base.port.as_ref()).await?;
    vm.pause().await?;
    drop(lowered);
    let rehearsed_ms = begun.elapsed().as_millis();
    let made = new.to_owned();
    blocking(move || durable::make_folder(&made)).await?;
    let taken = vm.checkpoint(new, Copies::Many).await?;
    tracing::debug!(label, rehearsed_ms, written_ms = begun.elapsed().as_millis(), "checkpoint written");
    Ok(taken)
}
