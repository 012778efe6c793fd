//! The driver: what this host's Cloud Hypervisor is, and the two ways to a machine.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use fabric_types::{Accelerator, Fit, GuestNetwork, HypervisorKind, Isolation};
use tokio::process::Command;
use tokio::time::timeout;

use super::api::{Api, check_version, words};
use super::config::vm_config;
use super::machine::{CloudHypervisorMachine, told};
use crate::host::host_features;
use crate::keeper::{KeeperConfig, KeeperProgram, ListenerConfig, SCHEMA, SpawnedKeeper, spawn};
use crate::launch::{adoptable, check_files, clear_after, explained};
use crate::seal::{SealRequest, findings};
use crate::sys::landlock_version;
use crate::{Hypervisor, MemorySource, Vm, VmError, VmFolder, VmSpec};

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
}

impl CloudHypervisorConfig {
    /// The host's Cloud Hypervisor (environment variable `ATOLL_CLOUD_HYPERVISOR`, else PATH).
    pub fn new(keeper: KeeperProgram) -> Self {
        let program = std::env::var_os("ATOLL_CLOUD_HYPERVISOR").map_or_else(|| PROGRAM.into(), PathBuf::from);
        let reason = "Cloud Hypervisor was chosen by configuration".to_owned();
        Self { program, keeper, reason, kernel_args: String::new() }
    }
}

/// Cloud Hypervisor as a driver.
#[derive(Debug)]
pub struct CloudHypervisorDriver {
    config: CloudHypervisorConfig,
    fit: Fit,
    isolation: Isolation,
    landlock: bool,
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
        let landlock = landlock_version() >= LANDLOCK_VERSION;
        Ok(Self { config, fit, isolation, landlock })
    }

    /// The same driver, for machines that serve: with the reason that isolation states, and no further kernel
    /// arguments.
    pub(crate) fn for_service(mut self, reason: String) -> Self {
        self.isolation.reason = reason;
        self.config.kernel_args.clear();
        self
    }

    async fn prepare(&self, spec: &VmSpec) -> Result<Api, VmError> {
        let link = spec.folder.kernel_link();
        symlink(&spec.image.kernel, &link).map_err(|source| VmError::File {
            action: "make",
            path: link.clone(),
            source,
        })?;
        let api = Api::new(&spec.folder.monitor_socket(), &spec.label);
        api.ping().await?;
        api.create(&vm_config(spec, &link, self.landlock, &self.config.kernel_args)).await?;
        Ok(api)
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
        if spec.memory != MemorySource::Boot {
            let why = "this version's Cloud Hypervisor driver only boots; use QEMU for templates, clones and snapshots";
            return Err(VmError::Unsupported { verb: "create from a template", why: why.to_owned() });
        }
        check_files(&spec)?;
        let folder = &spec.folder;
        let config = KeeperConfig {
            schema: SCHEMA,
            driver: HypervisorKind::CloudHypervisor,
            spec: spec.clone(),
            program: self.config.program.clone(),
            arguments: ["--api-socket", "fd={fd:q}", "--seccomp", "true"].map(str::to_owned).to_vec(),
            listeners: vec![ListenerConfig { name: "q".to_owned(), path: folder.monitor_socket() }],
            // The monitor binds it by itself, and only removes it when it ends in order.
            remove: vec![folder.channel_socket()],
            ahead: false,
            seal: SealRequest {
                kvm: true,
                write: vec![folder.dir.clone(), folder.run.clone()],
                ..SealRequest::default()
            },
        };
        let spawned = spawn(&self.config.keeper, &config).await?;
        let prepared = self.prepare(&spec).await;
        let SpawnedKeeper { keeper, creator, here } = spawned;
        let finished = match prepared {
            Ok(api) => creator.confirm().await.map(|()| api),
            Err(error) => {
                let error = explained(error, folder, here.keeper).await;
                drop(creator);
                Err(error)
            }
        };
        match finished {
            Ok(api) => Ok(Box::new(CloudHypervisorMachine::new(spec, keeper, here, api))),
            Err(error) => {
                clear_after(folder, Some(here)).await;
                Err(error)
            }
        }
    }

    async fn adopt(&self, folder: &VmFolder) -> Result<Box<dyn Vm>, VmError> {
        let found = adoptable(folder, HypervisorKind::CloudHypervisor).await;
        let (record, keeper, here) = found.map_err(|error| match error {
            VmError::Ended { label, how } => VmError::Ended { label, how: told(how) },
            error => error,
        })?;
        let api = Api::new(&folder.monitor_socket(), &record.spec.label);
        api.ping().await?;
        let machine = CloudHypervisorMachine::new(record.spec, keeper, here, api);
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
