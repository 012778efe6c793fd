//! Templates and snapshots as the wire's one list of snapshots.

use std::fmt::Display;

use axum::Json;
use axum::extract::State;
use fabric_api::daytona as wire;
use fabric_api::node::{NodeReply, NodeRequest, SnapshotView, TemplateView};
use fabric_types::{Name, Shape, UnixMillis};

use super::list::{limit, numbered, page_number};
use super::view::{self, CLASS, gib};
use crate::edge::Edge;
use crate::instant::rfc3339;
use crate::intake;
use crate::mesh::odd_reply;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Params, Segments};
use crate::sandboxes::{self, LOOK_UP, SNAPSHOT};
use crate::v1;

/// Bytes of a GiB.
const GIB: f64 = (1_u64 << 30) as f64;

/// `POST /api/sandbox/{id}/snapshot`: answers the sandbox, which runs again.
pub(super) async fn take(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::CreateSandboxSnapshot>,
) -> Answer<Json<wire::Sandbox>> {
    let name = intake::required_name(&body.name)?;
    v1::snapshots::take(&edge, &caller, &key, Some(name), SNAPSHOT).await?;
    let view = sandboxes::get(&edge, &caller, &key).await?;
    Ok(Json(view::sandbox(&edge, view, false)))
}

/// `GET /api/snapshots?page=&limit=&name=`: templates first, then the organization's snapshots, the newest first.
pub(super) async fn page(
    State(edge): State<Edge>,
    caller: Caller,
    params: Params,
) -> Answer<Json<wire::Page<wire::Snapshot>>> {
    let (number, limit) = (page_number(&params)?, limit(&params)?);
    let name = params.one("name")?.map(str::to_lowercase);
    let mut items = all(&edge, &caller).await?;
    items.retain(|item| name.as_ref().is_none_or(|name| item.name.to_lowercase().contains(name)));
    Ok(Json(numbered(items, number, limit)))
}

/// `GET /api/snapshots/{id or name}`
pub(super) async fn get(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<Json<wire::Snapshot>> {
    let found = all(&edge, &caller).await?.into_iter().find(|item| item.id == key || item.name == key);
    found.map(Json).ok_or_else(|| Refusal::not_found(format!("no snapshot or template '{}'", intake::clip(&key))))
}

/// `DELETE /api/snapshots/{id or name}`
pub(super) async fn delete(State(edge): State<Edge>, caller: Caller, Segments([key]): Segments<1>) -> Answer<()> {
    v1::snapshots::delete_by_key(&edge, &caller, &key).await.map(drop)
}

async fn all(edge: &Edge, caller: &Caller) -> Answer<Vec<wire::Snapshot>> {
    let scope = caller.scope(LOOK_UP);
    let templates = match edge.mesh().ask_any(NodeRequest::ListTemplates, &scope).await? {
        NodeReply::Templates(templates) => templates,
        reply => return Err(odd_reply(&reply).into()),
    };
    let mut snapshots = v1::snapshots::all(edge, caller).await?;
    snapshots.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
    Ok(templates.into_iter().map(template).chain(snapshots.into_iter().map(snapshot)).collect())
}

fn template(view: TemplateView) -> wire::Snapshot {
    wire::Snapshot { image_name: Some(view.image), ..row(&view.name, &view.name, view.shape, view.created_at) }
}

fn snapshot(view: SnapshotView) -> wire::Snapshot {
    let mut regions: Vec<_> = view
        .replicas
        .iter()
        .filter(|replica| replica.state == "complete")
        .map(|replica| replica.region.to_string())
        .collect();
    regions.sort();
    regions.dedup();
    wire::Snapshot {
        organization_id: Some(view.organization.0),
        general: false,
        size: Some(view.size_bytes as f64 / GIB),
        region_ids: regions,
        manifest: Some(view.manifest.to_string()),
        source_sandbox_id: Some(view.sandbox.to_string()),
        ..row(&view.id, &view.name, view.shape, view.created_at)
    }
}

/// What everyone may use and what lies nowhere in particular: a template's row but for its image.
fn row(id: &dyn Display, name: &Name, shape: Shape, created_at: UnixMillis) -> wire::Snapshot {
    let since = rfc3339(created_at);
    wire::Snapshot {
        id: id.to_string(),
        organization_id: None,
        general: true,
        name: name.to_string(),
        image_name: None,
        state: "active",
        size: None,
        entrypoint: None,
        cpu: shape.vcpus().0,
        gpu: 0,
        mem: gib(shape.memory()),
        disk: shape.disk().0,
        error_reason: None,
        created_at: since.clone(),
        updated_at: since,
        last_used_at: None,
        region_ids: Vec::new(),
        manifest: None,
        source_sandbox_id: None,
        sandbox_class: CLASS,
    }
}
