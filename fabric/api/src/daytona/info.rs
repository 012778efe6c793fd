//! What the Daytona wire says about the gateway itself: configuration, health, regions.

use std::collections::BTreeMap;

use serde::Serialize;

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

/// `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// `ok`.
    pub status: &'static str,
    /// Our version.
    pub version: String,
}
