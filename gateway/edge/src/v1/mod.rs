//! Atoll's own API, `/v1`: see `fabric_api::v1` for the table of paths.
//!
//! ```text
//! sandboxes   create, list, get, delete, start, stop, pause, resume, archive, fork, labels
//! settings    shape, network, intervals, ports
//! guest       exec, code-run, files, logs
//! contexts    stateful interpreters
//! exec_events a command's events, gathered into its result
//! snapshots   take, list, get, delete, restore
//! keys        API keys
//! mesh        regions, nodes, leaders, capacity, isolation, pools, versions
//! view        the mesh's types as the API shows them
//! ```

mod contexts;
mod exec_events;
mod guest;
mod keys;
mod mesh;
mod sandboxes;
mod settings;
pub(crate) mod snapshots;
mod view;

use axum::Router;
use axum::routing::{delete, get, post, put};

use crate::edge::Edge;

/// Every path, all of them with a key.
pub(crate) fn api() -> Router<Edge> {
    Router::new()
        .route("/v1/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .route("/v1/sandboxes/{id}", get(sandboxes::get).delete(sandboxes::delete))
        .route("/v1/sandboxes/{id}/usage", get(sandboxes::usage))
        .route("/v1/sandboxes/{id}/start", post(sandboxes::start))
        .route("/v1/sandboxes/{id}/stop", post(sandboxes::stop))
        .route("/v1/sandboxes/{id}/pause", post(sandboxes::pause))
        .route("/v1/sandboxes/{id}/resume", post(sandboxes::start))
        .route("/v1/sandboxes/{id}/archive", post(sandboxes::archive))
        .route("/v1/sandboxes/{id}/fork", post(sandboxes::fork))
        .route("/v1/sandboxes/{id}/resize", post(settings::resize))
        .route("/v1/sandboxes/{id}/network", put(settings::set_network))
        .route("/v1/sandboxes/{id}/intervals", put(settings::set_intervals))
        .route("/v1/sandboxes/{id}/public", put(settings::set_public))
        .route("/v1/sandboxes/{id}/contexts", get(contexts::list).post(contexts::create))
        .route("/v1/sandboxes/{id}/contexts/{context}", delete(contexts::delete))
        .route("/v1/sandboxes/{id}/contexts/{context}/interrupt", post(contexts::interrupt))
        .route("/v1/sandboxes/{id}/interpret", post(contexts::interpret))
        .route("/v1/sandboxes/{id}/labels", put(sandboxes::labels))
        .route("/v1/sandboxes/{id}/exec", post(guest::exec))
        .route("/v1/sandboxes/{id}/code-run", post(guest::code_run))
        .route("/v1/sandboxes/{id}/files", get(guest::read_file).put(guest::write_file))
        .route("/v1/sandboxes/{id}/logs", get(guest::logs))
        .route("/v1/sandboxes/{id}/snapshots", post(snapshots::create))
        .route("/v1/snapshots", get(snapshots::list))
        .route("/v1/snapshots/{id}", get(snapshots::get).delete(snapshots::delete))
        .route("/v1/snapshots/{id}/restore", post(snapshots::restore))
        .route("/v1/keys", get(keys::list).post(keys::create))
        .route("/v1/keys/{id}", delete(keys::remove))
        .route("/v1/regions", get(mesh::regions))
        .route("/v1/mesh", get(mesh::mesh))
}
