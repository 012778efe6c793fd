//! The agent's HTTP/2 surface: paths, headers, bodies.
//!
//! | method and path | body -> answer |
//! |---|---|
//! | `GET /v1/health` | -> [`Health`] |
//! | `POST /v1/identity` | [`Identity`] -> [`IdentityAck`]; before the first one every other request but health is 409 `no_identity` |
//! | `POST /v1/exec` | [`ExecRequest`] -> [`ExecReply`]; a timeout is 408 with an [`AgentError`] |
//! | `POST /v1/exec/stream` | [`ExecRequest`] -> lines of JSON, each an [`ExecEvent`]; a timeout is an `exit` event with `timedOut` |
//! | `POST /v1/code-run` | [`CodeRunRequest`] -> [`ExecReply`] |
//! | `POST /v1/interpreter/contexts` | [`NewContext`] -> [`Context`] |
//! | `GET /v1/interpreter/contexts` | -> [`ContextList`] |
//! | `DELETE /v1/interpreter/contexts/{id}` | -> 204; what runs in it is killed |
//! | `POST /v1/interpreter/contexts/{id}/interrupt` | -> 204; what runs in it gets SIGINT, a KeyboardInterrupt in python |
//! | `POST /v1/interpreter/execute` | [`InterpreterRequest`] -> lines of JSON, each an [`InterpreterEvent`] |
//! | `GET /v1/files?path=` | -> [`FileList`] |
//! | `GET /v1/files/info?path=` | -> [`FileInfo`] |
//! | `GET /v1/files/content?path=` | -> the bytes, streamed |
//! | `PUT /v1/files/content?path=[&mode=644]` | the bytes, streamed -> [`FileInfo`]; parents are made; written beside and renamed |
//! | `POST /v1/files/folder?path=[&mode=755]` | -> [`FileInfo`]; parents are made |
//! | `DELETE /v1/files?path=[&recursive=true]` | -> 204 |
//! | `POST /v1/disk/grow` | -> [`DiskSize`]: the own disk's file system takes all of its device |
//! | `GET /v1/logs[?tail=LINES]` | -> the kernel's and agent's last lines, as text |
//! | `POST /v1/shutdown` | -> 204, then sync and power off |
//!
//! Every request carries [`GENERATION_HEADER`]; one lower than the agent has seen is 409 `stale_generation`.
//! Every other status is an [`AgentError`] as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Number of this contract, in [`Health`] and in a template's manifest. 2 added contexts, TypeScript, growing disks, and an
/// identity's network and limits.
pub const PROTOCOL: u32 = 2;
/// The request header with the caller's generation of the sandbox, decimal.
pub const GENERATION_HEADER: &str = "x-atoll-generation";
/// Most bytes of standard output, and again of standard error, that one command's answer carries; the rest is read,
/// dropped and told as `truncated`. 16 MiB: above what a model reads, below what hurts a node.
pub const OUTPUT_BYTES_MAX: usize = 16 << 20;
/// Largest JSON body that the agent takes. The edge's own limit is 1 MiB.
pub const JSON_BYTES_MAX: usize = 4 << 20;
/// Longest time that a command may ask for: one day.
pub const EXEC_SECONDS_MAX: u32 = 86_400;
/// Least bytes of fresh entropy in an identity.
pub const ENTROPY_BYTES_MIN: usize = 64;
/// Where commands start and where relative paths of files begin.
pub const HOME: &str = "/root";

/// The agent's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// [`PROTOCOL`] of the agent.
    pub protocol: u32,
    /// The agent's version.
    pub agent: String,
    /// Whether it has an identity and takes commands.
    pub ready: bool,
    /// The generation it was last given; 0 before the first identity.
    pub generation: u64,
    /// `uname -r` of the guest.
    pub kernel: String,
    /// Milliseconds since the guest booted, by its own clock.
    pub uptime_ms: u64,
    /// Whether processes have randomized addresses.
    pub address_randomization: bool,
    /// Processes in the guest.
    pub processes: u32,
}

