//! What a driver does for each verb. Each leaves the sandbox in a phase that says what there is.

use std::sync::Arc;
use std::time::Duration;

use fabric_types::{FailReason, Phase, PhaseEvent, Source};
use node_hypervisor::Vm;
use tokio::time::{Instant, timeout};

use super::Frozen;
use super::create::timed;
use super::driver::{Driver, Live};
use crate::durable::{self, blocking};
use crate::folder::Life;
use crate::guest::{GuestClient, Link, OPEN_MAX};
use crate::machine;
use crate::{RuntimeError, clock, rehearsal};

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

    /// Ends the machine; the disk stays. Unless forced, the guest is asked first.
    pub(super) async fn stop(&mut self, force: bool) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let swapped = self.is_swapped();
        if swapped
            && !force
            && let Err(error) = self.swap_in().await
        {
            tracing::warn!(%error, "a sandbox whose memory is on disk couldn't be brought back to stop; its disk is kept");
        }
        let was_paused = self.phase == Phase::Paused;
        if !force && let Some(live) = &self.live {
            let asked = timeout(GUEST_STOP_MAX, self.ask_guest_to_stop(live, was_paused)).await;
            tracing::debug!(in_time = asked.is_ok(), took_us = micros(begun), "guest asked to stop");
        }
        self.step(PhaseEvent::Stop);
        self.end_machine().await;
        self.note(Life::Stopped).await;
        if swapped && let Some(home) = &self.home {
            durable::remove_beside(home.swap()).await;
        }
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

    /// Stops the processors, and writes the record beside that: the next start looks at the machine itself.
    pub(super) async fn pause(&mut self) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let Some(vm) = self.live.as_ref().map(|live| live.vm.clone()) else {
            return Err(RuntimeError::Unknown(self.record.spec.id.clone()));
        };
        let ((paused, pause_us), ((), record_us)) = tokio::join!(timed(vm.pause()), timed(self.note(Life::Paused)));
        if let Err(error) = paused {
            self.note(Life::Running).await;
            return Err(error.into());
        }
        self.step(PhaseEvent::Pause);
        self.plan_swap();
        tracing::debug!(took_us = micros(begun), pause_us, record_us, "sandbox paused");
        Ok(())
    }

    /// Lets them run again, with what the clock has missed; from the files of one whose memory is on disk.
    pub(super) async fn resume(&mut self) -> Result<(), RuntimeError> {
        self.context.open()?;
        self.swap_at = None;
        let resumed = if self.is_swapped() { self.swap_in().await } else { self.resume_in_memory().await };
        if resumed.is_err() {
            self.plan_swap();
        }
        resumed
    }

    async fn resume_in_memory(&mut self) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let Some(Live { vm, link: Some(link) }) = &self.live else { return self.go_on().await };
        if link.is_closed() {
            return self.go_on().await;
        }
        let (vm, link) = (vm.clone(), link.clone());
        let mut written = self.record.clone();
        written.life = Life::Running;
        written.last_activity = clock::now();
        let (home, record) = (self.home.clone(), written.clone());
        let write = blocking(move || home.map_or(Ok(()), |home| home.write_sandbox(&record)));
        let ((resumed, resume_us), (identified, identity_us), (wrote, record_us)) =
            tokio::join!(timed(vm.resume()), timed(self.identify(&link)), timed(write));
        if let Err(error) = resumed.map_err(RuntimeError::from).and(identified.map(drop)) {
            // Paused as before, whichever of the two it was that failed.
            if let Err(error) = vm.pause().await {
                tracing::warn!(%error, "a sandbox that couldn't go on couldn't be paused again");
            }
            self.note(Life::Paused).await;
            return Err(error);
        }
        if let Err(error) = wrote {
            tracing::warn!(%error, "a sandbox's record couldn't be written");
        }
        self.record = written;
        self.step(PhaseEvent::Resume);
        tracing::debug!(took_us = micros(begun), resume_us, identity_us, record_us, "sandbox resumed");
        Ok(())
    }

    /// Removes everything. On an error the sandbox stays `Deleting`, and the next delete goes on.
    pub(super) async fn delete(&mut self) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let archive = self.record.life.archive();
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
        if let Some(manifest) = archive {
            self.give_up_archive(manifest).await;
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
    pub(super) async fn end_machine(&mut self) {
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
        let link = self.living_link().await?;
        Ok(self.client(link))
    }

    /// The session with the agent, a new one if the last one broke.
    pub(super) async fn living_link(&mut self) -> Result<Link, RuntimeError> {
        let Some(live) = &self.live else { return Err(RuntimeError::Unknown(self.record.spec.id.clone())) };
        if let Some(link) = live.link.clone().filter(|link| !link.is_closed()) {
            return Ok(link);
        }
        let vm = live.vm.clone();
        let link = self.reconnect(vm.as_ref()).await?;
        self.live = Some(Live { vm, link: Some(link.clone()) });
        self.publish();
        Ok(link)
    }

    /// Opens a session and makes sure that the guest is who its record says, and knows what time it is: a node that was
    /// killed in the middle of a create, a fork or a resume may have left it without.
    pub(super) async fn reconnect(&mut self, vm: &dyn Vm) -> Result<Link, RuntimeError> {
        let link = self.open(vm).await?;
        let health = rehearsal::health(self.record.spec.id.as_str(), &link).await?;
        if self.untold || health.generation < self.record.generation.0 {
            self.identify(&link).await?;
            self.untold = false;
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
