//! Fork: one stop of the parent, files of that moment in the page cache, and children restored from them side by side.
//!
//! ```text
//! parent    Running -> Snapshotting -> Running      (Paused stays Paused)
//!                        |
//!                        v
//! files     <node>/snapshots/fork-XXXXXXXX/         nobody waits for them to be durable: no child outlives a crash of
//!                        |                          the host, and a start of the node removes them
//!              +---------+---------+
//!              v         v         v
//! children  Placed -> Starting -> Running            each with a home, a disk, a port and an identity of its own
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fabric_types::{PhaseEvent, Shape};
use node_hypervisor::{MemorySource, SnapshotFiles, SnapshotTaken, Vm, copy_sparse};
use tokio::time::Instant;

use super::driver::Driver;
use super::verbs::micros;
use crate::durable::{self, At, blocking};
use crate::pool::Started;
use crate::{RuntimeError, identity, machine};

/// A parent at one moment, for its children to be made of.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// Where its files lie, to be removed when the last child is made.
    pub(crate) dir: PathBuf,
    /// Device state, private pages and disk.
    files: SnapshotFiles,
    /// The folder name of the template that its memory began from.
    template: String,
    /// The parent's shape: that of its children.
    shape: Shape,
    /// Microseconds that the parent stood still.
    pub(crate) stop_us: u64,
}

impl Driver {
    /// Stops the machine for a moment and keeps what it was; it goes on at once. A paused one stays paused.
    pub(super) async fn freeze(&mut self) -> Result<Frozen, RuntimeError> {
        self.context.admit()?;
        let dir = self.context.folders.fork(identity::chance()?);
        let made = dir.clone();
        blocking(move || durable::make_folder(&made)).await?;
        match self.freeze_into(dir.clone()).await {
            Ok(frozen) => Ok(frozen),
            Err(error) => {
                durable::remove_beside(dir).await;
                Err(error)
            }
        }
    }

    async fn freeze_into(&mut self, dir: PathBuf) -> Result<Frozen, RuntimeError> {
        let (template, shape) = (self.record.template.clone(), self.record.spec.shape);
        let vm = match (&self.live, &self.home) {
            (Some(live), _) => live.vm.clone(),
            (None, Some(home)) if self.is_swapped() => {
                let (files, into) = (self.swapped_files(&home.clone()).await?, dir.clone());
                let files = blocking(move || link_files(&files, &into)).await?;
                return Ok(Frozen { dir, files, template, shape, stop_us: 0 });
            }
            (None, _) => return Err(RuntimeError::Unknown(self.record.spec.id.clone())),
        };
        let running = self.phase == fabric_types::Phase::Running;
        if running {
            self.step(PhaseEvent::Snapshot);
        }
        let taken = vm.snapshot(&dir).await;
        if running {
            // It goes on whether the files could be written or not; one that ended is found by the loop.
            self.step(PhaseEvent::Snapshotted);
        }
        let SnapshotTaken { files, stop_us } = taken?;
        tracing::debug!(stop_us, runs = files.runs.len(), "frozen for a fork");
        Ok(Frozen { dir, files, template, shape, stop_us })
    }

    /// Brings a new sandbox to life from its parent's files.
    pub(super) async fn begin_from_fork(&mut self, frozen: &Frozen) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let shape = self.record.spec.shape;
        if shape != frozen.shape {
            let why = format!("its parent has shape {}, and a child has its parent's, not {shape}", frozen.shape);
            return Err(RuntimeError::Refused { id: self.record.spec.id.clone(), verb: "be forked", why });
        }
        let context = self.context.clone();
        let _turn = context.turn().await;
        context.open()?;
        let _berth = context.room.enter(&context.config)?;
        let waited_us = micros(begun);
        self.record.machine_id = identity::new_machine_id()?;
        let template = context.templates.by_name(&frozen.template, shape).await;
        let template = template.ok_or_else(|| RuntimeError::Snapshot {
            what: "fork".to_owned(),
            cause: format!("the parent's template {} is not here any more", frozen.template),
        })?;
        let filled = match context.pool.take_spare(&frozen.template).await {
            Some(spare) => self.fill_spare(spare, frozen).await,
            None => None,
        };
        let vm = match filled {
            Some(vm) => vm,
            None => {
                let (home, folder) = self.settle(&template).await?;
                let (from, to) = (frozen.files.disk.clone(), home.disk());
                blocking(move || copy_sparse(&from, &to)).await?;
                let snapshot = SnapshotFiles { disk: home.disk(), ..frozen.files.clone() };
                let memory = MemorySource::Restore { template: template.dir, snapshot };
                machine::make(context.driver.as_ref(), self.plan(&home, folder, memory)).await?
            }
        };
        let made_us = micros(begun);
        let budget = self.come_alive(vm).await?;
        tracing::debug!(took_us = micros(begun), waited_us, made_us, ?budget, "child of a fork lives");
        Ok(())
    }

    /// A monitor that was started ahead, with its folder, disk and port, takes the parent's memory. Until the child's record
    /// is there it is a clone that isn't ready, which a start of the node removes.
    /// None where that fails, with nothing left of it.
    async fn fill_spare(&mut self, spare: Started, frozen: &Frozen) -> Option<Arc<dyn Vm>> {
        let Started { home, folder, template, port, monitor } = spare;
        self.home = Some(home);
        self.record.machine = Some(folder);
        self.record.port = port;
        self.record.template = template.name;
        match monitor?.restore(frozen.files.clone()).await {
            Ok(vm) => Some(Arc::from(vm)),
            Err(error) => {
                tracing::warn!(%error, "a spare couldn't take a fork's memory; starting a monitor for it");
                self.undo().await;
                None
            }
        }
    }
}

/// Files of a memory that lies on disk, under names of their own: the parent may come back, and remove its own, before the
/// last child is made.
fn link_files(files: &SnapshotFiles, into: &Path) -> Result<SnapshotFiles, RuntimeError> {
    let linked = SnapshotFiles {
        device_state: into.join("state"),
        pages: into.join("pages"),
        runs: files.runs.clone(),
        disk: into.join("disk"),
    };
    for (from, to) in [(&files.device_state, &linked.device_state), (&files.pages, &linked.pages)] {
        std::fs::hard_link(from, to).at("link", from)?;
    }
    copy_sparse(&files.disk, &linked.disk)?;
    Ok(linked)
}
