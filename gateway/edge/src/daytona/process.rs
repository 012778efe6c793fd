//! Commands of the toolbox.

use axum::Json;
use axum::extract::State;
use fabric_api::daytona as wire;
use guest_proto::surface::{CodeRunRequest, ExecRequest, HOME};

use crate::edge::Edge;
use crate::guest::{Guest, lossy};
use crate::intake;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Segments};
use crate::sandboxes::{self, LOOK_UP};

/// `POST /process/execute`: both outputs as they were written.
pub(super) async fn execute(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::Execute>,
) -> Answer<Json<wire::ExecuteResponse>> {
    if body.command.trim().is_empty() {
        return Err(Refusal::bad("field 'command' is empty"));
    }
    let request = ExecRequest {
        command: body.command,
        cwd: body.cwd.filter(|cwd| !cwd.is_empty()),
        env: intake::env(body.envs.unwrap_or_default())?,
        timeout_seconds: intake::timeout(body.timeout)?,
        merge: true,
        ..ExecRequest::default()
    };
    let reply = guest(&edge, &caller, &key).exec(&request).await?;
    Ok(Json(wire::ExecuteResponse { exit_code: reply.exit_code, result: lossy(&reply.stdout)? }))
}

/// `POST /process/code-run`
pub(super) async fn code_run(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::CodeRun>,
) -> Answer<Json<wire::CodeRunResponse>> {
    let request = CodeRunRequest {
        code: body.code,
        language: body.language,
        argv: body.argv.unwrap_or_default(),
        env: intake::env(body.envs.unwrap_or_default())?,
        timeout_seconds: intake::timeout(body.timeout)?,
        merge: true,
    };
    let reply = guest(&edge, &caller, &key).code_run(&request).await?;
    let artifacts = wire::Artifacts::default();
    Ok(Json(wire::CodeRunResponse { exit_code: reply.exit_code, result: lossy(&reply.stdout)?, artifacts }))
}

/// `GET /user-home-dir`, `/work-dir`, `/project-dir`: commands start at home.
pub(super) async fn home(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<Json<wire::Dir>> {
    sandboxes::present(sandboxes::get(&edge, &caller, &key).await?, &key)?;
    Ok(Json(wire::Dir { dir: HOME.to_owned() }))
}

/// `GET /version`: the agent's.
pub(super) async fn version(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<Json<wire::Version>> {
    let health = guest(&edge, &caller, &key).health().await?;
    Ok(Json(wire::Version { version: health.agent.chars().take(80).collect() }))
}

/// The sandbox's agent, for answers that come at once but for the command's own time.
pub(super) fn guest<'request>(edge: &'request Edge, caller: &Caller, key: &'request str) -> Guest<'request> {
    Guest { mesh: edge.mesh(), key, scope: caller.scope(LOOK_UP + LOOK_UP) }
}
