//! What this node says of itself: by gossip to its peers, in status.json to whoever started it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fabric_gossip::{GossipHandle, NodeReport, PoolReport};
use fabric_quic::Protocol;
use fabric_types::{Capacity, Isolation, UnixMillis};
use node_hypervisor::Hypervisor;
use raft_consensus::GroupMetrics;

use super::clock::now;
use super::status::Status;
use crate::config::NodeConfig;
use crate::service::Service;

/// Changes are gathered for so long: gossip carries a key's newest value only, and status.json is read every 100 ms.
const GATHER: Duration = Duration::from_millis(100);
/// How often it is looked at without a change, for what has no watch.
const EVERY: Duration = Duration::from_secs(1);

/// Publishes a node.
pub(crate) struct Publisher {
    config: NodeConfig,
    service: Arc<Service>,
    gossip: GossipHandle,
    driver: Arc<dyn Hypervisor>,
    isolation: Isolation,
    started_at: UnixMillis,
    serving: AtomicBool,
    emptied: AtomicBool,
    emptying: AtomicBool,
}

impl Publisher {
    pub(crate) fn new(
        config: &NodeConfig,
        service: Arc<Service>,
        gossip: GossipHandle,
        driver: Arc<dyn Hypervisor>,
        isolation: Isolation,
    ) -> Self {
        Self {
            config: config.clone(),
            service,
            gossip,
            driver,
            isolation,
            started_at: now(),
            serving: AtomicBool::new(false),
            emptied: AtomicBool::new(false),
            emptying: AtomicBool::new(false),
        }
    }

    /// HTTP is served from now on.
    pub(crate) fn serving(&self) {
        self.serving.store(true, Ordering::Relaxed);
    }

    /// The node is being emptied: it takes nothing new from now on.
    pub(crate) fn emptying(&self) {
        self.emptying.store(true, Ordering::Relaxed);
    }

    /// Everything that lived here is deleted.
    pub(crate) fn emptied(&self) {
        self.emptied.store(true, Ordering::Relaxed);
        self.say(&mut None);
    }

    /// Publishes on every change until it is dropped.
    pub(crate) async fn run(&self) {
        let mut observed = self.service.runtime.observed();
        let mut pools = self.service.runtime.pools();
        let mut ledger = self.service.placement.state();
        let mut region_leader = self.service.placement.leader();
        let mut catalog_leader = self.service.catalog.leader();
        let mut view = self.service.view.clone();
        let mut last = None;
        loop {
            self.gossip.publish(self.report());
            self.say(&mut last);
            tokio::time::sleep(GATHER).await;
            // A closed watch answers at once and for ever; its owner has ended, and so has this node.
            let changed = tokio::select! {
                changed = observed.changed() => changed.is_ok(),
                changed = pools.changed() => changed.is_ok(),
                changed = ledger.changed() => changed.is_ok(),
                changed = region_leader.changed() => changed.is_ok(),
                changed = catalog_leader.changed() => changed.is_ok(),
                changed = view.changed() => changed.is_ok(),
                () = tokio::time::sleep(EVERY) => true,
            };
            if !changed {
                tracing::debug!("a watched part has ended");
                tokio::time::sleep(EVERY).await;
            }
        }
    }

    fn report(&self) -> NodeReport {
        let service = &self.service;
        let ledger = service.ledger();
        let held = ledger.nodes().get(&self.config.node);
        let groups = [
            (service.catalog.name().to_string(), service.catalog.metrics()),
            (service.placement.name().to_string(), service.placement.metrics()),
        ];
        let named = |chosen: &dyn Fn(&GroupMetrics) -> bool| -> Vec<String> {
            groups.iter().filter(|(_, metrics)| chosen(metrics)).map(|(name, _)| name.clone()).collect()
        };
        NodeReport {
            node: self.config.node.clone(),
            region: self.config.node.region(),
            fabric_address: self.config.fabric,
            http_endpoint: self.config.public_url.clone(),
            limits: self.config.limits,
            reserved: held.map_or(Capacity::default(), |node| node.reserved),
            sandboxes: held.map_or(0, |node| node.sandboxes),
            pools: self.pools(),
            fit: self.driver.fit().clone(),
            isolation: self.isolation.clone(),
            hypervisor: self.driver.fit().hypervisor,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocols: Protocol::ALL.iter().map(|protocol| protocol.alpn().to_owned()).collect(),
            leads: named(&|group| group.leader.as_ref() == Some(&self.config.node)),
            votes: named(&|group| group.voters.contains(&self.config.node)),
            draining: self.emptying.load(Ordering::Relaxed),
            started_at: self.started_at,
        }
    }

    fn pools(&self) -> Vec<PoolReport> {
        let pools = self.service.runtime.pools().borrow().clone();
        let report = |pool: &node_runtime::PoolStatus| PoolReport {
            template: pool.template.clone(),
            shape: pool.shape,
            warm: pool.warm,
            target: pool.target,
        };
        pools.iter().map(report).collect()
    }

    /// Writes status.json if it would say something new.
    fn say(&self, last: &mut Option<Status>) {
        let service = &self.service;
        let pools = service.runtime.pools().borrow().clone();
        let status = Status {
            catalog_leader: service.catalog.leader().borrow().clone(),
            region_leader: service.placement.leader().borrow().clone(),
            live: service.view.borrow().live_nodes().map(|view| view.report.node.clone()).collect(),
            warm: pools.iter().map(|pool| pool.warm).sum(),
            target: pools.iter().map(|pool| pool.target).sum(),
            serving: self.serving.load(Ordering::Relaxed) && self.is_registered(),
            emptied: self.emptied.load(Ordering::Relaxed),
            isolation: Some(summary(&self.isolation)),
            network: Some(self.isolation.network.as_str().to_owned()),
            ..Status::begun(pools.first().map_or("starting", |pool| pool.doing.as_str()))
        };
        if last.as_ref() == Some(&status) {
            return;
        }
        match status.save(&self.config.data) {
            Ok(()) => *last = Some(status),
            Err(error) => tracing::warn!(%error, "can't write status.json"),
        }
    }

    /// Whether a create can be placed here and a key be checked.
    fn is_registered(&self) -> bool {
        let catalog = self.service.catalog_state();
        self.service.ledger().nodes().contains_key(&self.config.node)
            && catalog.nodes().contains_key(&self.config.node)
            && !catalog.keys().is_empty()
            && !catalog.templates().is_empty()
    }
}

/// The isolation in force, in a few words.
fn summary(isolation: &Isolation) -> String {
    let Isolation { hypervisor, accelerator, seal, .. } = isolation;
    let (in_force, missing) = (seal.in_force.len(), seal.missing.len());
    let seal = match (in_force, missing) {
        (0, _) => "not sealed".to_owned(),
        (_, 0) => "sealed".to_owned(),
        _ => format!("sealed but for {missing} of {} parts", in_force + missing),
    };
    format!("{} with {}, {seal}", hypervisor.as_str(), accelerator.as_str())
}
