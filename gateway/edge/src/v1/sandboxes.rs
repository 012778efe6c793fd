//! `/v1/sandboxes`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use fabric_api::millis::Millis;
use fabric_api::node::{FORK_CHILDREN_MAX, NewSandbox, Origin, SandboxView};
use fabric_api::v1 as wire;
use fabric_types::{Desired, Name, OrganizationId, Phase};

use super::{settings, view};
use crate::edge::Edge;
use crate::intake::{self, GivenIntervals};
use crate::mesh::Listed;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Params, Segments};
use crate::sandboxes::{self, CREATE, LOOK_UP, SNAPSHOT};

pub(super) type Shown = Answer<Json<wire::Sandbox>>;

/// States that the list may be narrowed to: see [`wire::Sandbox::state`].
const STATES: [&str; 12] = [
    "creating",
    "starting",
    "started",
    "paused",
    "snapshotting",
    "stopping",
    "stopped",
    "archiving",
    "archived",
    "destroying",
    "destroyed",
    "error",
];

pub(super) fn show(edge: &Edge, view: SandboxView) -> Shown {
    Ok(Json(view::sandbox(edge, view, false)))
}

/// `POST /v1/sandboxes`; an empty body is a sandbox with nothing asked for.
pub(super) async fn create(
    State(edge): State<Edge>,
    caller: Caller,
    JsonBody(body): JsonBody<Option<wire::CreateSandbox>>,
) -> Shown {
    let body = body.unwrap_or_default();
    let region = body.region.clone();
    let deadline = if body.snapshot.is_some() { SNAPSHOT } else { CREATE };
    let new = parse(body, caller.organization.clone())?;
    show(&edge, sandboxes::create(&edge, &caller, new, region.as_deref(), deadline).await?)
}

fn parse(body: wire::CreateSandbox, organization: OrganizationId) -> Answer<NewSandbox> {
    Ok(NewSandbox {
        name: intake::name(body.name.as_deref())?,
        organization,
        origin: body.snapshot.filter(|key| !key.is_empty()).map_or(Origin::Default, Origin::Named),
        shape: intake::shape(body.cpu, body.memory_mib, body.disk_gib)?,
        labels: intake::labels(body.labels)?,
        env: intake::env(body.env)?,
        user: None,
        public: body.public,
        network: (body.network.is_some() || body.network_block_all)
            .then(|| settings::network(body.network.unwrap_or_default(), body.network_block_all))
            .transpose()?,
        intervals: intake::intervals(GivenIntervals {
            stop: body.auto_stop_minutes,
            pause: body.auto_pause_minutes,
            archive: body.auto_archive_minutes,
            delete: body.auto_delete_minutes,
            ttl: body.ttl_minutes,
        })?,
    })
}

/// `GET /v1/sandboxes?region=&label=K=V&state=`, the eldest first.
pub(super) async fn list(State(edge): State<Edge>, caller: Caller, params: Params) -> Answer<Json<wire::SandboxList>> {
    params.only(&["region", "label", "state"])?;
    let regions = params.all("region").map(|code| sandboxes::region(&edge, code)).collect::<Answer<Vec<_>>>()?;
    let labels = params.all("label").map(label).collect::<Answer<Vec<_>>>()?;
    let states: Vec<_> = params.all("state").collect();
    if let Some(odd) = states.iter().find(|state| !STATES.contains(state)) {
        return Err(Refusal::bad(format!("'{}' is not a state; known are {}", intake::clip(odd), STATES.join(", "))));
    }
    let Listed { mut items, unreachable } = edge.mesh().list(&regions, &caller.scope(LOOK_UP)).await;
    items.sort_by(|(a, _), (b, _)| (a.spec.created_at, &a.spec.id).cmp(&(b.spec.created_at, &b.spec.id)));
    let items = items
        .into_iter()
        .filter(|(item, _)| item.phase != Phase::Gone)
        .filter(|(item, _)| {
            labels.iter().all(|(key, value)| item.spec.labels.get(*key).is_some_and(|has| has == value))
        })
        .filter(|(item, _)| states.is_empty() || states.contains(&sandboxes::state(&item.phase)))
        .map(|(item, stale)| view::sandbox(&edge, item, stale))
        .collect();
    let unreachable_regions = unreachable.iter().map(ToString::to_string).collect();
    Ok(Json(wire::SandboxList { items, unreachable_regions }))
}

