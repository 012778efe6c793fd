//! Atoll's own API, `/v1`. Field names are the command line's `--json` names.
//!
//! | method and path | body -> answer |
//! |---|---|
//! | `POST /v1/sandboxes` | [`CreateSandbox`] -> [`Sandbox`] |
//! | `GET /v1/sandboxes?region=&label=K=V&state=` | -> [`SandboxList`], mesh-wide |
//! | `GET`, `DELETE /v1/sandboxes/{id or name}` | -> [`Sandbox`] |
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

use std::collections::BTreeMap;

use fabric_types::{Capacity, Fit, Isolation, NodeLimits};
use serde::{Deserialize, Serialize};

use crate::millis::Millis;

/// Ask for a sandbox. Everything may be left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CreateSandbox {
    /// A name, unique among the organization's sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The region; the gateway's nearest if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// vCPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<i64>,
    /// Memory, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
    /// Disk, GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_gib: Option<i64>,
    /// A template's name, or a snapshot's id or name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Stop after so many idle minutes; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_stop_minutes: Option<i64>,
    /// Delete after so many stopped minutes; 0 is at once, -1 never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_delete_minutes: Option<i64>,
    /// Pause after so many idle minutes; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_pause_minutes: Option<i64>,
    /// Archive after so many stopped minutes; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_archive_minutes: Option<i64>,
    /// Delete so many minutes after the creation; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_minutes: Option<i64>,
    /// Whether its ports may be reached without a key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub public: bool,
    /// No network at all: the same as `network.blockAll`.
    pub network_block_all: bool,
    /// What its guest may reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
}

/// What a guest may reach. Whatever it says, a guest never reaches its host, the mesh, other sandboxes, or private,
/// link-local and metadata addresses. With anything allowed only that is reached; a denial wins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Network {
    /// Nothing at all.
    pub block_all: bool,
    /// Ranges that may be reached, as `203.0.113.0/24` or one address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Ranges that may not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    /// Domains that may be reached, as `example.com` or `*.example.com`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_domains: Vec<String>,
    /// Domains that may not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny_domains: Vec<String>,
}

/// What is done to a sandbox by itself. In an answer what isn't there is never; in a request it stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Intervals {
    /// Stop after so many idle minutes; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_stop_minutes: Option<i64>,
    /// Pause after so many idle minutes; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_pause_minutes: Option<i64>,
    /// Archive after so many stopped minutes; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_archive_minutes: Option<i64>,
    /// Delete after so many stopped minutes; 0 is at once, -1 never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_delete_minutes: Option<i64>,
    /// Delete so many minutes after the creation; 0 is never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_minutes: Option<i64>,
}

/// Ask for children of a running sandbox, all from one moment of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Fork {
    /// How many; as many as names if not given, and 1 without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i64>,
    /// Their names, at most as many as children; the others are named by their ids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// The children, all of them running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Forked {
    /// Milliseconds that the parent stood still.
    pub stop_ms: Millis,
    /// The children.
    pub items: Vec<Sandbox>,
}

/// Another shape; what isn't given stays. The disk only grows, live; the rest changes while the sandbox is stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Resize {
    /// vCPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<i64>,
    /// Memory, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
    /// Disk, GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_gib: Option<i64>,
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub region: String,
    /// On which node.
    pub node: String,
    /// As on the client wires: started, stopped, paused, starting, stopping, snapshotting, archiving, archived,
    /// destroying, destroyed, error.
    pub state: String,
    /// The placement's generation.
    pub generation: u64,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// vCPU.
    pub cpu: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Disk, GiB.
    pub disk_gib: u32,
    /// The endpoint of its region: the right one for what follows.
    pub endpoint: String,
    /// The base URL of its toolbox.
    pub toolbox_proxy_url: String,
    /// Why it is in `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    /// How its guest reaches networks: `tap`, `passt`, `none`, or `unknown` while its node isn't heard of.
    pub network: String,
    /// What its guest may reach.
    #[serde(default)]
    pub network_policy: Network,
    /// What is done to it by itself.
    #[serde(default)]
    pub intervals: Intervals,
    /// Whether its ports may be reached without a key.
    #[serde(default)]
    pub public: bool,
    /// Whose fork it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The isolation in force on its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// True where its region couldn't be asked and this is the last known copy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

/// Sandboxes, mesh-wide.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxList {
    /// The sandboxes.
    pub items: Vec<Sandbox>,
    /// Regions that did not answer in time.
    pub unreachable_regions: Vec<String>,
}

/// A command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Exec {
    /// Run by `sh -c`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// A program and its arguments, without a shell.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Seconds until it is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Standard input, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
}

/// A program text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CodeRun {
    /// The text.
    pub code: String,
    /// `python`, `javascript` or `typescript`.
    pub language: String,
    /// Arguments.
    pub argv: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Seconds until it is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// How a command ended. Output that isn't UTF-8 has its bad bytes replaced; the streamed form has all bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecResult {
    /// The exit code; 128+n when signal n ended it; 124 after a timeout.
    pub exit_code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Whether the timeout ended it.
    pub timed_out: bool,
    /// Whether output was dropped.
    pub truncated: bool,
}

