//! What can be typed, and the help that teaches it.

mod sandbox;
mod values;

use clap::{Args, Subcommand};

pub(crate) use sandbox::{
    CodeArgs, CopyArgs, CreateArgs, ExecArgs, ForkArgs, IntervalArgs, IntervalsArgs, ListArgs, LogsArgs, NetworkArgs,
    NewSandboxArgs, RemoveArgs, ResizeArgs, RuleArgs, RunArgs, SandboxArgs, StartArgs, StopArgs, TurnArgs, UsageArgs,
};
pub(crate) use values::{CopyEnd, KeyValue, Language};

/// Arguments of every client command.
#[derive(Debug, Clone, Default, Args)]
pub struct GlobalArgs {
    /// The gateway to talk to: URL, or REGION=URL,REGION=URL
    ///
    /// Without it: the variable ATOLL_ENDPOINTS, else the file .atoll/dev/env of this folder or one above, which
    /// `atoll dev` writes.
    #[arg(long, global = true, value_name = "URL", help_heading = "Mesh")]
    pub endpoint: Option<String>,
    /// The API key; without it ATOLL_API_KEY, else that of .atoll/dev/env
    ///
    /// Other users of this machine can see a command's arguments: the variable is the safer place.
    #[arg(long, global = true, value_name = "KEY", help_heading = "Mesh")]
    pub api_key: Option<String>,
    /// Print exactly one JSON object, also for an error
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
}

/// The commands that speak to a mesh.
#[derive(Debug, Clone, Subcommand)]
pub enum ClientCommand {
    /// Create a sandbox and print its id
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// Run a command in a sandbox; its exit code becomes this one's
    #[command(after_help = EXEC_EXAMPLES)]
    Exec(ExecArgs),
    /// Run a program text in a new sandbox, print what it prints, and delete the sandbox
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Run a python text in a stateful interpreter of a sandbox: what one text defines, the next one sees
    #[command(after_help = CODE_EXAMPLES)]
    Code(CodeArgs),
    /// List the sandboxes of the mesh
    #[command(
        after_help = "Examples:\n  atoll ls\n  atoll ls --region fra --label team=search\n  atoll rm $(atoll ls -q --label job=42)"
    )]
    Ls(ListArgs),
    /// Show one sandbox
    Info(SandboxArgs),
    /// Show what sandboxes use of their hosts, and what their guests have moved; of all of them without a name
    #[command(
        after_help = "Examples:\n  atoll usage worker\n  atoll usage --json worker | jq .items[0].machine.cpuMs\n  watch atoll usage"
    )]
    Usage(UsageArgs),
    /// Delete sandboxes
    #[command(
        after_help = "Examples:\n  atoll rm worker\n  atoll rm fra0123456789abcdef iad0123456789abcdef\n  atoll rm --all"
    )]
    Rm(RemoveArgs),
    /// Start a stopped or archived sandbox from its disk, or resume a paused one
    Start(StartArgs),
    /// Stop a sandbox; its disk stays, its memory doesn't
    Stop(StopArgs),
    /// Pause a sandbox: its processors stop, its memory stays; the next request to it resumes it
    Pause(TurnArgs),
    /// Resume a paused sandbox
    Resume(TurnArgs),
    /// Move a stopped sandbox's disk into the snapshot store: it reserves nothing until it is started again
    Archive(TurnArgs),
    /// Fork a running sandbox, memory and disk, into children of their own, and print their ids
    #[command(
        after_help = "Examples:\n  atoll fork worker\n  atoll fork worker --count 3 --name try-a --name try-b\n  atoll fork worker --count 3 --json     {\"stopMs\":...,\"items\":[...]}"
    )]
    Fork(ForkArgs),
    /// Give a sandbox another shape: the disk grows while it runs, the rest changes while it is stopped
    #[command(
        after_help = "Examples:\n  atoll resize worker --shape disk=20\n  atoll stop worker && atoll resize worker --shape 2x2048x20 && atoll start worker"
    )]
    Resize(ResizeArgs),
    /// Set what a sandbox's guest may reach, or show it; in force at once, also for what is connected
    #[command(after_help = NETWORK_EXAMPLES)]
    Network(NetworkArgs),
    /// Set what is done to a sandbox by itself, or show it
    #[command(
        after_help = "Examples:\n  atoll intervals worker --auto-pause 5 --ttl 1440\n  atoll intervals worker --auto-stop 0\n  atoll intervals worker"
    )]
    Intervals(IntervalsArgs),
    /// Copy a file into a sandbox or out of it
    #[command(after_help = COPY_EXAMPLES)]
    Cp(CopyArgs),
    /// Print the last lines of a sandbox's kernel and agent
    Logs(LogsArgs),
    /// Snapshot a running sandbox, memory and disk, and print the snapshot's id
    #[command(after_help = SNAPSHOT_EXAMPLES)]
    Snapshot(SnapshotArgs),
    /// Make a new sandbox from a snapshot, in any region, and print its id
    #[command(
        after_help = "Examples:\n  atoll restore before-migration --region iad\n  atoll restore snap-0123456789abcdef --name second"
    )]
    Restore(RestoreArgs),
    /// Make, list and revoke API keys
    Key(KeyArgs),
    /// Show the mesh: regions, nodes, leaders, isolation, pools, capacity
    Status,
    /// List the regions and their endpoints
    Regions,
}

