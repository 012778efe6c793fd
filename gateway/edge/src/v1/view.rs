//! The mesh's types as `/v1` shows them.

use fabric_api::millis::Millis;
use fabric_api::node::{KeyView, SandboxView, SnapshotView};
use fabric_api::v1 as wire;
use fabric_types::{DomainPattern, Intervals, Minutes, NetworkPolicy};

use crate::edge::Edge;
use crate::instant::rfc3339;
use crate::sandboxes;

/// A sandbox; `stale` where its region couldn't be asked.
pub(super) fn sandbox(edge: &Edge, view: SandboxView, stale: bool) -> wire::Sandbox {
    let region = view.spec.id.home();
    let endpoint = edge.endpoint(&region);
    let isolation = edge.mesh().view().node(&view.node).map(|node| node.report.isolation.clone());
    let parent = sandboxes::parent(&view).map(ToString::to_string);
    let spec = view.spec;
    wire::Sandbox {
        id: spec.id.to_string(),
        name: spec.name,
        region: region.to_string(),
        node: view.node.to_string(),
        state: sandboxes::state(&view.phase).to_owned(),
        generation: view.generation.0,
        created_at: rfc3339(spec.created_at),
        labels: spec.labels,
        cpu: spec.shape.vcpus().0,
        memory_mib: spec.shape.memory().0,
        disk_gib: spec.shape.disk().0,
        toolbox_proxy_url: format!("{endpoint}/toolbox"),
        endpoint,
        error_reason: sandboxes::error_reason(&view.phase),
        network: isolation.as_ref().map_or("unknown", |isolation| isolation.network.as_str()).to_owned(),
        network_policy: network(&spec.network),
        intervals: intervals(spec.intervals),
        public: spec.public,
        parent,
        isolation,
        stale,
    }
}

fn network(policy: &NetworkPolicy) -> wire::Network {
    let domains = |list: &[DomainPattern]| list.iter().map(ToString::to_string).collect();
    wire::Network {
        block_all: policy.block_all,
        allow: policy.allow.iter().map(ToString::to_string).collect(),
        deny: policy.deny.iter().map(ToString::to_string).collect(),
        allow_domains: domains(&policy.allow_domains),
        deny_domains: domains(&policy.deny_domains),
    }
}

fn intervals(intervals: Intervals) -> wire::Intervals {
    let shown = |minutes: Option<Minutes>| minutes.map(|minutes| i64::from(minutes.0));
    wire::Intervals {
        auto_stop_minutes: shown(intervals.auto_stop),
        auto_pause_minutes: shown(intervals.auto_pause),
        auto_archive_minutes: shown(intervals.auto_archive),
        auto_delete_minutes: shown(intervals.auto_delete),
        ttl_minutes: shown(intervals.ttl),
    }
}

/// A snapshot.
pub(super) fn snapshot(view: SnapshotView) -> wire::Snapshot {
    wire::Snapshot {
        id: view.id.to_string(),
        name: view.name.to_string(),
        sandbox: view.sandbox.to_string(),
        region: view.region.to_string(),
        digest: view.manifest.to_string(),
        size_bytes: view.size_bytes,
        stored_bytes: view.stored_bytes,
        stop_ms: Millis { micros: view.stop_us },
        durable: view.durable,
        replicas: view
            .replicas
            .into_iter()
            .map(|replica| wire::Replica {
                region: replica.region.to_string(),
                node: replica.node.to_string(),
                state: replica.state,
            })
            .collect(),
        created_at: rfc3339(view.created_at),
    }
}

/// A key without itself.
pub(super) fn key(view: KeyView) -> wire::Key {
    wire::Key {
        id: view.id.to_string(),
        name: view.name.to_string(),
        shown: view.shown,
        created_at: rfc3339(view.created_at),
    }
}
