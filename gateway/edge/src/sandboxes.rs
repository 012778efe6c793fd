//! What both façades do with sandboxes: create, change, look up; and the words for where one is in its life.

use std::time::Duration;

use fabric_api::node::{FORK_CHILDREN_MAX, ForkView, NewSandbox, NodeReply, NodeRequest, SandboxView};
use fabric_api::v1::Usage;
use fabric_api::{ApiError, ErrorCode};
use fabric_types::{
    Desired, FailReason, Intervals, Labels, Name, NetworkPolicy, Phase, RegionCode, SandboxId, Shape, Source,
};
use tracing::info;

use crate::edge::Edge;
use crate::intake::clip;
use crate::mesh::{Listed, not_found, odd_reply};
use crate::refusal::{Answer, Refusal};
use crate::request::Caller;

/// A look-up inside a region.
pub(crate) const LOOK_UP: Duration = Duration::from_secs(5);
/// A create: where a template must boot first, that takes tens of seconds under TCG. Clients wait 60 s.
pub(crate) const CREATE: Duration = Duration::from_secs(60);
/// A start, stop, pause or deletion, with the guest asked first.
pub(crate) const CHANGE: Duration = Duration::from_secs(60);
/// A fork, whose children all start on one node.
pub(crate) const FORK: Duration = Duration::from_secs(60);
/// An archive, whose disk is packed into chunks.
pub(crate) const ARCHIVE: Duration = Duration::from_secs(300);
/// Parents of parents that are looked up.
const ANCESTORS_MAX: usize = 64;
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

/// What a sandbox's machine uses.
pub(crate) async fn usage(edge: &Edge, caller: &Caller, key: &str) -> Answer<Usage> {
    let (mesh, scope) = (edge.mesh(), caller.scope(LOOK_UP));
    let (region, key) = mesh.home(key, &scope).await?;
    match mesh.ask(&region, NodeRequest::Usage { key }, &scope).await? {
        NodeReply::Usage(usage) => Ok(usage),
        reply => Err(odd_reply(&reply).into()),
    }
}

/// Changes where a sandbox is meant to be, and waits until it is there.
pub(crate) async fn set_desired(
    edge: &Edge,
    caller: &Caller,
    key: &str,
    desired: Desired,
    force: bool,
) -> Answer<SandboxView> {
    let scope = caller.scope(if desired == Desired::Archived { ARCHIVE } else { CHANGE });
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

/// Replaces what a sandbox's guest may reach; it is in force when this answers.
pub(crate) async fn set_network(
    edge: &Edge,
    caller: &Caller,
    key: &str,
    network: NetworkPolicy,
) -> Answer<SandboxView> {
    let scope = caller.scope(CHANGE);
    let view = edge.mesh().ask_home(key, &scope, |key| NodeRequest::SetNetwork { key, network }).await?;
    lifecycle("network set", caller, &view);
    Ok(view)
}

/// Sets whether a sandbox's ports may be reached without a key.
pub(crate) async fn set_public(edge: &Edge, caller: &Caller, key: &str, public: bool) -> Answer<SandboxView> {
    let scope = caller.scope(LOOK_UP);
    Ok(edge.mesh().ask_home(key, &scope, |key| NodeRequest::SetPublic { key, public }).await?)
}

/// Gives a sandbox another shape; `change` gets the one that it has.
pub(crate) async fn resize<F>(edge: &Edge, caller: &Caller, key: &str, change: F) -> Answer<SandboxView>
where
    F: FnOnce(Shape) -> Answer<Shape>,
{
    let shape = change(get(edge, caller, key).await?.spec.shape)?;
    let scope = caller.scope(CHANGE);
    let view = edge.mesh().ask_home(key, &scope, |key| NodeRequest::Resize { key, shape }).await?;
    lifecycle("resized", caller, &view);
    Ok(view)
}

/// Forks a running sandbox into as many children as names are given.
pub(crate) async fn fork(edge: &Edge, caller: &Caller, key: &str, names: Vec<Option<Name>>) -> Answer<ForkView> {
    if names.is_empty() || names.len() > FORK_CHILDREN_MAX {
        let given = names.len();
        return Err(Refusal::bad(format!("{given} children are not possible: a fork makes 1 to {FORK_CHILDREN_MAX}")));
    }
    for name in names.iter().flatten() {
        edge.mesh().may_name(name)?;
    }
    let scope = caller.scope(FORK);
    let (region, key) = edge.mesh().home(key, &scope).await?;
    match edge.mesh().ask(&region, NodeRequest::Fork { key, names }, &scope).await? {
        NodeReply::Fork(view) => {
            view.children.iter().for_each(|child| lifecycle("forked", caller, child));
            Ok(*view)
        }
        reply => Err(odd_reply(&reply).into()),
    }
}

/// The sandbox that one was forked from.
pub(crate) fn parent(view: &SandboxView) -> Option<&SandboxId> {
    match &view.spec.source {
        Source::Fork { parent, .. } => Some(parent),
        Source::Template { .. } | Source::Snapshot { .. } => None,
    }
}

/// The living forks of a sandbox: they live in its region.
pub(crate) async fn forks(edge: &Edge, caller: &Caller, key: &str) -> Answer<Vec<SandboxView>> {
    let of = get(edge, caller, key).await?.spec.id;
    let Listed { items, unreachable } = edge.mesh().list(&[of.home()], &caller.scope(LOOK_UP)).await;
    if let Some(region) = unreachable.first() {
        let message = format!("region {region} can't be reached now, so the forks of {of} are unknown; try again");
        return Err(ApiError::new(ErrorCode::Unavailable, message).into());
    }
    Ok(items.into_iter().map(|(view, _)| view).filter(|view| parent(view) == Some(&of)).collect())
}

/// Parent, parent's parent and so on, as far as they live.
pub(crate) async fn ancestors(edge: &Edge, caller: &Caller, key: &str) -> Answer<Vec<SandboxView>> {
    let mut found: Vec<SandboxView> = Vec::new();
    let mut next = parent(&get(edge, caller, key).await?).cloned();
    while let Some(id) = next.filter(|_| found.len() < ANCESTORS_MAX) {
        match edge.mesh().find(id.as_str(), &caller.scope(LOOK_UP)).await {
            Ok(view) => {
                next = parent(&view).cloned();
                found.push(view);
            }
            Err(error) if error.code == ErrorCode::NotFound => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
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
