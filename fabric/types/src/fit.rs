//! What a memory image needs of the host that resumes it, and what isolation is in force.

use serde::{Deserialize, Serialize};

/// Which virtual machine monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HypervisorKind {
    /// Cloud Hypervisor, for production.
    CloudHypervisor,
    /// QEMU, for hosts without hardware virtualization or without Cloud Hypervisor.
    Qemu,
}

impl HypervisorKind {
    /// The name in configuration, API and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CloudHypervisor => "cloud_hypervisor",
            Self::Qemu => "qemu",
        }
    }
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// The kernel's hardware virtualization.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accelerator {
    /// The name in configuration, API and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Everything that must be equal where a template or snapshot was saved and where it is resumed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fit {
    /// The monitor.
    pub hypervisor: HypervisorKind,
    /// Its version, as it prints it.
    pub version: String,
    /// The versioned machine type, as in `pc-q35-7.2`.
    pub machine: String,
    /// What executes the guest.
    pub accelerator: Accelerator,
    /// The processor model given to the guest.
    pub cpu_model: String,
    /// Processor features that the model doesn't fix, sorted.
    pub cpu_features: Vec<String>,
}

/// How a guest reaches networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestNetwork {
    /// Not at all.
    None,
    /// A tap device behind the node's own packet filter.
    Tap,
    /// Through `passt`, without the node's packet filter.
    Passt,
}

impl GuestNetwork {
    /// The name in configuration, API and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tap => "tap",
            Self::Passt => "passt",
        }
    }
}

/// What shuts a monitor off from its host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seal {
    /// What is in force, as short names: `user`, `mount_namespace`, `seccomp`...
    pub in_force: Vec<String>,
    /// What this host can't give.
    pub missing: Vec<SealGap>,
}

impl Seal {
    /// Whether nothing was found out, as by nodes of earlier versions.
    pub fn is_unknown(&self) -> bool {
        self.in_force.is_empty() && self.missing.is_empty()
    }
}

/// A part of the seal that a host lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SealGap {
    /// The part's short name.
    pub part: String,
    /// Why it isn't in force, and what to do, as one sentence.
    pub why: String,
}

/// The isolation in force on a node, with the reason for it, as logs, API and status show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    /// The monitor.
    pub hypervisor: HypervisorKind,
    /// What executes the guest.
    pub accelerator: Accelerator,
    /// Why these two, as one sentence: what was asked for, what the probe found.
    pub reason: String,
    /// Whether guest processes have randomized addresses (off under TCG, where it costs 20-40 ms an exec).
    pub guest_address_randomization: bool,
    /// The guests' network.
    pub network: GuestNetwork,
    /// What shuts the monitors off from this host.
    #[serde(default, skip_serializing_if = "Seal::is_unknown")]
    pub seal: Seal,
}
