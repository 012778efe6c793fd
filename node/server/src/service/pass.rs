//! Handing a call on: to the leader that decides, or to the owner that acts. Bounded in hops and time.

use std::time::Duration;

use fabric_api::node::{HOPS_MAX, NodeAnswer, NodeCall, NodeReply, NodeRequest};
use fabric_api::{ApiError, ErrorCode};
use fabric_quic::{FabricError, Peer, Protocol, call};
use fabric_types::NodeId;

use super::Service;

impl Service {
    /// The leader of this region's group, if it is another node and the call may be handed on.
    pub(super) fn other_leader(&self, call: &NodeCall) -> Option<NodeId> {
        if call.hops >= HOPS_MAX {
            return None;
        }
        self.placement.leader().borrow().clone().filter(|leader| *leader != self.node)
    }

    /// Where a node's fabric listens, as gossip or the catalog says.
    pub(super) fn peer(&self, node: &NodeId) -> Result<Peer, ApiError> {
        let by_gossip = self.view.borrow().node(node).map(|view| view.report.fabric_address);
        let address = by_gossip.or_else(|| self.catalog_state().nodes().get(node).map(|entry| entry.fabric));
        address.map(|address| Peer { address, node: Some(node.clone()) }).ok_or_else(|| {
            ApiError::new(
                ErrorCode::Unavailable,
                format!("the node {node} is not known here yet; try again in a second"),
            )
        })
    }

    /// Asks another node, with what is left of the call's time and one hop more.
    pub(super) async fn ask(&self, node: &NodeId, from: &NodeCall, request: NodeRequest) -> NodeAnswer {
        if from.hops >= HOPS_MAX {
            return Err(ApiError::new(
                ErrorCode::Unavailable,
                format!("the request was handed on {HOPS_MAX} times without finding its place; try again"),
            ));
        }
        let onward = NodeCall {
            request_id: from.request_id.clone(),
            hops: from.hops + 1,
            deadline_ms: from.deadline_ms,
            request,
        };
        let deadline = Duration::from_millis(from.deadline_ms);
        let peer = self.peer(node)?;
        match call::<_, NodeAnswer>(&*self.fabric, &peer, Protocol::NodeApi, &onward, deadline).await {
            Ok(answer) => answer,
            Err(error) => Err(unreachable(node, &error)),
        }
    }

    /// Does `request` here if this node is `node`, there otherwise.
    pub(super) async fn at(&self, node: &NodeId, from: &NodeCall, request: NodeRequest) -> NodeAnswer {
        if *node != self.node {
            return self.ask(node, from, request).await;
        }
        match request {
            NodeRequest::Run { spec, generation, holders } => self.run_here(&spec, generation, &holders).await,
            NodeRequest::Act { id, generation, action } => self.act_here(&id, generation, &action).await,
            NodeRequest::Measure { id, generation } => self.measure(&id, generation).await,
            NodeRequest::Observe { ids } => Ok(NodeReply::ObservedMany(self.observe(&ids))),
            other => Err(unexpected(&format!("{other:?}"))),
        }
    }
}

/// A peer that can't be asked.
fn unreachable(node: &NodeId, error: &FabricError) -> ApiError {
    let code = match error {
        FabricError::Timeout { .. } => ErrorCode::DeadlineExceeded,
        _ => ErrorCode::Unavailable,
    };
    ApiError::new(code, format!("the node {node} does not answer: {error}; try again"))
}

/// A reply of another kind than the request's: a fault of ours.
pub(super) fn unexpected(what: &str) -> ApiError {
    tracing::error!(what, "a node call was answered with another kind of reply");
    ApiError::new(ErrorCode::Internal, "a node answered with another kind of reply than was asked for")
}
