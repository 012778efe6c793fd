//! The `[engine]` part of a node's configuration: how much is kept warm, how guests are networked, sealed and limited.
//! Everything has a default; the types that runtime and network take are made here, in one place.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use fabric_types::{NodeLimits, Quota, network_range};
use node_network::{NetworkChoice, NetworkConfig};
use node_runtime::{GuestLimits, MachineDefaults, PoolLimits};
use serde::{Deserialize, Serialize};

use crate::config::NodeConfig;

/// Demand may ask for so many times the clones that are kept anyway.
const POOL_GROWTH: u32 = 4;
/// Warm clones may have so much of the node's memory to themselves, as one part in so many.
const POOL_MEMORY_PART: u64 = 4;
/// Ports beyond those of a full pool: a create that finds the pool empty finds one still.
const PORTS_SPARE: u32 = 4;
/// A guest's share of a line, bits a second: downloads are quick, and ten guests don't fill a 10 Gbit/s uplink.
const BITS_PER_SECOND: u64 = 1_000_000_000;
/// Connections of one guest: browsers and package managers open hundreds, a scan thousands.
const CONNECTIONS: u32 = 2_048;

/// The engine's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Engine {
    /// `auto`: what this host can give, what it can't is shown. `required`: all of it, or the node doesn't start.
    pub(crate) seal: SealChoice,
    /// Warm clones at most; four times `pool` if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pool_max: Option<u32>,
    /// MiB that warm clones may have to themselves together; a quarter of the node's memory if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pool_memory_mib: Option<u64>,
    /// Monitors started ahead without a guest, for creates that find the pool empty.
    pub(crate) spares: u32,
    /// MiB of the disk under `data` that stay free; 1 GiB or 2%, at most a tenth, if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_free_disk_mib: Option<u64>,
    /// MiB of the host's memory that stay available; a twentieth if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_free_memory_mib: Option<u64>,
    /// Seconds after which a paused sandbox's memory goes to disk; 0 is never.
    pub(crate) swap_after_seconds: u64,
    /// The guests' network.
    pub(crate) network: Network,
    /// What each machine may use.
    pub(crate) machine: Machine,
    /// What each organization may have in this region. The placement group's leader sets its own.
    pub(crate) quota: Quota,
}

/// How strict the node is about the seal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SealChoice {
    /// What this host can give.
    #[default]
    Auto,
    /// All of it, or the node doesn't start.
    Required,
}

/// The guests' network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Network {
    /// `auto`, `tap`, `passt` or `none`.
    pub(crate) choice: NetworkChoice,
    /// Resolvers that the node's own asks; those of /etc/resolv.conf if none are given.
    pub(crate) resolvers: Vec<SocketAddr>,
    /// Bits a second of one guest, each way.
    pub(crate) bits_per_second: u64,
    /// Connections that one guest may hold open.
    pub(crate) connections: u32,
    /// The namespace in which packets leave the node; its own if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uplink: Option<PathBuf>,
}

/// What each machine may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Machine {
    /// MiB of keeper and monitor beside the guest's own memory.
    pub(crate) overhead_mib: u64,
    /// Share of the processors for each vCPU; 100 is one among equals.
    pub(crate) cpu_weight_per_vcpu: u32,
    /// Processes and threads of keeper and monitor.
    pub(crate) pids: u32,
    /// Bytes a second read from and written to the host's disk; no limit if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) io_bytes_per_second: Option<u64>,
    /// Processes and threads of all commands in a guest; the agent's default if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guest_pids: Option<u32>,
    /// Open files of one process in a guest; the agent's default if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guest_open_files: Option<u32>,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            seal: SealChoice::Auto,
            pool_max: None,
            pool_memory_mib: None,
            spares: 2,
            min_free_disk_mib: None,
            min_free_memory_mib: None,
            swap_after_seconds: node_runtime::SWAP_AFTER_DEFAULT.as_secs(),
            network: Network::default(),
            machine: Machine::default(),
            quota: Quota::default(),
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            choice: NetworkChoice::Auto,
            resolvers: Vec::new(),
            bits_per_second: BITS_PER_SECOND,
            connections: CONNECTIONS,
            uplink: None,
        }
    }
}

impl Default for Machine {
    fn default() -> Self {
        let MachineDefaults { overhead_mib, cpu_weight_per_vcpu, pids, io_bytes_per_second } =
            MachineDefaults::default();
        Self { overhead_mib, cpu_weight_per_vcpu, pids, io_bytes_per_second, guest_pids: None, guest_open_files: None }
    }
}

impl Machine {
    /// What the host lets each machine use.
    pub(crate) fn limits(&self) -> MachineDefaults {
        MachineDefaults {
            overhead_mib: self.overhead_mib,
            cpu_weight_per_vcpu: self.cpu_weight_per_vcpu,
            pids: self.pids,
            io_bytes_per_second: self.io_bytes_per_second,
        }
    }

