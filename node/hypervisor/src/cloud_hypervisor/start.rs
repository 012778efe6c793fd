//! From a specification to a machine, in the two steps that a spare takes apart.
//!
//! ```text
//!   start: the monitor's folder is filled, keeper and monitor run, the card's tap is open   (nobody waits for a spare's)
//!     │
//!   load:  a boot's configuration is made known, or a saved machine is loaded and the keeper lays its private pages;
//!     │    the keeper keeps the machine
//!   CloudHypervisorMachine, paused            either step's failure leaves nothing behind
//! ```
//!
//! Until the keeper has confirmed, the end of the creator's connection is the end of the machine: dropping [`Started`]
//! ends it, killing this node does too.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use fabric_types::{Fit, HypervisorKind};
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::api::Api;
use super::config::{
    Common, Optional, boot_config, card_config, channel_folder, channel_socket, kernel_link, loaded_config,
    monitor_folder,
};
use super::driver::CloudHypervisorConfig;
use super::machine::CloudHypervisorMachine;
use super::saved::{SavedState, config_file, empty_folder, make_folders, memory_ranges, remove_folders, state_file};
use super::{CloneMemory, card};
use crate::disk::copy_sparse;
use crate::durable::remove_file;
use crate::keeper::{
    Creator, Here, Keeper, KeeperConfig, ListenerConfig, Request, SCHEMA, SpawnedKeeper, spawn, vacant, write_runs,
};
use crate::launch::{PAGES_LIMIT, check_pages, clear_after, explained};
use crate::memory;
use crate::seal::SealRequest;
use crate::spare::Waiting;
use crate::template::{TemplateManifest, memory_file, state_file as template_state};
use crate::{MemorySource, NetworkDevice, SnapshotFiles, VmError, VmFolder, VmSpec};

/// The device that memory on demand is served by (Linux 6.1).
const USERFAULTFD: &str = "/dev/userfaultfd";

/// A monitor that waits, and its keeper.
pub(super) struct Started {
    spec: VmSpec,
    fit: Fit,
    common: Common,
    plan: Plan,
    keeper: Keeper,
    creator: Creator,
    here: Here,
    api: Api,
}

/// What is left to be said to a waiting monitor.
enum Plan {
    Boot {
        config: Value,
        card: Option<OwnedFd>,
    },
    Load {
        folder: PathBuf,
        /// Plugged in with the load, where the saved machine had a card.
        card: Option<OwnedFd>,
        /// Plugged in afterwards, where it had none.
        late: Option<OwnedFd>,
    },
}

impl Started {
    /// Starts both processes and readies the monitor. `ahead` says that the load may be far off.
    pub(super) async fn start(
        config: &CloudHypervisorConfig,
        fit: &Fit,
        common: &Common,
        spec: VmSpec,
        ahead: bool,
    ) -> Result<Self, VmError> {
        vacant(&spec.folder)?;
        let folder = make_folders(&spec.folder)?;
        let own = spec.folder.clone();
        match Self::start_in(&folder, config, fit, common, spec, ahead).await {
            Ok(started) => Ok(started),
            Err(error) => {
                // The first error is the one to tell.
                let _ = remove_folders(&own);
                Err(error)
            }
        }
    }

    async fn start_in(
        folder: &Path,
        config: &CloudHypervisorConfig,
        fit: &Fit,
        common: &Common,
        spec: VmSpec,
        ahead: bool,
    ) -> Result<Self, VmError> {
        let plan = plan(folder, common, &spec, None).await?;
        let keeper_config = KeeperConfig {
            schema: SCHEMA,
            driver: HypervisorKind::CloudHypervisor,
            spec: spec.clone(),
            program: config.program.clone(),
            arguments: ["--api-socket", "fd={fd:q}", "--seccomp", "true", "--event-monitor", "fd={fd:events}"]
                .map(str::to_owned)
                .to_vec(),
            listeners: vec![ListenerConfig { name: "q".to_owned(), path: spec.folder.monitor_socket() }],
            remove: vec![
                // The monitor binds it by itself, and only removes it when it ends in order.
                channel_socket(&spec.folder),
                channel_folder(&spec.folder),
                kernel_link(folder),
                config_file(folder),
                state_file(folder),
                memory_ranges(folder),
                folder.to_owned(),
                spec.folder.runs(),
            ],
            ahead,
            seal: needs(folder, common.clone_memory, &spec),
        };
        let SpawnedKeeper { keeper, creator, here } = spawn(&config.keeper, &keeper_config).await?;
        let api = Api::new(&spec.folder.monitor_socket(), &spec.label);
        match api.ping().await {
            Ok(()) => Ok(Self { spec, fit: fit.clone(), common: common.clone(), plan, keeper, creator, here, api }),
            Err(error) => Err(failed(error, &spec.folder, creator, here).await),
        }
    }

