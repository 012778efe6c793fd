//! Who is who in a development mesh: names, ports, folders, voters. Pure.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use fabric_types::{NodeId, RegionCode};

/// Distance of a node's fabric port (UDP) from its HTTP port (TCP).
const FABRIC_PORT_OFFSET: u16 = 1000;
/// Most nodes on one host: gossip and memory of one machine.
const NODES_MAX: usize = 64;
/// Most voters of a placement group.
const REGION_VOTERS_MAX: usize = 5;
/// Most voters of the catalog group.
const CATALOG_VOTERS_MAX: usize = 5;

/// One node of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: NodeId,
    pub(crate) http: SocketAddr,
    pub(crate) fabric: SocketAddr,
    pub(crate) folder: PathBuf,
}

/// The whole mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) data: PathBuf,
    pub(crate) regions: Vec<RegionCode>,
    pub(crate) members: Vec<Member>,
}

impl Layout {
    /// The mesh of these regions, with node 0 of each region first.
    pub(crate) fn new(
        data: &Path,
        regions: &[RegionCode],
        nodes_per_region: u32,
        port_base: u16,
    ) -> anyhow::Result<Self> {
        let count = regions.len();
        if count == 0 {
            bail!("--regions names no region; give at least one code, as in --regions fra");
        }
        if let Some(twice) = regions.iter().enumerate().find(|(at, code)| regions[..*at].contains(code)) {
            bail!("--regions names '{}' twice", twice.1);
        }
        let total = count * nodes_per_region as usize;
        if total > NODES_MAX {
            bail!("{total} nodes are more than the {NODES_MAX} that one machine takes; lower --nodes-per-region");
        }
        let mut members = Vec::with_capacity(total);
        for number in 0..nodes_per_region as usize {
            for (index, region) in regions.iter().enumerate() {
                let id = NodeId::new(region, number as u32 + 1);
                let port = u16::try_from(usize::from(port_base) + index + count * number)
                    .ok()
                    .filter(|port| port.checked_add(FABRIC_PORT_OFFSET).is_some())
                    .with_context(|| {
                        format!("--port-base {port_base} leaves no ports for {total} nodes; choose a lower one")
                    })?;
                members.push(Member {
                    http: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                    fabric: SocketAddr::from((Ipv4Addr::LOCALHOST, port + FABRIC_PORT_OFFSET)),
                    folder: data.join(id.as_str()),
                    id,
                });
            }
        }
        Ok(Self { data: data.to_owned(), regions: regions.to_vec(), members })
    }

    /// The node that is its region's endpoint.
    pub(crate) fn endpoint(&self, region: &RegionCode) -> &Member {
        let is_first = |member: &&Member| member.id.region() == *region;
        self.members.iter().find(is_first).expect("each region of a layout has a node: the constructor made it")
    }

    /// The base URL of a node.
    pub(crate) fn url(member: &Member) -> String {
        format!("http://{}", member.http)
    }

    /// First voters of a region's placement group: 1, 3 or 5 of its nodes.
    pub(crate) fn region_voters(&self, region: &RegionCode) -> Vec<NodeId> {
        let nodes = self.members.iter().filter(|member| member.id.region() == *region);
        odd(nodes.map(|member| member.id.clone()).collect(), REGION_VOTERS_MAX)
    }

    /// First voters of the catalog group: an odd number of endpoints; with fewer than three regions, nodes of those.
    pub(crate) fn catalog_voters(&self) -> Vec<NodeId> {
        odd(
            self.members.iter().map(|member| member.id.clone()).take(self.regions.len().max(3)).collect(),
            CATALOG_VOTERS_MAX,
        )
    }

    /// The file with the variables for clients.
    pub(crate) fn env_file(&self) -> PathBuf {
        self.data.join("env")
    }
}

/// The longest prefix of odd length up to `most`.
fn odd(mut nodes: Vec<NodeId>, most: usize) -> Vec<NodeId> {
    nodes.truncate(most);
    if nodes.len().is_multiple_of(2) {
        nodes.pop();
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(regions: &str, per_region: u32) -> Layout {
        let codes: Vec<RegionCode> = regions.split(',').map(|code| code.parse().expect("a code")).collect();
        Layout::new(Path::new("d"), &codes, per_region, 7080).expect("a layout")
    }

    #[test]
    fn ports_follow_region_and_number() {
        let mesh = layout("fra,iad,sin", 2);
        let ports: Vec<(String, u16, u16)> = mesh
            .members
            .iter()
            .map(|member| (member.id.to_string(), member.http.port(), member.fabric.port()))
            .collect();
        let expected =
            [("fra-1", 7080), ("iad-1", 7081), ("sin-1", 7082), ("fra-2", 7083), ("iad-2", 7084), ("sin-2", 7085)];
        assert_eq!(ports, expected.map(|(name, port)| (name.to_owned(), port, port + 1000)));
        assert_eq!(mesh.endpoint(&mesh.regions[1]).http.port(), 7081);
    }

    #[test]
    fn voters_are_odd_and_spread() {
        assert_eq!(layout("fra,iad,sin", 1).catalog_voters().len(), 3);
        assert_eq!(layout("fra,iad", 1).catalog_voters().len(), 1);
        assert_eq!(layout("fra,iad", 2).catalog_voters().len(), 3);
        assert_eq!(layout("fra", 1).catalog_voters().len(), 1);
        let four = layout("fra,iad", 4);
        assert_eq!(four.region_voters(&four.regions[0]).len(), 3);
    }

    #[test]
    fn impossible_meshes_are_refused() {
        let fra: RegionCode = "fra".parse().expect("a code");
        assert!(Layout::new(Path::new("d"), &[], 1, 7080).is_err());
        assert!(Layout::new(Path::new("d"), &[fra.clone(), fra.clone()], 1, 7080).is_err());
        assert!(Layout::new(Path::new("d"), std::slice::from_ref(&fra), 65, 7080).is_err());
        assert!(Layout::new(Path::new("d"), &[fra], 32, 64_530).is_err());
    }
}
