//! A fork: its children are committed to the ledger beside the fork itself, all or none. Each step names its undo, as in
//! a create: a commit that fails deletes the children that run, a child that fails takes all of them back.

use std::time::Duration;

use fabric_api::node::{Action, FORK_CHILDREN_MAX, ForkView, NodeAnswer, NodeCall, NodeReply, NodeRequest, SandboxKey};
use fabric_api::{ApiError, ErrorCode};
use fabric_types::{Desired, Generation, Name, SandboxId, SandboxSpec};
use node_runtime::RunRequest;
use raft_placement::Machine as _;
use raft_placement::region::{Child, Command, Placement, Record, Refusal, child_spec};

use super::create::name_taken;
use super::{Service, errors, pass, query};
use crate::node::clock::now;

/// What a fork has been resolved to.
struct Plan {
    parent: Record,
    children: Vec<(SandboxSpec, Generation)>,
    command: Command,
}

impl Service {
    pub(super) async fn fork(&self, call: &NodeCall, key: &SandboxKey, names: &[Option<Name>]) -> NodeAnswer {
        let plan = self.plan_fork(key, names)?;
        let act = NodeRequest::Act {
            id: plan.parent.spec.id.clone(),
            generation: plan.parent.generation,
            action: Action::Fork { children: plan.children.clone() },
        };
        let deadline = Duration::from_millis(call.deadline_ms);
        let commit = self.placement.propose(plan.command.clone(), deadline);
        let (placed, forked) = tokio::join!(commit, self.at(&plan.parent.node, call, act));
        let failed = match (placed, forked) {
            (Ok(_), Ok(NodeReply::Forked { stop_us, children })) => match whole(children) {
                Ok(children) => return Ok(view(plan, stop_us, children)),
                Err(error) => error,
            },
            (Ok(_), Ok(_)) => pass::unexpected("fork"),
            (Ok(_), Err(error)) => error,
            (Err(refused), _) => {
                let error = match errors::refusal(&refused) {
                    Some(Refusal::NameTaken { name, holder }) => name_taken(name, holder),
                    Some(_) | None => errors::placement(&refused),
                };
                if errors::refusal(&refused).is_some() {
                    self.undo_runs(call, &plan).await;
                    return Err(error);
                }
                error
            }
        };
        // What was not refused may yet be committed, so both sides are undone.
        let places = plan.children.iter().map(|(spec, generation)| self.undo_place(&spec.id, *generation));
        futures::future::join_all(places).await;
        self.undo_runs(call, &plan).await;
        Err(failed)
    }

    fn plan_fork(&self, key: &SandboxKey, names: &[Option<Name>]) -> Result<Plan, ApiError> {
        if names.is_empty() || names.len() > FORK_CHILDREN_MAX {
            let message = format!("a fork makes 1 to {FORK_CHILDREN_MAX} children, not {}", names.len());
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        }
        let parent = self.record(key)?;
        let created_at = now();
        let children: Vec<Child> = names
            .iter()
            .map(|name| {
                let id = SandboxId::new(&self.region, rand::random());
                let name = name.as_ref().map_or_else(|| id.to_string(), ToString::to_string);
                Child { id, name, generation: Generation::FIRST }
            })
            .collect();
        let specs = children.iter().map(|child| (child_spec(&parent, child, created_at), child.generation)).collect();
        let (id, from) = (parent.spec.id.clone(), parent.generation);
        let command = Command::Fork { parent: id, from, children, created_at };
        // What this node's copy of the ledger would refuse is refused before the parent stands still for it.
        let mut ledger = (*self.ledger()).clone();
        match Placement::apply(&mut ledger, &command) {
            Err(Refusal::NameTaken { name, holder }) => Err(name_taken(&name, &holder)),
            Err(refusal) => Err(errors::placement(&raft_consensus::ProposeError::Refused(refusal))),
            Ok(_) => Ok(Plan { parent, children: specs, command }),
        }
    }

    /// Forks a sandbox of this node, as a leader asks.
    pub(super) async fn fork_here(
        &self,
        parent: &SandboxId,
        generation: Generation,
        children: &[(SandboxSpec, Generation)],
    ) -> NodeAnswer {
        let runs = children.iter().map(|(spec, generation)| RunRequest { spec: spec.clone(), generation: *generation });
        let forked = self.runtime.fork(parent, generation, runs.collect()).await.map_err(errors::runtime)?;
        let children = forked.children.into_iter();
        let children = children.map(|child| child.map(|seen| query::as_wire(&seen)).map_err(errors::runtime)).collect();
        Ok(NodeReply::Forked { stop_us: forked.stop_us, children })
    }

    async fn undo_runs(&self, call: &NodeCall, plan: &Plan) {
        let node = &plan.parent.node;
        let runs = plan.children.iter().map(|(spec, generation)| self.undo_run(call, node, &spec.id, *generation));
        futures::future::join_all(runs).await;
    }
}

/// All children, or the first error with how many failed.
fn whole(
    children: Vec<Result<fabric_api::node::Observed, ApiError>>,
) -> Result<Vec<fabric_api::node::Observed>, ApiError> {
    let (asked, failed) = (children.len(), children.iter().filter(|child| child.is_err()).count());
    children.into_iter().collect::<Result<Vec<_>, _>>().map_err(|error| {
        let message = format!("{failed} of {asked} children could not be started, so none is kept: {}", error.message);
        ApiError::new(error.code, message)
    })
}

fn view(plan: Plan, stop_us: u64, seen: Vec<fabric_api::node::Observed>) -> NodeReply {
    let node = &plan.parent.node;
    let children = plan.children.into_iter().zip(seen).map(|((spec, generation), seen)| {
        let desired = Desired::Running;
        let record = Record { spec, node: node.clone(), generation, desired, failed: None, revision: 0 };
        query::view_of(record, seen)
    });
    NodeReply::Fork(Box::new(ForkView { stop_us, children: children.collect() }))
}

#[cfg(test)]
mod tests {
    use fabric_api::node::Observed;
    use fabric_types::{Phase, UnixMillis};

    use super::*;

    fn seen(number: u8) -> Observed {
        Observed {
            id: SandboxId::new(&"fra".parse().expect("a region"), [number; 16]),
            generation: Generation::FIRST,
            phase: Phase::Running,
            last_activity: UnixMillis(1),
        }
    }

    #[test]
    fn one_child_that_failed_fails_the_fork_and_says_how_many() {
        assert_eq!(whole(vec![Ok(seen(1)), Ok(seen(2))]).expect("whole").len(), 2);
        let broken = ApiError::new(ErrorCode::NoCapacity, "no memory");
        let error = whole(vec![Ok(seen(1)), Err(broken.clone()), Err(broken)]).expect_err("not whole");
        assert_eq!(error.code, ErrorCode::NoCapacity);
        assert_eq!(error.message, "2 of 3 children could not be started, so none is kept: no memory");
    }
}
