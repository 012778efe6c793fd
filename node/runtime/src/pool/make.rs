//! Making what the pool holds, taking it over from an earlier process, and ending it: each leaves all of it or nothing.

use std::sync::Arc;

use fabric_types::Shape;
use node_hypervisor::{Vm, VmFolder, VmState};
use node_network::Port;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::base::Base;
use super::{Started, Warm};
use crate::context::Context;
use crate::durable::blocking;
use crate::folder::{CloneRecord, Home};
use crate::guest::{Link, OPEN_MAX};
use crate::priority::Lowered;
use crate::room::Making;
use crate::template::Template;
use crate::{RuntimeError, checkpoint, clock, identity, machine, rehearsal};

/// Makes a warm clone: a copy of the template's checkpoint where there is one, else a clone that rehearses. On an error or
/// when cancelled nothing is left of it.
pub(super) async fn make(
    context: &Context,
    template: Template,
    cancel: &CancellationToken,
) -> Result<Warm, RuntimeError> {
    context.admit()?;
    let mut base = Base::make(context, &template).await?;
    let made = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(RuntimeError::Stopping),
        made = fill(context, &template, &mut base) => made,
    };
    match made {
        Ok((vm, link)) => {
            let Base { home, folder, port, .. } = base;
            Ok(Warm { home, folder, template, vm, link, port, made_at: Instant::now() })
        }
        Err(error) => {
            base.clear(context).await;
            Err(error)
        }
    }
}

async fn fill(context: &Context, template: &Template, base: &mut Base) -> Result<(Arc<dyn Vm>, Link), RuntimeError> {
    if let Some(found) = context.checkpoints.find(template, base.port.as_ref()).await {
        let _berth = context.room.enter(&context.config, Making::Copy)?;
        let begun = Instant::now();
        if let Some(vm) = checkpoint::copy(context, template, &base.plan(context, template)).await {
            let warm = awaken(vm, base, context, begun).await;
            match &warm {
                Ok(_) => context.checkpoints.succeeded(&found),
                Err(error) => context.checkpoints.failed(&found, error, Instant::now()),
            }
            return warm;
        }
    }
    let _berth = context.room.enter(&context.config, Making::Anew)?;
    exercise(context, template, base).await
}

/// Lets a copy run until it has a session and its port's card, and pauses it: the rest it has from its checkpoint.
async fn awaken(
    vm: Arc<dyn Vm>,
    base: &mut Base,
    context: &Context,
    begun: Instant,
) -> Result<(Arc<dyn Vm>, Link), RuntimeError> {
    let label = vm.spec().label.clone();
    let made_us = micros(begun);
    let lowered = lowered(context, vm.as_ref()).await;
    vm.resume().await?;
    let resumed_us = micros(begun);
    let link = open(&label, vm.as_ref()).await?;
    let opened_us = micros(begun);
    // Pages that the first program and the first command of its owner write are its own by then, its interpreters parked
    // again, and its card set up, which takes longer than all the rest of a hand-over.
    rehearsal::once(&label, &link, base.port.as_ref()).await?;
    let exercised_us = micros(begun);
    vm.pause().await?;
    drop(lowered);
    let paused_us = micros(begun);
    let private_kib = record_ready(context, base, vm.as_ref(), Making::Copy).await?;
    tracing::debug!(
        %label, made_us, resumed_us, opened_us, exercised_us, paused_us, took_us = micros(begun), private_kib,
        "copy made"
    );
    Ok((vm, link))
}

async fn exercise(
    context: &Context,
    template: &Template,
    base: &mut Base,
) -> Result<(Arc<dyn Vm>, Link), RuntimeError> {
    let begun = Instant::now();
    let plan = base.plan(context, template);
    let label = plan.label.clone();
    let vm = machine::make_clone(context.driver.as_ref(), template, plan).await?;
    let made_ms = begun.elapsed().as_millis();
    let lowered = lowered(context, vm.as_ref()).await;
    vm.resume().await?;
    let link = open(&label, vm.as_ref()).await?;
    let running_ms = begun.elapsed().as_millis();
    rehearsal::rehearse(&label, &link, base.port.as_ref(), rehearsal::CLONE).await?;
    vm.pause().await?;
    drop(lowered);
    let rehearsed_ms = begun.elapsed().as_millis();
    let private_kib = record_ready(context, base, vm.as_ref(), Making::Anew).await?;
    let took_ms = begun.elapsed().as_millis();
    tracing::debug!(%label, made_ms, running_ms, rehearsed_ms, took_ms, private_kib, "warm clone made");
    Ok((vm, link))
}

