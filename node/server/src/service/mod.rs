//! What this node does for clients and peers: the one place where consensus, runtime and store meet.
//!
//! ```text
//! create      choose a node, commit the placement beside the clone's resume, undo what didn't come together
//! change      start, stop, pause, resume, archive, delete, labels, intervals, network, shape: commit, then the owner acts
//! fork        children of a running sandbox, placed and started side by side, all or none
//! under_way   requests to guests that are under way: what runs silently is in use
//! wake        a request to a paused sandbox resumes it first
//! query       one sandbox, all of a region, with what their owners see
//! snapshot    take, list, delete, pull what a restore needs
//! keys        API keys in the catalog
//! pass        handing a call on to the leader or the owner, at most so often
//! errors      what failed underneath, as the one error that crosses processes
//! ```

mod change;
mod create;
pub(crate) mod errors;
mod fork;
mod keys;
mod pass;
mod query;
mod snapshot;
mod under_way;
mod wake;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use fabric_api::node::{NodeAnswer, NodeCall, NodeReply, NodeRequest};
use fabric_api::{ApiError, ErrorCode};
use fabric_gossip::ClusterView;
use fabric_quic::Fabric;
use fabric_types::{Digest, Generation, Name, NodeId, OrganizationId, RegionCode, SandboxId};
use gateway_edge::{LocalNode, Principal, RelayBody, Route};
use node_runtime::Runtime;
use node_snapshot::SnapshotStore;
use raft_consensus::Group;
use raft_placement::catalog::{self, Catalog};
use raft_placement::region::{self, Placement};
use tokio::sync::watch;

/// The longest that any call may take, whatever its caller says: a cold boot and a long pull fit into it.
const CALL_LIMIT: Duration = Duration::from_secs(120);
/// The undo of what failed is bounded; what it doesn't reach, reconciliation does.
const UNDO_LIMIT: Duration = Duration::from_secs(10);

/// This node's part in the mesh.
pub(crate) struct Service {
    pub(crate) node: NodeId,
    pub(crate) region: RegionCode,
    pub(crate) template: Name,
    pub(crate) runtime: Runtime,
    pub(crate) store: SnapshotStore,
    pub(crate) fabric: Arc<dyn Fabric>,
    pub(crate) placement: Group<Placement>,
    pub(crate) catalog: Group<Catalog>,
    pub(crate) view: watch::Receiver<Arc<ClusterView>>,
    /// Creates that this leader has sent to a node and that haven't been answered.
    in_progress: Mutex<BTreeMap<NodeId, u32>>,
    /// Sandboxes that a request is resuming.
    waking: wake::Waking,
    under_way: under_way::UnderWay,
}

/// The parts of a [`Service`].
pub(crate) struct Parts {
    pub(crate) node: NodeId,
    pub(crate) template: Name,
    pub(crate) runtime: Runtime,
    pub(crate) store: SnapshotStore,
    pub(crate) fabric: Arc<dyn Fabric>,
    pub(crate) placement: Group<Placement>,
    pub(crate) catalog: Group<Catalog>,
    pub(crate) view: watch::Receiver<Arc<ClusterView>>,
}

