//! The driver: what this host's QEMU is, and the two ways to a machine.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use fabric_types::{Accelerator, Fit, GuestNetwork, HypervisorKind, Isolation};
use serde_json::json;
use tokio::process::Command;
use tokio::time::timeout;

use super::command::{TCG_CPU, TCG_FEATURES};
use super::machine::QemuMachine;
use super::qmp::Qmp;
use super::start::Started;
use crate::checkpoint::{Manifest, Plug};
use crate::host::host_features;
use crate::keeper::KeeperProgram;
use crate::launch::{adoptable, check_files, check_pages, check_template};
use crate::seal::findings;
use crate::spare::{Ahead, Waiting};
use crate::template::{self, TemplateManifest};
use crate::{Hypervisor, MemorySource, Spare, Vm, VmError, VmFolder, VmSpec};

/// How long `qemu --version` and the like may take on a host that is busy.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// The program, when none is configured.
const PROGRAM: &str = "qemu-system-x86_64";

/// What a driver is made from.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// QEMU's program; a name without a slash is looked for in PATH.
    pub program: PathBuf,
    /// The keeper.
    pub keeper: KeeperProgram,
    /// What executes the guests.
    pub accelerator: Accelerator,
    /// Why this driver and accelerator, for [`Isolation`].
    pub reason: String,
    /// Added to the guest kernel's command line.
    pub kernel_args: String,
}

impl QemuConfig {
    /// The host's QEMU (environment variable `ATOLL_QEMU`, else PATH) with this accelerator.
    pub fn new(keeper: KeeperProgram, accelerator: Accelerator) -> Self {
        let program = std::env::var_os("ATOLL_QEMU").map_or_else(|| PROGRAM.into(), PathBuf::from);
        let reason = format!("QEMU with {} was chosen by configuration", accelerator.as_str());
        Self { program, keeper, accelerator, reason, kernel_args: String::new() }
    }
}

/// QEMU as a driver.
#[derive(Debug)]
pub struct QemuDriver {
    config: QemuConfig,
    fit: Fit,
    isolation: Isolation,
}

impl QemuDriver {
    /// Asks the program for its version and machine types. It boots nothing: whether the accelerator works, the probe
    /// tells.
    pub async fn new(config: QemuConfig) -> Result<Self, VmError> {
        let version = version_of(&ask(&config.program, &["--version"]).await?);
        let machine = machine_of(&ask(&config.program, &["-machine", "help"]).await?);
        let (Some(version), Some(machine)) = (version, machine) else {
            let message = "it names no version or no q35 machine".to_owned();
            return Err(VmError::Refused { monitor: "qemu", command: config.program.display().to_string(), message });
        };
        let (cpu_model, cpu_features) = match config.accelerator {
            Accelerator::Tcg => (TCG_CPU.to_owned(), TCG_FEATURES.map(str::to_owned).to_vec()),
            Accelerator::Kvm => ("host".to_owned(), host_features()?),
        };
        let accelerator = config.accelerator;
        let fit = Fit { hypervisor: HypervisorKind::Qemu, version, machine, accelerator, cpu_model, cpu_features };
        let isolation = Isolation {
            hypervisor: HypervisorKind::Qemu,
            accelerator,
            reason: config.reason.clone(),
            guest_address_randomization: accelerator != Accelerator::Tcg,
            network: GuestNetwork::None,
            seal: findings(&config.keeper).await,
        };
        Ok(Self { config, fit, isolation })
    }

    /// The same driver, for machines that serve: with the reason that isolation states, and no further kernel
    /// arguments.
    pub(crate) fn for_service(mut self, reason: String) -> Self {
        self.isolation.reason = reason;
        self.config.kernel_args.clear();
        self
    }

    /// Refuses what can't become a machine; answers the manifest of the template that it starts from.
    fn check(&self, spec: &VmSpec) -> Result<Option<TemplateManifest>, VmError> {
        check_files(spec)?;
        if let Some(checkpoint) = &spec.checkpoint {
            check_copy(spec, checkpoint)?;
        }
        match &spec.memory {
            MemorySource::Boot => Ok(None),
            MemorySource::BootTemplate { template } => template::prepare(template).map(|()| None),
            MemorySource::BootOver { template } => check_template(&self.fit, template, spec).map(Some),
            MemorySource::Clone { template } => {
                let manifest = check_template(&self.fit, template, spec)?;
                if manifest.blank {
                    let why = format!("the template in {} is blank: machines boot over it", template.display());
                    return Err(VmError::Unsupported { verb: "clone", why });
                }
                Ok(Some(manifest))
            }
            MemorySource::Restore { template, snapshot } => {
                let manifest = check_template(&self.fit, template, spec)?;
                check_pages(snapshot, &manifest)?;
                Ok(Some(manifest))
            }
        }
    }
}

