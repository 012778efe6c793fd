//! What both façades do with sandboxes: create, change, look up; and the words for where one is in its life.

use std::time::Duration;

use fabric_api::node::{NewSandbox, NodeRequest, SandboxView};
use fabric_api::{ApiError, ErrorCode};
use fabric_types::{Desired, FailReason, Intervals, Labels, Phase, RegionCode};
use tracing::info;

use crate::edge::Edge;
use crate::intake::clip;
use crate::mesh::not_found;
use crate::refusal::{Answer, Refusal};
use crate::request::Caller;

/// A look-up inside a region.
pub(crate) const LOOK_UP: Duration = Duration::from_secs(5);
/// A create: where a template must boot first, that takes tens of seconds under TCG. Clients wait 60 s.
pub(crate) const CREATE: Duration = Duration::from_secs(60);
/// A start, stop, pause or deletion, with the guest asked first.
pub(crate) const CHANGE: Duration = Duration::from_secs(60);
/// A snapshot, or a create from one, whose chunks cross regions.
pub(crate) const SNAPSHOT: Duration = Duration::from_secs(300);

/// Parses a region's code and holds it against the mesh.
pub(crate) fn region(edge: &Edge, code: &str) -> Answer<RegionCode> {
    let known = edge.mesh().regions();
    code.parse::<RegionCode>().ok().filter(|region| known.contains(region)).ok_or_else(|| {
        let known: Vec<_> = known.iter().map(RegionCode::as_str).collect();
        Refusal::bad(format!("unknown region '{}'; this mesh has {}", clip(code), known.join(", ")))
    })
}

/// Creates a sandbox in a region; where none is named, in this one, and when that has no room in the nearest that has.
pub(crate) async fn create(
    edge: &Edge,
    caller: &Caller,
    new: NewSandbox,
    target: Option<&str>,
    deadline: Duration,
) -> Answer<SandboxView> {
    let mesh = edge.mesh();
    let targets = match target.filter(|code| !code.is_empty()) {
        Some(code) => vec![region(edge, code)?],
        None => mesh.nearest(),
    };
    if let Some(name) = &new.name {
        mesh.may_name(name)?;
        // The region's own check counts; this one finds the name in other regions. One that can't be asked does not
        // hold up creates here.
        if mesh.find(name.as_str(), &caller.scope(LOOK_UP)).await.is_ok() {
            let message = format!("a sandbox named '{name}' exists; delete it or choose another name");
            return Err(ApiError::new(ErrorCode::Conflict, message).into());
        }
    }
    let mut first = None;
    for region in targets {
        let request = NodeRequest::Create { new: Box::new(new.clone()) };
        match mesh.ask_sandbox(&region, request, &caller.scope(deadline)).await {
            Ok(view) => {
                lifecycle("created", caller, &view);
                return Ok(view);
            }
            Err(error) if error.code == ErrorCode::NoCapacity => first = first.or(Some(error)),
            Err(error) => return Err(first.unwrap_or(error).into()),
        }
    }
    Err(first.unwrap_or_else(|| ApiError::new(ErrorCode::NoCapacity, "no region has room")).into())
}

/// A sandbox by id or name.
pub(crate) async fn get(edge: &Edge, caller: &Caller, key: &str) -> Answer<SandboxView> {
    Ok(edge.mesh().find(key, &caller.scope(LOOK_UP)).await?)
}

/// Changes where a sandbox is meant to be, and waits until it is there.
pub(crate) async fn set_desired(
    edge: &Edge,
    caller: &Caller,
    key: &str,
    desired: Desired,
    force: bool,
) -> Answer<SandboxView> {
    let scope = caller.scope(CHANGE);
    let view = edge.mesh().ask_home(key, &scope, |key| NodeRequest::SetDesired { key, desired, force }).await?;
    lifecycle(desired_state(&view), caller, &view);
    Ok(view)
}

/// Deletes a sandbox and waits until nothing is left of it. The answer shows it as destroyed.
pub(crate) async fn delete(edge: &Edge, caller: &Caller, key: &str) -> Answer<SandboxView> {
    let mut view = edge.mesh().ask_home(key, &caller.scope(CHANGE), |key| NodeRequest::Delete { key }).await?;
    view.phase = Phase::Gone;
    lifecycle("deleted", caller, &view);
    Ok(view)
}

/// One line for each change of a sandbox's life that a client asked for.
fn lifecycle(change: &str, caller: &Caller, view: &SandboxView) {
    info!(
        request_id = caller.request_id,
        sandbox_id = %view.spec.id,
        node_id = %view.node,
        region = %view.spec.id.home(),
        generation = view.generation.0,
        change,
        "a client changed a sandbox"
    );
}

/// Replaces a sandbox's labels.
pub(crate) async fn set_labels(edge: &Edge, caller: &Caller, key: &str, labels: Labels) -> Answer<SandboxView> {
    let scope = caller.scope(LOOK_UP);
    Ok(edge.mesh().ask_home(key, &scope, |key| NodeRequest::SetLabels { key, labels }).await?)
}

/// Changes a sandbox's intervals; `change` gets those that it has.
pub(crate) async fn set_intervals<F>(edge: &Edge, caller: &Caller, key: &str, change: F) -> Answer<SandboxView>
where
    F: FnOnce(&mut Intervals),
{
    let mut intervals = get(edge, caller, key).await?.spec.intervals;
    change(&mut intervals);
    let scope = caller.scope(LOOK_UP);
    Ok(edge.mesh().ask_home(key, &scope, |key| NodeRequest::SetIntervals { key, intervals }).await?)
}

/// A sandbox that may be shown: one that is gone is not found.
pub(crate) fn present(view: SandboxView, key: &str) -> Answer<SandboxView> {
    if view.phase == Phase::Gone { Err(not_found(key).into()) } else { Ok(view) }
}

/// The word of the client wires for a phase.
pub(crate) fn state(phase: &Phase) -> &'static str {
    match phase {
        Phase::Requested | Phase::Placed => "creating",
        Phase::Starting => "starting",
        Phase::Running => "started",
        Phase::Paused => "paused",
        Phase::Snapshotting => "snapshotting",
        Phase::Stopping => "stopping",
        Phase::Stopped => "stopped",
        Phase::Archiving => "archiving",
        Phase::Archived => "archived",
        Phase::Deleting => "destroying",
        Phase::Gone => "destroyed",
        Phase::Failed { .. } => "error",
    }
}

/// The word of the client wires for where a sandbox is meant to be.
pub(crate) fn desired_state(view: &SandboxView) -> &'static str {
    match (&view.phase, view.desired) {
        (Phase::Deleting | Phase::Gone, _) => "destroyed",
        (_, Desired::Running) => "started",
        (_, Desired::Paused) => "paused",
        (_, Desired::Stopped) => "stopped",
        (_, Desired::Archived) => "archived",
    }
}

/// Why a sandbox failed, as a sentence.
pub(crate) fn error_reason(phase: &Phase) -> Option<String> {
    let Phase::Failed { reason } = phase else { return None };
    Some(match reason {
        FailReason::Start(detail) => format!("it could not be started: {detail}"),
        FailReason::MachineLost(detail) => format!("its machine ended by itself: {detail}"),
        FailReason::Storage(detail) => format!("its disk or folder is damaged or missing: {detail}"),
        FailReason::Cleanup(detail) => format!("a stop or deletion could not be finished: {detail}"),
    })
}