    /// Checks the snapshot and puts its device state and disk in the place of the template's.
    async fn turn_to(&mut self, snapshot: SnapshotFiles) -> Result<(), VmError> {
        let refused = |why: String| VmError::Unsupported { verb: "restore a spare", why };
        let MemorySource::Clone { template } = &self.spec.memory else {
            return Err(refused("only a clone's spare has a template to restore over".to_owned()));
        };
        if self.common.clone_memory != CloneMemory::Mapped {
            return Err(refused("its monitor has been given a clone's memory".to_owned()));
        }
        check_pages(&snapshot, &TemplateManifest::read(template)?)?;
        let (from, to) = (snapshot.disk.clone(), self.spec.disk.clone());
        self.spec.memory = MemorySource::Restore { template: template.clone(), snapshot };
        // The monitor opens it when it loads.
        let copied = spawn_blocking(move || copy_sparse(&from, &to)).await;
        let panicked = |error: tokio::task::JoinError| VmError::File {
            action: "copy",
            path: self.spec.disk.clone(),
            source: error.into(),
        };
        copied.map_err(panicked)??;
        let Plan::Load { folder, card, late } = &mut self.plan else {
            return Err(refused("its monitor waits for a boot".to_owned()));
        };
        let (folder, tap) = (folder.clone(), card.take().or(late.take()));
        self.plan = plan(&folder, &self.common, &self.spec, tap).await?;
        Ok(())
    }
}

impl Waiting for Started {
    type Machine = CloudHypervisorMachine;

    fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// Loads the machine and has the keeper keep it.
    async fn load(self) -> Result<CloudHypervisorMachine, VmError> {
        let Self { spec, fit, common, plan, keeper, creator, here, api } = self;
        if let Err(error) = fill(&spec, &common, plan, &keeper, &api).await {
            return Err(failed(error, &spec.folder, creator, here).await);
        }
        match creator.confirm().await {
            Ok(()) => Ok(CloudHypervisorMachine::new(spec, fit, common.clone_memory, keeper, here, api)),
            Err(error) => {
                clear_after(&spec.folder, Some(here)).await;
                Err(error)
            }
        }
    }

    /// What was started for a clone becomes the restore of a snapshot over the same template.
    async fn restore(mut self, snapshot: SnapshotFiles) -> Result<CloudHypervisorMachine, VmError> {
        match self.turn_to(snapshot).await {
            Ok(()) => self.load().await,
            Err(error) => {
                self.discard().await;
                Err(error)
            }
        }
    }

    async fn discard(self) {
        drop(self.creator);
        clear_after(&self.spec.folder, Some(self.here)).await;
    }
}

/// Prepares all that a monitor is told or reads; what can be missing is noticed here, before anything runs. `tap` is one
/// that is open already.
async fn plan(folder: &Path, common: &Common, spec: &VmSpec, tap: Option<OwnedFd>) -> Result<Plan, VmError> {
    let saved = match &spec.memory {
        MemorySource::Boot | MemorySource::BootTemplate { .. } | MemorySource::BootOver { .. } => {
            let card = card::open(&spec.network).await?;
            return Ok(Plan::Boot { config: boot_config(spec, common), card });
        }
        MemorySource::Clone { template } => SavedState::read(&template_state(template))?,
        MemorySource::Restore { snapshot, .. } => SavedState::read(&snapshot.device_state)?,
    };
    let has_card = Optional::of(&saved.config).card;
    let tap = match tap {
        None if has_card || spec.network != NetworkDevice::None => card::open(&spec.network).await?,
        tap => tap,
    };
    if has_card && tap.is_none() {
        let why = "the saved machine has a network card, and this node may not make a tap for it".to_owned();
        return Err(VmError::Unsupported { verb: "clone", why });
    }
    let config = loaded_config(spec, common, &saved.config);
    let (own, spec, mode) = (folder.to_owned(), spec.clone(), common.clone_memory);
    let filled = spawn_blocking(move || fill_folder(&own, &spec, mode, &saved, &config)).await;
    filled.map_err(|panicked| VmError::File { action: "fill", path: folder.to_owned(), source: panicked.into() })??;
    let (card, late) = if has_card { (tap, None) } else { (None, tap) };
    Ok(Plan::Load { folder: folder.to_owned(), card, late })
}