/// Refuses a copy that this host can't make, or with another plug than the machine had.
fn check_copy(spec: &VmSpec, checkpoint: &Path) -> Result<(), VmError> {
    let manifest = Manifest::read(checkpoint);
    let why = match &manifest {
        Err(error) => error.to_string(),
        Ok(manifest) if !manifest.is_current() => "it was taken under another boot, version or QEMU".to_owned(),
        Ok(manifest) if manifest.plug != Plug::from(&spec.network) => {
            format!("its card is plugged into another kind of device ({:?})", manifest.plug)
        }
        Ok(_) if !matches!(spec.memory, MemorySource::Clone { .. }) => "a copy's memory is a clone's".to_owned(),
        Ok(_) => return Ok(()),
    };
    Err(VmError::Unsupported { verb: "copy a machine", why: format!("{}: {why}", checkpoint.display()) })
}

#[async_trait]
impl Hypervisor for QemuDriver {
    fn fit(&self) -> &Fit {
        &self.fit
    }

    fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// With KVM, part of a machine's state is the kernel's.
    fn makes_checkpoints(&self) -> bool {
        self.config.accelerator == Accelerator::Tcg
    }

    async fn create(&self, spec: VmSpec) -> Result<Box<dyn Vm>, VmError> {
        let template = self.check(&spec)?;
        let started = Started::start(&self.config, &self.fit, spec, template, false).await?;
        Ok(Box::new(started.load().await?))
    }

    async fn spare(&self, spec: VmSpec) -> Result<Box<dyn Spare>, VmError> {
        if !matches!(spec.memory, MemorySource::Clone { .. }) || spec.checkpoint.is_some() {
            let why = "only clones are started ahead".to_owned();
            return Err(VmError::Unsupported { verb: "spare", why });
        }
        let template = self.check(&spec)?;
        let started = Started::start(&self.config, &self.fit, spec, template, true).await?;
        Ok(Box::new(Ahead::new(started)))
    }

    async fn adopt(&self, folder: &VmFolder) -> Result<Box<dyn Vm>, VmError> {
        let (record, keeper, here) = adoptable(folder, HypervisorKind::Qemu).await?;
        let qmp = Qmp::connect(&folder.monitor_socket(), &record.spec.label).await?;
        Ok(Box::new(QemuMachine::new(record.spec, self.fit.clone(), keeper, here, qmp)))
    }
}

/// Events tell the end of a transfer; `x-ignore-shared` leaves memory in a shared file out of the stream, and has a
/// reader not expect it there.
pub(super) async fn set_capabilities(qmp: &Qmp, ignore_shared: bool) -> Result<(), VmError> {
    let capabilities = json!({ "capabilities": [
        { "capability": "events", "state": true },
        { "capability": "x-ignore-shared", "state": ignore_shared },
    ]});
    qmp.execute("migrate-set-capabilities", capabilities).await.map(drop)
}

async fn ask(program: &Path, arguments: &[&str]) -> Result<String, VmError> {
    let failed = |source| VmError::Program {
        program: program.display().to_string(),
        source,
        advice: "install the package qemu-system-x86, or name QEMU in ATOLL_QEMU",
    };
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output =
        timeout(ASK_LIMIT, output).await.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `QEMU emulator version 7.2.22 (Debian ...)`.
fn version_of(text: &str) -> Option<String> {
    text.split_once("version ")?.1.split_whitespace().next().map(str::to_owned)
}

/// The versioned machine that `q35` stands for: `q35  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)`.
fn machine_of(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("q35 "))?;
    line.split_once("(alias of ")?.1.strip_suffix(')').map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_and_machine_are_read_from_what_qemu_prints() {
        let printed = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c) 2003-2022";
        assert_eq!(version_of(printed).as_deref(), Some("7.2.22"));
        let machines = "Supported machines are:\npc-q35-7.2   x\nq35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)\n";
        assert_eq!(machine_of(machines).as_deref(), Some("pc-q35-7.2"));
        assert_eq!(machine_of("q35-like"), None);
        assert_eq!(version_of("no"), None);
    }

    #[tokio::test]
    async fn a_missing_program_is_named_with_advice() {
        let keeper = KeeperProgram { program: "/nonexistent".into(), args: vec![] };
        let config = QemuConfig { program: "/nonexistent/qemu".into(), ..QemuConfig::new(keeper, Accelerator::Tcg) };
        let error = QemuDriver::new(config).await.expect_err("missing").to_string();
        assert!(error.contains("/nonexistent/qemu") && error.contains("install the package"), "{error}");
    }
}
