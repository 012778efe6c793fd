//! A node's configuration file, `config.toml`: written by `atoll dev` or by a fleet's provisioning, read once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use fabric_types::{Digest, KeyId, Name, NodeId, NodeLimits, OrganizationId, RegionCode};
use node_hypervisor::atomic_files;
use serde::{Deserialize, Serialize};

use crate::engine::Engine;

/// The newest schema that this version writes and reads.
pub(crate) const SCHEMA: u32 = 1;

/// Everything that a node is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeConfig {
    /// The file's schema version.
    pub(crate) schema: u32,
    /// This node.
    pub(crate) node: NodeId,
    /// The node's own folder: stores, sandboxes, identity, log.
    pub(crate) data: PathBuf,
    /// The short folder for sockets; made if missing, emptied of this node's sockets at the end.
    pub(crate) run: PathBuf,
    /// A finished guest image.
    pub(crate) image: PathBuf,
    /// Where HTTP is served.
    pub(crate) http: SocketAddr,
    /// The base URL that clients use for this node.
    pub(crate) public_url: String,
    /// Where the fabric listens (UDP).
    pub(crate) fabric: SocketAddr,
    /// `auto`, `cloud_hypervisor` or `qemu`.
    #[serde(default = "auto")]
    pub(crate) hypervisor: String,
    /// `auto`, `kvm` or `tcg`.
    #[serde(default = "auto")]
    pub(crate) accel: String,
    /// Warm clones of the default shape that are kept even when nobody creates anything.
    #[serde(default = "default_pool")]
    pub(crate) pool: u32,
    /// `sled` or `redb`.
    #[serde(default = "default_store")]
    pub(crate) store: String,
    /// Milliseconds between two rounds of gossip.
    #[serde(default = "default_gossip_ms")]
    pub(crate) gossip_ms: u64,
    /// Pool, network, seal, limits, quota.
    #[serde(default)]
    pub(crate) engine: Engine,
    /// What this node may hold.
    pub(crate) limits: NodeLimits,
    /// Regions of the mesh and their endpoints.
    pub(crate) regions: BTreeMap<RegionCode, String>,
    /// Nodes known from the start: gossip's seeds, and where consensus looks before gossip has spoken.
    pub(crate) peers: BTreeMap<NodeId, SocketAddr>,
    /// First voters of the groups; read only while a group has never been initialized.
    pub(crate) bootstrap: Bootstrap,
}

/// How the groups begin.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bootstrap {
    /// First voters of the catalog group: an odd number, spread over regions.
    pub(crate) catalog_voters: Vec<NodeId>,
    /// First voters of this region's placement group: 1, 3 or 5.
    pub(crate) region_voters: Vec<NodeId>,
    /// The first API key, put into a catalog that has none.
    pub(crate) key: Option<BootstrapKey>,
}

/// The first API key, by its hash.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootstrapKey {
    /// Its id.
    pub(crate) id: KeyId,
    /// Its name.
    pub(crate) name: Name,
    /// BLAKE3 of the key's text.
    pub(crate) hash: Digest,
    /// Whose.
    pub(crate) organization: OrganizationId,
    /// The first characters, to tell keys apart.
    pub(crate) shown: String,
}

impl NodeConfig {
    /// Reads and checks a configuration file.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("can't read the configuration {}", path.display()))?;
        let config: Self =
            toml::from_str(&text).with_context(|| format!("{} is not a node's configuration", path.display()))?;
        if config.schema > SCHEMA {
            bail!(
                "{} has schema version {}; this version of atoll reads up to {SCHEMA}",
                path.display(),
                config.schema
            );
        }
        let region = config.node.region();
        if !config.regions.contains_key(&region) {
            bail!(
                "{}: the node {} stands in region '{region}', which [regions] doesn't name",
                path.display(),
                config.node
            );
        }
        if config.bootstrap.catalog_voters.len().is_multiple_of(2) {
            bail!("{}: bootstrap.catalog_voters must be an odd number of nodes", path.display());
        }
        if let Some(stranger) = config.bootstrap.region_voters.iter().find(|voter| voter.region() != region) {
            bail!("{}: bootstrap.region_voters holds {stranger}, which is not in region '{region}'", path.display());
        }
        Ok(config)
    }

    /// Writes the file so that a reader sees the old or the new one, never half of one.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text = toml::to_string_pretty(self).context("can't write a node's configuration as TOML")?;
        Ok(atomic_files::replace(path, text.as_bytes(), 0o600)?)
    }
}

fn auto() -> String {
    "auto".to_owned()
}

fn default_pool() -> u32 {
    4
}

fn default_store() -> String {
    "sled".to_owned()
}

fn default_gossip_ms() -> u64 {
    1000
}
