//! A sandbox that is paused for long: its memory goes to disk, its machine ends, and for everyone it stays paused.
//!
//! ```text
//!  record     Paused, machine M            Swapped            Swapped, machine N        Paused, machine N     Running
//!                   |  snapshot, sync         |   M ends, no machine   |   restored, still     |   runs, its     |
//!                   +-----------------------> +----------------------> +---------------------> +---------------->+
//!  counts:    M's memory                the files                  the files               N's memory
//! ```
//! The files lie in the sandbox's home and not in the chunk store: they are of this node alone, go with the home, and are
//! wanted as they are. In the store they would be compressed, named and committed, need a reference that collections know,
//! and be unpacked before the resume that somebody waits for. Only what differs from the template is written, and the
//! disk stays where it is: a machine that stands still doesn't write to it.

use std::fs::File;
use std::path::Path;

use fabric_types::PhaseEvent;
use node_hypervisor::{MemorySource, SnapshotFiles, SnapshotTaken, VmError};
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};

use super::driver::{Driver, Live};
use super::verbs::micros;
use crate::durable::{self, At, blocking};
use crate::folder::{Home, Life};
use crate::room::{Making, Room};
use crate::{RuntimeError, clock, identity, machine};

/// Newest schema of [`SwapRecord`] that this version reads, and the one that it writes.
const SCHEMA: u32 = 1;
/// How long after an attempt that failed, or found the node busy, the next one is made.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Most runs of changed pages: each takes at most 31 bytes of a record, which is at most 4 MiB long. A guest whose memory
/// is more scattered than that stays in memory.
const RUNS_MAX: usize = 128 * 1024;

/// What lies in a swap folder; written last.
#[derive(Serialize, Deserialize)]
pub(super) struct SwapRecord {
    schema: u32,
    /// The image that its root file system is of: in its memory are pieces of that very one.
    image: String,
    files: SnapshotFiles,
}

impl SwapRecord {
    /// What a home's swap folder holds.
    pub(super) fn read(home: &Home) -> Result<Self, RuntimeError> {
        let path = home.swap().join("swap.json");
        let record = durable::read(&path, SCHEMA)?;
        record.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound)).at("read", &path)
    }
}

impl Driver {
    /// Whether its memory is on disk and it has no machine.
    pub(super) fn is_swapped(&self) -> bool {
        self.record.life == Life::Swapped && self.live.is_none()
    }

    /// The memory of one that is swapped out, if it can go on here.
    pub(super) async fn swapped_files(&self, home: &Home) -> Result<SnapshotFiles, RuntimeError> {
        let at = home.clone();
        let record = blocking(move || SwapRecord::read(&at)).await?;
        let here = &self.context.config.image_digest;
        if record.image != *here {
            let why = format!(
                "its memory is of a guest of image {}, and this node has {here}; stop it: its disk starts here",
                record.image
            );
            return Err(RuntimeError::Refused { id: self.record.spec.id.clone(), verb: "be resumed", why });
        }
        Ok(SnapshotFiles { disk: home.disk(), ..record.files })
    }

    /// Decides when a paused sandbox's memory goes to disk: counted from its last use, also across starts of the node.
    pub(super) fn plan_swap(&mut self) {
        let paused = self.record.life == Life::Paused && self.live.is_some();
        self.swap_at = self.context.config.swap_after.filter(|_| paused).map(|after| {
            let now = clock::now();
            let since = Duration::from_millis(now.since(self.seat.activity.last(now)));
            Instant::now() + after.saturating_sub(since)
        });
    }

    /// Writes the memory of a paused sandbox to disk and ends its machine. One that can't be written stays in memory.
    pub(super) async fn swap_out(&mut self) {
        self.swap_at = None;
        if self.context.open().is_err() {
            return;
        }
        let context = self.context.clone();
        // Somebody waits for what takes turns; nobody waits for this.
        let Ok(_turn) = context.heavy.try_acquire() else {
            self.swap_at = Some(Instant::now() + AGAIN_AFTER);
            return;
        };
        let begun = Instant::now();
        match self.write_swap().await {
            Ok(bytes) => {
                self.end_machine().await;
                tracing::info!(bytes, took_us = micros(begun), "a sandbox that is paused for long went to disk");
            }
            Err(error) => {
                if let Some(home) = &self.home {
                    durable::remove_beside(home.swap()).await;
                }
                if !matches!(error, RuntimeError::Machine(VmError::Unsupported { .. })) {
                    self.swap_at = Some(Instant::now() + AGAIN_AFTER);
                }
                tracing::warn!(%error, "the memory of a paused sandbox couldn't be written to disk; it stays in memory");
            }
        }
    }

