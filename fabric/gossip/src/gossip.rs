//! Starts chitchat over a fabric and keeps three things in step: what this node says, what it sees, whether it may stay.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chitchat::{Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, Version, spawn_chitchat};
use fabric_quic::{Fabric, FabricError, NodeIdentity, Peer};
use fabric_types::{NodeId, UnixMillis};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};

use crate::members::{MEMBERS_MAX, failure_detector, must_leave};
use crate::observer::{Member, Observer};
use crate::socket::FabricTransport;
use crate::values::{self, ABOUT, About, CERT, LOAD, Load, VALUE_BYTES_MAX, Values};
use crate::{ClusterView, NodeReport};

/// Chitchat's own name for a cluster. Meshes are kept apart by their authorities, not by this.
const CLUSTER_ID: &str = "atoll";
/// Keys are never deleted; chitchat wants a time after which they would be forgotten.
const TOMBSTONE_GRACE: Duration = Duration::from_secs(3600);

/// How a node gossips.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipConfig {
    /// Time between two rounds: [`interval_for`](crate::interval_for) knows a good one.
    pub interval: Duration,
    /// Fabric addresses of nodes to begin with. They need not be up, and one that is makes the rest known.
    pub seeds: Vec<SocketAddr>,
    /// Which start of this node's process it is: must grow with each, as the wall clock in milliseconds does.
    pub incarnation: u64,
}

/// Why gossip can't start, or has ended.
#[derive(Debug, Clone, Error)]
pub enum GossipError {
    /// The fabric's messages.
    #[error("gossip can't have the fabric's messages: {0}")]
    Messages(Arc<FabricError>),
    /// The fabric listens where no peer can find it.
    #[error("gossip needs an address that peers can reach; the fabric listens on {0}")]
    Address(SocketAddr),
    /// Chitchat.
    #[error("gossip ended: {0}")]
    Ended(String),
    /// The cluster is full.
    #[error(
        "{live} live nodes are over the limit of {limit} for one gossip cluster; this node, the youngest, leaves it"
    )]
    TooManyMembers {
        /// Live members seen.
        live: usize,
        /// [`MEMBERS_MAX`].
        limit: usize,
    },
}

/// Starts gossip.
#[derive(Debug, Clone, Copy)]
pub struct Gossip;

/// A running gossip. Clones share it; it ends with [`GossipHandle::shutdown`] or with the last clone.
#[derive(Clone)]
pub struct GossipHandle {
    reports: Arc<watch::Sender<Option<NodeReport>>>,
    view: watch::Receiver<Arc<ClusterView>>,
    ended: watch::Receiver<Option<Result<(), GossipError>>>,
    shutdown: CancellationToken,
    _ends_with_the_last_clone: Arc<DropGuard>,
}

impl Gossip {
    /// Joins the mesh. Until the first [`GossipHandle::publish`] this node is a member that says nothing of itself, and so
    /// stands in nobody's view.
    ///
    /// # Errors
    /// If the fabric's messages are taken already or its address is none that a peer could dial.
    pub async fn start(
        config: GossipConfig,
        fabric: Arc<dyn Fabric>,
        identity: NodeIdentity,
    ) -> Result<GossipHandle, GossipError> {
        let address = fabric.local_address();
        if address.ip().is_unspecified() || address.port() == 0 {
            return Err(GossipError::Address(address));
        }
        let messages = fabric.messages().map_err(|error| GossipError::Messages(Arc::new(error)))?;
        let transport = FabricTransport::new(Arc::clone(&fabric), messages);
        let id = ChitchatId::new(identity.node().as_str(), config.incarnation, address);
        let settings = ChitchatConfig {
            chitchat_id: id,
            cluster_id: CLUSTER_ID.into(),
            gossip_interval: config.interval,
            listen_addr: address,
            seed_nodes: config.seeds.iter().map(ToString::to_string).collect(),
            failure_detector_config: failure_detector(config.interval),
            marked_for_deletion_grace_period: TOMBSTONE_GRACE,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let first = vec![(CERT.to_owned(), values::cert_value(&identity))];
        let chitchat =
            spawn_chitchat(settings, first, &transport).await.map_err(|error| GossipError::Ended(error.to_string()))?;
        let (reports, said) = watch::channel(None);
        let (view_sender, view) = watch::channel(Arc::default());
        let (end, ended) = watch::channel(None);
        let shutdown = CancellationToken::new();
        let keeper = Keeper {
            observer: Observer::new(identity.node().clone(), identity.trust().clone()),
            incarnation: config.incarnation,
            interval: config.interval,
            identity,
            fabric,
            chitchat,
            seen: HashMap::new(),
            said: None,
            view: view_sender,
        };
        let token = shutdown.clone();
        tokio::spawn(async move {
            let result = keeper.run(said, token).await;
            match &result {
                Ok(()) => info!("gossip has ended"),
                Err(error) => error!(%error, "gossip has ended"),
            }
            end.send_replace(Some(result));
        });
        let guard = Arc::new(shutdown.clone().drop_guard());
        Ok(GossipHandle { reports: Arc::new(reports), view, ended, shutdown, _ends_with_the_last_clone: guard })
    }
}

impl GossipHandle {
    /// Says something of this node. Never waits; of several reports in a row the last one counts, and what doesn't differ
    /// from what was said before is not said again.
    pub fn publish(&self, report: NodeReport) {
        self.reports.send_replace(Some(report));
    }

