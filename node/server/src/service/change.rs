//! Changes of a sandbox: the decision is committed first, then its owner acts on it.

use std::time::Duration;

use fabric_api::node::{Action, NodeAnswer, NodeCall, NodeReply, NodeRequest, Observed, SandboxKey, SnapshotTaken};
use fabric_api::{ApiError, ErrorCode};
use fabric_types::{Desired, Generation, Intervals, Labels, Phase, SandboxId};
use node_runtime::Verb;
use raft_placement::region::{Command, Record};

use super::{Service, errors, pass, query};
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
        let command = Command::SetDesired { id: id.clone(), generation, desired };
        self.commit(call, command).await?;
        let action = match (desired, record.desired) {
            (Desired::Running, Desired::Paused) => Action::Resume,
            (Desired::Running, Desired::Running | Desired::Stopped | Desired::Archived) => Action::Start,
            (Desired::Paused, _) => Action::Pause,
            (Desired::Stopped, _) => Action::Stop { force },
            (Desired::Archived, _) => Action::Archive,
        };
        let seen = self.owner_acts(call, &record, action).await?;
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

    /// Acts on this node, as a committed change asks.
    pub(super) async fn act_here(&self, id: &SandboxId, generation: Generation, action: &Action) -> NodeAnswer {
        let verb = match action {
            Action::Start => Verb::Start,
            Action::Stop { force } => Verb::Stop { force: *force },
            Action::Pause => Verb::Pause,
            Action::Resume => Verb::Resume,
            Action::Delete => Verb::Delete,
            Action::Archive | Action::Update { .. } | Action::Fork { .. } => {
                return Err(ApiError::new(ErrorCode::NotImplemented, "this node can't do that yet"));
            }
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

    async fn owner_acts(&self, call: &NodeCall, record: &Record, action: Action) -> Result<Observed, ApiError> {
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