    /// Memory and device state on disk, durable, and the record that says so.
    async fn write_swap(&mut self) -> Result<u64, RuntimeError> {
        let (Some(home), Some(vm)) = (self.home.clone(), self.live.as_ref().map(|live| live.vm.clone())) else {
            return Err(RuntimeError::Unknown(self.record.spec.id.clone()));
        };
        Room::check_disk(&self.context.config)?;
        let into = home.swap();
        let made = into.clone();
        blocking(move || durable::remove_folder(&made).and_then(|()| durable::make_folder(&made))).await?;
        let SnapshotTaken { files, .. } = vm.snapshot(&into).await?;
        let bytes = files.runs.iter().map(|(_, length)| length).sum();
        let record = SwapRecord { schema: SCHEMA, image: self.context.config.image_digest.clone(), files };
        blocking(move || seal(&into, &record)).await?;
        if let Err(error) = self.write(Life::Swapped).await {
            // It may stand there all the same, and the files are about to go.
            self.note(Life::Paused).await;
            return Err(error);
        }
        Ok(bytes)
    }

    /// Brings a swapped-out sandbox back, running: restored from its files, with its entropy and clock made new. On an
    /// error it stays paused, in its files or in memory.
    pub(super) async fn swap_in(&mut self) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let Some(home) = self.home.clone() else { return Err(RuntimeError::Unknown(self.record.spec.id.clone())) };
        if let Err(error) = self.restore_swap(&home).await {
            self.end_machine().await;
            self.note(Life::Swapped).await;
            return Err(error);
        }
        let restored_us = micros(begun);
        // From here on the machine is what counts: its disk goes on.
        self.go_on().await?;
        durable::remove_beside(home.swap()).await;
        tracing::info!(took_us = micros(begun), restored_us, "a sandbox that was paused for long is back");
        Ok(())
    }

    /// A machine from the files, paused, and the record that says that it is the one that counts.
    async fn restore_swap(&mut self, home: &Home) -> Result<(), RuntimeError> {
        let context = self.context.clone();
        let _turn = context.turn().await;
        context.open()?;
        let _berth = context.room.enter(&context.config, Making::Anew)?;
        let snapshot = self.swapped_files(home).await?;
        let template = context.templates.by_name(&self.record.template, self.record.spec.shape).await;
        let template = template.ok_or_else(|| RuntimeError::Snapshot {
            what: "resume".to_owned(),
            cause: format!("its template {} is not here any more", self.record.template),
        })?;
        let folder = self.place_machine(home).await?;
        self.write(Life::Swapped).await?;
        let memory = MemorySource::Restore { template: template.dir, snapshot };
        let vm = machine::make(context.driver.as_ref(), self.plan(home, folder, memory)).await?;
        self.live = Some(Live { vm, link: None });
        self.write(Life::Paused).await
    }

    /// Lets a paused machine run whose session is gone or whose memory lay on disk: with a new session, fresh entropy and
    /// the clock stepped. On an error it is paused again.
    pub(super) async fn go_on(&mut self) -> Result<(), RuntimeError> {
        let Some(vm) = self.live.as_ref().map(|live| live.vm.clone()) else {
            return Err(RuntimeError::Unknown(self.record.spec.id.clone()));
        };
        let went = async {
            vm.resume().await?;
            let link = self.open(vm.as_ref()).await?;
            self.identify(&link).await?;
            Ok(link)
        };
        match went.await {
            Ok(link) => {
                self.live = Some(Live { vm, link: Some(link) });
                // Noted: a record that lags behind is mended by the next start, which looks at the machine itself.
                self.note(Life::Running).await;
                self.step(PhaseEvent::Resume);
                Ok(())
            }
            Err(error) => {
                if let Err(error) = vm.pause().await {
                    tracing::warn!(%error, "a sandbox that couldn't go on couldn't be paused again");
                }
                Err(error)
            }
        }
    }

    /// A folder and a network port for a new machine of this sandbox, in its record once that is written.
    pub(super) async fn place_machine(&mut self, home: &Home) -> Result<node_hypervisor::VmFolder, RuntimeError> {
        let folder = home.machine(self.context.folders.run(identity::chance()?));
        self.record.machine = Some(folder.clone());
        self.plug().await?;
        self.apply_policy().await?;
        Ok(folder)
    }
}

/// Makes a swap's files durable and writes their record; the disk's copy goes, since the disk itself stands still.
fn seal(into: &Path, record: &SwapRecord) -> Result<(), RuntimeError> {
    let files = &record.files;
    durable::remove_file(&files.disk)?;
    if files.runs.len() > RUNS_MAX {
        let why = format!("{} runs of changed pages are more than {RUNS_MAX}", files.runs.len());
        return Err(std::io::Error::other(why)).at("list the pages in", into);
    }
    for path in [&files.device_state, &files.pages] {
        File::open(path).and_then(|file| file.sync_all()).at("sync", path)?;
    }
    durable::write(&into.join("swap.json"), record)
}
