//! Arguments of the commands about sandboxes.

use std::path::PathBuf;

use clap::Args;

use super::values::{CopyEnd, KeyValue, Language, ShapeArg};

/// Which sandbox.
#[derive(Debug, Clone, Args)]
pub struct SandboxArgs {
    /// The sandbox, by id or name
    pub(crate) sandbox: String,
}

/// What a new sandbox is to be.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NewSandboxArgs {
    /// The region to create it in; the nearest without it
    #[arg(long, value_name = "CODE")]
    pub(crate) region: Option<String>,
    /// A name, unique among yours
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// A label; may be given several times
    #[arg(long = "label", short = 'l', value_name = "K=V")]
    pub(crate) labels: Vec<KeyValue>,
    /// A variable of every command in it; may be given several times
    #[arg(long = "env", short = 'e', value_name = "K=V")]
    pub(crate) env: Vec<KeyValue>,
    /// vCPU, MiB of memory and GiB of disk, as 2x2048x5 or cpu=2,memory=2048,disk=5
    ///
    /// In the second form any part may be left out. The default is 1x1024x3, for which warm clones wait; another
    /// shape boots once, then it is cloned too.
    #[arg(long, value_name = "CPUxMEMORYxDISK")]
    pub(crate) shape: Option<ShapeArg>,
    /// Start from a template's name, or from a snapshot's id or name
    #[arg(long, value_name = "NAME")]
    pub(crate) snapshot: Option<String>,
}

/// What is done to a sandbox by itself.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "By itself")]
pub(crate) struct IntervalArgs {
    /// Stop it after so many idle minutes; 0 is never
    #[arg(long, value_name = "MINUTES")]
    pub(crate) auto_stop: Option<u32>,
    /// Pause it after so many idle minutes, memory kept; the next request resumes it; 0 is never
    #[arg(long, value_name = "MINUTES")]
    pub(crate) auto_pause: Option<u32>,
    /// Archive it after so many stopped minutes; 0 is never
    #[arg(long, value_name = "MINUTES")]
    pub(crate) auto_archive: Option<u32>,
    /// Delete it after so many stopped minutes; 0 is at once, -1 never
    #[arg(long, value_name = "MINUTES", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    pub(crate) auto_delete: Option<i64>,
    /// Delete it so many minutes after its creation, whatever it does; 0 is never
    #[arg(long, value_name = "MINUTES")]
    pub(crate) ttl: Option<u32>,
}

impl IntervalArgs {
    /// Whether nothing is given.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { auto_stop, auto_pause, auto_archive, auto_delete, ttl } = self;
        let minutes = [auto_stop, auto_pause, auto_archive, ttl];
        auto_delete.is_none() && minutes.iter().all(|minutes| minutes.is_none())
    }
}

/// What a guest may reach.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Network")]
pub(crate) struct RuleArgs {
    /// Nothing at all
    #[arg(long)]
    pub(crate) no_network: bool,
    /// Only this network, or address (with what else is allowed), and no names but allowed domains; may be given several times
    #[arg(long, value_name = "CIDR", conflicts_with = "no_network")]
    pub(crate) allow: Vec<String>,
    /// Never this network, or address; may be given several times
    #[arg(long, value_name = "CIDR", conflicts_with = "no_network")]
    pub(crate) deny: Vec<String>,
    /// Only this domain, as example.com or *.example.com (with what else is allowed); may be given several times
    #[arg(long, value_name = "DOMAIN", conflicts_with = "no_network")]
    pub(crate) allow_domain: Vec<String>,
    /// Never this domain; may be given several times
    #[arg(long, value_name = "DOMAIN", conflicts_with = "no_network")]
    pub(crate) deny_domain: Vec<String>,
}

impl RuleArgs {
    /// Whether nothing is given.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { no_network, allow, deny, allow_domain, deny_domain } = self;
        !no_network && [allow, deny, allow_domain, deny_domain].iter().all(|list| list.is_empty())
    }
}

