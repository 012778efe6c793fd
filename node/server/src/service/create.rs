//! A new sandbox: a node is chosen, the placement committed beside the clone's resume, and the answer waits for both.
//! Each step names its undo: a commit that fails deletes what runs, a run that fails deletes what was committed.

use std::collections::BTreeSet;
use std::time::Duration;

use fabric_api::node::{Action, NewSandbox, NodeAnswer, NodeCall, NodeReply, NodeRequest, Origin};
use fabric_api::{ApiError, ErrorCode};
use fabric_types::{Desired, Fit, Generation, NodeId, SandboxId, SandboxSpec, Shape, Source};
use node_runtime::RunRequest;
use raft_consensus::ProposeError;
use raft_placement::catalog::{ReplicaState, Snapshot};
use raft_placement::region::{Command, Record, Refusal};
use raft_placement::{Candidate, Need, choose};

use super::{Service, UNDO_LIMIT, errors, pass, query};
use crate::node::clock::now;

/// How many nodes are tried: a refusal for lack of room means that gossip was behind, and the next choice knows more.
const NODES_TRIED_MAX: usize = 3;
/// The user that is shown where a client named none: commands run as the guest's root.
const DEFAULT_USER: &str = "root";

/// What a create has been resolved to, before a node is chosen.
struct Plan {
    spec: SandboxSpec,
    fit: Option<Fit>,
    holders: Vec<NodeId>,
    snapshot: Option<fabric_types::SnapshotId>,
}

/// How one attempt on one node ended.
enum Attempt {
    Done(NodeReply),
    Elsewhere(ApiError),
    Failed(ApiError),
}

