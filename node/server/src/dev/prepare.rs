//! What every node needs before it starts: the mesh's authority, its identity, its configuration file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use fabric_quic::Authority;
use fabric_types::{Name, NodeLimits, OrganizationId, Quota, UnixMillis};
use node_network::NetworkChoice;

use super::layout::{Layout, Member};
use super::process::config_file;
use super::record::Record;
use crate::args::{DevEngineArgs, DevStartArgs};
use crate::config::{Bootstrap, BootstrapKey, NodeConfig, SCHEMA};
use crate::engine::{Engine, Network};
use crate::key_text;
use crate::node::clock::now;

/// Small meshes gossip fast; libraries measured 200 ms at 50 nodes as half a percent of a core each.
const GOSSIP_MS: u64 = 200;
/// As `--guest-bandwidth` counts.
const BITS_PER_MEGABIT: u64 = 1_000_000;
/// How long a node's certificate is good: a year, and each start makes a new one.
const CERTIFICATE_MS: u64 = 365 * 24 * 3600 * 1000;

/// Writes identities and configurations of all nodes.
pub(crate) fn all(
    layout: &Layout,
    record: &Record,
    args: &DevStartArgs,
    image: &Path,
    limits: NodeLimits,
) -> anyhow::Result<()> {
    let authority = authority(&layout.data.join("authority"))?;
    make_private(&record.run)?;
    for member in &layout.members {
        make_private(&member.folder)?;
        identity(&authority, member)?;
        config(layout, record, args, image, limits, member).save(&config_file(&member.folder))?;
    }
    Ok(())
}

fn authority(folder: &Path) -> anyhow::Result<Authority> {
    if folder.exists() {
        return Authority::load(folder)
            .with_context(|| format!("can't read the mesh's authority in {}", folder.display()));
    }
    make_private(folder)?;
    let authority = Authority::generate().context("can't make the mesh's authority")?;
    authority.save(folder).with_context(|| format!("can't write the mesh's authority to {}", folder.display()))?;
    Ok(authority)
}

/// A certificate is made anew at each start, so that none is ever found expired.
fn identity(authority: &Authority, member: &Member) -> anyhow::Result<()> {
    let folder = identity_folder(&member.folder);
    make_private(&folder)?;
    let not_after = UnixMillis(now().0 + CERTIFICATE_MS);
    let identity = authority
        .issue(&member.id, not_after)
        .with_context(|| format!("can't make a certificate for {}", member.id))?;
    identity.save(&folder).with_context(|| format!("can't write the identity of {} to {}", member.id, folder.display()))
}

/// Where a node's certificate and key lie.
pub(crate) fn identity_folder(node_folder: &Path) -> PathBuf {
    node_folder.join("identity")
}

fn config(
    layout: &Layout,
    record: &Record,
    args: &DevStartArgs,
    image: &Path,
    limits: NodeLimits,
    member: &Member,
) -> NodeConfig {
    let region = member.id.region();
    let regions: BTreeMap<_, _> =
        layout.regions.iter().map(|code| (code.clone(), Layout::url(layout.endpoint(code)))).collect();
    let peers = layout.members.iter().map(|peer| (peer.id.clone(), peer.fabric)).collect();
    NodeConfig {
        schema: SCHEMA,
        node: member.id.clone(),
        data: member.folder.clone(),
        run: record.run.join(member.id.as_str()),
        image: image.to_owned(),
        http: member.http,
        public_url: Layout::url(member),
        fabric: member.fabric,
        hypervisor: args.hypervisor.clone(),
        accel: args.accel.clone(),
        pool: args.pool,
        store: "sled".to_owned(),
        gossip_ms: GOSSIP_MS,
        engine: engine(&args.engine),
        limits: NodeLimits { sandboxes: args.engine.node_sandboxes, ..limits },
        regions,
        peers,
        bootstrap: Bootstrap {
            catalog_voters: layout.catalog_voters(),
            region_voters: layout.region_voters(&region),
            key: Some(BootstrapKey {
                id: record.key_id.clone(),
                name: "dev".parse::<Name>().expect("'dev' is a name"),
                hash: key_text::hash(&record.api_key),
                organization: OrganizationId("default".to_owned()),
                shown: key_text::shown(&record.api_key),
            }),
        },
    }
}

/// The engine's settings as they were typed; the rest are its defaults.
fn engine(args: &DevEngineArgs) -> Engine {
    Engine {
        seal: args.seal,
        pool_max: args.pool_max,
        pool_memory_mib: args.pool_memory,
        min_free_disk_mib: args.min_free_disk,
        network: Network {
            choice: match args.network.as_str() {
                "tap" => NetworkChoice::Tap,
                "passt" => NetworkChoice::Passt,
                "none" => NetworkChoice::None,
                _ => NetworkChoice::Auto,
            },
            resolvers: args.resolvers.clone(),
            bits_per_second: args.guest_bandwidth.saturating_mul(BITS_PER_MEGABIT),
            connections: args.guest_connections,
            ..Network::default()
        },
        quota: Quota { sandboxes: args.quota, ..Quota::default() },
        ..Engine::default()
    }
}

fn make_private(folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("can't make the folder {}", folder.display()))
}
