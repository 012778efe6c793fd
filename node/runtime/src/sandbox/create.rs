//! How a sandbox comes from a template: a warm clone is made this sandbox, or a spare is given a guest, or a copy of the
//! template's checkpoint or a clone is made on the request's own time.

use std::sync::Arc;
use std::time::Duration;

use fabric_types::Name;
use guest_proto::surface::IdentityAck;
use node_hypervisor::{MemorySource, Vm, VmFolder};
use tokio::time::Instant;

use super::driver::{Driver, Live};
use super::verbs::micros;
use crate::budget::{CreateBudget, CreateFrom};
use crate::durable::{self, blocking};
use crate::folder::{Home, Life, SandboxRecord};
use crate::guest::Link;
use crate::machine::{self, Plan};
use crate::pool::{Ready, Started, Warm};
use crate::room::Making;
use crate::template::Template;
use crate::{RuntimeError, checkpoint, identity};

/// Warm clones and spares that one create tries before it makes a clone of its own: one may have died unseen.
const READY_TRIES: usize = 2;
/// Longest wait for an identity to be in force: it takes milliseconds, and a loaded host under TCG its time.
const IDENTITY_MAX: Duration = Duration::from_secs(15);

impl Driver {
    pub(super) async fn begin_from_template(&mut self, name: &Name) -> Result<(), RuntimeError> {
        if *name != self.context.config.template {
            return Err(RuntimeError::NoTemplate(name.clone()));
        }
        self.record.machine_id = identity::new_machine_id()?;
        let begun = Instant::now();
        for _ in 0..READY_TRIES {
            let Some(ready) = self.context.pool.take(self.record.spec.shape).await else { break };
            let take_us = micros(begun);
            let tried = match ready {
                Ready::Warm(warm) => self.claim(*warm).await,
                Ready::Started(spare) => self.complete(*spare).await,
            };
            match tried {
                Ok(budget) => {
                    self.created(CreateBudget { take_us, ..budget }, begun);
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(%error, "what stood ready couldn't be handed over; trying another");
                    self.undo().await;
                }
            }
        }
        let budget = match self.copy_now().await? {
            Some(budget) => budget,
            None => self.clone_now().await?,
        };
        self.created(budget, begun);
        Ok(())
    }

    fn created(&self, budget: CreateBudget, begun: Instant) {
        self.context.budgets.note(CreateBudget { total_us: micros(begun), ..budget });
    }

    /// Makes a warm clone this sandbox: its record, its processors and its identity go on their way at once.
    async fn claim(&mut self, warm: Warm) -> Result<CreateBudget, RuntimeError> {
        let context = self.context.clone();
        let _turn = context.claim_turn().await;
        let mut budget = self.budget(CreateFrom::Warm);
        let Warm { home, folder, template, vm, link, port, made_at: _ } = warm;
        self.home = Some(home);
        self.record.machine = Some(folder);
        self.record.port = port;
        self.record.template = template.name;
        self.live = Some(Live { vm: vm.clone(), link: Some(link.clone()) });
        let (resumed, introduced) = tokio::join!(timed(vm.resume()), self.introduce(&link, &mut budget));
        let (record, (resumed, resume_us)) = (introduced?, resumed);
        resumed?;
        self.record = record;
        Ok(CreateBudget { resume_us, ..budget })
    }

    /// Gives a spare its guest and makes it this sandbox. Until its record is there it is a clone that isn't ready, which
    /// a start of the node removes.
    async fn complete(&mut self, spare: Started) -> Result<CreateBudget, RuntimeError> {
        let begun = Instant::now();
        let mut budget = self.budget(CreateFrom::Spare);
        let Started { home, folder, template, port, monitor } = spare;
        self.home = Some(home.clone());
        self.record.machine = Some(folder.clone());
        self.record.port = port;
        self.record.template = template.name.clone();
        let vm: Arc<dyn Vm> = match monitor {
            Some(monitor) => Arc::from(monitor.load().await?),
            None => {
                let context = self.context.clone();
                let plan = self.plan(&home, folder, MemorySource::Clone { template: template.dir.clone() });
                if context.checkpoints.find(&template, plan.port.as_ref()).await.is_none() {
                    machine::make(context.driver.as_ref(), plan).await?
                } else if let Some(vm) = checkpoint::copy(&context, &template, &plan).await {
                    vm
                } else {
                    // Its disk may be the checkpoint's by now.
                    machine::make_clone(context.driver.as_ref(), &template, plan).await?
                }
            }
        };
        budget.machine_us = micros(begun);
        self.awaken(vm, &mut budget).await?;
        Ok(budget)
    }