impl Service {
    pub(super) async fn create(&self, call: &NodeCall, new: &NewSandbox) -> NodeAnswer {
        if let Some(leader) = self.other_leader(call) {
            match self.ask(&leader, call, call.request.clone()).await {
                Err(error) if error.code == ErrorCode::Unavailable => {
                    tracing::info!(%leader, %error, "the leader can't be asked: deciding here");
                }
                answer => return answer,
            }
        }
        let plan = self.plan(new).await?;
        let mut avoid = BTreeSet::new();
        let mut last = None;
        for _ in 0..NODES_TRIED_MAX {
            let node = match self.pick(&plan, &avoid) {
                Ok(node) => node,
                Err(error) => return Err(last.unwrap_or(error)),
            };
            match self.attempt(call, &plan, &node).await {
                Attempt::Done(reply) => {
                    self.note_replica(&plan, &node);
                    return Ok(reply);
                }
                Attempt::Failed(error) => return Err(error),
                Attempt::Elsewhere(error) => {
                    tracing::info!(%node, %error, "a create goes to another node");
                    avoid.insert(node);
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| ApiError::new(ErrorCode::NoCapacity, "no node could take the sandbox")))
    }

    /// Brings a sandbox to life on this node, as a leader asks.
    pub(super) async fn run_here(&self, spec: &SandboxSpec, generation: Generation, holders: &[NodeId]) -> NodeAnswer {
        if let Source::Snapshot { manifest } = &spec.source {
            self.pull(manifest, holders).await?;
        }
        let request = RunRequest { spec: spec.clone(), generation };
        let seen = self.runtime.run(request).await.map_err(errors::runtime)?;
        Ok(NodeReply::Observed(Box::new(query::as_wire(&seen))))
    }

    /// From what the client asked for to a spec: the source is looked up, the rest filled in.
    async fn plan(&self, new: &NewSandbox) -> Result<Plan, ApiError> {
        let snapshot = match &new.origin {
            Origin::Default => None,
            Origin::Named(key) => match self.template_named(key) {
                Some(_) => None,
                None => Some(self.snapshot_by_key(key, &new.organization).await?),
            },
            Origin::Snapshot(key) => Some(self.snapshot_by_key(key, &new.organization).await?),
        };
        let id = SandboxId::new(&self.region, rand::random());
        let name = new.name.as_ref().map_or_else(|| id.to_string(), ToString::to_string);
        if let Some(holder) = self.ledger().named(&new.organization, &name) {
            return Err(name_taken(&name, &holder.spec.id));
        }
        let shape = shape(new, snapshot.as_ref())?;
        // The commit counts; this spares a loop of refused creates the clones that it would wake and end.
        if let Err(refusal) = self.ledger().within_quota(&new.organization, shape) {
            return Err(errors::placement(&ProposeError::Refused(refusal)));
        }
        let (source, inherited) = match (&snapshot, &new.origin) {
            (Some(snapshot), _) => (Source::Snapshot { manifest: snapshot.manifest }, Some(snapshot)),
            (None, Origin::Named(key)) => {
                (Source::Template { template: self.template_named(key).unwrap_or(self.template.clone()) }, None)
            }
            (None, Origin::Default | Origin::Snapshot(_)) => {
                (Source::Template { template: self.template.clone() }, None)
            }
        };
        let mut env = inherited.map(|snapshot| snapshot.env.clone()).unwrap_or_default();
        env.extend(new.env.clone());
        let mut labels = inherited.map(|snapshot| snapshot.labels.clone()).unwrap_or_default();
        labels.extend(new.labels.clone());
        let network = new.network.clone().or_else(|| inherited.map(|snapshot| snapshot.network.clone()));
        let user = new.user.clone().or_else(|| inherited.map(|snapshot| snapshot.user.clone()));
        let spec = SandboxSpec {
            id,
            name,
            organization: new.organization.clone(),
            source,
            shape,
            labels,
            env,
            user: user.unwrap_or_else(|| DEFAULT_USER.to_owned()),
            public: new.public,
            network: network.unwrap_or_default(),
            intervals: new.intervals,
            created_at: now(),
        };
        Ok(Plan {
            spec,
            fit: snapshot.as_ref().map(|snapshot| snapshot.fit.clone()),
            holders: snapshot.as_ref().map(complete_holders).unwrap_or_default(),
            snapshot: snapshot.map(|snapshot| snapshot.id),
        })
    }

    fn template_named(&self, key: &str) -> Option<fabric_types::Name> {
        let name = key.parse().ok()?;
        self.catalog_state().templates().contains_key(&name).then_some(name)
    }

    fn pick(&self, plan: &Plan, avoid: &BTreeSet<NodeId>) -> Result<NodeId, ApiError> {
        let view = self.view.borrow().clone();
        let in_progress = self.in_progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let candidates: Vec<Candidate> = view
            .nodes
            .values()
            .filter(|node| node.report.region == self.region)
            .map(|node| Candidate {
                node: node.report.node.clone(),
                limits: node.report.limits,
                reserved: node.report.reserved,
                warm: node.report.warm(&self.template, plan.spec.shape),
                in_progress: in_progress.get(&node.report.node).copied().unwrap_or(0),
                live: node.live,
                draining: node.report.draining,
                fit: Some(node.report.fit.clone()),
            })
            .collect();
        let need = Need { shape: plan.spec.shape, fit: plan.fit.clone(), avoid: avoid.clone() };
        choose(&candidates, &self.ledger(), &need, rand::random())
            .map_err(|full| ApiError::new(ErrorCode::NoCapacity, format!("region {}: {full}", self.region)))
    }

    /// Commits the placement and starts the sandbox, side by side.
    async fn attempt(&self, call: &NodeCall, plan: &Plan, node: &NodeId) -> Attempt {
        let generation = Generation::FIRST;
        let spec = plan.spec.clone();
        let place = Command::Place { spec: Box::new(spec.clone()), node: node.clone(), generation };
        let run = NodeRequest::Run { spec: Box::new(spec.clone()), generation, holders: plan.holders.clone() };
        let _counted = InProgress::begin(self, node);
        let deadline = Duration::from_millis(call.deadline_ms);
        let (placed, ran) = tokio::join!(self.placement.propose(place, deadline), self.at(node, call, run));
        match (placed, ran) {
            (Ok(_), Ok(NodeReply::Observed(seen))) => {
                let record = Record {
                    spec,
                    node: node.clone(),
                    generation,
                    desired: Desired::Running,
                    failed: None,
                    revision: 0,
                };
                Attempt::Done(query::view_with(record, *seen))
            }
            (Ok(_), Ok(_)) => Attempt::Failed(pass::unexpected("run")),
            (Ok(_), Err(error)) => {
                self.undo_place(&spec.id, generation).await;
                self.undo_run(call, node, &spec.id, generation).await;
                elsewhere_or_failed(error)
            }
            (Err(refused), _) => {
                self.undo_run(call, node, &spec.id, generation).await;
                match errors::refusal(&refused) {
                    Some(Refusal::NameTaken { name, holder }) => Attempt::Failed(name_taken(name, holder)),
                    Some(
                        Refusal::NoRoom { .. }
                        | Refusal::NodeFull { .. }
                        | Refusal::NotAdmitted { .. }
                        | Refusal::UnknownNode { .. },
                    ) => Attempt::Elsewhere(errors::placement(&refused)),
                    Some(_) => Attempt::Failed(errors::placement(&refused)),
                    None => {
                        // The commit may yet happen: a proposal that ran out of time isn't a refusal.
                        self.undo_place(&spec.id, generation).await;
                        Attempt::Failed(errors::placement(&refused))
                    }
                }
            }
        }
    }

    pub(super) async fn undo_place(&self, id: &SandboxId, generation: Generation) {
        let delete = Command::Delete { id: id.clone(), generation: Some(generation) };
        if let Err(error) = self.placement.propose(delete, UNDO_LIMIT).await {
            tracing::warn!(sandbox_id = %id, %error, "the placement of a failed create could not be taken back");
        }
    }

    pub(super) async fn undo_run(&self, call: &NodeCall, node: &NodeId, id: &SandboxId, generation: Generation) {
        let act = NodeRequest::Act { id: id.clone(), generation, action: Action::Delete };
        match tokio::time::timeout(UNDO_LIMIT, self.at(node, call, act)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(sandbox_id = %id, %node, %error, "a failed create was not removed yet"),
            Err(_) => tracing::warn!(sandbox_id = %id, %node, "a failed create was not removed in time"),
        }
    }

    /// A node that restored a snapshot has all of it: the catalog learns of it beside the answer.
    fn note_replica(&self, plan: &Plan, node: &NodeId) {
        if let Some(snapshot) = plan.snapshot.clone() {
            self.add_replica(snapshot, node.clone(), ReplicaState::Complete);
        }
    }
}

/// Counts a create in progress on a node until it is dropped.
struct InProgress<'a> {
    service: &'a Service,
    node: NodeId,
}

