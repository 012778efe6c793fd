//! `/v1/snapshots`, and what the Daytona façade shares with it.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use fabric_api::node::{NewSandbox, NodeReply, NodeRequest, Origin, SnapshotView};
use fabric_api::v1 as wire;
use fabric_types::{Intervals, Labels, Name};

use super::view;
use crate::edge::Edge;
use crate::intake;
use crate::mesh::odd_reply;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Segments};
use crate::sandboxes::{self, LOOK_UP, SNAPSHOT};

/// How long a catalog write may take: it may cross oceans twice.
const CATALOG: Duration = Duration::from_secs(15);

/// Takes a snapshot of a running sandbox.
pub(crate) async fn take(
    edge: &Edge,
    caller: &Caller,
    key: &str,
    name: Option<Name>,
    deadline: Duration,
) -> Answer<SnapshotView> {
    let scope = caller.scope(deadline);
    let (region, key) = edge.mesh().home(key, &scope).await?;
    match edge.mesh().ask(&region, NodeRequest::Snapshot { key, name }, &scope).await? {
        NodeReply::Snapshot(view) => Ok(*view),
        reply => Err(odd_reply(&reply).into()),
    }
}

/// The organization's snapshots, from the nearest copy of the catalog.
pub(crate) async fn all(edge: &Edge, caller: &Caller) -> Answer<Vec<SnapshotView>> {
    let request = NodeRequest::ListSnapshots { organization: caller.organization.clone() };
    match edge.mesh().ask_any(request, &caller.scope(LOOK_UP)).await? {
        NodeReply::Snapshots(views) => Ok(views),
        reply => Err(odd_reply(&reply).into()),
    }
}

/// Deletes a snapshot by id or name.
pub(crate) async fn delete_by_key(edge: &Edge, caller: &Caller, key: &str) -> Answer<SnapshotView> {
    if key.parse::<Name>().is_err() {
        return Err(unknown(key));
    }
    let request = NodeRequest::DeleteSnapshot { key: key.to_owned(), organization: caller.organization.clone() };
    match edge.mesh().ask(&edge.config().region, request, &caller.scope(CATALOG)).await? {
        NodeReply::Snapshot(view) => Ok(*view),
        reply => Err(odd_reply(&reply).into()),
    }
}

/// `POST /v1/sandboxes/{id}/snapshots`
pub(super) async fn create(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<Option<wire::CreateSnapshot>>,
) -> Answer<Json<wire::Snapshot>> {
    let name = intake::name(body.unwrap_or_default().name.as_deref())?;
    Ok(Json(view::snapshot(take(&edge, &caller, &key, name, SNAPSHOT).await?)))
}

/// `GET /v1/snapshots`, the eldest first.
pub(super) async fn list(State(edge): State<Edge>, caller: Caller) -> Answer<Json<wire::SnapshotList>> {
    let mut views = all(&edge, &caller).await?;
    views.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(Json(wire::SnapshotList { items: views.into_iter().map(view::snapshot).collect() }))
}

/// `GET /v1/snapshots/{id or name}`
pub(super) async fn get(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<Json<wire::Snapshot>> {
    Ok(Json(view::snapshot(by_key(&edge, &caller, &key).await?)))
}

/// `DELETE /v1/snapshots/{id or name}`
pub(super) async fn delete(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<Json<wire::Snapshot>> {
    Ok(Json(view::snapshot(delete_by_key(&edge, &caller, &key).await?)))
}

/// `POST /v1/snapshots/{id or name}/restore`: a new sandbox, in another region where one is named.
pub(super) async fn restore(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<Option<wire::RestoreSnapshot>>,
) -> Answer<Json<wire::Restored>> {
    let body = body.unwrap_or_default();
    let new = NewSandbox {
        name: intake::name(body.name.as_deref())?,
        organization: caller.organization.clone(),
        origin: Origin::Snapshot(key.clone()),
        shape: None,
        labels: Labels::new(),
        env: std::collections::BTreeMap::new(),
        user: None,
        public: false,
        network: None,
        intervals: Intervals::default(),
    };
    if key.parse::<Name>().is_err() {
        return Err(unknown(&key));
    }
    // A restore stays where it was asked for: its region is part of what the client sees.
    let region = body.region.filter(|region| !region.is_empty()).unwrap_or_else(|| edge.config().region.to_string());
    let sandbox = sandboxes::create(&edge, &caller, new, Some(&region), SNAPSHOT).await?;
    // The answer names the snapshot by its id; where the catalog can't be read any more, as the client named it.
    let snapshot = by_key(&edge, &caller, &key).await.map_or(key, |view| view.id.to_string());
    Ok(Json(wire::Restored {
        id: sandbox.spec.id.to_string(),
        sandbox: sandbox.spec.id.to_string(),
        snapshot,
        region: sandbox.spec.id.home().to_string(),
        state: sandboxes::state(&sandbox.phase).to_owned(),
        generation: sandbox.generation.0,
    }))
}

async fn by_key(edge: &Edge, caller: &Caller, key: &str) -> Answer<SnapshotView> {
    let views = all(edge, caller).await?;
    views.into_iter().find(|view| view.id.as_str() == key || view.name.as_str() == key).ok_or_else(|| unknown(key))
}

fn unknown(key: &str) -> Refusal {
    Refusal::not_found(format!("no snapshot '{}'", intake::clip(key)))
}
