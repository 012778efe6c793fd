//! The driver: what this host's Cloud Hypervisor is, and the two ways to a machine.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use fabric_types::{Accelerator, Fit, GuestNetwork, HypervisorKind, Isolation};
use tokio::process::Command;
use tokio::time::timeout;

use super::CloneMemory;
use super::api::{Api, check_version, words};
use super::config::Common;
use super::machine::{CloudHypervisorMachine, told};
use super::start::Started;
use crate::host::host_features;
use crate::keeper::KeeperProgram;
use crate::launch::{adoptable, check_files, check_pages, check_template};
use crate::seal::findings;
use crate::spare::{Ahead, Waiting};
use crate::sys::landlock_version;
use crate::template;
use crate::{Hypervisor, MemorySource, Spare, Vm, VmError, VmFolder, VmSpec};

/// How long `--version` may take on a host that is busy.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// The program, when none is configured.
const PROGRAM: &str = "cloud-hypervisor";
/// The landlock version whose rights the program asks for; it fails where the kernel offers less (vmm/src/landlock.rs).
const LANDLOCK_VERSION: i64 = 3;

/// What a driver is made from.
#[derive(Debug, Clone)]
pub struct CloudHypervisorConfig {
    /// Cloud Hypervisor's program; a name without a slash is looked for in PATH.
    pub program: PathBuf,
    /// The keeper.
    pub keeper: KeeperProgram,
    /// Why this driver, for [`Isolation`].
    pub reason: String,
    /// Added to the guest kernel's command line.
    pub kernel_args: String,
    /// How clones and restores come by their memory.
    pub clone_memory: CloneMemory,
    /// Whether memory that is no template's is of huge pages, which the host must have set aside.
    pub hugepages: bool,
    /// Whether guests have a balloon, by which they report what they have free.
    pub balloon: bool,
    /// Most bytes a second through a guest's network card, each way.
    pub network_bytes_per_second: Option<u64>,
}

impl CloudHypervisorConfig {
    /// The host's Cloud Hypervisor (environment variable `ATOLL_CLOUD_HYPERVISOR`, else PATH).
    pub fn new(keeper: KeeperProgram) -> Self {
        let program = std::env::var_os("ATOLL_CLOUD_HYPERVISOR").map_or_else(|| PROGRAM.into(), PathBuf::from);
        let reason = "Cloud Hypervisor was chosen by configuration".to_owned();
        Self {
            program,
            keeper,
            reason,
            kernel_args: String::new(),
            clone_memory: CloneMemory::default(),
            hugepages: false,
            balloon: false,
            network_bytes_per_second: None,
        }
    }
}

/// Cloud Hypervisor as a driver.
#[derive(Debug)]
pub struct CloudHypervisorDriver {
    config: CloudHypervisorConfig,
    fit: Fit,
    isolation: Isolation,
    common: Common,
}

impl CloudHypervisorDriver {
    /// Asks the program for its version; one outside 52 to 54 is refused. It boots nothing.
    pub async fn new(config: CloudHypervisorConfig) -> Result<Self, VmError> {
        let version = version_of(&ask_version(&config.program).await?);
        check_version(&version)?;
        let fit = Fit {
            hypervisor: HypervisorKind::CloudHypervisor,
            machine: format!("cloud-hypervisor-{version}"),
            version,
            accelerator: Accelerator::Kvm,
            cpu_model: "host".to_owned(),
            cpu_features: host_features()?,
        };
        let isolation = Isolation {
            hypervisor: HypervisorKind::CloudHypervisor,
            accelerator: Accelerator::Kvm,
            reason: config.reason.clone(),
            guest_address_randomization: true,
            network: GuestNetwork::None,
            seal: findings(&config.keeper).await,
        };
        let common = Common {
            landlock: landlock_version() >= LANDLOCK_VERSION,
            clone_memory: config.clone_memory,
            hugepages: config.hugepages,
            balloon: config.balloon,
            network_bytes_per_second: config.network_bytes_per_second,
            kernel_args: config.kernel_args.clone(),
        };
        common.check()?;
        Ok(Self { config, fit, isolation, common })
    }

