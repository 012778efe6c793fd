//! Templates and snapshots on the Daytona wire, where both are snapshots.

use serde::{Deserialize, Serialize};

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
