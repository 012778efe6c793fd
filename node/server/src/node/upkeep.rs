//! What keeps a node in step: groups begun once, members added, the node and its region registered, intent handed to
//! the runtime, and what the runtime wants by itself committed. Each loop is idempotent and starts over after a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fabric_types::{Desired, Digest, NodeId, RegionCode, SandboxId};
use node_runtime::{AutoAction, AutoVerb, Intent, Verb};
use raft_consensus::Group;
use raft_placement::Machine;
use raft_placement::catalog::{self, ApiKey, Catalog, Template};
use raft_placement::region::{self, Placement};

use super::build::DEFAULT_TEMPLATE;
use super::clock::now;
use crate::config::NodeConfig;
use crate::service::Service;

/// How often each loop looks again by itself, beside the changes that wake it.
const EVERY: Duration = Duration::from_secs(1);
/// One proposal of a loop; the next round tries again.
const PROPOSE_LIMIT: Duration = Duration::from_secs(5);

/// How often the snapshot store is compared with the catalog.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Chunks that nothing refers to live on for so long: a pull or an ingest may be about to refer to them.
const CHUNK_GRACE: Duration = Duration::from_secs(600);

/// A loop, run until the node ends.
pub(super) type Part = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Begins the groups whose first voter this node is. A group that has begun is left as it is.
pub(super) async fn initialize(
    config: &NodeConfig,
    catalog: &Group<Catalog>,
    placement: &Group<Placement>,
) -> anyhow::Result<()> {
    let members = |voters: &[NodeId]| -> BTreeMap<NodeId, std::net::SocketAddr> {
        voters.iter().filter_map(|voter| Some((voter.clone(), *config.peers.get(voter)?))).collect()
    };
    if config.bootstrap.catalog_voters.first() == Some(&config.node) {
        catalog.initialize(members(&config.bootstrap.catalog_voters)).await?;
    }
    if config.bootstrap.region_voters.first() == Some(&config.node) {
        placement.initialize(members(&config.bootstrap.region_voters)).await?;
    }
    Ok(())
}

/// The loops of a node.
pub(super) fn parts(config: &NodeConfig, service: &Arc<Service>, image: Digest) -> Vec<Part> {
    let config = Arc::new(config.clone());
    vec![
        Box::pin(register_in_region(config.clone(), service.clone())),
        Box::pin(register_in_catalog(config.clone(), service.clone(), image)),
        Box::pin(add_learners(config.clone(), service.clone(), service.placement.clone(), Some(config.node.region()))),
        Box::pin(add_learners(config, service.clone(), service.catalog.clone(), None)),
        Box::pin(hand_down_intent(service.clone())),
        Box::pin(commit_auto_actions(service.clone())),
        Box::pin(forget_snapshots(service.clone())),
    ]
}

