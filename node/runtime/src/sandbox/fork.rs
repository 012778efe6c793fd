//! Fork: one stop of the parent, files of that moment in the page cache, and children made from them side by side: copies
//! of its whole monitor where the driver can, else machines restored from its memory.
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
use node_hypervisor::{CheckpointTaken, Copies, MemorySource, SnapshotFiles, SnapshotTaken, Vm, VmError, copy_sparse};
use tokio::time::Instant;

use super::driver::Driver;
use super::verbs::micros;
use crate::durable::{self, At, blocking};
use crate::network::Plug;
use crate::pool::Started;
use crate::room::Making;
use crate::template::Template;
use crate::{RuntimeError, identity, machine};

/// A parent at one moment, for its children to be made of.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// Where its files lie, to be removed when the last child is made.
    pub(crate) dir: PathBuf,
    /// What its children are made from.
    seed: Seed,
    /// The folder name of the template that its memory began from.
    template: String,
    /// The parent's shape: that of its children.
    shape: Shape,
    /// Microseconds that the parent stood still.
    pub(crate) stop_us: u64,
}

/// What a child begins from.
#[derive(Debug)]
enum Seed {
    /// A checkpoint of the parent's machine, for machines with this kind of plug.
    Checkpoint(PathBuf, Plug),
    /// Device state, private pages and disk.
    Files(SnapshotFiles),
}

/// How a parent is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As children are made soonest.
    Best,
    /// As files of its memory: copies of it came to nothing.
    Files,
}

impl Frozen {
    /// The kind of plug that its children have, if they are copies of their parent's machine.
    pub(crate) fn copied(&self) -> Option<Plug> {
        match self.seed {
            Seed::Checkpoint(_, plug) => Some(plug),
            Seed::Files(_) => None,
        }
    }
}

impl Driver {
    /// Stops the machine for a moment and keeps what it was; it goes on at once. A paused one stays paused.
    pub(super) async fn freeze(&mut self, way: Way) -> Result<Frozen, RuntimeError> {
        self.context.admit()?;
        let dir = self.context.folders.fork(identity::chance()?);
        let made = dir.clone();
        blocking(move || durable::make_folder(&made)).await?;
        match self.freeze_into(dir.clone(), way).await {
            Ok(frozen) => Ok(frozen),
            Err(error) => {
                durable::remove_beside(dir).await;
                Err(error)
            }
        }
    }

    async fn freeze_into(&mut self, dir: PathBuf, way: Way) -> Result<Frozen, RuntimeError> {
        let (template, shape) = (self.record.template.clone(), self.record.spec.shape);
        let vm = match (&self.live, &self.home) {
            (Some(live), _) => live.vm.clone(),
            (None, Some(home)) if self.is_swapped() => {
                let (files, into) = (self.swapped_files(&home.clone()).await?, dir.clone());
                let files = blocking(move || link_files(&files, &into)).await?;
                return Ok(Frozen { dir, seed: Seed::Files(files), template, shape, stop_us: 0 });
            }
            (None, _) => return Err(RuntimeError::Unknown(self.record.spec.id.clone())),
        };
        let running = self.phase == fabric_types::Phase::Running;
        if running {
            self.step(PhaseEvent::Snapshot);
        }
        let begun = Instant::now();
        let plug = Plug::of(self.record.port.as_ref());
        let copied = if self.can_be_copied(plug, way) { checkpoint(vm.as_ref(), &dir).await } else { None };
        let taken = match copied {
            Some((folder, taken)) => Ok((Seed::Checkpoint(folder, plug), taken.stop_us)),
            None => vm.snapshot(&dir).await.map(|SnapshotTaken { files, stop_us }| (Seed::Files(files), stop_us)),
        };
        if running {
            // It goes on whether the files could be written or not; one that ended is found by the loop.
            self.step(PhaseEvent::Snapshotted);
        }
        let (seed, stop_us) = taken?;
        let frozen = Frozen { dir, seed, template, shape, stop_us };
        tracing::debug!(stop_us, took_us = micros(begun), copied = frozen.copied().is_some(), "frozen for a fork");
        Ok(frozen)
    }

