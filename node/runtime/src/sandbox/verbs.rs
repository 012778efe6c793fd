//! What a driver does for each verb. Each leaves the sandbox in a phase that says what there is.

use std::sync::Arc;
use std::time::Duration;

use fabric_types::{FailReason, Phase, PhaseEvent, SandboxSpec, Source};
use node_hypervisor::{MemorySource, Vm};
use tokio::time::{Instant, timeout};

use super::Frozen;
use super::driver::{Driver, Live};
use crate::durable::{self, blocking};
use crate::folder::Life;
use crate::guest::{GuestClient, Link, OPEN_MAX};
use crate::machine;
use crate::template::connect_booted;
use crate::{RuntimeError, clock, identity, rehearsal};

/// How long a guest may take to sync and power off before its machine is ended.
const GUEST_STOP_MAX: Duration = Duration::from_secs(2);

impl Driver {
    /// Brings the sandbox to life for the first time. On an error nothing is left of it.
    pub(super) async fn begin(&mut self, frozen: Option<Arc<Frozen>>) -> Result<(), RuntimeError> {
        self.step(PhaseEvent::Start);
        let begun = match (self.record.spec.source.clone(), frozen) {
            (Source::Template { template }, _) => self.begin_from_template(&template).await,
            (Source::Snapshot { manifest }, _) => self.begin_from_snapshot(manifest).await,
            (Source::Fork { .. }, Some(frozen)) => self.begin_from_fork(&frozen).await,
            // A fork's children are made from their parent's stop; one that is asked for alone comes too late.
            (Source::Fork { parent, .. }, None) => Err(RuntimeError::Snapshot {
                what: format!("fork of {parent}"),
                cause: "it was cut short, and the parent's memory of that moment is gone; fork it again".to_owned(),
            }),
        };
        match begun {
            Ok(()) => {
                self.step(PhaseEvent::Started);
                Ok(())
            }
            Err(error) => {
                self.undo().await;
                self.context.board.run_failed(&self.record.spec.id, clock::now());
                self.fail(FailReason::Start(error.to_string()));
                Err(error)
            }
        }
    }

    /// Boots a stopped sandbox from its disk.
    pub(super) async fn start(&mut self) -> Result<(), RuntimeError> {
        self.context.open()?;
        let begun = Instant::now();
        self.step(PhaseEvent::Start);
        match self.boot().await {
            Ok(()) => {
                tracing::debug!(took_us = micros(begun), "sandbox booted from its disk");
                self.step(PhaseEvent::Started);
                Ok(())
            }
            Err(error) => {
                self.end_machine().await;
                // Its disk is whole: a later start of the node may find what was lacking.
                self.note(Life::Stopped).await;
                self.fail(FailReason::Start(error.to_string()));
                Err(error)
            }
        }
    }

    async fn boot(&mut self) -> Result<(), RuntimeError> {
        let id = self.record.spec.id.clone();
        let Some(home) = self.home.clone() else { return Err(RuntimeError::Unknown(id)) };
        let context = self.context.clone();
        let _turn = context.turn().await;
        context.open()?;
        let folder = home.machine(self.context.folders.run(identity::chance()?));
        self.record.machine = Some(folder.clone());
        self.write(Life::Stopped).await?;
        let plan = self.plan(&home, folder, MemorySource::Boot);
        let vm = machine::make(self.context.driver.as_ref(), plan).await?;
        self.live = Some(Live { vm: vm.clone(), link: None });
        vm.resume().await?;
        let (link, _) = connect_booted(id.as_str(), vm.as_ref()).await?;
        self.live = Some(Live { vm, link: Some(link.clone()) });
        self.identify(&link).await?;
        self.write(Life::Running).await
    }

