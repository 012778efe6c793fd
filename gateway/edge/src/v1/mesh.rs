//! `/v1/regions` and `/v1/mesh`: the mesh as this node sees it by gossip, and the consensus groups as their members do.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use fabric_api::node::{GroupStatus, NodeReply, NodeRequest};
use fabric_api::v1 as wire;
use fabric_gossip::NodeView;
use futures::StreamExt;

use crate::edge::Edge;
use crate::mesh::{REGION_DEADLINE, describe};
use crate::request::Caller;

/// `GET /v1/regions`
pub(super) async fn regions(State(edge): State<Edge>, _: Caller) -> Json<wire::RegionList> {
    Json(wire::RegionList { items: all_regions(&edge) })
}

/// `GET /v1/mesh`: this node's groups, and those of one node of each other region.
pub(super) async fn mesh(State(edge): State<Edge>, caller: Caller) -> Json<wire::Mesh> {
    let regions = edge.mesh().regions().into_iter().collect();
    let answers = edge.mesh().ask_each(regions, &NodeRequest::Status, &caller.scope(REGION_DEADLINE));
    let statuses: Vec<_> = answers
        .filter_map(async |(_, answer)| match answer {
            Ok(NodeReply::Status(status)) => Some(status.groups),
            Ok(_) | Err(_) => None,
        })
        .collect()
        .await;
    Json(wire::Mesh {
        node: edge.config().node.to_string(),
        version: edge.config().version.clone(),
        regions: all_regions(&edge),
        nodes: edge.mesh().view().nodes.values().map(node).collect(),
        groups: newest(statuses.into_iter().flatten()),
    })
}

/// One status for each group: the one of the newest term, and of those the one that has applied most.
fn newest(statuses: impl Iterator<Item = GroupStatus>) -> Vec<GroupStatus> {
    let mut groups: BTreeMap<String, GroupStatus> = BTreeMap::new();
    let rank = |status: &GroupStatus| (status.term, status.leader.is_some(), status.applied);
    for status in statuses {
        match groups.get(&status.group) {
            Some(known) if rank(known) >= rank(&status) => {}
            Some(_) | None => {
                groups.insert(status.group.clone(), status);
            }
        }
    }
    groups.into_values().collect()
}

fn all_regions(edge: &Edge) -> Vec<wire::Region> {
    let view = edge.mesh().view();
    let regions = edge.mesh().regions().into_iter().map(|region| wire::Region {
        code: region.to_string(),
        name: describe(region.clone()).name,
        endpoint: edge.endpoint(&region),
        live_nodes: u32::try_from(view.live_in(&region).count()).unwrap_or(u32::MAX),
        rtt_ms: view.region_rtt_ms(&region).map(f64::from),
        home: region == edge.config().region,
    });
    regions.collect()
}

fn node(view: &NodeView) -> wire::MeshNode {
    let report = &view.report;
    wire::MeshNode {
        id: report.node.to_string(),
        region: report.region.to_string(),
        live: view.live,
        version: report.version.clone(),
        endpoint: report.http_endpoint.clone(),
        fabric: report.fabric_address.to_string(),
        limits: report.limits,
        reservable: report.limits.reservable(),
        reserved: report.reserved,
        sandboxes: report.sandboxes,
        pools: report
            .pools
            .iter()
            .map(|pool| wire::Pool {
                template: pool.template.to_string(),
                shape: pool.shape.to_string(),
                warm: pool.warm,
                target: pool.target,
            })
            .collect(),
        fit: report.fit.clone(),
        isolation: report.isolation.clone(),
        leads: report.leads.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(group: &str, term: u64, applied: u64) -> GroupStatus {
        GroupStatus {
            group: group.into(),
            leader: Some("fra-1".parse().expect("a node")),
            term,
            voters: Vec::new(),
            learners: Vec::new(),
            applied,
            poisoned: None,
        }
    }

    #[test]
    fn of_several_views_of_a_group_the_newest_is_shown() {
        let seen =
            [status("catalog", 2, 10), status("catalog", 3, 4), status("catalog", 3, 9), status("placement-fra", 1, 1)];
        let shown = newest(seen.into_iter());
        assert_eq!(shown, [status("catalog", 3, 9), status("placement-fra", 1, 1)]);
    }
}
