//! API keys on `/v1`. A key itself is shown once, when it is made.

use serde::{Deserialize, Serialize};

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