/// Says this node's limits, and on the leader the quota, to its region's ledger until it has them.
async fn register_in_region(config: Arc<NodeConfig>, service: Arc<Service>) {
    loop {
        let known = service.ledger().nodes().get(&config.node).map(|node| node.limits);
        if known != Some(config.limits) {
            let command = region::Command::RegisterNode { node: config.node.clone(), limits: config.limits };
            if let Err(error) = service.placement.propose(command, PROPOSE_LIMIT).await {
                tracing::debug!(%error, "this node is not registered in its region yet");
            }
        }
        // One node's word counts for the region: its leader's.
        if service.placement.is_leader() && service.ledger().default_quota() != config.engine.quota {
            let command = region::Command::SetQuota { organization: None, quota: config.engine.quota };
            if let Err(error) = service.placement.propose(command, PROPOSE_LIMIT).await {
                tracing::debug!(%error, "the region's quota is not set yet");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Says region, node, template and first key to the catalog until it has them.
async fn register_in_catalog(config: Arc<NodeConfig>, service: Arc<Service>, image: Digest) {
    loop {
        for command in missing_in_catalog(&config, &service.catalog_state(), image, service.catalog.is_leader()) {
            if let Err(error) = service.catalog.propose(command, PROPOSE_LIMIT).await {
                tracing::debug!(%error, "the catalog doesn't know all of this node yet");
                break;
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What the catalog should hold of this node, and of the mesh if this node leads it, and doesn't. Pure.
fn missing_in_catalog(
    config: &NodeConfig,
    state: &catalog::State,
    image: Digest,
    leads: bool,
) -> Vec<catalog::Command> {
    let mut missing = Vec::new();
    let code = config.node.region();
    let region = catalog::Region {
        name: regions::builtin(&code).map_or_else(|| code.to_string(), |descriptor| descriptor.name.clone()),
        endpoint: config.regions.get(&code).cloned().unwrap_or_else(|| config.public_url.clone()),
    };
    if state.regions().get(&code) != Some(&region) {
        missing.push(catalog::Command::UpsertRegion { code, region });
    }
    let entry = catalog::Node { fabric: config.fabric, http: config.public_url.clone() };
    if state.nodes().get(&config.node) != Some(&entry) {
        missing.push(catalog::Command::UpsertNode { node: config.node.clone(), entry });
    }
    if !leads {
        return missing;
    }
    let name: Option<fabric_types::Name> = DEFAULT_TEMPLATE.parse().ok();
    if let Some(name) = name
        && state.templates().get(&name).is_none_or(|template| template.image != image)
    {
        let template = Template { image, shape: fabric_types::Shape::DEFAULT, created_at: now() };
        missing.push(catalog::Command::UpsertTemplate { name, template });
    }
    if let Some(first) = &config.bootstrap.key
        && state.keys().is_empty()
    {
        let key = ApiKey {
            name: first.name.to_string(),
            hash: first.hash,
            organization: first.organization.clone(),
            created_at: now(),
            shown: first.shown.clone(),
        };
        missing.push(catalog::Command::PutKey { id: first.id.clone(), key });
    }
    missing
}

/// On the leader: every known node that isn't a member yet becomes a learner, so that it has the state.
async fn add_learners<M: Machine>(
    config: Arc<NodeConfig>,
    service: Arc<Service>,
    group: Group<M>,
    only: Option<RegionCode>,
) {
    loop {
        tokio::time::sleep(EVERY).await;
        if !group.is_leader() {
            continue;
        }
        let metrics = group.metrics();
        let mut known: BTreeMap<NodeId, std::net::SocketAddr> = config.peers.clone();
        for view in service.view.borrow().live_nodes() {
            known.insert(view.report.node.clone(), view.report.fabric_address);
        }
        let is_member = |node: &NodeId| metrics.voters.contains(node) || metrics.learners.contains(node);
        let fitting = |node: &NodeId| only.as_ref().is_none_or(|region| node.region() == *region);
        for (node, address) in known.into_iter().filter(|(node, _)| fitting(node) && !is_member(node)) {
            match group.add_learner(node.clone(), address, PROPOSE_LIMIT).await {
                Ok(()) => tracing::info!(%node, group = %group.name(), "a node follows the group"),
                Err(error) => {
                    tracing::debug!(%node, group = %group.name(), %error, "a node can't follow the group yet")
                }
            }
        }
    }
}

/// Hands the runtime what the ledger wants of this node, on each change. Not before this node's copy is known to be as
/// new as the leader's: an old copy would have sandboxes removed that it merely hasn't heard of.
async fn hand_down_intent(service: Arc<Service>) {
    while let Err(error) = service.placement.read_barrier(PROPOSE_LIMIT).await {
        tracing::info!(%error, "waiting for the region's ledger");
        tokio::time::sleep(EVERY).await;
    }
    let mut state = service.placement.state();
    loop {
        let ledger = state.borrow_and_update().clone();
        let intents = ledger.on_node(&service.node).map(|record| Intent {
            spec: record.spec.clone(),
            generation: record.generation,
            desired: record.desired,
        });
        service.runtime.reconcile(intents.collect());
        if state.changed().await.is_err() {
            return;
        }
    }
}

/// Commits what the runtime finds due by a sandbox's intervals, then does it. What fails stays due.
async fn commit_auto_actions(service: Arc<Service>) {
    let mut due = service.runtime.due();
    loop {
        let actions = due.borrow_and_update().clone();
        for action in actions.iter() {
            carry_out(&service, action).await;
        }
        let changed = tokio::select! {
            changed = due.changed() => changed.is_ok(),
            () = tokio::time::sleep(EVERY), if !actions.is_empty() => true,
        };
        if !changed {
            return;
        }
    }
}

async fn carry_out(service: &Service, AutoAction { id, generation, verb }: &AutoAction) {
    let (id, generation) = (id.clone(), *generation);
    let (command, verb) = match verb {
        AutoVerb::Stop => {
            let command = region::Command::SetDesired { id: id.clone(), generation, desired: Desired::Stopped };
            (command, Verb::Stop { force: false })
        }
        AutoVerb::Pause => {
            (region::Command::SetDesired { id: id.clone(), generation, desired: Desired::Paused }, Verb::Pause)
        }
        AutoVerb::Archive => {
            (region::Command::SetDesired { id: id.clone(), generation, desired: Desired::Archived }, Verb::Archive)
        }
        AutoVerb::Delete => (region::Command::Delete { id: id.clone(), generation: Some(generation) }, Verb::Delete),
    };
    if matches!(verb, Verb::Stop { .. } | Verb::Pause) && service.in_use(&id) {
        // Silent for long, but somebody waits for its answer: it stays due until that has come.
        return;
    }
    tracing::info!(sandbox_id = %id, ?verb, "due by its interval");
    if let Err(error) = service.placement.propose(command, PROPOSE_LIMIT).await {
        tracing::info!(sandbox_id = %id, %error, "an interval's action is not committed; it stays due");
    } else if verb == Verb::Pause && !still_due(service, &id) {
        // A request came while the pause was being committed. It resumes what was paused; nothing is, so only the
        // ledger is put right.
        let command = region::Command::SetDesired { id: id.clone(), generation, desired: Desired::Running };
        if let Err(error) = service.placement.propose(command, PROPOSE_LIMIT).await {
            tracing::info!(sandbox_id = %id, %error, "a pause that was called off stays committed; a request resumes it");
        }
    } else if let Err(error) = service.runtime.act(&id, generation, verb).await {
        tracing::warn!(sandbox_id = %id, %error, "an interval's action failed; reconciliation goes on");
    }
}

fn still_due(service: &Service, id: &SandboxId) -> bool {
    let is_due = service.runtime.due().borrow().iter().any(|action| action.id == *id && action.verb == AutoVerb::Pause);
    is_due && !service.in_use(id)
}

/// Removes from the local store what the catalog no longer knows; chunks follow after their grace period. A manifest
/// must be missing twice in a row: between its taking and its commit the catalog doesn't know it yet.
async fn forget_snapshots(service: Arc<Service>) {
    let mut missing_before = BTreeSet::new();
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        if service.catalog.read_barrier(PROPOSE_LIMIT).await.is_err() {
            continue;
        }
        let catalog = service.catalog_state();
        let known = with_parents(&service, catalog.snapshots().values().map(|snapshot| snapshot.manifest)).await;
        let held = match service.store.manifests().await {
            Ok(held) => held,
            Err(error) => {
                tracing::warn!(%error, "the snapshot store can't be listed");
                continue;
            }
        };
        // Archived disks are in no catalog: the runtime knows them.
        let archives = service.runtime.archives();
        let needed = |manifest: &Digest| known.contains(manifest) || archives.contains(manifest);
        let missing: BTreeSet<Digest> = held.into_iter().filter(|manifest| !needed(manifest)).collect();
        for manifest in missing.intersection(&missing_before) {
            if let Err(error) = service.store.remove(*manifest, now()).await {
                tracing::warn!(%manifest, %error, "a deleted snapshot could not be removed here");
            }
        }
        missing_before = missing;
        match service.store.collect(now(), CHUNK_GRACE).await {
            Ok(collected) if collected.chunks > 0 => tracing::info!(?collected, "unreferenced chunks are gone"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "unreferenced chunks could not be collected"),
        }
    }
}

/// Manifests, with the templates that they stand on: the next snapshot of the same template finds it in the store.
async fn with_parents(service: &Service, manifests: impl Iterator<Item = Digest>) -> BTreeSet<Digest> {
    let mut known: BTreeSet<Digest> = manifests.collect();
    let mut open: Vec<Digest> = known.iter().copied().collect();
    while let Some(digest) = open.pop() {
        // What isn't in this node's store has no parent to keep here.
        let Ok(manifest) = service.store.manifest(digest).await else { continue };
        open.extend(manifest.header().parent.filter(|parent| known.insert(*parent)));
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Bootstrap, BootstrapKey, SCHEMA};
    use fabric_types::{Capacity, KeyId, NodeLimits, OrganizationId, Overcommit};

    fn config() -> NodeConfig {
        let node: NodeId = "fra-1".parse().expect("a node id");
        NodeConfig {
            schema: SCHEMA,
            data: "d".into(),
            run: "r".into(),
            image: "i".into(),
            http: "127.0.0.1:7080".parse().expect("an address"),
            public_url: "http://127.0.0.1:7080".into(),
            fabric: "127.0.0.1:8080".parse().expect("an address"),
            hypervisor: "auto".into(),
            accel: "auto".into(),
            pool: 1,
            store: "sled".into(),
            gossip_ms: 200,
            engine: crate::engine::Engine::default(),
            limits: NodeLimits {
                physical: Capacity { vcpus: 1, memory_mib: 1024, disk_gib: 3 },
                overcommit: Overcommit::default(),
                sandboxes: None,
            },
            regions: [(node.region(), "http://127.0.0.1:7080".to_owned())].into(),
            peers: [(node.clone(), "127.0.0.1:8080".parse().expect("an address"))].into(),
            bootstrap: Bootstrap {
                catalog_voters: vec![node.clone()],
                region_voters: vec![node.clone()],
                key: Some(BootstrapKey {
                    id: KeyId::new([1; 16]),
                    name: "dev".parse().expect("a name"),
                    hash: Digest::from_bytes([2; 32]),
                    organization: OrganizationId("default".into()),
                    shown: "e2b_".into(),
                }),
            },
            node,
        }
    }

    fn told(leads: bool) -> catalog::State {
        let (config, image) = (config(), Digest::from_bytes([3; 32]));
        let mut state = catalog::State::default();
        for command in missing_in_catalog(&config, &state, image, leads) {
            Catalog::apply(&mut state, &command).expect("accepted");
        }
        state
    }

    #[test]
    fn the_leader_tells_an_empty_catalog_everything_once() {
        let state = told(true);
        assert_eq!(
            (state.regions().len(), state.nodes().len(), state.keys().len(), state.templates().len()),
            (1, 1, 1, 1)
        );
        assert_eq!(missing_in_catalog(&config(), &state, Digest::from_bytes([3; 32]), true), []);
    }

    #[test]
    fn a_follower_speaks_for_itself_alone() {
        let state = told(false);
        assert_eq!(
            (state.regions().len(), state.nodes().len(), state.keys().len(), state.templates().len()),
            (1, 1, 0, 0)
        );
    }

    #[test]
    fn a_revoked_first_key_does_not_come_back_while_there_is_another() {
        let mut state = told(true);
        let other = ApiKey {
            name: "other".into(),
            hash: Digest::from_bytes([9; 32]),
            organization: OrganizationId("default".into()),
            created_at: now(),
            shown: "e2b_".into(),
        };
        Catalog::apply(&mut state, &catalog::Command::PutKey { id: KeyId::new([5; 16]), key: other }).expect("added");
        Catalog::apply(&mut state, &catalog::Command::RemoveKey { id: KeyId::new([1; 16]) }).expect("removed");
        assert_eq!(missing_in_catalog(&config(), &state, Digest::from_bytes([3; 32]), true), []);
    }

    #[test]
    fn a_new_image_replaces_the_template() {
        let missing = missing_in_catalog(&config(), &told(true), Digest::from_bytes([4; 32]), true);
        assert!(
            matches!(&missing[..], [catalog::Command::UpsertTemplate { template, .. }] if template.image == Digest::from_bytes([4; 32]))
        );
    }
}
