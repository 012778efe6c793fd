//! Atoll's own API, `/v1`. Field names are the command line's `--json` names.
//!
//! | method and path | body -> answer |
//! |---|---|
//! | `POST /v1/sandboxes` | [`CreateSandbox`] -> [`Sandbox`] |
//! | `GET /v1/sandboxes?region=&label=K=V&state=` | -> [`SandboxList`], mesh-wide |
//! | `GET`, `DELETE /v1/sandboxes/{id or name}` | -> [`Sandbox`] |
//! | `GET /v1/sandboxes/{id}/usage` | -> [`Usage`] |
//! | `POST /v1/sandboxes/{id}/start`, `/stop?force=`, `/pause`, `/resume` | -> [`Sandbox`] |
//! | `POST /v1/sandboxes/{id}/archive` | of a stopped one -> [`Sandbox`] |
//! | `POST /v1/sandboxes/{id}/fork` | [`Fork`] -> [`Forked`] |
//! | `POST /v1/sandboxes/{id}/resize` | [`Resize`] -> [`Sandbox`] |
//! | `PUT /v1/sandboxes/{id}/labels` | `{"k":"v"}` -> [`Sandbox`] |
//! | `PUT /v1/sandboxes/{id}/network` | [`Network`] -> [`Sandbox`]; in force when it answers |
//! | `PUT /v1/sandboxes/{id}/intervals` | [`Intervals`] -> [`Sandbox`]; what isn't given stays |
//! | `PUT /v1/sandboxes/{id}/public` | `true` or `false` -> [`Sandbox`] |
//! | `POST /v1/sandboxes/{id}/exec` | [`Exec`] -> [`ExecResult`]; with `Accept: application/x-ndjson` lines of `guest` events (stdout, stderr base64; exit) |
//! | `POST /v1/sandboxes/{id}/code-run` | [`CodeRun`] -> [`ExecResult`] |
//! | `GET`, `POST /v1/sandboxes/{id}/contexts` | [`NewContext`] -> [`Context`]; -> [`ContextList`] |
//! | `DELETE /v1/sandboxes/{id}/contexts/{context}`, `POST .../interrupt` | -> 204 |
//! | `POST /v1/sandboxes/{id}/interpret` | [`Interpret`] -> [`Interpreted`]; with `Accept: application/x-ndjson` lines of `guest` interpreter events (stdout, stderr, result, error; end) |
//! | `GET`, `PUT /v1/sandboxes/{id}/files?path=` | bytes, streamed |
//! | `GET /v1/sandboxes/{id}/logs?tail=` | text |
//! | `POST /v1/sandboxes/{id}/snapshots` | [`CreateSnapshot`] -> [`Snapshot`] |
//! | `GET /v1/snapshots`, `GET`, `DELETE /v1/snapshots/{id or name}` | -> [`SnapshotList`], [`Snapshot`] |
//! | `POST /v1/snapshots/{id or name}/restore` | [`RestoreSnapshot`] -> [`Restored`] |
//! | `GET`, `POST /v1/keys`, `DELETE /v1/keys/{id or name}` | [`CreateKey`] -> [`NewKey`], [`KeyList`] |
//! | `GET /v1/regions` | -> [`RegionList`] |
//! | `GET /v1/mesh` | -> [`Mesh`] |

mod error;
mod guest;
mod keys;
mod mesh;
mod sandboxes;
mod snapshots;

pub use error::*;
pub use guest::*;
pub use keys::*;
pub use mesh::*;
pub use sandboxes::*;
pub use snapshots::*;
