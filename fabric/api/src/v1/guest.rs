//! What runs in a guest on `/v1`: commands, program texts, and executions in interpreter contexts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
