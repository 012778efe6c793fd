//! What runs in a guest, on the toolbox: commands, program texts, interpreter contexts and frames of their executions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
