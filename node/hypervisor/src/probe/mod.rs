//! Which monitor and accelerator really work on this host: found out by booting our own kernel, saving it and running a
//! clone, never assumed.
//!
//! ```text
//! choice   what may be tried for what was asked, as pure functions
//! trial    one boot, saved and cloned, under deadlines
//! cache    what was found since the host started, shared by the nodes of the host
//! ```
//!
//! What was asked for by name and doesn't work is an error with the reason; nothing weaker is put in its place. TCG
//! needs no trial: it asks nothing of the processor.

mod cache;
mod choice;
mod trial;

use std::path::PathBuf;
use std::sync::Arc;

use fabric_types::{Accelerator, Digest, HypervisorKind};
use thiserror::Error;
use tokio::task::spawn_blocking;

use crate::host::{has_vmx_or_svm, kvm_opens};
use crate::template::hash_files;
use crate::{
    CloudHypervisorConfig, CloudHypervisorDriver, Hypervisor, ImagePaths, KeeperProgram, QemuConfig, QemuDriver,
    VmError,
};
use cache::{Cache, Entry, Key};
pub use choice::{AccelChoice, HypervisorChoice};
use choice::{Candidate, candidates};

/// What a probe needs.
#[derive(Debug, Clone)]
pub struct ProbeConfig {
    /// Which monitor is asked for.
    pub hypervisor: HypervisorChoice,
    /// Which accelerator is asked for.
    pub accel: AccelChoice,
    /// The image whose kernel is booted.
    pub image: ImagePaths,
    /// Where findings are kept, and the trial's disk meanwhile; nodes of one host share it.
    pub cache_dir: PathBuf,
    /// A short folder for the trial's sockets, made and removed.
    pub run: PathBuf,
    /// The keeper.
    pub keeper: KeeperProgram,
}

/// The driver to use, and how it was found.
pub struct Probed {
    /// The driver. Its isolation states the reason.
    pub driver: Arc<dyn Hypervisor>,
    /// What was looked at before and including it, in order.
    pub findings: Vec<Finding>,
}

impl std::fmt::Debug for Probed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probed").field("fit", self.driver.fit()).field("findings", &self.findings).finish()
    }
}

/// What was found of one monitor with one accelerator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The monitor.
    pub hypervisor: HypervisorKind,
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Whether it works.
    pub works: bool,
    /// A sentence without its subject.
    pub what: String,
}

impl Finding {
    fn sentence(&self) -> String {
        format!("{} with {} {}", self.hypervisor.as_str(), self.accelerator.as_str(), self.what)
    }
}

/// Why there is no driver.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// These two don't go together on any host.
    #[error("--hypervisor {hypervisor} and --accel {accel} don't go together: {why}")]
    Impossible {
        /// What was asked for.
        hypervisor: HypervisorChoice,
        /// What was asked for.
        accel: AccelChoice,
        /// Why not.
        why: &'static str,
    },
    /// Nothing of what was asked for works here.
    #[error("--hypervisor {hypervisor} --accel {accel} doesn't work on this host: {found}")]
    NothingWorks {
        /// What was asked for.
        hypervisor: HypervisorChoice,
        /// What was asked for.
        accel: AccelChoice,
        /// The findings as sentences.
        found: String,
    },
    /// The findings can't be kept.
    #[error(transparent)]
    Cache(#[from] VmError),
}

/// Finds the driver for what was asked. Takes milliseconds when the findings are kept, and up to 20 s for each trial
/// else; nodes that start at once on one host wait for the first one's findings.
pub async fn probe(config: ProbeConfig) -> Result<Probed, ProbeError> {
    let (hypervisor, accel) = (config.hypervisor, config.accel);
    let chosen = candidates(hypervisor, accel).map_err(|why| ProbeError::Impossible { hypervisor, accel, why })?;
    let mut findings: Vec<Finding> = Vec::new();
    for candidate in chosen {
        let examined = examine(&config, candidate).await?;
        let works = examined.driver.is_some();
        findings.push(Finding {
            hypervisor: candidate.hypervisor,
            accelerator: candidate.accelerator,
            works,
            what: examined.what,
        });
        if let Some(driver) = examined.driver {
            let asked = format!("asked for {hypervisor} with {accel}");
            let sentences = findings.iter().map(Finding::sentence);
            let reason = std::iter::once(asked).chain(sentences).collect::<Vec<_>>().join("; ");
            return Ok(Probed { driver: driver.for_service(reason), findings });
        }
    }
    let found = findings.iter().map(Finding::sentence).collect::<Vec<_>>().join("; ");
    Err(ProbeError::NothingWorks { hypervisor, accel, found })
}

