//! Files and folders of a guest, on the toolbox.

use serde::{Deserialize, Serialize};

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
