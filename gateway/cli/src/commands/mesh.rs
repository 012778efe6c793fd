//! `status` and `regions`.

use gateway_sdk::{Client, v1};

use crate::exit::{EXIT_OK, Failure};
use crate::output::{Output, table};

/// The catalog's group; a region's placement group is `placement-<region>`.
const CATALOG_GROUP: &str = "catalog";

pub(super) async fn regions(client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let list = client.regions().await?;
    output.result(&list, || {
        let row = |region: &v1::Region| {
            vec![
                region.code.clone(),
                region.name.clone(),
                region.endpoint.clone(),
                region.live_nodes.to_string(),
                round_trip(region),
            ]
        };
        table(&["REGION", "NAME", "ENDPOINT", "NODES", "RTT"], &list.items.iter().map(row).collect::<Vec<_>>())
    })?;
    Ok(EXIT_OK)
}

pub(super) async fn status(client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let mesh = client.mesh().await?;
    output.result(&mesh, || overview(&mesh))?;
    Ok(EXIT_OK)
}

fn overview(mesh: &v1::Mesh) -> String {
    let leader = leader(mesh, CATALOG_GROUP);
    format!(
        "mesh as {} sees it (atoll {}), catalog led by {leader}\n\n{}\n{}\n{}",
        mesh.node,
        mesh.version,
        regions_of(mesh),
        nodes_of(mesh),
        isolations_of(mesh),
    )
}

fn regions_of(mesh: &v1::Mesh) -> String {
    let row = |region: &v1::Region| {
        vec![
            region.code.clone(),
            region.endpoint.clone(),
            region.live_nodes.to_string(),
            leader(mesh, &format!("placement-{}", region.code)),
            round_trip(region),
        ]
    };
    table(&["REGION", "ENDPOINT", "NODES", "LEADER", "RTT"], &mesh.regions.iter().map(row).collect::<Vec<_>>())
}

fn nodes_of(mesh: &v1::Mesh) -> String {
    let row = |node: &v1::MeshNode| {
        let of = |reserved: u64, reservable: u64| format!("{reserved}/{reservable}");
        let pool = |pool: &v1::Pool| format!("{}/{} {}", pool.warm, pool.target, pool.shape);
        vec![
            node.id.clone(),
            if node.live { "yes" } else { "no" }.to_owned(),
            node.version.clone(),
            node.sandboxes.to_string(),
            of(node.reserved.vcpus, node.reservable.vcpus),
            of(node.reserved.memory_mib, node.reservable.memory_mib),
            of(node.reserved.disk_gib, node.reservable.disk_gib),
            node.pools.iter().map(pool).collect::<Vec<_>>().join(", "),
        ]
    };
    table(
        &["NODE", "LIVE", "VERSION", "SANDBOXES", "VCPU", "MEMORY MIB", "DISK GIB", "WARM CLONES"],
        &mesh.nodes.iter().map(row).collect::<Vec<_>>(),
    )
}

/// A line for each isolation, with the nodes that have it: mostly it is all of them.
fn isolations_of(mesh: &v1::Mesh) -> String {
    let mut lines: Vec<(String, Vec<&str>)> = Vec::new();
    for node in &mesh.nodes {
        let isolation = isolation(&node.isolation);
        match lines.iter_mut().find(|(known, _)| *known == isolation) {
            Some((_, nodes)) => nodes.push(&node.id),
            None => lines.push((isolation, vec![&node.id])),
        }
    }
    let row = |(isolation, nodes): (String, Vec<&str>)| vec![nodes.join(","), isolation];
    table(&["NODES", "ISOLATION"], &lines.into_iter().map(row).collect::<Vec<_>>())
}

/// The isolation in force and its reason, as one line.
pub(super) fn isolation(isolation: &gateway_sdk::Isolation) -> String {
    let randomization = if isolation.guest_address_randomization { "on" } else { "off" };
    format!(
        "{} with {}, network {}, {}, guest address randomization {randomization}: {}",
        isolation.hypervisor.as_str(),
        isolation.accelerator.as_str(),
        isolation.network.as_str(),
        seal(&isolation.seal),
        isolation.reason,
    )
}

/// What shuts monitors off from their host, and what of it is missing, with why.
fn seal(seal: &gateway_sdk::Seal) -> String {
    let missing: Vec<_> = seal.missing.iter().map(|gap| format!("{} ({})", gap.part, gap.why)).collect();
    match (seal.in_force.is_empty(), missing.is_empty()) {
        (true, true) => "seal unknown".to_owned(),
        (true, false) => format!("not sealed: without {}", missing.join(", ")),
        (false, true) => format!("sealed by {}", seal.in_force.join(", ")),
        (false, false) => format!("sealed by {}, without {}", seal.in_force.join(", "), missing.join(", ")),
    }
}

/// Who leads a group, as far as the answering node knows: by its own groups, else by what the nodes gossip.
fn leader(mesh: &v1::Mesh, group: &str) -> String {
    let known = mesh.groups.iter().find(|status| status.group == group).and_then(|status| status.leader.as_ref());
    if let Some(leader) = known {
        return leader.to_string();
    }
    let claims = mesh.nodes.iter().find(|node| node.live && node.leads.iter().any(|led| led == group));
    claims.map(|node| node.id.clone()).unwrap_or_else(|| "nobody".to_owned())
}

fn round_trip(region: &v1::Region) -> String {
    match (region.home, region.rtt_ms) {
        (true, _) => "here".to_owned(),
        (false, Some(rtt_ms)) => format!("{rtt_ms:.1} ms"),
        (false, None) => "?".to_owned(),
    }
}