    /// What a guest's commands may use together.
    pub(crate) fn guest_limits(&self) -> GuestLimits {
        GuestLimits { pids: self.guest_pids, open_files: self.guest_open_files }
    }
}

impl Engine {
    /// How much is kept warm, beside what is kept anyway.
    pub(crate) fn pool(&self, min: u32, limits: NodeLimits) -> PoolLimits {
        PoolLimits {
            min,
            max: self.pool_max.unwrap_or_else(|| min.saturating_mul(POOL_GROWTH)).max(min),
            memory_mib: self.pool_memory_mib.unwrap_or(limits.physical.memory_mib / POOL_MEMORY_PART),
            spares: self.spares,
        }
    }

    /// Bytes of the disk that stay free.
    pub(crate) fn min_free_disk_bytes(&self, data: &std::path::Path) -> anyhow::Result<u64> {
        match self.min_free_disk_mib {
            Some(mib) => Ok(mib.saturating_mul(1 << 20)),
            None => node_runtime::min_free_disk_bytes(data)
                .with_context(|| format!("can't measure the disk under {}", data.display())),
        }
    }

    /// Bytes of the host's memory that stay available.
    pub(crate) fn min_free_memory_bytes(&self) -> anyhow::Result<u64> {
        match self.min_free_memory_mib {
            Some(mib) => Ok(mib.saturating_mul(1 << 20)),
            None => node_runtime::min_free_memory_bytes().context("can't measure the host's memory"),
        }
    }

    /// When a paused sandbox's memory goes to disk.
    pub(crate) fn swap_after(&self) -> Option<Duration> {
        (self.swap_after_seconds > 0).then(|| Duration::from_secs(self.swap_after_seconds))
    }
}

/// What a node's guest network is made from. The fabric's public addresses are forbidden to guests; private ones are
/// to everyone.
pub(crate) fn network(config: &NodeConfig) -> NetworkConfig {
    let Network { choice, resolvers, bits_per_second, connections, uplink } = config.engine.network.clone();
    let hosts = config.peers.values().chain([&config.fabric, &config.http]).map(SocketAddr::ip);
    let public = hosts.filter(|address| !address.is_loopback() && !address.is_unspecified());
    let mut forbidden: Vec<_> = public.filter_map(|address| network_range(&address.to_string()).ok()).collect();
    forbidden.sort();
    forbidden.dedup();
    NetworkConfig {
        tag: tag(config),
        choice,
        ports_ahead: config.engine.pool(config.pool, config.limits).max.saturating_add(PORTS_SPARE),
        resolvers,
        uplink,
        forbidden,
        bits_per_second,
        connections,
    }
}

/// What tells this node's devices from another's on the same host: eight characters of a hash of folder and name, so
/// that each start finds what the last one left.
fn tag(config: &NodeConfig) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(config.data.as_os_str().as_encoded_bytes());
    hash.update(&[0]);
    hash.update(config.node.as_str().as_bytes());
    hash.finalize().to_hex().as_str()[..8].to_owned()
}

#[cfg(test)]
mod tests {
    use fabric_types::{Capacity, Overcommit};

    use super::*;

    #[test]
    fn an_empty_table_is_every_default_and_a_mistyped_name_is_refused() {
        assert_eq!(toml::from_str::<Engine>("").expect("read"), Engine::default());
        let text = "seal = \"required\"\npool_max = 9\n[network]\nchoice = \"tap\"\nresolvers = [\"9.9.9.9:53\"]\n";
        let engine: Engine = toml::from_str(text).expect("read");
        assert_eq!((engine.seal, engine.network.choice), (SealChoice::Required, NetworkChoice::Tap));
        let written = toml::to_string_pretty(&engine).expect("written");
        assert_eq!(toml::from_str::<Engine>(&written).expect("read back"), engine);
        for odd in ["seals = 1", "seal = \"most\"", "[network]\nchoice = \"user\"", "[quota]\nsandboxes = 1\nx = 2"] {
            assert!(toml::from_str::<Engine>(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_pool_grows_to_its_most_and_never_below_its_least() {
        let limits = NodeLimits {
            physical: Capacity { vcpus: 2, memory_mib: 8192, disk_gib: 10 },
            overcommit: Overcommit::default(),
            sandboxes: None,
        };
        let pool = Engine::default().pool(4, limits);
        assert_eq!((pool.min, pool.max, pool.memory_mib), (4, 16, 2048));
        let engine = Engine { pool_max: Some(2), pool_memory_mib: Some(100), ..Engine::default() };
        assert_eq!((engine.pool(4, limits).max, engine.pool(4, limits).memory_mib), (4, 100));
    }
}
