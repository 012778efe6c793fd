//! The Daytona wire, `/api` and `/toolbox`, as its published clients (`daytona` 0.190 to 0.226) speak it.
//!
//! Requests ignore fields that this list doesn't know, since newer clients send more; answers carry every field
//! without which a client refuses the object. Numbers are whole, memory and disk are GiB, instants are RFC 3339.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Ask for a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateSandbox {
    /// A name, unique among the organization's sandboxes.
    pub name: Option<String>,
    /// A template's name, or a snapshot's id or name.
    pub snapshot: Option<String>,
    /// The user of its commands.
    pub user: Option<String>,
    /// Environment of every command.
    pub env: Option<BTreeMap<String, String>>,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Whether its ports are public.
    pub public: Option<bool>,
    /// No network at all.
    pub network_block_all: Option<bool>,
    /// Networks that it may reach, as CIDR, separated by commas.
    pub network_allow_list: Option<String>,
    /// Domains that it may reach, separated by commas.
    pub domain_allow_list: Option<String>,
    /// A proxy for what it sends.
    pub outbound_proxy_url: Option<String>,
    /// Whether it may run virtual machines itself.
    pub kvm: Option<bool>,
    /// The region.
    pub target: Option<String>,
    /// vCPU.
    pub cpu: Option<i64>,
    /// Memory, GiB.
    pub memory: Option<i64>,
    /// Disk, GiB.
    pub disk: Option<i64>,
    /// Graphics processors.
    pub gpu: Option<i64>,
    /// Whether it may be taken away for others.
    pub spot: Option<bool>,
    /// Stop after so many idle minutes; 0 is never.
    pub auto_stop_interval: Option<i64>,
    /// Pause after so many idle minutes; 0 is never.
    pub auto_pause_interval: Option<i64>,
    /// Archive after so many stopped minutes; 0 is never.
    pub auto_archive_interval: Option<i64>,
    /// Delete after so many stopped minutes; 0 is at once, negative never.
    pub auto_delete_interval: Option<i64>,
    /// Delete so many minutes after the creation; 0 is never.
    pub ttl_minutes: Option<i64>,
    /// Volumes to mount.
    pub volumes: Option<Vec<serde_json::Value>>,
    /// An image to build first.
    pub build_info: Option<serde_json::Value>,
    /// A sandbox whose end is this one's end.
    pub linked_sandbox: Option<String>,
    /// Secrets to put into the environment.
    pub secrets: Option<Vec<serde_json::Value>>,
}

/// A sandbox; also an item of a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Whose.
    pub organization_id: String,
    /// Its name.
    pub name: String,
    /// The template's name, the snapshot's digest or the parent's id that it started from.
    pub snapshot: String,
    /// The user of its commands.
    pub user: String,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether its ports are public.
    pub public: bool,
    /// Whether the client asked for no network at all.
    pub network_block_all: bool,
    /// Networks that it may reach, where only some may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_allow_list: Option<String>,
    /// Domains that it may reach, where only some may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_allow_list: Option<String>,
    /// Whether it may run virtual machines itself.
    pub kvm: bool,
    /// Its region.
    pub target: String,
    /// vCPU.
    pub cpu: u32,
    /// Graphics processors.
    pub gpu: u32,
    /// Memory, GiB, rounded up.
    pub memory: u32,
    /// Disk, GiB.
    pub disk: u32,
    /// Where it is in its life.
    pub state: &'static str,
    /// Where it is meant to be.
    pub desired_state: &'static str,
    /// Why it is in `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    /// Whether `recover` would help.
    pub recoverable: bool,
    /// Idle minutes until it is stopped; 0 is never.
    pub auto_stop_interval: u32,
    /// Idle minutes until it is paused; 0 is never.
    pub auto_pause_interval: u32,
    /// Stopped minutes until it is archived; 0 is never.
    pub auto_archive_interval: u32,
    /// Stopped minutes until it is deleted; -1 is never.
    pub auto_delete_interval: i64,
    /// When it is deleted whatever it does, where it has a time to live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_destroy_at: Option<String>,
    /// Its volumes.
    pub volumes: Vec<serde_json::Value>,
    /// When it was asked for.
    pub created_at: String,
    /// When it last changed or was used.
    pub updated_at: String,
    /// The same.
    pub last_activity_at: String,
    /// `linux-vm`.
    pub sandbox_class: &'static str,
    /// The node that it lives on.
    pub runner_id: String,
    /// The base URL of its toolbox: of its own region's gateway.
    pub toolbox_proxy_url: String,
    /// True where its region couldn't be asked and this is the last known copy.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