/// Arguments of `create`.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    pub(crate) new: NewSandboxArgs,
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
    #[command(flatten)]
    pub(crate) intervals: IntervalArgs,
    /// Seconds to wait for it at most
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
}

/// Arguments of `exec`.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// The sandbox, by id or name
    pub(crate) sandbox: String,
    /// A command line for the guest's shell, instead of a program with arguments
    #[arg(
        short = 'c',
        long = "command",
        value_name = "COMMAND",
        conflicts_with = "argv",
        required_unless_present = "argv"
    )]
    pub(crate) command: Option<String>,
    /// The folder to run it in
    #[arg(short = 'w', long = "cwd", value_name = "FOLDER")]
    pub(crate) cwd: Option<String>,
    /// A variable of the command; may be given several times
    #[arg(long = "env", short = 'e', value_name = "K=V")]
    pub(crate) env: Vec<KeyValue>,
    /// Seconds until the command is killed
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
    /// Read this command's standard input to its end and give it to the command
    #[arg(short = 'i', long = "stdin")]
    pub(crate) stdin: bool,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) argv: Vec<String>,
}

/// Arguments of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The file with the program; - is standard input
    #[arg(required_unless_present = "code")]
    pub(crate) file: Option<PathBuf>,
    /// The program itself
    #[arg(short = 'c', long = "code", value_name = "CODE", conflicts_with = "file")]
    pub(crate) code: Option<String>,
    /// Its language; without it by the file's ending (.js, .mjs, .cjs, .ts, .mts, .cts), else python
    #[arg(long, value_enum, value_name = "LANGUAGE")]
    pub(crate) lang: Option<Language>,
    /// Run it in this sandbox, by id or name, instead of a new one
    #[arg(long, value_name = "SANDBOX", conflicts_with_all = ["region", "name", "labels", "shape", "snapshot", "keep"])]
    pub(crate) sandbox: Option<String>,
    #[command(flatten)]
    pub(crate) new: NewSandboxArgs,
    /// Keep the new sandbox and tell its id on standard error
    #[arg(long)]
    pub(crate) keep: bool,
    /// Seconds until the program is killed
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
    /// Arguments of the program
    #[arg(last = true, value_name = "ARGUMENT")]
    pub(crate) argv: Vec<String>,
}

/// Arguments of `ls`.
#[derive(Debug, Clone, Default, Args)]
pub struct ListArgs {
    /// Of this region alone
    #[arg(long, value_name = "CODE")]
    pub(crate) region: Option<String>,
    /// With this label; may be given several times, all must match
    #[arg(long = "label", short = 'l', value_name = "K=V")]
    pub(crate) labels: Vec<KeyValue>,
    /// In this state alone: started, stopped, paused, error, ...
    #[arg(long, value_name = "STATE")]
    pub(crate) state: Option<String>,
    /// Print the ids alone, one a line
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
}

