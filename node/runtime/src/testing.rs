//! Values that several tests begin from.

use std::collections::BTreeMap;
use std::path::Path;

use fabric_types::{
    FailReason, Intervals, NetworkPolicy, OrganizationId, Phase, RegionCode, SandboxId, SandboxSpec, Shape, Source,
    UnixMillis,
};
use node_hypervisor::ImagePaths;

use crate::{MachineDefaults, PoolLimits, RuntimeConfig};

/// A sandbox's spec that differs by its number alone.
pub(crate) fn spec(number: u8) -> SandboxSpec {
    let region: RegionCode = "fra".parse().expect("a region code");
    let id = SandboxId::new(&region, [number; 16]);
    SandboxSpec {
        name: id.to_string(),
        id,
        organization: OrganizationId("org".to_owned()),
        source: Source::Template { template: "default".parse().expect("a name") },
        shape: Shape::DEFAULT,
        labels: BTreeMap::new(),
        env: BTreeMap::new(),
        user: "root".to_owned(),
        public: false,
        network: NetworkPolicy::default(),
        intervals: Intervals::default(),
        created_at: UnixMillis(0),
    }
}

/// A configuration whose folders lie under `root`.
pub(crate) fn config(root: &Path) -> RuntimeConfig {
    RuntimeConfig {
        node: "fra-1".parse().expect("a node id"),
        dir: root.join("node"),
        run: root.join("run"),
        templates: root.join("templates"),
        image: ImagePaths { kernel: root.join("kernel"), initramfs: root.join("initramfs"), root: root.join("root") },
        image_digest: "image".to_owned(),
        agent_protocol: guest_proto::surface::PROTOCOL,
        template: "default".parse().expect("a name"),
        pool: PoolLimits::fixed(1),
        limits: MachineDefaults::default(),
        guest_limits: guest_proto::surface::GuestLimits::default(),
        min_free_disk_bytes: 0,
        min_free_memory_bytes: 0,
        swap_after: None,
    }
}

/// One of each phase.
pub(crate) fn phases() -> Vec<Phase> {
    use Phase::*;
    let failed = Failed { reason: FailReason::MachineLost("it ended".to_owned()) };
    vec![
        Requested,
        Placed,
        Starting,
        Running,
        Paused,
        Snapshotting,
        Stopping,
        Stopped,
        Archiving,
        Archived,
        Deleting,
        Gone,
        failed,
    ]
}

/// Says that a test can't run here, and leaves the reason where the whole run's summary is made.
pub(crate) fn skip(what: &str, why: &str) {
    use std::io::Write;
    let line = format!("SKIPPED: {what}: {why}");
    writeln!(std::io::stdout(), "{line}").expect("standard output takes a line");
    if let Some(path) = std::env::var_os("ATOLL_SKIPS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let noted = file.and_then(|mut file| writeln!(file, "{line}"));
        noted.expect("ATOLL_SKIPS names a file that can be written");
    }
}
