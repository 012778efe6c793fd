//! The Daytona wire: `/api` (control) and `/toolbox` (one sandbox's commands and files).
//!
//! ```text
//! sandbox      create, get, delete, start, stop, pause, archive, labels
//! settings     intervals, ports, network, shape
//! lineage      forks, parents
//! create       what a client may ask for, and what it gets a 501 for
//! list         filters, order, pages
//! view         a sandbox as the wire shows it
//! snapshots    templates and snapshots
//! info         configuration, regions, health
//! unsupported  paths of the wire that are known and not built
//! process      execute, code-run
//! interpreter  contexts, and executions in them over WebSocket
//! files        list, info, folder, delete, move, search, ...
//! transfer     uploads and downloads
//! ```

mod create;
mod files;
mod info;
mod interpreter;
mod lineage;
mod list;
mod process;
mod sandbox;
mod settings;
mod snapshots;
mod transfer;
mod unsupported;
mod view;

use axum::Router;
use axum::routing::{delete, get, post, put};

use crate::edge::Edge;

pub(crate) use info::health;

/// Paths under `/api` that need no key.
pub(crate) fn open() -> Router<Edge> {
    Router::new()
        .route("/api/health", get(info::health))
        .route("/api/health/ready", get(info::ready))
        .route("/api/config", get(info::config))
}

/// Paths under `/api` that need one.
pub(crate) fn api() -> Router<Edge> {
    Router::new()
        .route("/api/sandbox", post(sandbox::create).get(list::page))
        .route("/api/sandbox/paginated", get(list::numbered_page))
        .route("/api/sandbox/{id}", get(sandbox::get).delete(sandbox::delete))
        .route("/api/sandbox/{id}/start", post(sandbox::start))
        .route("/api/sandbox/{id}/resume", post(sandbox::start))
        .route("/api/sandbox/{id}/stop", post(sandbox::stop))
        .route("/api/sandbox/{id}/pause", post(sandbox::pause))
        .route("/api/sandbox/{id}/autostop/{minutes}", post(settings::auto_stop))
        .route("/api/sandbox/{id}/autodelete/{minutes}", post(settings::auto_delete))
        .route("/api/sandbox/{id}/autoarchive/{minutes}", post(settings::auto_archive))
        .route("/api/sandbox/{id}/autopause/{minutes}", post(settings::auto_pause))
        .route("/api/sandbox/{id}/ttl/{minutes}", post(settings::ttl))
        .route("/api/sandbox/{id}/public/{public}", post(settings::public))
        .route("/api/sandbox/{id}/network-settings", post(settings::network))
        .route("/api/sandbox/{id}/resize", post(settings::resize))
        .route("/api/sandbox/{id}/archive", post(sandbox::archive))
        .route("/api/sandbox/{id}/fork", post(lineage::fork))
        .route("/api/sandbox/{id}/forks", get(lineage::forks))
        .route("/api/sandbox/{id}/parent", get(lineage::parent))
        .route("/api/sandbox/{id}/ancestors", get(lineage::ancestors))
        .route("/api/sandbox/{id}/labels", put(sandbox::labels))
        .route("/api/sandbox/{id}/last-activity", post(sandbox::last_activity))
        .route("/api/sandbox/{id}/toolbox-proxy-url", get(sandbox::toolbox_proxy_url))
        .route("/api/sandbox/{id}/snapshot", post(snapshots::take))
        .route("/api/snapshots", get(snapshots::page).post(unsupported::builds))
        .route("/api/snapshots/{id}", get(snapshots::get).delete(snapshots::delete))
        .route("/api/regions", get(info::regions).post(unsupported::known))
        .route("/api/shared-regions", get(info::regions))
        .merge(unsupported::api())
}

/// Paths under `/toolbox/{sandbox}`.
pub(crate) fn toolbox() -> Router<Edge> {
    let sandbox = Router::new()
        .route("/process/execute", post(process::execute))
        .route("/process/code-run", post(process::code_run))
        .route("/process/interpreter/context", get(interpreter::contexts).post(interpreter::new_context))
        .route("/process/interpreter/context/{context}", delete(interpreter::delete_context))
        .route("/process/interpreter/execute", get(interpreter::execute))
        .route("/files", get(files::list).delete(files::remove))
        .route("/files/info", get(files::info))
        .route("/files/folder", post(files::folder))
        .route("/files/move", post(files::rename))
        .route("/files/permissions", post(files::permissions))
        .route("/files/search", get(files::search))
        .route("/files/find", get(files::find))
        .route("/files/replace", post(files::replace))
        .route("/files/upload", post(transfer::upload))
        .route("/files/upload-v2", post(transfer::upload))
        .route("/files/bulk-upload", post(transfer::bulk_upload))
        .route("/files/download", get(transfer::download))
        .route("/files/bulk-download", post(transfer::bulk_download))
        .route("/user-home-dir", get(process::home))
        .route("/project-dir", get(process::home))
        .route("/work-dir", get(process::home))
        .route("/version", get(process::version))
        .merge(unsupported::toolbox());
    Router::new().nest("/toolbox/{id}", sandbox)
}