    /// The same driver, for machines that serve: with the reason that isolation states, and no further kernel
    /// arguments.
    pub(crate) fn for_service(mut self, reason: String) -> Self {
        self.isolation.reason = reason;
        self.config.kernel_args.clear();
        self.common.kernel_args.clear();
        self
    }

    fn check(&self, spec: &VmSpec) -> Result<(), VmError> {
        if let Some(checkpoint) = &spec.checkpoint {
            let why = format!("this driver's monitors aren't copied (from {})", checkpoint.display());
            return Err(VmError::Unsupported { verb: "copy a machine", why });
        }
        match &spec.memory {
            MemorySource::Boot => Ok(()),
            MemorySource::BootTemplate { template } => template::prepare(template),
            MemorySource::BootOver { template } => check_template(&self.fit, template, spec).map(drop),
            MemorySource::Clone { template } => {
                let manifest = check_template(&self.fit, template, spec)?;
                if manifest.blank {
                    let why = format!("the template in {} is blank: machines boot over it", template.display());
                    return Err(VmError::Unsupported { verb: "clone", why });
                }
                Ok(())
            }
            MemorySource::Restore { template, snapshot } => {
                let manifest = check_template(&self.fit, template, spec)?;
                check_pages(snapshot, &manifest)
            }
        }
    }
}

#[async_trait]
impl Hypervisor for CloudHypervisorDriver {
    fn fit(&self) -> &Fit {
        &self.fit
    }

    fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    async fn create(&self, spec: VmSpec) -> Result<Box<dyn Vm>, VmError> {
        check_files(&spec)?;
        self.check(&spec)?;
        let started = Started::start(&self.config, &self.fit, &self.common, spec, false).await?;
        Ok(Box::new(started.load().await?))
    }

    async fn spare(&self, spec: VmSpec) -> Result<Box<dyn Spare>, VmError> {
        if !matches!(spec.memory, MemorySource::Clone { .. }) {
            let why = "only clones are started ahead".to_owned();
            return Err(VmError::Unsupported { verb: "spare", why });
        }
        check_files(&spec)?;
        self.check(&spec)?;
        let started = Started::start(&self.config, &self.fit, &self.common, spec, true).await?;
        Ok(Box::new(Ahead::new(started)))
    }

    async fn adopt(&self, folder: &VmFolder) -> Result<Box<dyn Vm>, VmError> {
        let found = adoptable(folder, HypervisorKind::CloudHypervisor).await;
        let (record, keeper, here) = found.map_err(|error| match error {
            VmError::Ended { label, how } => VmError::Ended { label, how: told(how) },
            error => error,
        })?;
        let api = Api::new(&folder.monitor_socket(), &record.spec.label);
        api.ping().await?;
        let mode = self.common.clone_memory;
        let machine = CloudHypervisorMachine::new(record.spec, self.fit.clone(), mode, keeper, here, api);
        machine.forget_kernel().await?;
        Ok(Box::new(machine))
    }
}

async fn ask_version(program: &Path) -> Result<String, VmError> {
    let failed = |source| VmError::Program {
        program: program.display().to_string(),
        source,
        advice: "install Cloud Hypervisor 52 to 54, or name it in ATOLL_CLOUD_HYPERVISOR",
    };
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output =
        timeout(ASK_LIMIT, output).await.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
    if !output.status.success() {
        let said = words(String::from_utf8_lossy(&output.stderr).trim());
        return Err(failed(io::Error::other(format!("--version ended with {}: {said}", output.status))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `cloud-hypervisor v54.0`.
fn version_of(text: &str) -> String {
    text.split_whitespace().nth(1).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_second_word() {
        assert_eq!(version_of("cloud-hypervisor v54.0\n"), "v54.0");
        assert_eq!(version_of(""), "");
    }

    #[tokio::test]
    async fn a_missing_program_is_named_with_advice() {
        let keeper = KeeperProgram { program: "/nonexistent".into(), args: vec![] };
        let config = CloudHypervisorConfig { program: "/nonexistent/ch".into(), ..CloudHypervisorConfig::new(keeper) };
        let error = CloudHypervisorDriver::new(config).await.expect_err("missing").to_string();
        assert!(error.contains("/nonexistent/ch") && error.contains("ATOLL_CLOUD_HYPERVISOR"), "{error}");
    }
}