/// Who the guest is from now on. Applied as a whole before any other request of the new generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The sandbox's id.
    pub sandbox_id: String,
    /// The placement's generation.
    pub generation: u64,
    /// The host name, at most 63 characters.
    pub hostname: String,
    /// 32 hexadecimal digits for /etc/machine-id.
    pub machine_id: String,
    /// The MAC of the guest's network card, as `02:..`, when it has one.
    pub mac: Option<String>,
    /// Fresh entropy from the host, base64, at least [`ENTROPY_BYTES_MIN`] bytes: credited, then a reseed is forced.
    pub entropy: String,
    /// The host's wall clock, nanoseconds since the epoch; the guest's is stepped to it.
    pub wall_clock_ns: u64,
    /// The guest's network, where it has one; without, the card is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<GuestNetwork>,
    /// What the guest's commands may use together; the agent's defaults where none are given.
    #[serde(default)]
    pub limits: GuestLimits,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// True for a pooled clone that only exercises itself: commands run, the real identity follows.
    pub rehearsal: bool,
}

/// How the guest sets up its network card. Its MAC is [`Identity::mac`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestNetwork {
    /// Its address.
    pub address: std::net::Ipv4Addr,
    /// Bits of it that name the network.
    pub prefix: u8,
    /// Where everything is sent.
    pub gateway: std::net::Ipv4Addr,
    /// The resolver, for /etc/resolv.conf.
    pub dns: std::net::Ipv4Addr,
    /// Largest packet, bytes.
    pub mtu: u16,
}

/// What a guest's commands may use, enforced inside the guest by cgroups and rlimits, so that the agent always lives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestLimits {
    /// Processes and threads of all commands together.
    pub pids: Option<u32>,
    /// Open files of one process.
    pub open_files: Option<u32>,
}

/// The identity is in force and the random pool reseeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdentityAck {
    /// The generation in force.
    pub generation: u64,
    /// Microseconds that it took in the guest.
    pub took_us: u64,
}

/// A command for the shell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExecRequest {
    /// Run by `sh -c`; ignored when `argv` isn't empty.
    pub command: String,
    /// A program and its arguments, run without a shell.
    pub argv: Vec<String>,
    /// The working directory; [`HOME`] if not given.
    pub cwd: Option<String>,
    /// Added to the sandbox's environment.
    pub env: BTreeMap<String, String>,
    /// Seconds until the command's process group is killed; no limit (but [`EXEC_SECONDS_MAX`]) if not given.
    pub timeout_seconds: Option<u32>,
    /// Standard input, base64; empty input if not given.
    pub stdin: Option<String>,
    /// Both outputs through one pipe, in the order they were written, answered as `stdout`.
    pub merge: bool,
}

/// A program text for an interpreter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CodeRunRequest {
    /// The program.
    pub code: String,
    /// `python`, `javascript` or `typescript`.
    pub language: String,
    /// Arguments of the program.
    pub argv: Vec<String>,
    /// Added to the sandbox's environment.
    pub env: BTreeMap<String, String>,
    /// Seconds until the process group is killed.
    pub timeout_seconds: Option<u32>,
    /// As in [`ExecRequest`].
    pub merge: bool,
}

/// How a command ended. The answer comes when the command itself exits, even if a child still holds the pipe; such
/// children live on, their further output is read and dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExecReply {
    /// The exit code; 128+n when signal n ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output (both, when merged), base64.
    pub stdout: String,
    /// Standard error, base64.
    pub stderr: String,
    /// Whether output was dropped past [`OUTPUT_BYTES_MAX`].
    pub truncated: bool,
    /// Milliseconds that it ran.
    pub took_ms: u64,
}

/// One line of a streamed execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum ExecEvent {
    /// Bytes of standard output, base64.
    Stdout {
        /// The bytes.
        data: String,
    },
    /// Bytes of standard error, base64.
    Stderr {
        /// The bytes.
        data: String,
    },
    /// The end: always the last line.
    #[serde(rename_all = "camelCase")]
    Exit {
        /// As in [`ExecReply`].
        exit_code: i32,
        /// As in [`ExecReply`].
        signal: Option<i32>,
        /// Whether the timeout ended it.
        timed_out: bool,
        /// Whether output was dropped.
        truncated: bool,
    },
}