impl Service {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            region: parts.node.region(),
            node: parts.node,
            template: parts.template,
            runtime: parts.runtime,
            store: parts.store,
            fabric: parts.fabric,
            placement: parts.placement,
            catalog: parts.catalog,
            view: parts.view,
            in_progress: Mutex::new(BTreeMap::new()),
            waking: wake::Waking::default(),
            under_way: under_way::UnderWay::default(),
        })
    }

    /// The region's ledger as this node has it.
    pub(crate) fn ledger(&self) -> Arc<region::State> {
        self.placement.state().borrow().clone()
    }

    /// Whether a request to a sandbox of this node is under way.
    pub(crate) fn in_use(&self, id: &SandboxId) -> bool {
        self.under_way.any(id)
    }

    /// The catalog as this node has it.
    pub(crate) fn catalog_state(&self) -> Arc<catalog::State> {
        self.catalog.state().borrow().clone()
    }

    /// Answers a call; what changes something is carried to its end even if the caller goes away.
    async fn answer(self: Arc<Self>, call: NodeCall) -> NodeAnswer {
        let deadline = Duration::from_millis(call.deadline_ms).min(CALL_LIMIT);
        let request_id = call.request_id.clone();
        let work = tokio::spawn(async move { self.dispatch(call).await });
        match tokio::time::timeout(deadline, work).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(panicked)) => {
                tracing::error!(%request_id, error = %panicked, "a call panicked");
                Err(ApiError::new(ErrorCode::Internal, "this node failed on the request; its log has the details"))
            }
            Err(_) => Err(ApiError::new(
                ErrorCode::DeadlineExceeded,
                format!(
                    "no answer in {} ms; what was begun goes on: look again before you repeat it",
                    deadline.as_millis()
                ),
            )),
        }
    }

    async fn dispatch(&self, call: NodeCall) -> NodeAnswer {
        match &call.request {
            NodeRequest::Create { new } => self.create(&call, new).await,
            NodeRequest::Get { key } => self.get(&call, key).await,
            NodeRequest::List { organization } => self.list(&call, organization).await,
            NodeRequest::SetDesired { key, desired, force } => self.set_desired(&call, key, *desired, *force).await,
            NodeRequest::Delete { key } => self.delete(&call, key).await,
            NodeRequest::SetLabels { key, labels } => self.set_labels(&call, key, labels).await,
            NodeRequest::SetIntervals { key, intervals } => self.set_intervals(&call, key, *intervals).await,
            NodeRequest::SetNetwork { key, network } => self.set_network(&call, key, network).await,
            NodeRequest::SetPublic { key, public } => self.set_public(&call, key, *public).await,
            NodeRequest::Resize { key, shape } => self.resize(&call, key, *shape).await,
            NodeRequest::Fork { key, names } => self.fork(&call, key, names).await,
            NodeRequest::Snapshot { key, name } => self.take_snapshot(&call, key, name.clone()).await,
            NodeRequest::ListSnapshots { organization } => Ok(NodeReply::Snapshots(self.snapshots_of(organization))),
            NodeRequest::DeleteSnapshot { key, organization } => self.delete_snapshot(key, organization).await,
            NodeRequest::ListTemplates => Ok(NodeReply::Templates(self.templates())),
            NodeRequest::CreateKey { name, organization } => self.create_key(name, organization).await,
            NodeRequest::ListKeys { organization } => Ok(NodeReply::Keys(self.keys_of(organization))),
            NodeRequest::RemoveKey { key, organization } => self.remove_key(key, organization).await,
            NodeRequest::Status => Ok(NodeReply::Status(Box::new(self.status()))),
            NodeRequest::Usage { key } => self.usage(&call, key).await,
            NodeRequest::Measure { id, generation } => self.measure(id, *generation).await,
            NodeRequest::Observe { ids } => Ok(NodeReply::ObservedMany(self.observe(ids))),
            NodeRequest::Run { spec, generation, holders } => self.run_here(spec, *generation, holders).await,
            NodeRequest::Act { id, generation, action } => self.act_here(id, *generation, action).await,
        }
    }
}

/// The service as the edge sees it.
pub(crate) struct Port(pub(crate) Arc<Service>);

#[async_trait]
impl LocalNode for Port {
    fn principal(&self, key: &Digest) -> Option<Principal> {
        let state = self.0.catalog_state();
        let (id, key) = state.key_by_hash(key)?;
        Some(Principal { key: id.clone(), organization: key.organization.clone() })
    }

    fn locate(&self, key: &str, organization: &OrganizationId) -> Option<Route> {
        let ledger = self.0.ledger();
        let record = query::find(&ledger, key, organization)?;
        Some(Route {
            id: record.spec.id.clone(),
            node: record.node.clone(),
            generation: record.generation,
            organization: record.spec.organization.clone(),
        })
    }

    async fn handle(&self, call: NodeCall) -> NodeAnswer {
        Arc::clone(&self.0).answer(call).await
    }

    async fn guest(
        &self,
        id: &SandboxId,
        generation: Generation,
        request: http::Request<RelayBody>,
    ) -> Result<http::Response<RelayBody>, ApiError> {
        use http_body_util::BodyExt as _;

        let counted = self.0.under_way.begin(id);
        self.0.wake(id, generation).await?;
        let client = self.0.runtime.guest(id, generation).await.map_err(errors::unreached)?;
        let response = client.send(request).await.map_err(|error| errors::guest(&error))?;
        // Counted until the answer's last byte: the closure goes with the body.
        let holding = move |frame| {
            let _under_way = &counted;
            frame
        };
        Ok(response.map(|body| body.map_err(Into::into).map_frame(holding).boxed_unsync()))
    }
}
