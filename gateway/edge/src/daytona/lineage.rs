//! Forks of the Daytona wire: made one at a time, and looked up both ways.

use axum::Json;
use axum::extract::State;
use fabric_api::daytona as wire;

use super::sandbox::{Shown, show};
use super::view;
use crate::edge::Edge;
use crate::intake;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Segments};
use crate::sandboxes;

/// `POST .../fork`: answers the child, which runs.
pub(super) async fn fork(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<Option<wire::ForkSandbox>>,
) -> Shown {
    let name = intake::name(body.unwrap_or_default().name.as_deref())?;
    let forked = sandboxes::fork(&edge, &caller, &key, vec![name]).await?;
    let child = forked.children.into_iter().next();
    show(&edge, child.ok_or_else(|| Refusal::unavailable("a node answered a fork without a child"))?)
}

/// `GET .../forks`: those that live.
pub(super) async fn forks(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<Json<Vec<wire::Sandbox>>> {
    let forks = sandboxes::forks(&edge, &caller, &key).await?;
    Ok(Json(forks.into_iter().map(|fork| view::sandbox(&edge, fork, false)).collect()))
}

/// `GET .../parent`
pub(super) async fn parent(State(edge): State<Edge>, caller: Caller, Segments([key]): Segments<1>) -> Shown {
    let child = sandboxes::get(&edge, &caller, &key).await?;
    let Some(parent) = sandboxes::parent(&child) else {
        return Err(Refusal::not_found(format!("sandbox '{}' is no fork: it has no parent", intake::clip(&key))));
    };
    show(&edge, sandboxes::get(&edge, &caller, parent.as_str()).await?)
}

/// `GET .../ancestors`: the parent first, as far as they live.
pub(super) async fn ancestors(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<Json<Vec<wire::Sandbox>>> {
    let found = sandboxes::ancestors(&edge, &caller, &key).await?;
    Ok(Json(found.into_iter().map(|one| view::sandbox(&edge, one, false)).collect()))
}