/// A new interpreter context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NewContext {
    /// `python`; empty is python.
    pub language: String,
    /// Where it starts; [`HOME`] if not given.
    pub cwd: Option<String>,
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
    /// Seconds since the epoch.
    pub created_at: i64,
    /// Whether something runs in it.
    pub busy: bool,
}

/// The contexts, by age.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContextList {
    /// At most [`CONTEXTS_MAX`].
    pub contexts: Vec<Context>,
}

/// Most interpreter contexts of one guest: each is a python process, some 10 MiB.
pub const CONTEXTS_MAX: usize = 32;

/// A text to run in a context. One at a time: another one waits its turn, within its own timeout.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InterpreterRequest {
    /// The text.
    pub code: String,
    /// Which context; the default one if not given.
    pub context_id: Option<String>,
    /// Environment, for this execution.
    pub env: BTreeMap<String, String>,
    /// Seconds until it is interrupted, and 2 s later the context killed; none for no limit.
    pub timeout_seconds: Option<u32>,
}

/// One line of a context's execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum InterpreterEvent {
    /// Standard output, as text; what is no UTF-8 is replaced.
    Stdout {
        /// The text.
        text: String,
    },
    /// Standard error.
    Stderr {
        /// The text.
        text: String,
    },
    /// The value of the last expression, where it isn't None.
    Result {
        /// As `repr` shows it.
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
    /// The end: always the last line.
    #[serde(rename_all = "camelCase")]
    End {
        /// How it ended.
        outcome: InterpreterOutcome,
        /// How many executions the context has seen, this one included.
        execution_count: u64,
        /// Whether output was dropped past [`OUTPUT_BYTES_MAX`].
        truncated: bool,
    },
}

/// How an execution ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterpreterOutcome {
    /// To its end, or by an exception that an `error` line told.
    Completed,
    /// Interrupted on request.
    Interrupted,
    /// Its timeout passed.
    TimedOut,
    /// The context's process ended: its state is lost, the context is gone.
    Died,
}

/// The own disk's file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskSize {
    /// Its size in bytes.
    pub bytes: u64,
}

/// One file or folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Seconds since the epoch of the last change.
    pub modified: i64,
    /// As in `-rw-r--r--`.
    pub mode: String,
    /// Permission bits, octal, as in `0644`.
    pub permissions: String,
    /// The owner's name, or its number.
    pub owner: String,
    /// The group's name, or its number.
    pub group: String,
}

/// A folder's entries, sorted by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileList {
    /// The entries, at most 10,000.
    pub entries: Vec<FileInfo>,
    /// Whether there were more.
    pub truncated: bool,
}

/// Why the agent refused or failed a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentError {
    /// What kind; the HTTP status follows from it.
    pub code: AgentErrorCode,
    /// A sentence: what was tried, with what.
    pub message: String,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentErrorCode {
    /// 400: malformed request, unknown language, impossible timeout.
    BadRequest,
    /// 404: no such file, or no such path of the surface.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 409: no identity yet.
    NoIdentity,
    /// 409: a lower generation than the agent has.
    StaleGeneration,
    /// 409: it is there already, isn't a folder, isn't empty.
    Conflict,
    /// 403: the guest's own permissions.
    Forbidden,
    /// 408: the command passed its timeout and was killed.
    Timeout,
    /// 413.
    TooLarge,
    /// 429: too many commands at once.
    Busy,
    /// 507: the guest's disk is full.
    NoSpace,
    /// 500: a fault in the agent.
    Internal,
}

impl AgentErrorCode {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::NoIdentity | Self::StaleGeneration | Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Busy => 429,
            Self::Internal => 500,
            Self::NoSpace => 507,
        }
    }
}
