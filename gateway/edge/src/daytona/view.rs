//! A sandbox as the Daytona wire shows it.

use fabric_api::daytona as wire;
use fabric_api::node::SandboxView;
use fabric_types::{MemoryMib, Minutes, Source, UnixMillis};

use crate::edge::Edge;
use crate::instant::rfc3339;
use crate::sandboxes;

/// What every sandbox is.
pub(super) const CLASS: &str = "linux-vm";

/// A sandbox as the wire shows it; `stale` where its region couldn't be asked.
pub(super) fn sandbox(edge: &Edge, view: SandboxView, stale: bool) -> wire::Sandbox {
    let region = view.spec.id.home();
    let last = rfc3339(view.last_activity);
    let (state, desired_state) = (sandboxes::state(&view.phase), sandboxes::desired_state(&view));
    let spec = view.spec;
    wire::Sandbox {
        id: spec.id.to_string(),
        organization_id: spec.organization.0,
        name: spec.name,
        snapshot: match spec.source {
            Source::Template { template } => template.to_string(),
            Source::Snapshot { manifest } => manifest.to_string(),
            Source::Fork { parent, .. } => parent.to_string(),
        },
        user: spec.user,
        env: spec.env,
        labels: spec.labels,
        public: spec.public,
        network_block_all: spec.network.block_all,
        network_allow_list: listed(&spec.network.allow),
        domain_allow_list: listed(&spec.network.allow_domains),
        kvm: false,
        target: region.to_string(),
        cpu: spec.shape.vcpus().0,
        gpu: 0,
        memory: gib(spec.shape.memory()),
        disk: spec.shape.disk().0,
        state,
        desired_state,
        error_reason: sandboxes::error_reason(&view.phase),
        recoverable: false,
        auto_stop_interval: spec.intervals.auto_stop.map_or(0, |minutes| minutes.0),
        auto_pause_interval: spec.intervals.auto_pause.map_or(0, |minutes| minutes.0),
        auto_archive_interval: spec.intervals.auto_archive.map_or(0, |minutes| minutes.0),
        auto_delete_interval: spec.intervals.auto_delete.map_or(-1, |minutes| minutes.0.into()),
        auto_destroy_at: spec.intervals.ttl.map(|ttl| rfc3339(ends_at(spec.created_at, ttl))),
        volumes: Vec::new(),
        created_at: rfc3339(spec.created_at),
        updated_at: last.clone(),
        last_activity_at: last,
        sandbox_class: CLASS,
        runner_id: view.node.to_string(),
        toolbox_proxy_url: format!("{}/toolbox", edge.endpoint(&region)),
        stale,
    }
}

/// Whole GiB, rounded up: the wire has no smaller unit.
pub(super) fn gib(memory: MemoryMib) -> u32 {
    memory.0.div_ceil(1024)
}

/// A list as the wire writes it; an empty one is left out.
fn listed<T: ToString>(rules: &[T]) -> Option<String> {
    let rules: Vec<String> = rules.iter().map(ToString::to_string).collect();
    (!rules.is_empty()).then(|| rules.join(","))
}

fn ends_at(created_at: UnixMillis, ttl: Minutes) -> UnixMillis {
    UnixMillis(created_at.0.saturating_add(ttl.as_millis()))
}