fn label(text: &str) -> Answer<(&str, &str)> {
    text.split_once('=').ok_or_else(|| Refusal::bad(format!("the label '{}' is not KEY=VALUE", intake::clip(text))))
}

/// `GET /v1/sandboxes/{id or name}`
pub(super) async fn get(State(edge): State<Edge>, caller: Caller, Segments([key]): Segments<1>) -> Shown {
    show(&edge, sandboxes::present(sandboxes::get(&edge, &caller, &key).await?, &key)?)
}

/// `GET .../usage`
pub(super) async fn usage(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<Json<wire::Usage>> {
    Ok(Json(sandboxes::usage(&edge, &caller, &key).await?))
}

/// `DELETE /v1/sandboxes/{id or name}`
pub(super) async fn delete(State(edge): State<Edge>, caller: Caller, Segments([key]): Segments<1>) -> Shown {
    show(&edge, sandboxes::delete(&edge, &caller, &key).await?)
}

/// `POST .../start`, `.../resume`
pub(super) async fn start(State(edge): State<Edge>, caller: Caller, Segments([key]): Segments<1>) -> Shown {
    show(&edge, sandboxes::set_desired(&edge, &caller, &key, Desired::Running, false).await?)
}

/// `POST .../stop?force=`
pub(super) async fn stop(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    params: Params,
) -> Shown {
    params.only(&["force"])?;
    let force = params.flag("force")?.unwrap_or(false);
    show(&edge, sandboxes::set_desired(&edge, &caller, &key, Desired::Stopped, force).await?)
}

/// `POST .../pause`
pub(super) async fn pause(State(edge): State<Edge>, caller: Caller, Segments([key]): Segments<1>) -> Shown {
    show(&edge, sandboxes::set_desired(&edge, &caller, &key, Desired::Paused, false).await?)
}

/// `POST .../archive`, of a stopped one
pub(super) async fn archive(State(edge): State<Edge>, caller: Caller, Segments([key]): Segments<1>) -> Shown {
    show(&edge, sandboxes::set_desired(&edge, &caller, &key, Desired::Archived, false).await?)
}

/// `POST .../fork`: children from one moment, all of them running, or none.
pub(super) async fn fork(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<Option<wire::Fork>>,
) -> Answer<Json<wire::Forked>> {
    let names = children(body.unwrap_or_default())?;
    let forked = sandboxes::fork(&edge, &caller, &key, names).await?;
    let items = forked.children.into_iter().map(|child| view::sandbox(&edge, child, false)).collect();
    Ok(Json(wire::Forked { stop_ms: Millis { micros: forked.stop_us }, items }))
}

fn children(body: wire::Fork) -> Answer<Vec<Option<Name>>> {
    let possible = |count: i64| usize::try_from(count).ok().filter(|count| (1..=FORK_CHILDREN_MAX).contains(count));
    let count = match body.count {
        None => body.names.len().max(1),
        Some(count) => possible(count).ok_or_else(|| {
            Refusal::bad(format!("{count} children are not possible: a fork makes 1 to {FORK_CHILDREN_MAX}"))
        })?,
    };
    if body.names.len() > count {
        let names = body.names.len();
        return Err(Refusal::bad(format!("{names} names are given for {count} children")));
    }
    let mut names = body.names.iter().map(|name| intake::name(Some(name))).collect::<Answer<Vec<_>>>()?;
    names.resize(count, None);
    Ok(names)
}

/// `PUT .../labels`
pub(super) async fn labels(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<BTreeMap<String, String>>,
) -> Shown {
    show(&edge, sandboxes::set_labels(&edge, &caller, &key, intake::labels(body)?).await?)
}