/// Has a machine that is nobody's yet give way, while sandboxes are in use, for as long as the answer lives.
async fn lowered(context: &Context, vm: &dyn Vm) -> Option<Lowered> {
    match vm.counters().await {
        Ok(counters) if context.board.is_busy(clock::now()) => Lowered::of(counters.keeper_pid),
        Ok(_) | Err(_) => None,
    }
}

/// Makes the record say that the clone is ready, and takes its measure.
async fn record_ready(context: &Context, base: &mut Base, vm: &dyn Vm, making: Making) -> Result<u64, RuntimeError> {
    base.record.ready = true;
    let (at, record) = (base.home.clone(), base.record.clone());
    let recorded = blocking(move || at.write_clone(&record));
    let (recorded, counters) = tokio::join!(recorded, vm.counters());
    recorded?;
    let private_kib = counters?.private_kib;
    context.room.measured(making, private_kib);
    Ok(private_kib)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Makes everything that a clone needs but its guest; on an error or when cancelled nothing is left of it.
pub(super) async fn make_spare(
    context: &Context,
    shape: Shape,
    cancel: &CancellationToken,
) -> Result<Started, RuntimeError> {
    context.admit()?;
    let _berth = context.room.enter(&context.config, Making::Anew)?;
    let begun = Instant::now();
    let run = context.folders.run(identity::chance()?);
    let template = context.templates.ensure(shape, run, cancel).await?;
    let base = Base::make(context, &template).await?;
    let plan = base.plan(context, &template);
    let made = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(RuntimeError::Stopping),
        made = machine::start_ahead(context.driver.as_ref(), &template, plan) => made,
    };
    match made {
        Ok(monitor) => {
            let Base { home, folder, port, .. } = base;
            let (started, took_ms) = (monitor.is_some(), begun.elapsed().as_millis());
            tracing::debug!(started, took_ms, home = %home.dir().display(), "spare made");
            Ok(Started { home, folder, template, port, monitor })
        }
        Err(error) => {
            base.clear(context).await;
            Err(error)
        }
    }
}

/// Takes over a clone that an earlier process of the node made, if it is of today's template and still nobody's.
pub(crate) async fn adopt(context: &Context, home: Home, record: CloneRecord) -> Option<Warm> {
    let CloneRecord { machine: folder, port, template, shape, ready, .. } = record;
    let adopted = async {
        let template = (ready && template == context.templates.name_of(shape)).then_some(template)?;
        let template = context.templates.by_name(&template, shape).await?;
        let vm: Arc<dyn Vm> = Arc::from(context.driver.adopt(&folder).await.ok()?);
        if vm.state().await.ok()? == VmState::Ended {
            return None;
        }
        vm.resume().await.ok()?;
        let link = open("adopted clone", vm.as_ref()).await.ok()?;
        // One that was given an identity, though no sandbox's record tells of it, may have run its owner's commands.
        let health = rehearsal::health("adopted clone", &link).await.ok()?;
        if health.generation != 0 {
            return None;
        }
        vm.pause().await.ok()?;
        let (home, folder, port) = (home.clone(), folder.clone(), port.clone());
        Some(Warm { home, folder, template, vm, link, port, made_at: Instant::now() })
    };
    let adopted = adopted.await;
    if adopted.is_none() {
        machine::end(None, &folder).await;
        context.network.unplug(port).await;
        let removed = blocking(move || home.remove(Some(&folder))).await;
        if let Err(error) = removed {
            tracing::warn!(%error, "an old warm clone couldn't be removed");
        }
    }
    adopted
}

/// Ends a clone and removes what it left.
pub(crate) async fn destroy(context: &Context, warm: &Warm) {
    warm.link.close();
    machine::end(Some(warm.vm.as_ref()), &warm.folder).await;
    remove(context, &warm.home, &warm.folder, warm.port.clone()).await;
}

/// Ends a spare and removes what it left.
pub(crate) async fn discard(context: &Context, spare: Started) {
    match spare.monitor {
        Some(monitor) => monitor.discard().await,
        None => machine::end(None, &spare.folder).await,
    }
    remove(context, &spare.home, &spare.folder, spare.port).await;
}

async fn remove(context: &Context, home: &Home, folder: &VmFolder, port: Option<Port>) {
    context.network.unplug(port).await;
    let (home, folder) = (home.clone(), folder.clone());
    if let Err(error) = blocking(move || home.remove(Some(&folder))).await {
        tracing::warn!(%error, "a warm clone couldn't be removed; the next start tries again");
    }
}

async fn open(label: &str, vm: &dyn Vm) -> Result<Link, RuntimeError> {
    Link::open(vm, OPEN_MAX).await.map_err(|error| RuntimeError::Guest {
        id: label.to_owned(),
        action: "open a session",
        cause: error.to_string(),
    })
}
