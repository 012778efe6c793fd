//! Making what the pool holds, taking it over from an earlier process, and ending it: each leaves all of it or nothing.

use std::sync::Arc;

use fabric_types::Shape;
use node_hypervisor::{MemorySource, Vm, VmFolder, VmState};
use node_network::Port;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Started, Warm};
use crate::context::Context;
use crate::durable::blocking;
use crate::folder::{CloneRecord, Home, SCHEMA};
use crate::guest::{Link, OPEN_MAX};
use crate::machine::{self, Plan};
use crate::priority::Lowered;
use crate::template::Template;
use crate::{RuntimeError, clock, identity, rehearsal};

/// A home in the pool whose record is on disk, with the port that the record names.
struct Base {
    home: Home,
    folder: VmFolder,
    port: Option<Port>,
    record: CloneRecord,
}

impl Base {
    /// Makes the home. On an error nothing is left of it.
    async fn make(context: &Context, template: &Template) -> Result<Self, RuntimeError> {
        let home = context.folders.clone_home(identity::chance()?);
        let folder = home.machine(context.folders.run(identity::chance()?));
        let port = context.network.plug().await?;
        let record = CloneRecord {
            schema: SCHEMA,
            machine: folder.clone(),
            port: port.clone(),
            template: template.name.clone(),
            shape: template.shape,
            ready: false,
        };
        let base = Self { home, folder, port, record };
        let (at, record) = (base.home.clone(), base.record.clone());
        match blocking(move || at.make().and_then(|()| at.write_clone(&record))).await {
            Ok(()) => Ok(base),
            Err(error) => {
                base.clear(context).await;
                Err(error)
            }
        }
    }

    fn plan(&self, context: &Context, template: &Template) -> Plan {
        let name = self.home.dir().file_name().map_or_else(String::new, |name| name.display().to_string());
        Plan {
            label: format!("pool-{name}"),
            folder: self.folder.clone(),
            shape: template.shape,
            image: context.config.image.clone(),
            disk: self.home.disk(),
            memory: MemorySource::Clone { template: template.dir.clone() },
            port: self.port.clone(),
            limits: context.config.limits.of(template.shape),
        }
    }

    /// Ends whatever runs in it and removes it.
    async fn clear(self, context: &Context) {
        machine::end(None, &self.folder).await;
        context.network.unplug(self.port).await;
        let (home, folder) = (self.home, self.folder);
        if let Err(error) = blocking(move || home.remove(Some(&folder))).await {
            tracing::warn!(%error, "what was begun of a warm clone couldn't be removed; the next start tries again");
        }
    }
}

/// Makes a clone, lets it rehearse and pauses it; on an error or when cancelled nothing is left of it.
pub(super) async fn make(
    context: &Context,
    template: Template,
    cancel: &CancellationToken,
) -> Result<Warm, RuntimeError> {
    context.admit()?;
    let _berth = context.room.enter(&context.config)?;
    let mut base = Base::make(context, &template).await?;
    let made = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(RuntimeError::Stopping),
        made = exercise(context, &template, &mut base) => made,
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
    let lowered = match vm.counters().await {
        Ok(counters) if context.board.is_busy(clock::now()) => Lowered::of(counters.keeper_pid),
        Ok(_) | Err(_) => None,
    };
    vm.resume().await?;
    let link = open(&label, vm.as_ref()).await?;
    let running_ms = begun.elapsed().as_millis();
    rehearsal::rehearse(&label, &link, base.port.as_ref(), rehearsal::CLONE).await?;
    vm.pause().await?;
    drop(lowered);
    let rehearsed_ms = begun.elapsed().as_millis();
    base.record.ready = true;
    let (at, record) = (base.home.clone(), base.record.clone());
    let recorded = blocking(move || at.write_clone(&record));
    let (recorded, counters) = tokio::join!(recorded, vm.counters());
    recorded?;
    let private_kib = counters?.private_kib;
    context.room.measured(private_kib);
    let took_ms = begun.elapsed().as_millis();
    tracing::debug!(%label, made_ms, running_ms, rehearsed_ms, took_ms, private_kib, "warm clone made");
    Ok((vm, link))
}

/// Makes everything that a clone needs but its guest; on an error or when cancelled nothing is left of it.
pub(super) async fn make_spare(
    context: &Context,
    shape: Shape,
    cancel: &CancellationToken,
) -> Result<Started, RuntimeError> {
    context.admit()?;
    let _berth = context.room.enter(&context.config)?;
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