    /// Ends the machine; the disk stays. Unless forced, the guest is asked first.
    pub(super) async fn stop(&mut self, force: bool) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let was_paused = self.phase == Phase::Paused;
        if !force && let Some(live) = &self.live {
            let asked = timeout(GUEST_STOP_MAX, self.ask_guest_to_stop(live, was_paused)).await;
            tracing::debug!(in_time = asked.is_ok(), took_us = micros(begun), "guest asked to stop");
        }
        self.step(PhaseEvent::Stop);
        self.end_machine().await;
        self.note(Life::Stopped).await;
        self.step(PhaseEvent::Stopped);
        tracing::debug!(took_us = micros(begun), "sandbox stopped");
        Ok(())
    }

    async fn ask_guest_to_stop(&self, live: &Live, was_paused: bool) {
        let asked = async {
            if was_paused {
                live.vm.resume().await?;
            }
            let link = match &live.link {
                Some(link) if !link.is_closed() => link.clone(),
                _ => self.open(live.vm.as_ref()).await?,
            };
            link.tell("/v1/shutdown", self.record.generation, GUEST_STOP_MAX)
                .await
                .map_err(|error| self.guest_failed("shut down", error.to_string()))
        };
        match asked.await {
            Ok(()) => drop(live.vm.ended().await),
            Err(error) => tracing::debug!(%error, "the guest couldn't be asked to stop"),
        }
    }

    /// Stops the processors.
    pub(super) async fn pause(&mut self) -> Result<(), RuntimeError> {
        if let Some(live) = &self.live {
            live.vm.pause().await?;
        }
        self.step(PhaseEvent::Pause);
        self.note(Life::Paused).await;
        Ok(())
    }

    /// Lets them run again.
    pub(super) async fn resume(&mut self) -> Result<(), RuntimeError> {
        self.context.open()?;
        if let Some(live) = &self.live {
            live.vm.resume().await?;
        }
        self.step(PhaseEvent::Resume);
        self.note(Life::Running).await;
        Ok(())
    }

    /// Removes everything. On an error the sandbox stays `Deleting`, and the next delete goes on.
    pub(super) async fn delete(&mut self) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        if self.phase != Phase::Deleting {
            self.step(PhaseEvent::Delete);
            self.note(Life::Deleting).await;
        }
        let machine = self.record.machine.clone();
        self.end_machine().await;
        if let Some(home) = self.home.clone() {
            blocking(move || home.remove(machine.as_ref())).await?;
            self.home = None;
        }
        self.context.board.bury(&self.record.spec.id, self.record.generation, clock::now());
        self.step(PhaseEvent::Deleted);
        tracing::debug!(took_us = micros(begun), "sandbox deleted");
        Ok(())
    }

    /// The machine ended by itself.
    pub(super) async fn lost(&mut self, how: String) {
        self.end_machine().await;
        let reason = FailReason::MachineLost(how);
        self.note(Life::Failed { reason: reason.clone() }).await;
        self.fail(reason);
    }

    /// Closes the guest's link, ends the machine and removes its files, but for the disk. Idempotent.
    async fn end_machine(&mut self) {
        let live = self.live.take();
        if let Some(link) = live.as_ref().and_then(|live| live.link.as_ref()) {
            link.close();
        }
        // The way to the guest ends before its machine does.
        self.publish();
        let Some(folder) = self.record.machine.take() else { return };
        machine::end(live.as_ref().map(|live| live.vm.as_ref()), &folder).await;
        self.context.network.unplug(self.record.port.take()).await;
        let removed =
            blocking(move || durable::remove_folder(&folder.run).and_then(|()| durable::remove_folder(&folder.dir)));
        if let Err(error) = removed.await {
            tracing::warn!(%error, "an ended machine's files couldn't be removed; they go with the sandbox");
        }
    }

    /// A client of the agent, over a new session if the last one broke.
    pub(super) async fn connect(&mut self) -> Result<GuestClient, RuntimeError> {
        let Some(live) = &self.live else { return Err(RuntimeError::Unknown(self.record.spec.id.clone())) };
        if let Some(link) = live.link.clone().filter(|link| !link.is_closed()) {
            return Ok(self.client(link));
        }
        let vm = live.vm.clone();
        let link = self.reconnect(vm.as_ref()).await?;
        self.live = Some(Live { vm, link: Some(link.clone()) });
        self.publish();
        Ok(self.client(link))
    }

    /// Moves the disk into the snapshot store.
    pub(super) async fn archive(&mut self) -> Result<(), RuntimeError> {
        let why = "this node can't do that yet".to_owned();
        Err(RuntimeError::Refused { id: self.record.spec.id.clone(), verb: "be archived", why })
    }

    /// Takes new labels, intervals or name; what a sandbox was made from doesn't change.
    pub(super) async fn update(&mut self, spec: SandboxSpec) -> Result<(), RuntimeError> {
        let old = &self.record.spec;
        self.record.spec = SandboxSpec { source: old.source.clone(), shape: old.shape, ..spec };
        let spec = Arc::new(self.record.spec.clone());
        self.seat.state.send_modify(|state| state.spec = spec);
        self.write(self.record.life.clone()).await
    }

    /// Opens a session and makes sure that the guest is who its record says: a node that was killed in the middle of
    /// a create may have left it without its identity.
    pub(super) async fn reconnect(&self, vm: &dyn Vm) -> Result<Link, RuntimeError> {
        let link = self.open(vm).await?;
        let health = rehearsal::health(self.record.spec.id.as_str(), &link).await?;
        if health.generation < self.record.generation.0 {
            self.identify(&link).await?;
        }
        Ok(link)
    }

    pub(super) async fn open(&self, vm: &dyn Vm) -> Result<Link, RuntimeError> {
        Link::open(vm, OPEN_MAX).await.map_err(|error| self.guest_failed("open a session", error.to_string()))
    }

    pub(super) fn guest_failed(&self, action: &'static str, cause: String) -> RuntimeError {
        RuntimeError::Guest { id: self.record.spec.id.to_string(), action, cause }
    }
}

pub(super) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