/// What the monitor needs of the host besides its disks and image. Memory is opened for reading alone, so that it is
/// enough to share it; the device that memory comes by on demand is handed out.
fn needs(folder: &Path, mode: CloneMemory, spec: &VmSpec) -> SealRequest {
    let mut request = SealRequest {
        kvm: true,
        write: vec![folder.to_owned(), channel_folder(&spec.folder)],
        ..SealRequest::default()
    };
    match (&spec.memory, mode) {
        (MemorySource::Boot | MemorySource::BootTemplate { .. }, _) => {}
        (MemorySource::BootOver { template }, _)
        | (MemorySource::Clone { template } | MemorySource::Restore { template, .. }, CloneMemory::Mapped) => {
            request.read.push(memory_file(template));
        }
        (MemorySource::Clone { .. } | MemorySource::Restore { .. }, CloneMemory::OnDemand | CloneMemory::Copy) => {
            request.read.push(memory_ranges(folder));
            if mode == CloneMemory::OnDemand {
                request.handed.push((USERFAULTFD.into(), true));
            }
        }
    }
    request
}

/// Writes what the monitor reads at a load.
fn fill_folder(
    folder: &Path,
    spec: &VmSpec,
    mode: CloneMemory,
    saved: &SavedState,
    config: &Value,
) -> Result<(), VmError> {
    saved.unpack(folder, config, mode != CloneMemory::Mapped)?;
    match (&spec.memory, mode) {
        (MemorySource::Clone { template }, CloneMemory::OnDemand | CloneMemory::Copy) => {
            memory::link(&memory_file(template), &memory_ranges(folder))
        }
        (MemorySource::Restore { template, snapshot }, CloneMemory::OnDemand | CloneMemory::Copy) => {
            memory::assemble(&memory_file(template), &snapshot.pages, &snapshot.runs, &memory_ranges(folder))
        }
        (MemorySource::Restore { snapshot, .. }, CloneMemory::Mapped) => {
            let runs = spec.folder.runs();
            write_runs(&runs, &snapshot.runs).map_err(|source| VmError::File { action: "write", path: runs, source })
        }
        (MemorySource::Clone { .. }, CloneMemory::Mapped)
        | (MemorySource::Boot | MemorySource::BootTemplate { .. } | MemorySource::BootOver { .. }, _) => Ok(()),
    }
}

/// Brings a waiting monitor to where its specification says, paused.
async fn fill(spec: &VmSpec, common: &Common, plan: Plan, keeper: &Keeper, api: &Api) -> Result<(), VmError> {
    let (folder, card, late) = match plan {
        Plan::Boot { config, card } => {
            let link = kernel_link(&monitor_folder(&spec.folder));
            let linked = symlink(&spec.image.kernel, &link);
            linked.map_err(|source| VmError::File { action: "make", path: link, source })?;
            if let MemorySource::BootTemplate { template } = &spec.memory {
                make_memory(&memory_file(template), u64::from(spec.shape.memory().0) << 20)?;
            }
            api.create(&config).await?;
            return match card {
                Some(tap) => api.add_card(&card_config(common), &tap).await,
                None => Ok(()),
            };
        }
        Plan::Load { folder, card, late } => (folder, card, late),
    };
    api.restore(&folder, common.clone_memory, card.as_ref()).await?;
    if let (MemorySource::Restore { template, snapshot }, CloneMemory::Mapped) = (&spec.memory, common.clone_memory) {
        let (memory, runs) = (memory_file(template), spec.folder.runs());
        let request = Request::LayPages { memory, pages: snapshot.pages.clone(), runs: runs.clone() };
        let reply = keeper.ask(&request, "lay_pages", PAGES_LIMIT).await?;
        tracing::debug!(label = spec.label, ?reply, "private pages laid over the template's");
        remove_file(&runs)?;
    }
    if let Some(tap) = late {
        api.add_card(&card_config(common), &tap).await?;
    }
    // The monitor holds open what it still reads, and writes none over an older file.
    empty_folder(&folder)
}

/// A template's memory: all holes. The keeper may have made it already, to give it to the machine's user.
fn make_memory(path: &Path, bytes: u64) -> Result<(), VmError> {
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let sized = made.and_then(|file| file.set_len(bytes));
    sized.map_err(|source| VmError::File { action: "make", path: path.to_owned(), source })
}

/// Ends what failed, and explains it by what the monitor said.
async fn failed(error: VmError, folder: &VmFolder, creator: Creator, here: Here) -> VmError {
    let error = explained(error, folder, here.keeper).await;
    drop(creator);
    clear_after(folder, Some(here)).await;
    // The keeper has removed them, unless it was killed.
    let _ = remove_folders(folder);
    error
}