    /// Whether children could be copies: their ports are of the parent's kind, and copies haven't come to nothing lately.
    fn can_be_copied(&self, plug: Plug, way: Way) -> bool {
        let (network, checkpoints) = (&self.context.network, &self.context.checkpoints);
        way == Way::Best
            && network.kind() == Some(plug)
            && !checkpoints.rests(&checkpoints.of_forks(plug), Instant::now())
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
        let making = if frozen.copied().is_some() { Making::Copy } else { Making::Anew };
        let _berth = context.room.enter(&context.config, making)?;
        let waited_us = micros(begun);
        self.record.machine_id = identity::new_machine_id()?;
        let template = context.templates.by_name(&frozen.template, shape).await;
        let template = template.ok_or_else(|| RuntimeError::Snapshot {
            what: "fork".to_owned(),
            cause: format!("the parent's template {} is not here any more", frozen.template),
        })?;
        let vm = match &frozen.seed {
            Seed::Checkpoint(folder, plug) => self.copy_parent(&template, folder, *plug).await?,
            Seed::Files(files) => self.restore_parent(&template, files).await?,
        };
        let made_us = micros(begun);
        let copied = frozen.copied().is_some();
        let budget = self.come_alive(vm).await?;
        tracing::debug!(took_us = micros(begun), waited_us, made_us, copied, ?budget, "child of a fork lives");
        Ok(())
    }

    async fn copy_parent(
        &mut self,
        template: &Template,
        folder: &Path,
        plug: Plug,
    ) -> Result<Arc<dyn Vm>, RuntimeError> {
        let (home, machine) = self.settle(template).await?;
        let own = Plug::of(self.record.port.as_ref());
        if own != plug {
            let why =
                format!("its parent's card was plugged into {}, and its own is into {}", plug.as_str(), own.as_str());
            return Err(VmError::Unsupported { verb: "copy", why }.into());
        }
        let plan = self.plan(&home, machine, MemorySource::Clone { template: template.dir.clone() });
        machine::make_copy(self.context.driver.as_ref(), template, folder.to_owned(), plan).await
    }

    async fn restore_parent(
        &mut self,
        template: &Template,
        files: &SnapshotFiles,
    ) -> Result<Arc<dyn Vm>, RuntimeError> {
        let context = self.context.clone();
        if let Some(spare) = context.pool.take_spare(&template.name).await
            && let Some(vm) = self.fill_spare(spare, files).await
        {
            return Ok(vm);
        }
        let (home, folder) = self.settle(template).await?;
        let (from, to) = (files.disk.clone(), home.disk());
        blocking(move || copy_sparse(&from, &to)).await?;
        let snapshot = SnapshotFiles { disk: home.disk(), ..files.clone() };
        let memory = MemorySource::Restore { template: template.dir.clone(), snapshot };
        machine::make(context.driver.as_ref(), self.plan(&home, folder, memory)).await
    }

    /// A monitor that was started ahead, with its folder, disk and port, takes the parent's memory. Until the child's record
    /// is there it is a clone that isn't ready, which a start of the node removes.
    /// None where that fails, with nothing left of it.
    async fn fill_spare(&mut self, spare: Started, files: &SnapshotFiles) -> Option<Arc<dyn Vm>> {
        let Started { home, folder, template, port, monitor } = spare;
        self.home = Some(home);
        self.record.machine = Some(folder);
        self.record.port = port;
        self.record.template = template.name;
        match monitor?.restore(files.clone()).await {
            Ok(vm) => Some(Arc::from(vm)),
            Err(error) => {
                tracing::warn!(%error, "a spare couldn't take a fork's memory; starting a monitor for it");
                self.undo().await;
                None
            }
        }
    }
}

/// A checkpoint of a machine under `dir`; none, with nothing left of it, where it can't be taken.
async fn checkpoint(vm: &dyn Vm, dir: &Path) -> Option<(PathBuf, CheckpointTaken)> {
    let folder = dir.join("checkpoint");
    let made = folder.clone();
    if let Err(error) = blocking(move || durable::make_folder(&made)).await {
        tracing::warn!(%error, "a fork's parent couldn't be copied");
        return None;
    }
    match vm.checkpoint(&folder, Copies::Few).await {
        Ok(taken) => return Some((folder, taken)),
        Err(VmError::Unsupported { why, .. }) => tracing::debug!(why, "a fork's parent is kept as files of its memory"),
        Err(error) => tracing::warn!(%error, "a fork's parent couldn't be copied; it is kept as files of its memory"),
    }
    durable::remove_beside(folder).await;
    None
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
