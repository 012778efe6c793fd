//! Paths of the wire that are known and not built: each answers 501 with a sentence, so that a client sees at once
//! that the path is right and the feature is not there.

use axum::Router;
use axum::extract::OriginalUri;
use axum::routing::any;

use crate::edge::Edge;
use crate::refusal::Refusal;
use crate::request::Caller;

/// Families of paths under `/api`; `{*rest}` takes all below.
const API: [&str; 40] = [
    "/api/api-keys",
    "/api/api-keys/{*rest}",
    "/api/audit/{*rest}",
    "/api/docker-registry",
    "/api/docker-registry/{*rest}",
    "/api/jobs",
    "/api/jobs/{*rest}",
    "/api/object-storage/push-access",
    "/api/organizations",
    "/api/organizations/{*rest}",
    "/api/preview/{*rest}",
    "/api/regions/{*rest}",
    "/api/runners",
    "/api/runners/{*rest}",
    "/api/sandbox/for-runner",
    "/api/sandbox/ssh-access/validate",
    "/api/sandbox/{id}/backup",
    "/api/sandbox/{id}/build-logs",
    "/api/sandbox/{id}/build-logs-url",
    "/api/sandbox/{id}/organization",
    "/api/sandbox/{id}/ports/{*rest}",
    "/api/sandbox/{id}/recover",
    "/api/sandbox/{id}/region-quota",
    "/api/sandbox/{id}/secrets",
    "/api/sandbox/{id}/signing-key",
    "/api/sandbox/{id}/signing-key/rotate",
    "/api/sandbox/{id}/ssh-access",
    "/api/sandbox/{id}/state",
    "/api/sandbox/{id}/telemetry/{*rest}",
    "/api/secret",
    "/api/secret/{*rest}",
    "/api/snapshots/{id}/activate",
    "/api/snapshots/{id}/build-logs",
    "/api/snapshots/{id}/build-logs-url",
    "/api/snapshots/{id}/deactivate",
    "/api/users/{*rest}",
    "/api/volumes",
    "/api/volumes/{*rest}",
    "/api/warm-pools",
    "/api/warm-pools/{*rest}",
];

/// Families of paths under `/toolbox/{sandbox}`.
const TOOLBOX: [&str; 13] = [
    "/computeruse/{*rest}",
    "/env",
    "/git/{*rest}",
    "/init",
    "/lsp/{*rest}",
    "/port",
    "/port/{port}/in-use",
    "/process/pty",
    "/process/pty/{*rest}",
    "/process/session",
    "/process/session/{*rest}",
    "/proxy/{*rest}",
    "/system/metrics",
];

pub(super) fn api() -> Router<Edge> {
    API.iter().fold(Router::new(), |router, path| router.route(path, any(known)))
}

pub(super) fn toolbox() -> Router<Edge> {
    TOOLBOX.iter().fold(Router::new(), |router, path| router.route(path, any(known)))
}

/// A path that is known and not built.
pub(super) async fn known(_: Caller, OriginalUri(uri): OriginalUri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    Refusal::not_built(format!("{path} is part of the wire but not built here{}", instead(&path)))
}

/// `POST /api/snapshots`: an image would have to be built.
pub(super) async fn builds(_: Caller) -> Refusal {
    Refusal::not_built(
        "images are not built here yet; a snapshot is taken of a running sandbox: POST /api/sandbox/{id}/snapshot",
    )
}

/// What does the same or nearly so.
fn instead(path: &str) -> &'static str {
    if path.contains("/process/session") || path.contains("/process/pty") {
        "; process/execute, process/code-run and process/interpreter are"
    } else if path.contains("/git/") {
        "; process/execute runs git in the sandbox"
    } else if path.contains("/api-keys") {
        "; keys are made and revoked under /v1/keys"
    } else if path.contains("/ports/") || path.contains("/port") {
        ": a guest's ports are not reached from outside yet"
    } else {
        ""
    }
}