    /// Copies the template's checkpoint on the request's own time: nothing of its shape stood ready. None where there is no
    /// checkpoint or its copy came to nothing, with nothing left of it.
    async fn copy_now(&mut self) -> Result<Option<CreateBudget>, RuntimeError> {
        let begun = Instant::now();
        let mut budget = self.budget(CreateFrom::Copy);
        let (context, shape) = (self.context.clone(), self.record.spec.shape);
        let name = context.templates.name_of(shape);
        let Some(template) = context.templates.by_name(&name, shape).await else { return Ok(None) };
        self.plug().await?;
        let Some(found) = context.checkpoints.find(&template, self.record.port.as_ref()).await else { return Ok(None) };
        let _turn = context.turn().await;
        context.open()?;
        let _berth = context.room.enter(&context.config, Making::Copy)?;
        budget.take_us = micros(begun);
        let (home, folder) = self.settle(&template).await?;
        let settled_us = micros(begun) - budget.take_us;
        let plan = self.plan(&home, folder, MemorySource::Clone { template: template.dir.clone() });
        let Some(vm) = checkpoint::copy(&context, &template, &plan).await else {
            self.undo().await;
            return Ok(None);
        };
        budget.machine_us = micros(begun) - budget.take_us;
        if let Err(error) = self.awaken(vm, &mut budget).await {
            context.checkpoints.failed(&found, &error, Instant::now());
            self.undo().await;
            return Ok(None);
        }
        context.checkpoints.succeeded(&found);
        tracing::debug!(settled_us, "copied on the request's own time");
        context.pool.learn(template);
        Ok(Some(budget))
    }

    /// Makes a clone on the request's own time: nothing of its shape stood ready.
    async fn clone_now(&mut self) -> Result<CreateBudget, RuntimeError> {
        let begun = Instant::now();
        let mut budget = self.budget(CreateFrom::Clone);
        let (context, shape) = (self.context.clone(), self.record.spec.shape);
        let _turn = context.turn().await;
        context.open()?;
        let _berth = context.room.enter(&context.config, Making::Anew)?;
        budget.take_us = micros(begun);
        let run = context.folders.run(identity::chance()?);
        let template = context.templates.ensure(shape, run, &context.draining).await?;
        let (home, folder) = self.settle(&template).await?;
        let plan = self.plan(&home, folder, MemorySource::Boot);
        let vm = machine::make_clone(context.driver.as_ref(), &template, plan).await?;
        budget.machine_us = micros(begun) - budget.take_us;
        self.awaken(vm, &mut budget).await?;
        context.pool.learn(template);
        Ok(budget)
    }

    /// Lets a new clone run and makes it this sandbox.
    async fn awaken(&mut self, vm: Arc<dyn Vm>, budget: &mut CreateBudget) -> Result<(), RuntimeError> {
        self.live = Some(Live { vm: vm.clone(), link: None });
        let (resumed, resume_us) = timed(vm.resume()).await;
        resumed?;
        let (link, link_us) = timed(self.open(vm.as_ref())).await;
        let link = link?;
        self.live = Some(Live { vm, link: Some(link.clone()) });
        (budget.resume_us, budget.link_us) = (resume_us, link_us);
        self.record = self.introduce(&link, budget).await?;
        Ok(())
    }

    /// Identity, network policy and record, side by side; gives back the record as it is on disk then. On an error the
    /// caller undoes all of it.
    async fn introduce(&self, link: &Link, budget: &mut CreateBudget) -> Result<SandboxRecord, RuntimeError> {
        let (home, record) = (self.home.clone(), SandboxRecord { life: Life::Running, ..self.record.clone() });
        let written = record.clone();
        let write = timed(blocking(move || home.map_or(Ok(()), |home| home.write_sandbox(&written))));
        let identify = timed(self.identify(link));
        let apply = timed(self.apply_policy());
        let ((identified, identity_us), (applied, policy_us), (wrote, record_us)) =
            tokio::join!(identify, apply, write);
        budget.in_guest_us = identified?.took_us;
        applied?;
        wrote?;
        (budget.identity_us, budget.policy_us, budget.record_us) = (identity_us, policy_us, record_us);
        Ok(record)
    }

    /// Puts the sandbox's network policy in force at its port; until then nothing passes there.
    pub(super) async fn apply_policy(&self) -> Result<(), RuntimeError> {
        let policy = &self.record.spec.network;
        Ok(self.context.network.apply(self.record.port.as_ref(), policy).await?)
    }

    /// Takes a network port for the machine that comes next, unless there is one. It goes back when the machine ends.
    pub(super) async fn plug(&mut self) -> Result<(), RuntimeError> {
        if self.record.port.is_none() {
            self.record.port = self.context.network.plug().await?;
        }
        Ok(())
    }

    fn budget(&self, from: CreateFrom) -> CreateBudget {
        CreateBudget::new(self.record.spec.id.clone(), from)
    }

    /// Makes the sandbox a home of its own, with a record that says where its machine will live.
    pub(super) async fn settle(&mut self, template: &Template) -> Result<(Home, VmFolder), RuntimeError> {
        let home = self.context.folders.sandbox(&self.record.spec.id);
        let folder = home.machine(self.context.folders.run(identity::chance()?));
        self.home = Some(home.clone());
        self.record.machine = Some(folder.clone());
        self.record.template = template.name.clone();
        self.plug().await?;
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
            checkpoint: None,
            port: self.record.port.clone(),
            limits: self.context.config.limits.of(self.record.spec.shape),
        }
    }

    /// Lets a restored machine run and makes it this sandbox.
    pub(super) async fn come_alive(&mut self, vm: Arc<dyn Vm>) -> Result<CreateBudget, RuntimeError> {
        let mut budget = self.budget(CreateFrom::Clone);
        self.awaken(vm, &mut budget).await?;
        Ok(budget)
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
        }
        self.context.network.unplug(self.record.port.take()).await;
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

pub(super) async fn timed<T>(work: impl Future<Output = T>) -> (T, u64) {
    let begun = Instant::now();
    let done = work.await;
    (done, micros(begun))
}
