//! From a specification to a machine, in the two steps that a spare takes apart.
//!
//! ```text
//!   start: keeper and QEMU run, QMP is ready, the device state's file is handed over    (nobody waits for a spare's)
//!     │
//!   load:  the keeper lays private pages, QEMU loads the device state, the keeper keeps the machine
//!     │    (restore: what was started for a clone is given a snapshot's device state and disk before)
//!   QemuMachine, paused            either step's failure leaves nothing behind
//! ```
//!
//! Until the keeper has confirmed, the end of the creator's connection is the end of the machine: dropping [`Started`]
//! ends it, killing this node does too.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use fabric_types::{Accelerator, Fit, HypervisorKind};
use serde_json::json;
use tokio::task::spawn_blocking;

use super::command::arguments;
use super::disks::{DEVICES, throttle};
use super::driver::{QemuConfig, set_capabilities};
use super::machine::QemuMachine;
use super::qmp::{Qmp, open_for_qemu};
use crate::disk::copy_sparse;
use crate::durable::remove_file;
use crate::keeper::{
    Creator, Here, Keeper, KeeperConfig, ListenerConfig, Reply, Request, SCHEMA, SpawnedKeeper, spawn, write_runs,
};
use crate::launch::{PAGES_LIMIT, check_pages, clear_after, explained};
use crate::seal::SealRequest;
use crate::spare::Waiting;
use crate::template::{self, TemplateManifest};
use crate::{MemorySource, SnapshotFiles, Vm, VmError, VmFolder, VmSpec};

/// How long loading a machine's device state may take: it is some 300 KiB.
const LOAD_LIMIT: Duration = Duration::from_secs(15);
/// The name under which QEMU holds the device state's file.
const STATE: &str = "state";

/// A monitor that waits, and its keeper.
pub(super) struct Started {
    spec: VmSpec,
    fit: Fit,
    /// The manifest of the template that its memory starts from.
    template: Option<TemplateManifest>,
    keeper: Keeper,
    creator: Creator,
    here: Here,
    qmp: Qmp,
}

impl Started {
    /// Starts both processes and readies the monitor. `ahead` says that the load may be far off.
    pub(super) async fn start(
        config: &QemuConfig,
        fit: &Fit,
        spec: VmSpec,
        template: Option<TemplateManifest>,
        ahead: bool,
    ) -> Result<Self, VmError> {
        let folder = &spec.folder;
        // Opened before anything runs, so that a file that isn't there costs nothing.
        let state = match &spec.memory {
            MemorySource::Clone { .. } if spec.checkpoint.is_some() => None,
            MemorySource::Boot | MemorySource::BootTemplate { .. } | MemorySource::BootOver { .. } => None,
            MemorySource::Clone { template } => Some(open_for_qemu(&template::state_file(template))?),
            MemorySource::Restore { snapshot, .. } => Some(open_for_qemu(&snapshot.device_state)?),
        };
        let listener = |name: &str, path| ListenerConfig { name: name.to_owned(), path };
        let keeper_config = KeeperConfig {
            schema: SCHEMA,
            driver: HypervisorKind::Qemu,
            spec: spec.clone(),
            program: config.program.clone(),
            arguments: arguments(&spec, fit, template.as_ref().is_some_and(|t| t.bare_state), &config.kernel_args),
            listeners: vec![listener("q", folder.monitor_socket()), listener("c", folder.channel_socket())],
            remove: vec![folder.runs()],
            ahead,
            seal: SealRequest { kvm: fit.accelerator == Accelerator::Kvm, ..SealRequest::default() },
        };
        let SpawnedKeeper { keeper, creator, here } = spawn(&config.keeper, &keeper_config).await?;
        match ready(&spec, state).await {
            Ok(qmp) => Ok(Self { spec, fit: fit.clone(), template, keeper, creator, here, qmp }),
            Err(error) => Err(failed(error, folder, creator, here).await),
        }
    }

    /// Checks the snapshot and hands its device state over in the place of the template's.
    async fn turn_to(&mut self, snapshot: &SnapshotFiles) -> Result<(), VmError> {
        let (MemorySource::Clone { template }, Some(manifest)) = (&self.spec.memory, &self.template) else {
            let why = "only a clone's spare has a template to restore over".to_owned();
            return Err(VmError::Unsupported { verb: "restore a spare", why });
        };
        if !manifest.bare_state {
            let why = format!("the template in {} was saved by an earlier version", template.display());
            return Err(VmError::Unsupported { verb: "restore a spare", why });
        }
        check_pages(snapshot, manifest)?;
        self.qmp.give_descriptor(STATE, open_for_qemu(&snapshot.device_state)?).await?;
        self.spec.memory = MemorySource::Restore { template: template.clone(), snapshot: snapshot.clone() };
        Ok(())
    }
}

impl Waiting for Started {
    type Machine = QemuMachine;

    fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// Loads the machine and has the keeper keep it.
    async fn load(self) -> Result<QemuMachine, VmError> {
        let Self { spec, fit, template: _, keeper, creator, here, qmp } = self;
        let filled = async {
            fill(&spec, &keeper, &qmp).await?;
            limit_disks(&spec, &qmp).await
        };
        if let Err(error) = filled.await {
            return Err(failed(error, &spec.folder, creator, here).await);
        }
        match creator.confirm().await {
            Ok(()) => Ok(QemuMachine::new(spec, fit, keeper, here, qmp)),
            Err(error) => {
                clear_after(&spec.folder, Some(here)).await;
                Err(error)
            }
        }
    }

    /// What was started for a clone becomes the restore of a snapshot over the same template.
    async fn restore(mut self, snapshot: SnapshotFiles) -> Result<QemuMachine, VmError> {
        match self.turn_to(&snapshot).await {
            Ok(()) => {}
            Err(error) => {
                self.discard().await;
                return Err(error);
            }
        }
        let (disk, before) = (self.spec.disk.clone(), length(&self.spec.disk));
        let copied = spawn_blocking(move || {
            copy_sparse(&snapshot.disk, &disk)?;
            Ok(length(&disk))
        });
        // The disk is read by nothing before the machine runs.
        let (copied, loaded) = tokio::join!(copied, self.load());
        let machine = loaded?;
        let grown = match copied {
            Ok(Ok(after)) if before == after => return Ok(machine),
            Ok(Ok(after)) => machine.resize_disk(after).await,
            Ok(Err(error)) => Err(error),
            Err(panicked) => {
                Err(VmError::File { action: "copy", path: machine.spec().disk.clone(), source: panicked.into() })
            }
        };
        match grown {
            Ok(()) => Ok(machine),
            Err(error) => {
                // What is left of it is cleared by the next start in its folder.
                let _ = machine.shutdown().await;
                Err(error)
            }
        }
    }

    async fn discard(self) {
        drop(self.qmp);
        drop(self.creator);
        clear_after(&self.spec.folder, Some(self.here)).await;
    }
}

/// Connects to a starting monitor and says all that doesn't depend on when its machine is wanted.
async fn ready(spec: &VmSpec, state: Option<OwnedFd>) -> Result<Qmp, VmError> {
    let qmp = Qmp::connect(&spec.folder.monitor_socket(), &spec.label).await?;
    if let Some(state) = state {
        let cloned = matches!(spec.memory, MemorySource::Clone { .. });
        tokio::try_join!(set_capabilities(&qmp, cloned), qmp.give_descriptor(STATE, state))?;
    }
    Ok(qmp)
}

/// Brings a waiting monitor to where its specification says, paused.
async fn fill(spec: &VmSpec, keeper: &Keeper, qmp: &Qmp) -> Result<(), VmError> {
    match &spec.memory {
        MemorySource::Boot | MemorySource::BootTemplate { .. } | MemorySource::BootOver { .. } => return Ok(()),
        // A copy's keeper has restored all of it.
        MemorySource::Clone { .. } if spec.checkpoint.is_some() => return Ok(()),
        MemorySource::Clone { .. } => {}
        MemorySource::Restore { template, snapshot } => {
            let runs = spec.folder.runs();
            let failed = |source| VmError::File { action: "write", path: runs.clone(), source };
            write_runs(&runs, &snapshot.runs).map_err(failed)?;
            let memory = template::memory_file(template);
            let request = Request::LayPages { memory, pages: snapshot.pages.clone(), runs: runs.clone() };
            let reply = keeper.ask(&request, "lay_pages", PAGES_LIMIT).await?;
            if let Reply::Pages { bytes, took_us } = reply {
                tracing::debug!(label = spec.label, bytes, took_us, "private pages laid over the template's");
            }
            remove_file(&runs)?;
        }
    }
    qmp.migrate("migrate-incoming", json!({ "uri": format!("fd:{STATE}") }), LOAD_LIMIT).await
}

/// Has the monitor hold the guest to its rate: a cgroup of version 1 holds back only what isn't written through the host's
/// page cache. A copy of a checkpoint comes with its original's rate, so it is always told its own; a template has none.
async fn limit_disks(spec: &VmSpec, qmp: &Qmp) -> Result<(), VmError> {
    let rate = spec.limits.io_bytes_per_second;
    if matches!(spec.memory, MemorySource::BootTemplate { .. }) || (rate.is_none() && spec.checkpoint.is_none()) {
        return Ok(());
    }
    let [root, own] = DEVICES.map(|device| qmp.execute("block_set_io_throttle", throttle(device, rate)));
    tokio::try_join!(root, own).map(drop)
}

/// Ends what failed, and explains it by what the monitor said.
async fn failed(error: VmError, folder: &VmFolder, creator: Creator, here: Here) -> VmError {
    let error = explained(error, folder, here.keeper).await;
    drop(creator);
    clear_after(folder, Some(here)).await;
    error
}

/// A file's length, bytes; 0 if it isn't there, which whoever opens it next says.
fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |about| about.len())
}
