//! Sandboxes as the region's ledger and their owners see them.

use std::collections::BTreeMap;
use std::time::Duration;

use fabric_api::node::{
    GroupStatus, NodeAnswer, NodeCall, NodeReply, NodeRequest, NodeStatus, Observed, SandboxKey, SandboxView,
    TemplateView,
};
use fabric_api::v1::{MachineUsage, Usage};
use fabric_api::{ApiError, ErrorCode};
use fabric_types::{FailReason, Generation, NodeId, OrganizationId, Phase, SandboxId};
use raft_consensus::GroupMetrics;
use raft_placement::region::{Record, State};

use super::{Service, errors};

/// An owner that hasn't said so soon what it sees is shown by the ledger alone: lists stay quick.
const OBSERVE_LIMIT: Duration = Duration::from_secs(2);

/// The record of an organization's sandbox, by id or by name.
pub(super) fn find<'a>(ledger: &'a State, key: &str, organization: &OrganizationId) -> Option<&'a Record> {
    let by_id = key.parse::<SandboxId>().ok().and_then(|id| ledger.sandboxes().get(&id));
    by_id.filter(|record| record.spec.organization == *organization).or_else(|| ledger.named(organization, key))
}

impl Service {
    /// A copy of the record, or the sentence that there is none.
    pub(super) fn record(&self, key: &SandboxKey) -> Result<Record, ApiError> {
        find(&self.ledger(), &key.key, &key.organization).cloned().ok_or_else(|| {
            ApiError::new(ErrorCode::NotFound, format!("there is no sandbox '{}' in region {}", key.key, self.region))
        })
    }

    pub(super) async fn get(&self, call: &NodeCall, key: &SandboxKey) -> NodeAnswer {
        let record = self.record(key)?;
        let seen = self.seen(call, vec![record.clone()]).await;
        seen.into_iter()
            .next()
            .map(|view| NodeReply::Sandbox(Box::new(view)))
            .ok_or_else(|| super::pass::unexpected("no view of a record"))
    }

    pub(super) async fn list(&self, call: &NodeCall, organization: &OrganizationId) -> NodeAnswer {
        let ledger = self.ledger();
        let records = ledger.sandboxes().values().filter(|record| record.spec.organization == *organization);
        Ok(NodeReply::Sandboxes(self.seen(call, records.cloned().collect()).await))
    }

    /// What this node sees of these sandboxes.
    pub(super) fn observe(&self, ids: &[SandboxId]) -> Vec<Observed> {
        let observed = self.runtime.observed().borrow().clone();
        ids.iter().filter_map(|id| observed.get(id)).map(as_wire).collect()
    }

    /// What a sandbox's machine uses, asked of its owner.
    pub(super) async fn usage(&self, call: &NodeCall, key: &SandboxKey) -> NodeAnswer {
        let record = self.record(key)?;
        let ask = NodeRequest::Measure { id: record.spec.id.clone(), generation: record.generation };
        self.at(&record.node, call, ask).await
    }

    /// What the machine of a sandbox of this node uses.
    pub(super) async fn measure(&self, id: &SandboxId, generation: Generation) -> NodeAnswer {
        let usage = self.runtime.usage(id, generation).await.map_err(errors::runtime)?;
        Ok(NodeReply::Usage(Usage { id: id.to_string(), machine: usage.as_ref().map(used) }))
    }