/// A page of sandboxes behind a cursor.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxPage {
    /// The sandboxes.
    pub items: Vec<Sandbox>,
    /// What asks for the next page; null on the last. The field is always there.
    pub next_cursor: Option<String>,
}

/// A numbered page, as older clients ask for it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Items on all pages.
    pub total: usize,
    /// This page, from 1.
    pub page: usize,
    /// Pages.
    pub total_pages: usize,
}

/// Labels, as they are replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLabels {
    /// The labels.
    pub labels: BTreeMap<String, String>,
}

/// Network settings, as they are replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkSettings {
    /// No network at all.
    pub network_block_all: Option<bool>,
    /// Networks that it may reach.
    pub network_allow_list: Option<String>,
    /// Domains that it may reach.
    pub domain_allow_list: Option<String>,
}

/// Ask for a child of a running sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ForkSandbox {
    /// Its name; its id if not given.
    pub name: Option<String>,
}

/// Another shape; what isn't given stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ResizeSandbox {
    /// vCPU.
    pub cpu: Option<i64>,
    /// Memory, GiB.
    pub memory: Option<i64>,
    /// Disk, GiB; it only grows.
    pub disk: Option<i64>,
}

/// Ask for a snapshot of a sandbox. Memory is always part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateSandboxSnapshot {
    /// Its name.
    pub name: String,
}

/// A template or snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its id; a template's name is its id.
    pub id: String,
    /// Whose, if a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization_id: Option<String>,
    /// Whether everyone may use it: a template.
    pub general: bool,
    /// Its name.
    pub name: String,
    /// Its image, if a template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_name: Option<String>,
    /// `active`.
    pub state: &'static str,
    /// GiB of memory and disk that it stands for.
    pub size: Option<f64>,
    /// None: a sandbox is not a container.
    pub entrypoint: Option<Vec<String>>,
    /// vCPU.
    pub cpu: u32,
    /// Graphics processors.
    pub gpu: u32,
    /// Memory, GiB, rounded up.
    pub mem: u32,
    /// Disk, GiB.
    pub disk: u32,
    /// Why it can't be used.
    pub error_reason: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// The same.
    pub updated_at: String,
    /// Not kept.
    pub last_used_at: Option<String>,
    /// Regions with a complete copy.
    pub region_ids: Vec<String>,
    /// The manifest's digest, if a snapshot.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Of which sandbox, if a snapshot.
    pub source_sandbox_id: Option<String>,
    /// `linux-vm`.
    pub sandbox_class: &'static str,
}

/// `GET /config`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    /// Our version.
    pub version: String,
    /// Where people would log in; here keys are the only way.
    pub oidc: Oidc,
    /// No.
    pub linked_accounts_enabled: bool,
    /// None.
    pub announcements: BTreeMap<String, String>,
    /// The form of a preview URL.
    pub proxy_template_url: String,
    /// The toolbox of this gateway.
    pub proxy_toolbox_url: String,
    /// The template of a create without `snapshot`.
    pub default_snapshot: String,
    /// This gateway.
    pub dashboard_url: String,
    /// 0: there is no longest interval.
    pub max_auto_archive_interval: u32,
    /// The wire spells it so.
    pub maintanance_mode: bool,
    /// `production`.
    pub environment: &'static str,
}

/// Where people would log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Oidc {
    /// Empty.
    pub issuer: String,
    /// Empty.
    pub client_id: String,
    /// Empty.
    pub audience: String,
    /// `none`.
    pub provider: &'static str,
}

/// A region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Region {
    /// Its code.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `shared`.
    pub region_type: &'static str,
    /// Since when.
    pub created_at: String,
    /// The same.
    pub updated_at: String,
    /// Its gateway.
    pub proxy_url: String,
}

/// `GET /sandbox/{id}/toolbox-proxy-url`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToolboxProxyUrl {
    /// The base URL of its toolbox.
    pub url: String,
}

/// `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// `ok`.
    pub status: &'static str,
    /// Our version.
    pub version: String,
}

