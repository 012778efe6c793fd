//! The composition root of a node: opens every part in order, joins them, and takes them apart again.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fabric_gossip::{Gossip, GossipConfig, GossipHandle};
use fabric_quic::{Fabric, NodeIdentity, Protocol, QuicConfig, QuicFabric};
use fabric_types::{Digest, Isolation, Name};
use gateway_edge::{EdgeConfig, EdgeLimits};
use guest_image::{Hold, ImageDir, TEMPLATES};
use node_hypervisor::{ImagePaths, KeeperProgram, ProbeConfig, Probed, probe};
use node_network::Networks;
use node_runtime::{Runtime, RuntimeConfig};
use node_snapshot::{ChunkServer, SnapshotStore};
use raft_consensus::{Group, GroupName, GroupOptions, RaftHost, RaftHostConfig, Resolver, StoreKind};
use raft_placement::catalog::Catalog;
use raft_placement::region::Placement;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::publish::Publisher;
use super::status::Status;
use super::{clock::now, upkeep};
use crate::config::NodeConfig;
use crate::engine::{self, SealChoice};
use crate::service::{Parts, Port, Service};

/// The template that a create uses when its client names none.
pub(crate) const DEFAULT_TEMPLATE: &str = "default";

/// Closing the raft store once its groups have ended.
const STORE_CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// A running node.
pub(crate) struct Node {
    pub(super) config: NodeConfig,
    pub(super) service: Arc<Service>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) networks: Networks,
    fabric: Arc<QuicFabric>,
    gossip: GossipHandle,
    raft: RaftHost,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    /// What ended a part that must not end; the sender side lives in the tasks.
    failures: tokio::sync::Mutex<mpsc::Receiver<anyhow::Error>>,
    /// Nobody takes the image away while this node runs.
    _image: Hold,
}

impl Node {
    /// Opens everything. On an error what was opened is dropped; sandboxes stay with their keepers.
    pub(crate) async fn build(config: NodeConfig) -> anyhow::Result<Self> {
        let say = |doing: &str| {
            tracing::info!(node_id = %config.node, "{doing}");
            if let Err(error) = Status::begun(doing).save(&config.data) {
                tracing::warn!(%error, "can't write status.json");
            }
        };
        say("opening stores");
        std::fs::create_dir_all(&config.run).with_context(|| format!("can't make {}", config.run.display()))?;
        let image = ImageDir::open(&config.image)
            .with_context(|| format!("{} is not a whole guest image", config.image.display()))?;
        let hold = image.hold()?;
        let identity = NodeIdentity::load(&crate::dev::identity_folder(&config.data))
            .with_context(|| format!("no usable identity under {}", config.data.display()))?;
        // The HTTP port is taken first: a second process of the same node must not get as far as the stores.
        let http =
            TcpListener::bind(config.http).with_context(|| format!("can't listen for HTTP on {}", config.http))?;
        let fabric = QuicFabric::bind(QuicConfig { listen: config.fabric, identity: identity.clone() })?;
        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (failure, failures) = mpsc::channel(8);

        say("finding out which hypervisor works");
        let Probed { driver, findings } = probe(ProbeConfig {
            hypervisor: config.hypervisor.parse()?,
            accel: config.accel.parse()?,
            image: image_paths(&image),
            cache_dir: config.image.join("probe"),
            run: config.run.clone(),
            keeper: KeeperProgram::this_program()?,
        })
        .await?;
        let networks = Networks::start(engine::network(&config)).await.context("can't give guests a network")?;
        let isolation = isolation(driver.isolation(), &networks);
        check_seal(config.engine.seal, &isolation)?;
        tracing::info!(
            hypervisor = isolation.hypervisor.as_str(),
            accelerator = isolation.accelerator.as_str(),
            network = isolation.network.as_str(),
            seal = ?isolation.seal.in_force,
            seal_missing = ?isolation.seal.missing,
            reason = isolation.reason,
            ?findings,
            "isolation in force"
        );

        let store = SnapshotStore::open(config.data.join("chunks")).await?;
        let gossip = Gossip::start(gossip_config(&config), fabric.clone() as Arc<dyn Fabric>, identity).await?;
        let raft = RaftHost::start(RaftHostConfig {
            data_dir: config.data.join("raft"),
            store: store_kind(&config.store)?,
            fabric: fabric.clone(),
            resolve: resolver(&config, &gossip),
        })
        .await?;
        let catalog: Group<Catalog> = raft.open_group(GroupName::catalog(), GroupOptions::MESH).await?;
        let placement: Group<Placement> =
            raft.open_group(GroupName::placement(&config.node.region()), GroupOptions::REGION).await?;
        upkeep::initialize(&config, &catalog, &placement).await?;

        say("taking over sandboxes, warming the pool");
        let runtime = Runtime::start(
            runtime_config(&config, &image)?,
            driver.clone(),
            Arc::new(store.clone()),
            Some(networks.clone()),
        )
        .await?;
        let service = Service::new(Parts {
            node: config.node.clone(),
            template: DEFAULT_TEMPLATE.parse::<Name>().context("the default template's name")?,
            runtime,
            store: store.clone(),
            fabric: fabric.clone(),
            placement,
            catalog,
            view: gossip.view(),
        });
        let publisher = Arc::new(Publisher::new(&config, service.clone(), gossip.clone(), driver, isolation));
        let node = Self {
            config,
            service,
            publisher,
            networks,
            fabric,
            gossip,
            raft,
            shutdown,
            tasks,
            failures: tokio::sync::Mutex::new(failures),
            _image: hold,
        };
        node.spawn_all(http, store, &image, failure)?;
        Ok(node)
    }

