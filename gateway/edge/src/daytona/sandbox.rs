//! One sandbox of the Daytona wire: create, get, delete, and what changes it.

use axum::Json;
use axum::extract::State;
use fabric_api::daytona as wire;
use fabric_api::node::SandboxView;
use fabric_types::{Desired, Phase};
use http::StatusCode;

use super::create::{self, never_if_negative};
use super::view;
use crate::edge::Edge;
use crate::guest::Guest;
use crate::intake;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Params, Segments};
use crate::sandboxes::{self, CREATE, LOOK_UP, SNAPSHOT};

type Shown = Answer<Json<wire::Sandbox>>;

fn show(edge: &Edge, view: SandboxView) -> Shown {
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

/// `POST .../autostop/{minutes}`
pub(super) async fn auto_stop(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key, minutes]): Segments<2>,
) -> Shown {
    let interval = intake::auto_stop(number(&minutes)?)?;
    show(&edge, sandboxes::set_intervals(&edge, &caller, &key, |all| all.auto_stop = interval).await?)
}

/// `POST .../autodelete/{minutes}`
pub(super) async fn auto_delete(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key, minutes]): Segments<2>,
) -> Shown {
    let minutes = never_if_negative(Some(number(&minutes)?)).unwrap_or(-1);
    let interval = intake::auto_delete(minutes)?;
    show(&edge, sandboxes::set_intervals(&edge, &caller, &key, |all| all.auto_delete = interval).await?)
}

/// `POST .../autoarchive/{minutes}`: nothing is archived here, so any interval is kept to.
pub(super) async fn auto_archive(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key, minutes]): Segments<2>,
) -> Shown {
    intake::whole_minutes("the auto-archive interval", number(&minutes)?)?;
    show(&edge, sandboxes::get(&edge, &caller, &key).await?)
}

/// `POST .../autopause/{minutes}`
pub(super) async fn auto_pause(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key, minutes]): Segments<2>,
) -> Shown {
    if intake::whole_minutes("the auto-pause interval", number(&minutes)?)?.0 > 0 {
        return Err(Refusal::not_built("nothing is paused by itself; use auto-stop"));
    }
    show(&edge, sandboxes::get(&edge, &caller, &key).await?)
}

/// `POST .../ttl/{minutes}`
pub(super) async fn ttl(State(edge): State<Edge>, caller: Caller, Segments([key, minutes]): Segments<2>) -> Shown {
    if intake::whole_minutes("the age limit", number(&minutes)?)?.0 > 0 {
        return Err(Refusal::not_built("there is no age limit yet; use auto-stop and auto-delete"));
    }
    show(&edge, sandboxes::get(&edge, &caller, &key).await?)
}

/// `POST .../public/{true or false}`
pub(super) async fn public(State(edge): State<Edge>, caller: Caller, Segments([key, public]): Segments<2>) -> Shown {
    let wanted: bool =
        public.parse().map_err(|_| Refusal::bad(format!("'{}' is neither true nor false", intake::clip(&public))))?;
    let view = sandboxes::get(&edge, &caller, &key).await?;
    if view.spec.public != wanted {
        return Err(Refusal::not_built("guests have no network yet, so a sandbox stays as public as it was created"));
    }
    show(&edge, view)
}

/// `POST .../network-settings`
pub(super) async fn network(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::NetworkSettings>,
) -> Shown {
    create::refuse_lists(body.network_allow_list.as_deref(), body.domain_allow_list.as_deref())?;
    let view = sandboxes::get(&edge, &caller, &key).await?;
    if body.network_block_all.is_some_and(|wanted| wanted != view.spec.network.block_all) {
        return Err(Refusal::not_built("guests have no network yet, so networkBlockAll stays as it was created"));
    }
    show(&edge, view)
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

/// A whole number in a path.
fn number(text: &str) -> Answer<i64> {
    text.parse().map_err(|_| Refusal::bad(format!("'{}' is not a whole number of minutes", intake::clip(text))))
}