/// A command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Execute {
    /// Run by `sh -c`.
    pub command: String,
    /// Working directory.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Environment.
    #[serde(default)]
    pub envs: Option<BTreeMap<String, String>>,
    /// Seconds until it is killed; 0 is no limit.
    #[serde(default)]
    pub timeout: Option<i64>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecuteResponse {
    /// The exit code; 128+n when signal n ended it.
    pub exit_code: i32,
    /// Both outputs as written.
    pub result: String,
}

/// A program text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct CodeRun {
    /// The text.
    pub code: String,
    /// `python`, `javascript` or `typescript`.
    pub language: String,
    /// Arguments.
    #[serde(default)]
    pub argv: Option<Vec<String>>,
    /// Environment.
    #[serde(default)]
    pub envs: Option<BTreeMap<String, String>>,
    /// Seconds until it is killed; 0 is no limit.
    #[serde(default)]
    pub timeout: Option<i64>,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CodeRunResponse {
    /// As in [`ExecuteResponse`].
    pub exit_code: i32,
    /// As in [`ExecuteResponse`].
    pub result: String,
    /// What it drew.
    pub artifacts: Artifacts,
}

/// Ask for an interpreter context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CreateContext {
    /// Where it starts.
    pub cwd: Option<String>,
    /// `python`.
    pub language: Option<String>,
}

/// A stateful interpreter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InterpreterContext {
    /// Its id.
    pub id: String,
    /// Where it started.
    pub cwd: String,
    /// Its language.
    pub language: String,
    /// True: a context that has ended is not listed.
    pub active: bool,
    /// When it was made.
    pub created_at: String,
}

/// Contexts that clients made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ContextList {
    /// The contexts.
    pub contexts: Vec<InterpreterContext>,
}

/// The first frame on `/process/interpreter/execute`: what is to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interpret {
    /// The text.
    pub code: String,
    /// In which context; the default one if not given.
    #[serde(default)]
    pub context_id: Option<String>,
    /// Environment.
    #[serde(default)]
    pub envs: Option<BTreeMap<String, String>>,
    /// Seconds until it is interrupted; 0 is no limit, absent is ten minutes.
    #[serde(default)]
    pub timeout: Option<i64>,
}

/// A frame back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum InterpretFrame {
    /// Standard output.
    Stdout {
        /// The text.
        text: String,
    },
    /// Standard error.
    Stderr {
        /// The text.
        text: String,
    },
    /// An uncaught exception.
    Error {
        /// Its class.
        name: String,
        /// Its message.
        value: String,
        /// As python prints it.
        traceback: String,
    },
    /// The end.
    Control {
        /// `completed`, `interrupted` or `timeout`.
        text: &'static str,
    },
}

/// What a program drew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Artifacts {
    /// None: charts are not collected.
    pub charts: Vec<serde_json::Value>,
}

/// A file or folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileInfo {
    /// Its name.
    pub name: String,
    /// Its absolute path.
    pub path: String,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// Its size in bytes.
    pub size: u64,
    /// When it last changed.
    pub mod_time: String,
    /// The same.
    pub modified_at: String,
    /// As in `-rw-r--r--`.
    pub mode: String,
    /// Permission bits, octal.
    pub permissions: String,
    /// The owner.
    pub owner: String,
    /// The group.
    pub group: String,
}

/// Which files to download.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct FilesDownload {
    /// Their paths.
    pub paths: Vec<String>,
}

/// A line that matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Match {
    /// The file.
    pub file: String,
    /// The line's number, from 1.
    pub line: u64,
    /// The line.
    pub content: String,
}

/// Files whose name matched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SearchFiles {
    /// Their paths.
    pub files: Vec<String>,
}

/// A text to replace in files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replace {
    /// The files.
    pub files: Vec<String>,
    /// The text that goes.
    pub pattern: String,
    /// The text that comes.
    pub new_value: String,
}

/// What became of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceResult {
    /// The file.
    pub file: String,
    /// Whether it was written.
    pub success: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One uploaded file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UploadedFile {
    /// Its name.
    pub name: String,
    /// Its absolute path.
    pub path: String,
    /// `file`.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// Uploaded files. On a failure the client reads `errors`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UploadedFiles {
    /// Those that are there.
    pub files: Vec<UploadedFile>,
}

/// A folder's path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dir {
    /// The path.
    pub dir: String,
}