    /// The records with what their owners see; each owner is asked once, all at the same time.
    async fn seen(&self, call: &NodeCall, records: Vec<Record>) -> Vec<SandboxView> {
        let mut by_owner: BTreeMap<NodeId, Vec<SandboxId>> = BTreeMap::new();
        for record in &records {
            by_owner.entry(record.node.clone()).or_default().push(record.spec.id.clone());
        }
        let asks = by_owner.into_iter().map(|(owner, ids)| async move {
            let answer = tokio::time::timeout(OBSERVE_LIMIT, self.at(&owner, call, NodeRequest::Observe { ids })).await;
            match answer {
                Ok(Ok(NodeReply::ObservedMany(seen))) => seen,
                Ok(Ok(_)) | Ok(Err(_)) | Err(_) => {
                    tracing::debug!(%owner, "an owner did not say what it sees");
                    Vec::new()
                }
            }
        });
        let seen: BTreeMap<SandboxId, Observed> =
            futures::future::join_all(asks).await.into_iter().flatten().map(|seen| (seen.id.clone(), seen)).collect();
        records.into_iter().map(|record| view(record, &seen)).collect()
    }

    /// The catalog's templates.
    pub(super) fn templates(&self) -> Vec<TemplateView> {
        let state = self.catalog_state();
        let view = |(name, template): (&fabric_types::Name, &raft_placement::catalog::Template)| TemplateView {
            name: name.clone(),
            image: template.image.to_string(),
            shape: template.shape,
            created_at: template.created_at,
        };
        state.templates().iter().map(view).collect()
    }

    /// This node's groups.
    pub(super) fn status(&self) -> NodeStatus {
        let groups = vec![
            group(self.catalog.name().as_str(), self.catalog.metrics()),
            group(self.placement.name().as_str(), self.placement.metrics()),
        ];
        NodeStatus { node: self.node.clone(), groups }
    }
}

fn group(name: &str, metrics: GroupMetrics) -> GroupStatus {
    GroupStatus {
        group: name.to_owned(),
        leader: metrics.leader,
        term: metrics.term,
        voters: metrics.voters.into_iter().collect(),
        learners: metrics.learners.into_iter().collect(),
        applied: metrics.applied.unwrap_or(0),
        poisoned: metrics.failed,
    }
}

/// What the runtime measures, as it crosses processes.
fn used(node_runtime::Usage { machine, devices }: &node_runtime::Usage) -> MachineUsage {
    MachineUsage {
        cpu_ms: machine.cpu_ms,
        memory_private_bytes: machine.private_kib.saturating_mul(1024),
        memory_resident_bytes: machine.rss_kib.saturating_mul(1024),
        disk_read_bytes: devices.disk_read_bytes,
        disk_written_bytes: devices.disk_written_bytes,
        disk_reads: devices.disk_reads,
        disk_writes: devices.disk_writes,
        network_received_bytes: devices.network.map(|network| network.received_bytes),
        network_sent_bytes: devices.network.map(|network| network.sent_bytes),
    }
}

/// What the runtime sees, as it crosses processes.
pub(super) fn as_wire(seen: &node_runtime::Observed) -> Observed {
    Observed {
        id: seen.id.clone(),
        generation: seen.generation,
        phase: seen.phase.clone(),
        last_activity: seen.last_activity,
    }
}

/// A record with what its owner sees; without that it is `Placed`, or failed where the ledger says so.
fn view(record: Record, seen: &BTreeMap<SandboxId, Observed>) -> SandboxView {
    let seen = seen.get(&record.spec.id).filter(|seen| seen.generation == record.generation);
    let unseen = match &record.failed {
        Some(reason) => Phase::Failed { reason: FailReason::Start(reason.clone()) },
        None => Phase::Placed,
    };
    SandboxView {
        phase: seen.map_or(unseen, |seen| seen.phase.clone()),
        last_activity: seen.map_or(record.spec.created_at, |seen| seen.last_activity),
        node: record.node,
        generation: record.generation,
        desired: record.desired,
        spec: record.spec,
    }
}

/// The view of a sandbox whose owner has just answered.
pub(super) fn view_with(record: Record, seen: Observed) -> NodeReply {
    NodeReply::Sandbox(Box::new(view_of(record, seen)))
}

/// The same, bare.
pub(super) fn view_of(record: Record, seen: Observed) -> SandboxView {
    let seen = BTreeMap::from([(seen.id.clone(), seen)]);
    view(record, &seen)
}