/// Arguments of `rm`.
#[derive(Debug, Clone, Args)]
pub struct RemoveArgs {
    /// The sandboxes, by id or name
    #[arg(value_name = "SANDBOX", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) sandboxes: Vec<String>,
    /// All of them
    #[arg(long)]
    pub(crate) all: bool,
    /// A sandbox that isn't there is no error
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// Arguments of `usage`.
#[derive(Debug, Clone, Args)]
pub struct UsageArgs {
    /// The sandboxes, by id or name; all of the mesh without any
    #[arg(value_name = "SANDBOX")]
    pub(crate) sandboxes: Vec<String>,
}

/// Arguments of `start`.
#[derive(Debug, Clone, Args)]
pub struct StartArgs {
    /// The sandbox, by id or name
    pub(crate) sandbox: String,
    /// Seconds to wait for it at most
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
}

/// Arguments of `stop`.
#[derive(Debug, Clone, Args)]
pub struct StopArgs {
    /// The sandbox, by id or name
    pub(crate) sandbox: String,
    /// Don't ask the guest first
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Seconds to wait for it at most
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
}

/// Arguments of `pause`, `resume` and `archive`.
#[derive(Debug, Clone, Args)]
pub struct TurnArgs {
    /// The sandbox, by id or name
    pub(crate) sandbox: String,
    /// Seconds to wait for it at most
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
}

/// Arguments of `fork`.
#[derive(Debug, Clone, Args)]
pub struct ForkArgs {
    /// The sandbox, by id or name; it runs, or is paused
    pub(crate) sandbox: String,
    /// How many children, all from the same moment [default: as many as names, or 1]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,
    /// A child's name; may be given several times
    #[arg(long = "name", value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Seconds to wait for it at most
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
}

/// Arguments of `resize`.
#[derive(Debug, Clone, Args)]
pub struct ResizeArgs {
    /// The sandbox, by id or name
    pub(crate) sandbox: String,
    /// vCPU, MiB of memory and GiB of disk, as 2x2048x5 or disk=5; a part that is left out stays
    #[arg(long, value_name = "CPUxMEMORYxDISK")]
    pub(crate) shape: ShapeArg,
    /// Seconds to wait for it at most
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
}

/// Arguments of `network`.
#[derive(Debug, Clone, Args)]
pub struct NetworkArgs {
    /// The sandbox, by id or name
    pub(crate) sandbox: String,
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
    /// Everything public, as a new sandbox has it
    #[arg(long, conflicts_with_all = ["no_network", "allow", "deny", "allow_domain", "deny_domain"])]
    pub(crate) open: bool,
}

/// Arguments of `intervals`.
#[derive(Debug, Clone, Args)]
pub struct IntervalsArgs {
    /// The sandbox, by id or name
    pub(crate) sandbox: String,
    #[command(flatten)]
    pub(crate) intervals: IntervalArgs,
}

/// Arguments of `code`.
#[derive(Debug, Clone, Args)]
pub struct CodeArgs {
    /// The sandbox, by id or name
    pub(crate) sandbox: String,
    /// The file with the python text; - is standard input
    #[arg(required_unless_present_any = ["code", "new", "list", "delete", "interrupt"])]
    pub(crate) file: Option<PathBuf>,
    /// The text itself
    #[arg(short = 'c', long = "code", value_name = "CODE", conflicts_with = "file")]
    pub(crate) code: Option<String>,
    /// In this context, by its id; the default one without it
    #[arg(long, value_name = "CONTEXT")]
    pub(crate) context: Option<String>,
    /// A variable of the environment, for this text alone; may be given several times
    #[arg(long = "env", short = 'e', value_name = "K=V")]
    pub(crate) env: Vec<KeyValue>,
    /// Seconds until it is interrupted
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
    /// Make a context instead and print its id
    #[arg(long, conflicts_with_all = ["file", "code", "context", "list", "delete", "interrupt"])]
    pub(crate) new: bool,
    /// List the contexts instead
    #[arg(long, conflicts_with_all = ["file", "code", "context", "delete", "interrupt"])]
    pub(crate) list: bool,
    /// Delete a context instead; what runs in it is killed
    #[arg(long, value_name = "CONTEXT", conflicts_with_all = ["file", "code", "context", "interrupt"])]
    pub(crate) delete: Option<String>,
    /// Interrupt what runs in a context instead
    #[arg(long, value_name = "CONTEXT", conflicts_with_all = ["file", "code", "context"])]
    pub(crate) interrupt: Option<String>,
}

/// Arguments of `cp`.
#[derive(Debug, Clone, Args)]
pub struct CopyArgs {
    /// From: a local path, - for standard input, or SANDBOX:PATH
    pub(crate) from: CopyEnd,
    /// To: a local path, - for standard output, or SANDBOX:PATH
    pub(crate) to: CopyEnd,
}

/// Arguments of `logs`.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// The sandbox, by id or name
    pub(crate) sandbox: String,
    /// The last so many lines alone
    #[arg(long, short = 'n', value_name = "LINES")]
    pub(crate) tail: Option<u32>,
}
