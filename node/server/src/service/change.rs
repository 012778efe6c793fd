//! Changes of a sandbox: the decision is committed first, then its owner acts on it.

use std::time::Duration;

use fabric_api::node::{Action, NodeAnswer, NodeCall, NodeReply, NodeRequest, Observed, SandboxKey, SnapshotTaken};
use fabric_api::{ApiError, ErrorCode};
use fabric_types::{Desired, Generation, Intervals, Labels, NetworkPolicy, Phase, SandboxId, SandboxSpec, Shape};
use node_runtime::Verb;
use raft_placement::region::{Command, Record};

use super::{Service, UNDO_LIMIT, errors, pass, query};
use crate::node::clock::now;

impl Service {
    pub(super) async fn set_desired(
        &self,
        call: &NodeCall,
        key: &SandboxKey,
        desired: Desired,
        force: bool,
    ) -> NodeAnswer {
        let record = self.record(key)?;
        let (id, generation) = (record.spec.id.clone(), record.generation);
        let set = |desired| Command::SetDesired { id: id.clone(), generation, desired };
        self.commit(call, set(desired)).await?;
        let action = match (desired, record.desired) {
            (Desired::Running, Desired::Paused) => Action::Resume,
            (Desired::Running, Desired::Running | Desired::Stopped | Desired::Archived) => Action::Start,
            (Desired::Paused, _) => Action::Pause,
            (Desired::Stopped, _) => Action::Stop { force },
            (Desired::Archived, _) => Action::Archive,
        };
        let seen = self.acts_or_undone(call, &record, action, set(record.desired)).await?;
        Ok(query::view_with(Record { desired, ..record }, seen))
    }

    pub(super) async fn delete(&self, call: &NodeCall, key: &SandboxKey) -> NodeAnswer {
        let record = self.record(key)?;
        let (id, generation) = (record.spec.id.clone(), record.generation);
        self.commit(call, Command::Delete { id: id.clone(), generation: Some(generation) }).await?;
        let gone = Observed { id: id.clone(), generation, phase: Phase::Gone, last_activity: now() };
        let seen = match self.owner_acts(call, &record, Action::Delete).await {
            Ok(_) => gone,
            Err(error) => {
                // It is deleted: its owner removes what is left when it reads the ledger again.
                tracing::warn!(sandbox_id = %id, node = %record.node, %error, "a deleted sandbox is not removed yet");
                Observed { phase: Phase::Deleting, ..gone }
            }
        };
        Ok(query::view_with(record, seen))
    }

    pub(super) async fn set_labels(&self, call: &NodeCall, key: &SandboxKey, labels: &Labels) -> NodeAnswer {
        let record = self.record(key)?;
        self.commit(call, Command::SetLabels { id: record.spec.id.clone(), labels: labels.clone() }).await?;
        self.changed(call, key, |spec| spec.labels = labels.clone()).await
    }

    pub(super) async fn set_intervals(&self, call: &NodeCall, key: &SandboxKey, intervals: Intervals) -> NodeAnswer {
        let record = self.record(key)?;
        self.commit(call, Command::SetIntervals { id: record.spec.id.clone(), intervals }).await?;
        self.changed(call, key, |spec| spec.intervals = intervals).await
    }

    /// The new policy is in force when this answers: the owner applies it in mid-flow.
    pub(super) async fn set_network(&self, call: &NodeCall, key: &SandboxKey, network: &NetworkPolicy) -> NodeAnswer {
        let record = self.record(key)?;
        let set =
            |network: &NetworkPolicy| Command::SetNetwork { id: record.spec.id.clone(), network: network.clone() };
        self.commit(call, set(network)).await?;
        let undo = set(&record.spec.network);
        let spec = SandboxSpec { network: network.clone(), ..record.spec.clone() };
        self.update(call, record, spec, undo).await
    }

    pub(super) async fn set_public(&self, call: &NodeCall, key: &SandboxKey, public: bool) -> NodeAnswer {
        let record = self.record(key)?;
        self.commit(call, Command::SetPublic { id: record.spec.id.clone(), public }).await?;
        self.changed(call, key, |spec| spec.public = public).await
    }

    pub(super) async fn resize(&self, call: &NodeCall, key: &SandboxKey, shape: Shape) -> NodeAnswer {
        let record = self.record(key)?;
        let from = record.spec.shape;
        if shape.disk() < from.disk() {
            return Err(ApiError::new(
                ErrorCode::BadRequest,
                format!(
                    "the disk of sandbox {} has {} GiB and can't shrink to {} GiB: its files could be anywhere on it; \
                     make a smaller sandbox and copy what you need",
                    record.spec.id,
                    from.disk().0,
                    shape.disk().0
                ),
            ));
        }
        if shape == from {
            return self.get(call, key).await;
        }
        let (id, generation) = (record.spec.id.clone(), record.generation);
        let set = |from, shape| Command::SetShape { id: id.clone(), generation, from, shape };
        self.commit(call, set(from, shape)).await?;
        let spec = SandboxSpec { shape, ..record.spec.clone() };
        self.update(call, record, spec, set(shape, from)).await
    }