/// A version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Version {
    /// It.
    pub version: String,
}

/// An error's body: the same on every path of the gateway. Both generations of the wire's clients find in it what
/// they need; the toolbox's clients want `path` and `timestamp`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// Status, sentence, code, request id.
    #[serde(flatten)]
    pub base: crate::v1::ErrorBody,
    /// The path that was asked for.
    pub path: String,
    /// With which method.
    pub method: String,
    /// When.
    pub timestamp: String,
    /// The sentence again, where an upload's client looks for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the stock clients refuse a sandbox without, in the types that they accept.
    const SANDBOX: &str = r#"{"id":"fraaaaaaaaaaaaaaaaa","organizationId":"o","name":"n","snapshot":"default","user":"root","env":{"A":"b"},"labels":{},"public":false,"networkBlockAll":true,"networkAllowList":"203.0.113.0/24","kvm":false,"target":"fra","cpu":1,"gpu":0,"memory":1,"disk":3,"state":"started","desiredState":"started","recoverable":false,"autoStopInterval":0,"autoPauseInterval":5,"autoArchiveInterval":0,"autoDeleteInterval":-1,"autoDestroyAt":"2026-11-24T00:00:00Z","volumes":[],"createdAt":"2026-11-24T00:00:00Z","updatedAt":"2026-11-24T00:00:00Z","lastActivityAt":"2026-11-24T00:00:00Z","sandboxClass":"linux-vm","runnerId":"fra-1","toolboxProxyUrl":"http://127.0.0.1:7080/toolbox"}"#;

    #[test]
    fn a_sandbox_is_written_as_the_clients_read_it() {
        let at = || "2026-11-24T00:00:00Z".to_owned();
        let sandbox = Sandbox {
            id: "fraaaaaaaaaaaaaaaaa".into(),
            organization_id: "o".into(),
            name: "n".into(),
            snapshot: "default".into(),
            user: "root".into(),
            env: BTreeMap::from([("A".into(), "b".into())]),
            labels: BTreeMap::new(),
            public: false,
            network_block_all: true,
            network_allow_list: Some("203.0.113.0/24".into()),
            domain_allow_list: None,
            kvm: false,
            target: "fra".into(),
            cpu: 1,
            gpu: 0,
            memory: 1,
            disk: 3,
            state: "started",
            desired_state: "started",
            error_reason: None,
            recoverable: false,
            auto_stop_interval: 0,
            auto_pause_interval: 5,
            auto_archive_interval: 0,
            auto_delete_interval: -1,
            auto_destroy_at: Some(at()),
            volumes: Vec::new(),
            created_at: at(),
            updated_at: at(),
            last_activity_at: at(),
            sandbox_class: "linux-vm",
            runner_id: "fra-1".into(),
            toolbox_proxy_url: "http://127.0.0.1:7080/toolbox".into(),
            stale: false,
        };
        assert_eq!(serde_json::to_string(&sandbox).expect("JSON"), SANDBOX);
        let page = SandboxPage { items: Vec::new(), next_cursor: None };
        assert_eq!(serde_json::to_string(&page).expect("JSON"), r#"{"items":[],"nextCursor":null}"#);
    }

    #[test]
    fn a_request_may_hold_what_only_newer_clients_send() {
        let body = r#"{"env":{},"labels":{"code-toolbox-language":"python"},"volumes":[],"somethingNew":1,"cpu":null}"#;
        let ask: CreateSandbox = serde_json::from_str(body).expect("taken");
        assert_eq!((ask.cpu, ask.volumes.map(|volumes| volumes.len())), (None, Some(0)));
    }

    #[test]
    fn an_error_holds_what_both_generations_of_clients_read() {
        let base = crate::v1::ErrorBody {
            status_code: 404,
            message: "no sandbox 'x'".into(),
            error: "Not Found".into(),
            code: Some("not_found".into()),
            request_id: Some("r".into()),
        };
        let body =
            ErrorBody { base, path: "/p".into(), method: "GET".into(), timestamp: "t".into(), errors: Vec::new() };
        assert_eq!(
            serde_json::to_string(&body).expect("JSON"),
            r#"{"statusCode":404,"message":"no sandbox 'x'","error":"Not Found","code":"not_found","requestId":"r","path":"/p","method":"GET","timestamp":"t"}"#
        );
    }
}