struct Examined {
    driver: Option<Candidated>,
    what: String,
}

impl Examined {
    fn fails(what: impl Into<String>) -> Self {
        Self { driver: None, what: what.into() }
    }
}

/// A driver of either kind, before it is put to service.
enum Candidated {
    Qemu(QemuDriver),
    CloudHypervisor(CloudHypervisorDriver),
}

impl Candidated {
    async fn new(keeper: &KeeperProgram, candidate: Candidate) -> Result<Self, VmError> {
        let kernel_args = trial::KERNEL_ARGS.to_owned();
        Ok(match candidate.hypervisor {
            HypervisorKind::Qemu => {
                let config = QemuConfig { kernel_args, ..QemuConfig::new(keeper.clone(), candidate.accelerator) };
                Self::Qemu(QemuDriver::new(config).await?)
            }
            HypervisorKind::CloudHypervisor => {
                let config = CloudHypervisorConfig { kernel_args, ..CloudHypervisorConfig::new(keeper.clone()) };
                Self::CloudHypervisor(CloudHypervisorDriver::new(config).await?)
            }
        })
    }

    fn driver(&self) -> &dyn Hypervisor {
        match self {
            Self::Qemu(driver) => driver,
            Self::CloudHypervisor(driver) => driver,
        }
    }

    fn for_service(self, reason: String) -> Arc<dyn Hypervisor> {
        match self {
            Self::Qemu(driver) => Arc::new(driver.for_service(reason)),
            Self::CloudHypervisor(driver) => Arc::new(driver.for_service(reason)),
        }
    }
}

async fn examine(config: &ProbeConfig, candidate: Candidate) -> Result<Examined, VmError> {
    if candidate.accelerator == Accelerator::Kvm
        && let Err(error) = kvm_opens()
    {
        return Ok(Examined::fails(format!("can't be used: /dev/kvm doesn't open: {error}")));
    }
    let driver = match Candidated::new(&config.keeper, candidate).await {
        Ok(driver) => driver,
        Err(error) => return Ok(Examined::fails(format!("can't be used: {error}"))),
    };
    if candidate.accelerator == Accelerator::Tcg {
        let what = format!("{} is used: it runs on any processor", driver.driver().fit().version);
        return Ok(Examined { driver: Some(driver), what });
    }
    let entry = tried(config, driver.driver()).await?;
    let processor = if has_vmx_or_svm() { "" } else { " (the processor shows neither vmx nor svm)" };
    Ok(if entry.works {
        let what = format!(
            "{} is used: it booted our kernel in {} ms{processor}",
            driver.driver().fit().version,
            entry.took_ms
        );
        Examined { driver: Some(driver), what }
    } else {
        Examined::fails(format!("doesn't work: {}{processor}", entry.why))
    })
}

/// The kept finding of this driver, or a trial's, which is kept from then on.
async fn tried(config: &ProbeConfig, driver: &dyn Hypervisor) -> Result<Entry, VmError> {
    let cache_dir = config.cache_dir.clone();
    let opened = spawn_blocking(move || Cache::open(&cache_dir)).await;
    let mut cache = opened.map_err(|panicked| VmError::File {
        action: "open",
        path: config.cache_dir.clone(),
        source: panicked.into(),
    })??;
    let key = key_of(config, driver)?;
    if let Some(entry) = cache.find(&key) {
        return Ok(entry.clone());
    }
    let outcome = trial::boot(driver, &config.image, &config.cache_dir, &config.run).await;
    let entry = Entry::new(key, outcome);
    tracing::info!(?entry, "a trial boot has ended");
    cache.add(entry.clone())?;
    Ok(entry)
}

fn key_of(config: &ProbeConfig, driver: &dyn Hypervisor) -> Result<Key, VmError> {
    let image = &config.image;
    let hashed = hash_files(&[&image.kernel, &image.initramfs]);
    let kernel: Digest =
        hashed.map_err(|source| VmError::File { action: "hash", path: image.kernel.clone(), source })?;
    let fit = driver.fit();
    Ok(Key { hypervisor: fit.hypervisor, accelerator: fit.accelerator, version: fit.version.clone(), kernel })
}
