//! One node call: to this node for its own region, over the fabric to a node of another.

use std::time::Duration;

use fabric_api::node::{NodeAnswer, NodeCall, NodeReply, NodeRequest};
use fabric_api::{ApiError, ErrorCode};
use fabric_gossip::ClusterView;
use fabric_quic::{FabricError, Peer, Protocol};
use fabric_types::{NodeId, RegionCode};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::{Mesh, Scope};

/// Nodes of a region that one request is sent to: the best, and another if that one can't be reached.
const ATTEMPTS_MAX: usize = 2;
/// What this node's own answer may take beyond its deadline: it watches that itself.
const OWN_GRACE: Duration = Duration::from_secs(2);

impl Mesh {
    /// Asks a region. Its own node passes the request on inside the region where it must.
    pub(crate) async fn ask(&self, region: &RegionCode, request: NodeRequest, scope: &Scope) -> NodeAnswer {
        if *region == self.region {
            return self.ask_own(request, scope).await;
        }
        let view = self.view();
        let candidates = candidates(&view, region);
        if candidates.is_empty() {
            return Err(unreachable_region(region, "no node of it is live"));
        }
        let deadline = Instant::now() + scope.deadline;
        let mut last = None;
        for (node, peer) in candidates.into_iter().take(ATTEMPTS_MAX) {
            let left = deadline.saturating_duration_since(Instant::now());
            let call = call(request.clone(), scope, left);
            match fabric_quic::call::<_, NodeAnswer>(&*self.fabric, &peer, Protocol::NodeApi, &call, left).await {
                Ok(answer) => return answer,
                Err(error) => {
                    debug!(request_id = %scope.request_id, %node, %error, "a node call failed");
                    let again =
                        never_arrived(&error) || (is_read(&request) && !matches!(error, FabricError::Timeout { .. }));
                    last = Some(error);
                    if !again {
                        break;
                    }
                }
            }
        }
        Err(match last {
            // A change that was sent and not answered is not the same as one that was never sent.
            Some(FabricError::Timeout { waited_ms, .. }) if !is_read(&request) => ApiError::new(
                ErrorCode::DeadlineExceeded,
                format!("region {region} did not answer within {waited_ms} ms; it may still carry the request out"),
            ),
            Some(error) => unreachable_region(region, &error.to_string()),
            None => unreachable_region(region, "no node of it was asked"),
        })
    }

    async fn ask_own(&self, request: NodeRequest, scope: &Scope) -> NodeAnswer {
        let call = call(request, scope, scope.deadline);
        match timeout(scope.deadline + OWN_GRACE, self.local.handle(call)).await {
            Ok(answer) => answer,
            Err(_) => Err(ApiError::new(
                ErrorCode::DeadlineExceeded,
                format!("node {} did not answer within {} ms", self.node, scope.deadline.as_millis()),
            )),
        }
    }
}

fn call(request: NodeRequest, scope: &Scope, left: Duration) -> NodeCall {
    let deadline_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    NodeCall { request_id: scope.request_id.clone(), hops: 0, deadline_ms, request }
}

/// The live nodes of a region, the best first: who leads its placement group, then by measured round trip.
fn candidates(view: &ClusterView, region: &RegionCode) -> Vec<(NodeId, Peer)> {
    let leader = view.leader(&format!("placement-{region}")).map(|report| report.node.clone());
    let mut live: Vec<_> = view.live_in(region).collect();
    live.sort_by_key(|node| {
        (leader.as_ref() != Some(&node.report.node), node.rtt_ms.unwrap_or(u32::MAX), super::number(&node.report.node))
    });
    live.into_iter()
        .map(|node| {
            let name = node.report.node.clone();
            (name.clone(), Peer { address: node.report.fabric_address, node: Some(name) })
        })
        .collect()
}

/// Whether the request surely was not carried out: no stream was opened for it.
fn never_arrived(error: &FabricError) -> bool {
    matches!(error, FabricError::Unreachable { .. } | FabricError::WrongPeer { .. })
}

/// Whether asking twice changes nothing.
fn is_read(request: &NodeRequest) -> bool {
    matches!(
        request,
        NodeRequest::Get { .. }
            | NodeRequest::List { .. }
            | NodeRequest::ListSnapshots { .. }
            | NodeRequest::ListTemplates
            | NodeRequest::ListKeys { .. }
            | NodeRequest::Status
    )
}

/// The sentence for a region that can't be reached: the same request may do a little later.
pub(super) fn unreachable_region(region: &RegionCode, cause: &str) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, format!("region {region} can't be reached now ({cause}); try again"))
}

/// The sentence for a reply that doesn't belong to the request: a node of another version.
pub(crate) fn odd_reply(reply: &NodeReply) -> ApiError {
    let kind = match reply {
        NodeReply::Sandbox(_) => "a sandbox",
        NodeReply::Sandboxes(_) => "sandboxes",
        NodeReply::Snapshot(_) => "a snapshot",
        NodeReply::Snapshots(_) => "snapshots",
        NodeReply::Templates(_) => "templates",
        NodeReply::NewKey { .. } => "a new key",
        NodeReply::Keys(_) => "keys",
        NodeReply::Status(_) => "a status",
        NodeReply::Fork(_) => "a fork",
        NodeReply::Usage(_) => "a usage",
        NodeReply::Observed(_) | NodeReply::ObservedMany(_) | NodeReply::Taken(_) | NodeReply::Forked { .. } => {
            "an owner's reply"
        }
        NodeReply::Done => "an empty reply",
    };
    let message = format!("a node answered {kind}, which was not asked for; it may run another version of Atoll");
    ApiError::new(ErrorCode::Unavailable, message)
}