    /// Starts the tasks that serve, and those that keep things in step.
    fn spawn_all(
        &self,
        http: TcpListener,
        store: SnapshotStore,
        image: &ImageDir,
        failure: mpsc::Sender<anyhow::Error>,
    ) -> anyhow::Result<()> {
        let local: Arc<dyn gateway_edge::LocalNode> = Arc::new(Port(self.service.clone()));
        let fabric: Arc<dyn Fabric> = self.fabric.clone();
        let chunks = fabric.accept(Protocol::Chunks)?;
        self.tasks.spawn(ChunkServer::run(store, chunks, self.shutdown.clone()));
        let relay = fabric.accept(Protocol::Relay)?;
        self.tasks.spawn(gateway_edge::serve_relay(relay, local.clone(), self.shutdown.clone()));
        let calls = fabric.accept(Protocol::NodeApi)?;
        self.tasks.spawn(gateway_edge::serve_node_api(calls, local.clone(), self.shutdown.clone()));
        for part in upkeep::parts(&self.config, &self.service, image_digest(image)?) {
            self.tasks.spawn(self.shutdown.clone().run_until_cancelled_owned(part));
        }
        let publisher = self.publisher.clone();
        self.tasks.spawn(self.shutdown.clone().run_until_cancelled_owned(async move { publisher.run().await }));
        let edge = EdgeConfig {
            listen: self.config.http,
            public_url: self.config.public_url.clone(),
            node: self.config.node.clone(),
            region: self.config.node.region(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            limits: EdgeLimits::default(),
        };
        let (view, shutdown) = (self.gossip.view(), self.shutdown.clone());
        self.tasks.spawn(async move {
            if let Err(error) = gateway_edge::serve(edge, http, local, fabric, view, shutdown).await {
                let error = anyhow::Error::new(error).context("the HTTP edge ended");
                if failure.send(error).await.is_err() {
                    tracing::debug!("the node has ended already");
                }
            }
        });
        self.publisher.serving();
        Ok(())
    }

    /// Resolves when a part has ended that must not.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        match self.failures.lock().await.recv().await {
            Some(error) => error,
            // The sender lives in the edge's task, which ends by itself only after it has sent, or at the drain.
            None => std::future::pending().await,
        }
    }

    /// Takes no new work, finishes what is in progress, closes everything; sandboxes stay with their keepers.
    pub(crate) async fn drain(self, limit: Duration) {
        tracing::info!(node_id = %self.config.node, "draining");
        self.shutdown.cancel();
        // Requests first: the runtime's drain ends the channels that relayed requests still use.
        self.tasks.close();
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_err() {
            tracing::warn!("requests were still in progress after {} s", limit.as_secs());
        }
        self.service.runtime.drain(limit).await;
        // Guests go on behind their filters until the next process takes them over.
        self.networks.stop(false).await;
        self.gossip.shutdown().await;
        tokio::join!(self.service.catalog.shutdown(), self.service.placement.shutdown());
        // A request that is still in progress holds the service and so the store; the process ends either way, and what
        // was acknowledged is on disk.
        drop((self.service, self.publisher));
        if tokio::time::timeout(STORE_CLOSE_LIMIT, self.raft.shutdown()).await.is_err() {
            tracing::debug!("the raft store is closed by the end of the process");
        }
        self.fabric.close().await;
    }
}

