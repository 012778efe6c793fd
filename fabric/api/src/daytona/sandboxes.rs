//! Sandboxes on the Daytona wire: what is asked for, what is shown, and what is changed about one.

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

/// `GET /sandbox/{id}/toolbox-proxy-url`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToolboxProxyUrl {
    /// The base URL of its toolbox.
    pub url: String,
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
}