    /// The mesh as it is seen from here, this node included once it has said something.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.view.clone()
    }

    /// Waits until gossip has ended: well after a shutdown, else with the reason.
    pub async fn ended(&self) -> Result<(), GossipError> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(GossipError::Ended("its task is gone".into())),
        }
    }

    /// Ends gossip and waits for it. The peers notice by the silence.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        if let Err(error) = self.ended().await {
            warn!(%error, "gossip did not end well");
        }
    }
}

/// The task behind a [`GossipHandle`].
struct Keeper {
    observer: Observer,
    incarnation: u64,
    interval: Duration,
    identity: NodeIdentity,
    fabric: Arc<dyn Fabric>,
    chitchat: ChitchatHandle,
    /// Versions of values that the observer has seen.
    seen: HashMap<ChitchatId, Version>,
    /// What this node said last, and when.
    said: Option<(About, Load, UnixMillis)>,
    view: watch::Sender<Arc<ClusterView>>,
}

impl Keeper {
    async fn run(
        mut self,
        mut reports: watch::Receiver<Option<NodeReport>>,
        shutdown: CancellationToken,
    ) -> Result<(), GossipError> {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let termination = self.chitchat.termination_watcher();
        tokio::pin!(termination);
        let result = loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break Ok(()),
                ended = &mut termination => {
                    let why = ended.err().map_or_else(|| "chitchat stopped".to_owned(), |error| error.to_string());
                    break Err(GossipError::Ended(why));
                }
                Ok(()) = reports.changed() => {
                    let report = reports.borrow_and_update().clone();
                    if let Some(report) = report {
                        self.say(&report).await;
                        if let Err(error) = self.look().await {
                            break Err(error);
                        }
                    }
                }
                _ = ticks.tick() => {
                    if let Err(error) = self.look().await {
                        break Err(error);
                    }
                }
            }
        };
        self.chitchat.abort();
        result
    }

    /// Writes the values that differ from what was said before.
    async fn say(&mut self, report: &NodeReport) {
        if report.node != *self.identity.node() {
            warn!(node_id = %report.node, "a report on another node is not published");
            return;
        }
        let (about, load) = (About::of(report), Load::of(report));
        // Readers take nothing older than what they have, so the time must grow even if the clock doesn't.
        let last = self.said.as_ref().map_or(0, |(_, _, at)| at.0);
        let at = UnixMillis(now().0.max(last + 1));
        let mut values = Vec::new();
        if self.said.as_ref().is_none_or(|(said, _, _)| *said != about) {
            values.push((ABOUT, values::about_value(&self.identity, self.incarnation, at, about.clone())));
        }
        if self.said.as_ref().is_none_or(|(_, said, _)| *said != load) {
            values.push((LOAD, values::load_value(&self.identity, self.incarnation, at, load.clone())));
        }
        if let Some((key, value)) = values.iter().find(|(_, value)| value.len() > VALUE_BYTES_MAX) {
            let bytes = value.len();
            warn!(key, bytes, limit = VALUE_BYTES_MAX, "a report is too large and is not published");
            return;
        }
        if values.is_empty() {
            return;
        }
        self.said = Some((about, load, at));
        self.chitchat
            .with_chitchat(|chitchat| {
                let state = chitchat.self_node_state();
                values.iter().for_each(|(key, value)| state.set(key, value));
            })
            .await;
    }

    /// Brings the view up to date.
    async fn look(&mut self) -> Result<(), GossipError> {
        let mut seen = std::mem::take(&mut self.seen);
        let members = self.chitchat.with_chitchat(|chitchat| members(chitchat, &mut seen)).await;
        self.seen = seen;
        let live = || members.iter().filter(|member| member.live);
        let ids = live().map(|member| (member.incarnation, member.node.as_str()));
        if must_leave(ids, (self.incarnation, self.identity.node().as_str())) {
            return Err(GossipError::TooManyMembers { live: live().count(), limit: MEMBERS_MAX });
        }
        let fabric = &self.fabric;
        let rtt = |node: &NodeId, address| fabric.rtt(&Peer { address, node: Some(node.clone()) });
        let view = self.observer.step(&members, rtt, now());
        self.view.send_if_modified(|shown| {
            let differs = **shown != view;
            if differs {
                *shown = Arc::new(view);
            }
            differs
        });
        Ok(())
    }
}

/// Chitchat's members, with the values of those that changed since they were last seen.
fn members(chitchat: &Chitchat, seen: &mut HashMap<ChitchatId, Version>) -> Vec<Member> {
    let live: std::collections::HashSet<&ChitchatId> = chitchat.live_nodes().collect();
    seen.retain(|id, _| chitchat.node_state(id).is_some());
    let mut members = Vec::new();
    for (id, state) in chitchat.node_states() {
        // A name that is no node's id can't be in a certificate either.
        let Ok(node) = id.node_id.parse::<NodeId>() else { continue };
        let version = state.max_version();
        let value = |key: &str| state.get(key).map(str::to_owned);
        let mut changed = None;
        if seen.get(id).is_none_or(|last| *last != version)
            && let (Some(cert), Some(about), Some(load)) = (value(CERT), value(ABOUT), value(LOAD))
        {
            changed = Some(Values { cert, about, load });
            seen.insert(id.clone(), version);
        }
        members.push(Member {
            node,
            incarnation: id.generation_id,
            address: id.gossip_advertise_addr,
            live: live.contains(id),
            changed,
        });
    }
    members
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