impl<'a> InProgress<'a> {
    fn begin(service: &'a Service, node: &NodeId) -> Self {
        let mut counts = service.in_progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *counts.entry(node.clone()).or_default() += 1;
        Self { service, node: node.clone() }
    }
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        let mut counts = self.service.in_progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.node);
            }
        }
    }
}

fn shape(new: &NewSandbox, snapshot: Option<&Snapshot>) -> Result<Shape, ApiError> {
    match (new.shape, snapshot) {
        (Some(asked), Some(snapshot)) if asked != snapshot.shape => Err(ApiError::new(
            ErrorCode::BadRequest,
            format!("the snapshot {} has the shape {}: it can't be restored as {asked}", snapshot.id, snapshot.shape),
        )),
        (_, Some(snapshot)) => Ok(snapshot.shape),
        (asked, None) => Ok(asked.unwrap_or_default()),
    }
}

fn complete_holders(snapshot: &Snapshot) -> Vec<NodeId> {
    let complete = snapshot.replicas.iter().filter(|(_, state)| **state == ReplicaState::Complete);
    complete.map(|(node, _)| node.clone()).collect()
}

fn elsewhere_or_failed(error: ApiError) -> Attempt {
    match error.code {
        ErrorCode::NoCapacity | ErrorCode::Unavailable | ErrorCode::Storage | ErrorCode::Busy => {
            Attempt::Elsewhere(error)
        }
        _ => Attempt::Failed(error),
    }
}

pub(super) fn name_taken(name: &str, holder: &SandboxId) -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        format!("a sandbox named '{name}' exists already ({holder}); delete it or choose another name"),
    )
}
