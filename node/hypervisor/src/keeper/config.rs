//! What a keeper is started with, and the machine's record that it writes.

use std::path::{Path, PathBuf};

use fabric_types::{HypervisorKind, Seal};
use serde::{Deserialize, Serialize};

use crate::process::ProcessRef;
use crate::seal::SealRequest;
use crate::{VmFolder, VmSpec};

/// Newest schema of `keeper.json`, `vm.json` and `ended.json` that this version reads and the one it writes.
pub(crate) const SCHEMA: u32 = 1;

/// A keeper's configuration, `keeper.json`: written by the node, read and removed by the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeeperConfig {
    pub(crate) schema: u32,
    pub(crate) driver: HypervisorKind,
    pub(crate) spec: VmSpec,
    /// The monitor's program.
    pub(crate) program: PathBuf,
    /// Its arguments. `{fd:NAME}` in one becomes the number of that listener's descriptor; `net` is its card's far
    /// side, `events` what it tells its events to.
    pub(crate) arguments: Vec<String>,
    /// Sockets that the keeper binds and the monitor inherits, listening.
    pub(crate) listeners: Vec<ListenerConfig>,
    /// Further files to remove when the machine has ended.
    pub(crate) remove: Vec<PathBuf>,
    /// Whether it is started ahead of its use: it may stay unconfirmed for as long as its creator's connection lives.
    #[serde(default)]
    pub(crate) ahead: bool,
    /// How it is shut off from the host.
    #[serde(default)]
    pub(crate) seal: SealRequest,
}

/// One inherited socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListenerConfig {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// A machine's record, `vm.json`: what adoption needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmRecord {
    pub(crate) schema: u32,
    pub(crate) driver: HypervisorKind,
    /// The host's boot that the processes belong to.
    pub(crate) boot_id: String,
    pub(crate) keeper: ProcessRef,
    pub(crate) vmm: ProcessRef,
    pub(crate) spec: VmSpec,
    /// The user that is the machine's while it lives.
    #[serde(default)]
    pub(crate) uid: Option<u32>,
    /// What shuts it off from the host.
    #[serde(default)]
    pub(crate) seal: Seal,
}

/// How a machine ended, `ended.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndRecord {
    pub(crate) schema: u32,
    pub(crate) how: String,
    /// Milliseconds since the epoch.
    pub(crate) at_unix_ms: u64,
}

/// Where a machine's own files lie.
impl VmFolder {
    pub(crate) fn keeper_config(&self) -> PathBuf {
        self.dir.join("keeper.json")
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.dir.join("vm.json")
    }

    pub(crate) fn end_record(&self) -> PathBuf {
        self.dir.join("ended.json")
    }

    /// Where its cgroups are.
    pub(crate) fn seal_record(&self) -> PathBuf {
        self.dir.join("seal.json")
    }

    /// The guest's serial console, at most 512 KiB along with its elder `console.log.1`.
    pub fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// The monitor's standard error, as limited.
    pub(crate) fn vmm_log(&self) -> PathBuf {
        self.dir.join("vmm.log")
    }

    /// The keeper's own words; empty unless it failed.
    pub(crate) fn keeper_log(&self) -> PathBuf {
        self.dir.join("keeper.log")
    }

    /// What the monitor told of its machine, as limited; only of a monitor that tells.
    pub(crate) fn events_log(&self) -> PathBuf {
        self.dir.join("events.log")
    }

    /// Where the runs of pages lie while the keeper reads or writes them: the monitor sees nothing there.
    pub(crate) fn runs(&self) -> PathBuf {
        self.dir.join("runs")
    }

    pub(crate) fn keeper_socket(&self) -> PathBuf {
        self.run.join("k")
    }

    pub(crate) fn monitor_socket(&self) -> PathBuf {
        self.run.join("q")
    }

    pub(crate) fn channel_socket(&self) -> PathBuf {
        self.run.join("c")
    }

    /// Every file that a keeper, its monitor and their driver make, but for the record; `.tmp` is what is written before it gets its
    /// name.
    pub(crate) fn all_files(&self) -> Vec<PathBuf> {
        let elder = |path: &Path| path.with_extension("log.1");
        let (console, vmm, events) = (self.console_log(), self.vmm_log(), self.events_log());
        vec![
            self.keeper_socket(),
            self.monitor_socket(),
            self.channel_socket(),
            self.keeper_config(),
            self.record().with_extension("tmp"),
            self.seal_record().with_extension("tmp"),
            self.seal_record(),
            self.end_record().with_extension("tmp"),
            self.end_record(),
            elder(&console),
            elder(&vmm),
            elder(&events),
            console,
            vmm,
            events,
            self.keeper_log(),
        ]
    }
}
