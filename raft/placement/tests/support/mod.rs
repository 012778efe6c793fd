//! Nodes, sandboxes and specs by number, for tests of a region's ledger.

use std::collections::BTreeMap;

use fabric_types::{
    Capacity, Generation, Intervals, Name, NetworkPolicy, NodeId, NodeLimits, OrganizationId, Overcommit, SandboxId,
    SandboxSpec, Shape, Source, UnixMillis,
};
use raft_placement::region::Command;

pub(crate) fn node(number: u8) -> NodeId {
    format!("fra-{}", number + 1).parse().expect("a node id")
}

pub(crate) fn sandbox(number: u8) -> SandboxId {
    SandboxId::new(&"fra".parse().expect("a region"), [number; 16])
}

pub(crate) fn spec(number: u8, name: u8, organization: u8, vcpus: i64) -> SandboxSpec {
    SandboxSpec {
        id: sandbox(number),
        name: format!("box-{name}"),
        organization: OrganizationId(format!("org-{organization}")),
        source: Source::Template { template: "default".parse::<Name>().expect("a name") },
        shape: Shape::new(vcpus, 1024, 3).expect("a shape"),
        labels: BTreeMap::new(),
        env: BTreeMap::new(),
        user: "root".into(),
        public: false,
        network: NetworkPolicy::default(),
        intervals: Intervals::default(),
        created_at: UnixMillis(1),
    }
}

pub(crate) fn limits(vcpus: u64) -> NodeLimits {
    let physical = Capacity { vcpus, memory_mib: 4096, disk_gib: 15 };
    NodeLimits { physical, overcommit: Overcommit { vcpus: 1, memory: 1, disk: 1 }, sandboxes: None }
}

pub(crate) fn place(number: u8, at: u8, generation: u64) -> Command {
    let spec = Box::new(spec(number, number, 0, 1));
    Command::Place { spec, node: node(at), generation: Generation(generation) }
}