/// Arguments of `snapshot`.
#[derive(Debug, Clone, Args)]
pub struct SnapshotArgs {
    /// The sandbox, by id or name
    #[arg(required_unless_present_any = ["list", "delete"], conflicts_with_all = ["list", "delete"])]
    pub(crate) sandbox: Option<String>,
    /// A name for the snapshot, unique among yours
    #[arg(long, value_name = "NAME", conflicts_with_all = ["list", "delete"])]
    pub(crate) name: Option<String>,
    /// List the snapshots of the mesh instead
    #[arg(long, conflicts_with = "delete")]
    pub(crate) list: bool,
    /// Delete a snapshot instead, by id or name
    #[arg(long, value_name = "SNAPSHOT")]
    pub(crate) delete: Option<String>,
    /// Seconds to wait for it at most
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
}

/// Arguments of `restore`.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// The snapshot, by id or name
    pub(crate) snapshot: String,
    /// The region to restore in; the gateway's own without it
    #[arg(long, value_name = "CODE")]
    pub(crate) region: Option<String>,
    /// A name for the new sandbox
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Seconds to wait for it at most
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: Option<u32>,
}

/// Arguments of `key`.
#[derive(Debug, Clone, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    pub(crate) command: KeyCommand,
}

/// The commands of `key`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key and print it: the only time that it is shown
    Create {
        /// Its name, unique among yours
        name: String,
    },
    /// List the keys, without the keys themselves
    Ls,
    /// Revoke keys
    Rm {
        /// Ids or names
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
    },
}

/// What the exit codes mean, under the help of the commands that run something.
macro_rules! exit_codes {
    () => {
        "\nExit codes: the command's own; 128+n when signal n ended it; 124 after its timeout; 125 when Atoll failed; 2 for a malformed command line."
    };
}

const CREATE_EXAMPLES: &str = "Examples:
  atoll create
  atoll create --name worker --region iad --label team=search --env MODE=fast
  atoll create --shape 2x2048x5            two vCPU, 2048 MiB of memory, 5 GiB of disk
  atoll create --shape memory=512          the default (1x1024x3) with less memory
  atoll create --allow-domain pypi.org --allow-domain files.pythonhosted.org --auto-pause 5 --ttl 60
  ID=$(atoll create) && atoll exec $ID -- uname -r; atoll rm $ID";

const EXEC_EXAMPLES: &str = concat!(
    "Examples:
  atoll exec worker -- python3 -c 'print(6*7)'
  atoll exec worker -c 'ls /etc | wc -l'          through the shell
  atoll exec worker --timeout 5 -- sleep 60       exits with 124 after five seconds
  echo data | atoll exec -i worker -- cat
  atoll exec worker --json -- false               {\"exitCode\":1,...}
",
    exit_codes!()
);

const RUN_EXAMPLES: &str = concat!(
    "Examples:
  atoll run hello.py
  atoll run -c 'print(\"Hello World!\")'
  atoll run job.ts
  atoll run --lang javascript -c 'console.log(process.version)' --region sin
  cat job.py | atoll run - -- first second        arguments of the program
  atoll run --sandbox worker job.py               in a sandbox that exists, which stays
",
    exit_codes!()
);

const CODE_EXAMPLES: &str = concat!(
    "Examples:
  atoll code worker -c 'x = 6'
  atoll code worker -c 'x * 7'                    prints 42
  CTX=$(atoll code worker --new) && atoll code worker --context $CTX job.py
  atoll code worker --list
  atoll code worker --interrupt $CTX
",
    "\nExit codes: 0 when it ran to its end; 1 after an uncaught exception; 124 after its timeout; 130 when interrupted; 125 when Atoll failed or the interpreter ended; 2 for a malformed command line."
);

const NETWORK_EXAMPLES: &str = "Examples:
  atoll network worker                                     shows it
  atoll network worker --no-network
  atoll network worker --allow 203.0.113.0/24 --allow-domain '*.example.com'
  atoll network worker --deny 203.0.113.9
  atoll network worker --open
Whatever is allowed, a guest never reaches its host, the mesh, other sandboxes, private or metadata addresses.";

const COPY_EXAMPLES: &str = "Examples:
  atoll cp data.csv worker:/root/data.csv
  atoll cp worker:/root/result.json .
  tar c folder | atoll cp - worker:/root/folder.tar
A path with a colon that is meant to be local begins with ./ or /.";

const SNAPSHOT_EXAMPLES: &str = "Examples:
  atoll snapshot worker --name before-migration
  atoll snapshot --list
  atoll snapshot --delete before-migration";

#[cfg(test)]
mod tests;