fn image_paths(image: &ImageDir) -> ImagePaths {
    ImagePaths { kernel: image.kernel(), initramfs: image.initramfs(), root: image.root() }
}

/// An image is what its manifest says: that file's hash names it.
fn image_digest(image: &ImageDir) -> anyhow::Result<Digest> {
    let path = image.dir.join("manifest.json");
    let bytes = std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
    Ok(Digest::from_bytes(*blake3::hash(&bytes).as_bytes()))
}

fn runtime_config(config: &NodeConfig, image: &ImageDir) -> anyhow::Result<RuntimeConfig> {
    Ok(RuntimeConfig {
        node: config.node.clone(),
        dir: config.data.clone(),
        run: config.run.clone(),
        templates: templates(&config.image),
        image: image_paths(image),
        image_digest: image_digest(image)?.to_string(),
        agent_protocol: image.manifest.agent_protocol,
        template: DEFAULT_TEMPLATE.parse().context("the default template's name")?,
        pool: config.engine.pool(config.pool, config.limits),
        limits: config.engine.machine.limits(),
        guest_limits: config.engine.machine.guest_limits(),
        min_free_disk_bytes: config.engine.min_free_disk_bytes(&config.data)?,
        min_free_memory_bytes: config.engine.min_free_memory_bytes()?,
        swap_after: config.engine.swap_after(),
    })
}

/// The isolation in force: the driver's, with the network that guests really have.
fn isolation(driver: &Isolation, networks: &Networks) -> Isolation {
    Isolation {
        network: networks.kind(),
        reason: format!("{}; {}", driver.reason, networks.reason()),
        ..driver.clone()
    }
}

/// A node that was told to have all of the seal doesn't start without a part of it.
fn check_seal(choice: SealChoice, isolation: &Isolation) -> anyhow::Result<()> {
    let missing = &isolation.seal.missing;
    if choice == SealChoice::Auto || missing.is_empty() {
        return Ok(());
    }
    let gaps: Vec<String> = missing.iter().map(|gap| format!("{}: {}", gap.part, gap.why)).collect();
    anyhow::bail!(
        "the seal is required, and this host can't give all of it ({}); `atoll doctor` says more",
        gaps.join("; ")
    )
}

fn gossip_config(config: &NodeConfig) -> GossipConfig {
    GossipConfig {
        interval: Duration::from_millis(config.gossip_ms),
        seeds: config.peers.values().copied().filter(|address| *address != config.fabric).collect(),
        incarnation: now().0,
    }
}

fn store_kind(name: &str) -> anyhow::Result<StoreKind> {
    match name {
        "sled" => Ok(StoreKind::Sled),
        "redb" => Ok(StoreKind::Redb),
        other => anyhow::bail!("store = \"{other}\" is unknown: it is sled or redb"),
    }
}

/// Where nodes listen now: gossip knows best, the configuration before gossip has spoken.
fn resolver(config: &NodeConfig, gossip: &GossipHandle) -> Resolver {
    let (peers, view) = (config.peers.clone(), gossip.view());
    Arc::new(move |node| {
        let by_gossip = view.borrow().node(node).map(|seen| seen.report.fabric_address);
        by_gossip.or_else(|| peers.get(node).copied())
    })
}

/// Templates lie beside the image that they were booted from, shared by the nodes of the host.
fn templates(image: &Path) -> std::path::PathBuf {
    image.join(TEMPLATES)
}