/// Ask for an interpreter context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NewContext {
    /// Where it starts; the home folder if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `python`, which is the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
}

/// A stateful interpreter: what one execution defines, the next one sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    /// Its id; `default` is made by the first execution that names none.
    pub id: String,
    /// Its language.
    pub language: String,
    /// Where it started.
    pub cwd: String,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// Whether something runs in it.
    pub busy: bool,
}

/// Contexts, by age.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextList {
    /// The contexts.
    pub items: Vec<Context>,
}

/// A text for a context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Interpret {
    /// The text.
    pub code: String,
    /// In which context; the default one if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Environment, for this execution.
    pub env: BTreeMap<String, String>,
    /// Seconds until it is interrupted; none for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// How an execution in a context ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interpreted {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The value of the last expression, as `repr` shows it, where it isn't None.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// An uncaught exception.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<InterpretError>,
    /// `completed`, `interrupted`, `timed_out`, or `died`: then its state is lost and the context gone.
    pub outcome: String,
    /// How many executions the context has seen, this one included.
    pub execution_count: u64,
    /// Whether output was dropped.
    pub truncated: bool,
}

/// An uncaught exception.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterpretError {
    /// Its class.
    pub name: String,
    /// Its message.
    pub value: String,
    /// As python prints it.
    pub traceback: String,
}

/// Ask for a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CreateSnapshot {
    /// A name, unique among the organization's snapshots; its id if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Of which sandbox.
    pub sandbox: String,
    /// Where it was taken.
    pub region: String,
    /// The manifest's name: a BLAKE3 hash.
    pub digest: String,
    /// Bytes of memory and disk that it stands for.
    pub size_bytes: u64,
    /// Bytes that its chunks take.
    pub stored_bytes: u64,
    /// Milliseconds that the sandbox stood still.
    pub stop_ms: Millis,
    /// Whether complete replicas stand in two regions.
    pub durable: bool,
    /// Who has it.
    pub replicas: Vec<Replica>,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// One replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    /// Its region.
    pub region: String,
    /// Its node.
    pub node: String,
    /// `complete` or `pulling`.
    pub state: String,
}

/// Snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotList {
    /// The snapshots.
    pub items: Vec<Snapshot>,
}

/// Ask for a sandbox from a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RestoreSnapshot {
    /// The region; the gateway's own if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The new sandbox's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A sandbox made from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// The new sandbox.
    pub id: String,
    /// The same.
    pub sandbox: String,
    /// From which snapshot.
    pub snapshot: String,
    /// Where it lives.
    pub region: String,
    /// As in [`Sandbox`].
    pub state: String,
    /// Its generation.
    pub generation: u64,
}

/// Ask for a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateKey {
    /// Its name, unique in the organization.
    pub name: String,
}

/// A new key: the only time that it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewKey {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The key.
    pub key: String,
}

/// A key without itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The first characters.
    pub shown: String,
    /// RFC 3339, UTC.
    pub created_at: String,
}

/// Keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    /// The keys.
    pub items: Vec<Key>,
}

/// A region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Region {
    /// Its code.
    pub code: String,
    /// Its name for people.
    pub name: String,
    /// Its endpoint.
    pub endpoint: String,
    /// Live nodes.
    pub live_nodes: u32,
    /// The round trip from the answering node, ms, where measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// Whether it is the answering gateway's own.
    pub home: bool,
}

/// Regions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RegionList {
    /// The regions.
    pub items: Vec<Region>,
}

/// The mesh as one node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// The answering node.
    pub node: String,
    /// Its version.
    pub version: String,
    /// The regions.
    pub regions: Vec<Region>,
    /// The nodes.
    pub nodes: Vec<MeshNode>,
    /// The consensus groups.
    pub groups: Vec<crate::node::GroupStatus>,
}

/// A node of the mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshNode {
    /// Its id.
    pub id: String,
    /// Its region.
    pub region: String,
    /// Whether gossip has heard of it lately.
    pub live: bool,
    /// Its version.
    pub version: String,
    /// Its HTTP endpoint.
    pub endpoint: String,
    /// Its fabric address.
    pub fabric: String,
    /// Its limits, with the overcommit factors.
    pub limits: NodeLimits,
    /// What may be reserved: limits times factors.
    pub reservable: Capacity,
    /// What is reserved.
    pub reserved: Capacity,
    /// Sandboxes on it.
    pub sandboxes: u32,
    /// Warm pools.
    pub pools: Vec<Pool>,
    /// What its snapshots need.
    pub fit: Fit,
    /// The isolation in force, with its reason.
    pub isolation: Isolation,
    /// Groups that it leads.
    pub leads: Vec<String>,
}

/// A warm pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The template's name.
    pub template: String,
    /// The shape, as `1x1024x3`.
    pub shape: String,
    /// Clones ready.
    pub warm: u32,
    /// Clones wanted.
    pub target: u32,
}

/// An error's body on `/v1`, the same as on the Daytona wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// The HTTP status.
    pub status_code: u16,
    /// A sentence.
    pub message: String,
    /// The status's name.
    pub error: String,
    /// The code, as in [`crate::ErrorCode`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The request id, as in the header `x-request-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}
