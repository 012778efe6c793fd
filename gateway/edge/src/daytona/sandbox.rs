//! One sandbox of the Daytona wire: create, get, delete, and where it is in its life.

use axum::Json;
use axum::extract::State;
use fabric_api::daytona as wire;
use fabric_api::node::SandboxView;
use fabric_types::{Desired, Phase};
use http::StatusCode;

use super::create;
use super::view;
use crate::edge::Edge;
use crate::guest::Guest;
use crate::intake;
use crate::refusal::Answer;
use crate::request::{Caller, JsonBody, Params, Segments};
use crate::sandboxes::{self, CREATE, LOOK_UP, SNAPSHOT};

pub(super) type Shown = Answer<Json<wire::Sandbox>>;

pub(super) fn show(edge: &Edge, view: SandboxView) -> Shown {
    Ok(Json(view::sandbox(edge, view, false)))
}

/// `POST /api/sandbox`: answers when the sandbox runs, so that the client has nothing to poll for.
pub(super) async fn create(
    State(edge): State<Edge>,
    caller: Caller,
    JsonBody(body): JsonBody<wire::CreateSandbox>,
) -> Shown {
    let target = body.target.clone();
    let from_snapshot = body.snapshot.is_some();
    let new = create::parse(body, caller.organization.clone())?;
    let deadline = if from_snapshot { SNAPSHOT } else { CREATE };
    let view = sandboxes::create(&edge, &caller, new, target.as_deref(), deadline).await?;
    show(&edge, view)
}

/// `GET /api/sandbox/{id or name}`
pub(super) async fn get(State(edge): State<Edge>, caller: Caller, Segments([key]): Segments<1>) -> Shown {
    let view = sandboxes::present(sandboxes::get(&edge, &caller, &key).await?, &key)?;
    show(&edge, view)
}

/// `DELETE /api/sandbox/{id or name}`
pub(super) async fn delete(State(edge): State<Edge>, caller: Caller, Segments([key]): Segments<1>) -> Shown {
    show(&edge, sandboxes::delete(&edge, &caller, &key).await?)
}

/// `POST .../start`, of a stopped or paused one.
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
    let force = params.flag("force")?.unwrap_or(false);
    show(&edge, sandboxes::set_desired(&edge, &caller, &key, Desired::Stopped, force).await?)
}

/// `POST .../pause`
pub(super) async fn pause(State(edge): State<Edge>, caller: Caller, Segments([key]): Segments<1>) -> Shown {
    show(&edge, sandboxes::set_desired(&edge, &caller, &key, Desired::Paused, false).await?)
}

/// `POST .../archive`, of a stopped one.
pub(super) async fn archive(State(edge): State<Edge>, caller: Caller, Segments([key]): Segments<1>) -> Shown {
    show(&edge, sandboxes::set_desired(&edge, &caller, &key, Desired::Archived, false).await?)
}

/// `PUT .../labels`
pub(super) async fn labels(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::SandboxLabels>,
) -> Answer<Json<wire::SandboxLabels>> {
    let view = sandboxes::set_labels(&edge, &caller, &key, intake::labels(body.labels)?).await?;
    Ok(Json(wire::SandboxLabels { labels: view.spec.labels }))
}

/// `POST .../last-activity`: a running sandbox's agent is asked for its health, and that counts.
pub(super) async fn last_activity(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<StatusCode> {
    let view = sandboxes::get(&edge, &caller, &key).await?;
    if view.phase == Phase::Running {
        Guest { mesh: edge.mesh(), key: &key, scope: caller.scope(LOOK_UP) }.health().await?;
    }
    Ok(StatusCode::CREATED)
}

/// `GET .../toolbox-proxy-url`
pub(super) async fn toolbox_proxy_url(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<Json<wire::ToolboxProxyUrl>> {
    let view = sandboxes::get(&edge, &caller, &key).await?;
    Ok(Json(wire::ToolboxProxyUrl { url: format!("{}/toolbox", edge.endpoint(&view.spec.id.home())) }))
}