    /// Has the owner take a spec that was committed.
    async fn update(&self, call: &NodeCall, record: Record, spec: SandboxSpec, undo: Command) -> NodeAnswer {
        let action = Action::Update { spec: Box::new(spec.clone()) };
        let seen = self.acts_or_undone(call, &record, action, undo).await?;
        Ok(query::view_with(Record { spec, ..record }, seen))
    }

    /// Has the owner act on a committed change. Where it refuses for good the change is taken back, so that the ledger
    /// doesn't want what can't be; what merely failed stays wanted, and the owner's reconciliation goes on.
    async fn acts_or_undone(
        &self,
        call: &NodeCall,
        record: &Record,
        action: Action,
        undo: Command,
    ) -> Result<Observed, ApiError> {
        let refused = match self.owner_acts(call, record, action).await {
            Err(error) if is_refusal(error.code) => error,
            answer => return answer,
        };
        if let Err(error) = self.placement.propose(undo, UNDO_LIMIT).await {
            let id = &record.spec.id;
            tracing::warn!(sandbox_id = %id, %error, "a change that its owner refuses could not be taken back");
        }
        Err(refused)
    }

    /// Acts on this node, as a committed change asks.
    pub(super) async fn act_here(&self, id: &SandboxId, generation: Generation, action: &Action) -> NodeAnswer {
        let verb = match action {
            Action::Start => Verb::Start,
            Action::Stop { force } => Verb::Stop { force: *force },
            Action::Pause => Verb::Pause,
            Action::Resume => Verb::Resume,
            Action::Delete => Verb::Delete,
            Action::Archive => Verb::Archive,
            Action::Update { spec } => {
                let seen = self.runtime.update((**spec).clone(), generation).await.map_err(errors::runtime)?;
                return Ok(NodeReply::Observed(Box::new(query::as_wire(&seen))));
            }
            Action::Fork { children } => return self.fork_here(id, generation, children).await,
            Action::Snapshot { id: snapshot, name: _ } => {
                let taken = self.runtime.snapshot(id, generation, snapshot.clone()).await.map_err(errors::runtime)?;
                return Ok(NodeReply::Taken(Box::new(SnapshotTaken {
                    manifest: taken.manifest,
                    size_bytes: taken.size_bytes,
                    stored_bytes: taken.stored_bytes,
                    stop_us: taken.stop_us,
                    fit: taken.fit,
                })));
            }
        };
        let seen = self.runtime.act(id, generation, verb).await.map_err(errors::runtime)?;
        Ok(NodeReply::Observed(Box::new(query::as_wire(&seen))))
    }

    pub(super) async fn commit(&self, call: &NodeCall, command: Command) -> Result<(), ApiError> {
        let deadline = Duration::from_millis(call.deadline_ms);
        self.placement.propose(command, deadline).await.map_err(|error| errors::placement(&error))?;
        Ok(())
    }

    pub(super) async fn owner_acts(
        &self,
        call: &NodeCall,
        record: &Record,
        action: Action,
    ) -> Result<Observed, ApiError> {
        let act = NodeRequest::Act { id: record.spec.id.clone(), generation: record.generation, action };
        match self.at(&record.node, call, act).await? {
            NodeReply::Observed(seen) => Ok(*seen),
            _ => Err(pass::unexpected("act")),
        }
    }

    /// The sandbox after a committed change, which this node's copy of the ledger may not show yet.
    async fn changed(
        &self,
        call: &NodeCall,
        key: &SandboxKey,
        change: impl FnOnce(&mut fabric_types::SandboxSpec),
    ) -> NodeAnswer {
        match self.get(call, key).await? {
            NodeReply::Sandbox(mut view) => {
                change(&mut view.spec);
                Ok(NodeReply::Sandbox(view))
            }
            other => Ok(other),
        }
    }
}

/// Whether an owner's answer means that the same request will never do.
fn is_refusal(code: ErrorCode) -> bool {
    match code {
        ErrorCode::BadRequest
        | ErrorCode::Forbidden
        | ErrorCode::Conflict
        | ErrorCode::TooLarge
        | ErrorCode::NotImplemented
        | ErrorCode::NoCapacity
        | ErrorCode::Storage => true,
        ErrorCode::Unauthorized
        | ErrorCode::NotFound
        | ErrorCode::MethodNotAllowed
        | ErrorCode::CommandTimeout
        | ErrorCode::StaleGeneration
        | ErrorCode::Busy
        | ErrorCode::Internal
        | ErrorCode::Unavailable
        | ErrorCode::DeadlineExceeded => false,
    }
}
