//! How a sandbox comes from a template: a warm clone is made this sandbox, or one is made on the request's own time.

use std::sync::Arc;
use std::time::Duration;

use fabric_types::Name;
use guest_proto::surface::IdentityAck;
use node_hypervisor::{MemorySource, Vm, VmFolder};
use tokio::time::Instant;

use super::driver::{Driver, Live};
use super::verbs::micros;
use crate::durable::{self, blocking};
use crate::folder::{Home, Life};
use crate::guest::Link;
use crate::machine::{self, Plan};
use crate::pool::Warm;
use crate::template::Template;
use crate::{RuntimeError, identity};

/// Warm clones that one create tries before it makes a clone of its own: one may have died unseen.
const WARM_TRIES: usize = 2;
/// Longest wait for an identity to be in force: it takes milliseconds, and a loaded host under TCG its time.
const IDENTITY_MAX: Duration = Duration::from_secs(15);

impl Driver {
    pub(super) async fn begin_from_template(&mut self, name: &Name) -> Result<(), RuntimeError> {
        if *name != self.context.config.template {
            return Err(RuntimeError::NoTemplate(name.clone()));
        }
        self.record.machine_id = identity::new_machine_id()?;
        for _ in 0..WARM_TRIES {
            let Some(warm) = self.context.pool.take(self.record.spec.shape).await else { break };
            match self.claim(warm).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "a warm clone couldn't be handed over; trying another");
                    self.undo().await;
                }
            }
        }
        self.clone_now().await
    }

    /// Makes a warm clone this sandbox: its record, its processors and its identity go on their way at once.
    async fn claim(&mut self, warm: Warm) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let Warm { home, folder, template, vm, link, port } = warm;
        self.home = Some(home);
        self.record.machine = Some(folder);
        self.record.port = port;
        self.record.template = template.name;
        self.live = Some(Live { vm: vm.clone(), link: Some(link.clone()) });
        let resume = timed(vm.resume());
        let identify = timed(self.identify(&link));
        let (home, mut record) = (self.home.clone(), self.record.clone());
        record.life = Life::Running;
        let written = record.clone();
        let write = timed(blocking(move || home.map_or(Ok(()), |home| home.write_sandbox(&written))));
        let ((resumed, resume_us), (identified, identity_us), (wrote, record_us)) =
            tokio::join!(resume, identify, write);
        resumed?;
        let in_guest_us = identified?.took_us;
        wrote?;
        self.record = record;
        let took_us = micros(begun);
        tracing::debug!(took_us, resume_us, identity_us, in_guest_us, record_us, "warm clone handed over");
        Ok(())
    }

    /// Makes a clone on the request's own time: there was none of its shape.
    async fn clone_now(&mut self) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let (context, shape) = (self.context.clone(), self.record.spec.shape);
        let _turn = context.turn().await;
        context.open()?;
        let run = context.folders.run(identity::chance()?);
        let template = context.templates.ensure(shape, run, &context.draining).await?;
        let (home, folder) = self.settle(&template).await?;
        let template_us = micros(begun);
        let plan = self.plan(&home, folder, MemorySource::Boot);
        let vm = machine::make_clone(context.driver.as_ref(), &template, plan).await?;
        let made_us = micros(begun);
        self.come_alive(vm).await?;
        tracing::debug!(took_us = micros(begun), template_us, made_us, "clone made and handed over");
        Ok(())
    }

    /// Makes the sandbox a home of its own, with a record that says where its machine will live.
    pub(super) async fn settle(&mut self, template: &Template) -> Result<(Home, VmFolder), RuntimeError> {
        let home = self.context.folders.sandbox(&self.record.spec.id);
        let folder = home.machine(self.context.folders.run(identity::chance()?));
        self.home = Some(home.clone());
        self.record.machine = Some(folder.clone());
        self.record.template = template.name.clone();
        let made = home.clone();
        blocking(move || durable::remove_folder(made.dir()).and_then(|()| made.make())).await?;
        self.write(Life::Making).await?;
        Ok((home, folder))
    }

    pub(super) fn plan(&self, home: &Home, folder: VmFolder, memory: MemorySource) -> Plan {
        Plan {
            label: self.record.spec.id.to_string(),
            folder,
            shape: self.record.spec.shape,
            image: self.context.config.image.clone(),
            disk: home.disk(),
            memory,
            port: self.record.port.clone(),
            limits: self.context.config.limits.of(self.record.spec.shape),
        }
    }

    /// Lets a new machine run, gives it its identity and records that it lives.
    pub(super) async fn come_alive(&mut self, vm: Arc<dyn Vm>) -> Result<(), RuntimeError> {
        self.live = Some(Live { vm: vm.clone(), link: None });
        vm.resume().await?;
        let link = self.open(vm.as_ref()).await?;
        self.live = Some(Live { vm, link: Some(link.clone()) });
        self.identify(&link).await?;
        self.write(Life::Running).await
    }

    /// Takes back whatever was begun.
    pub(super) async fn undo(&mut self) {
        let live = self.live.take();
        if let Some(link) = live.as_ref().and_then(|live| live.link.as_ref()) {
            link.close();
        }
        let machine = self.record.machine.take();
        if let Some(folder) = &machine {
            machine::end(live.as_ref().map(|live| live.vm.as_ref()), folder).await;
            self.context.network.unplug(self.record.port.take()).await;
        }
        if let Some(home) = self.home.take()
            && let Err(error) = blocking(move || home.remove(machine.as_ref())).await
        {
            tracing::warn!(%error, "what was begun of a sandbox couldn't be removed; the next start tries again");
        }
    }

    /// One round trip: who the guest is from now on, fresh entropy, the clock.
    pub(super) async fn identify(&self, link: &Link) -> Result<IdentityAck, RuntimeError> {
        let generation = self.record.generation;
        let identity = identity::real(
            &self.record.spec,
            generation,
            &self.record.machine_id,
            self.record.port.as_ref(),
            &self.context.config.guest_limits,
        )?;
        let ack: Result<IdentityAck, _> = link.post("/v1/identity", &identity, generation, IDENTITY_MAX).await;
        match ack {
            Ok(ack) if ack.generation == generation.0 => Ok(ack),
            Ok(ack) => {
                let cause = format!("it acknowledged generation {}, not {generation}", ack.generation);
                Err(self.guest_failed("take its identity", cause))
            }
            Err(error) => Err(self.guest_failed("take its identity", error.to_string())),
        }
    }
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, u64) {
    let begun = Instant::now();
    let done = work.await;
    (done, micros(begun))
}
