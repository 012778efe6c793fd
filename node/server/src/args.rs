//! The command line of the binary: the client's commands, and those that run a mesh.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::{dev, doctor, image, node, shelf};

/// Exit code when Atoll itself failed, as the client's commands have it.
pub(crate) const EXIT_FAILED: u8 = 125;

/// Sandboxes for code that nobody has read: each a microVM of its own, on your machines.
#[derive(Debug, Parser)]
#[command(name = "atoll", version, max_term_width = 110, arg_required_else_help = true, after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    client: gateway_cli::GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
First steps:
  atoll doctor                          what this machine has and lacks for running sandboxes
  atoll dev                             a mesh of three regions on this machine, in the foreground
  atoll run -c 'print(\"Hello World!\")'  python in a new sandbox, which is deleted afterwards

Client commands find a mesh that `atoll dev` started by themselves (.atoll/dev/env in this folder or one above).";

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Client(gateway_cli::ClientCommand),
    /// Run a whole mesh on this machine: one process per node, real microVMs
    Dev(DevArgs),
    /// Run one node of a mesh
    Node(NodeArgs),
    /// Build, list and remove guest images
    Image(ImageArgs),
    /// Check what this machine has for running sandboxes, and say what each lack costs
    Doctor(DoctorArgs),
    /// The process that holds one virtual machine (started by a node, never by hand)
    #[command(hide = true)]
    Keeper,
}

/// `atoll dev`.
#[derive(Debug, Clone, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct DevArgs {
    #[command(subcommand)]
    pub(crate) action: Option<DevAction>,
    #[command(flatten)]
    pub(crate) start: DevStartArgs,
}

/// What to do with a mesh that runs.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum DevAction {
    /// Stop the mesh of a data folder: deletes its sandboxes, returns when all is gone
    Stop {
        /// The mesh's folder
        #[arg(long, value_name = "DIR", default_value = ".atoll/dev")]
        data: PathBuf,
    },
}

/// How to start a mesh on this machine.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct DevStartArgs {
    /// The mesh's folder: keys, logs, stores, sandboxes
    #[arg(long, value_name = "DIR", default_value = ".atoll/dev")]
    pub(crate) data: PathBuf,
    /// Regions, first one first: each becomes an endpoint
    #[arg(long, value_name = "CODES", value_delimiter = ',', default_value = "fra,iad,sin")]
    pub(crate) regions: Vec<fabric_types::RegionCode>,
    /// Nodes in each region
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) nodes_per_region: u32,
    /// First HTTP port; node j of region i of R listens on P+i+R*j, and for the fabric on UDP 1000 above it
    #[arg(long, value_name = "P", default_value_t = 7080, value_parser = clap::value_parser!(u16).range(1024..=60000))]
    pub(crate) port_base: u16,
    /// Which virtual machine monitor [auto, cloud_hypervisor, qemu]
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = ["auto", "cloud_hypervisor", "qemu"])]
    pub(crate) hypervisor: String,
    /// What executes the guests [auto, kvm, tcg]
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = ["auto", "kvm", "tcg"])]
    pub(crate) accel: String,
    /// A finished guest image, or the folder to build one in if it has none [default: .atoll/image]
    #[arg(long, value_name = "DIR")]
    pub(crate) image: Option<PathBuf>,
    /// Warm clones that each node keeps ready, even when nobody creates anything
    #[arg(long, value_name = "K", default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub(crate) pool: u32,
    #[command(flatten)]
    pub(crate) engine: DevEngineArgs,
    /// Return when the mesh is ready and leave it running (end it with `atoll dev stop`)
    #[arg(long)]
    pub(crate) detach: bool,
}

/// How the nodes of a mesh on this machine run their guests.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Engine")]
pub(crate) struct DevEngineArgs {
    /// Warm clones that each node keeps at most, when many sandboxes are created [default: four times --pool]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(0..=512))]
    pub(crate) pool_max: Option<u32>,
    /// Memory that a node's warm clones may have to themselves together [default: a quarter of the node's]
    #[arg(long, value_name = "MIB")]
    pub(crate) pool_memory: Option<u64>,
    /// How guests reach networks: tap (needs CAP_NET_ADMIN), passt, none; auto is tap where it can be had, else none
    ///
    /// Behind `tap` everything goes through the node's packet filter: never the host, the mesh, other sandboxes, private
    /// or metadata addresses; lists of networks and domains hold. `passt` needs no rights and enforces none of this; it
    /// is never chosen by itself.
    #[arg(long, value_name = "WAY", default_value = "auto", value_parser = ["auto", "tap", "passt", "none"])]
    pub(crate) network: String,
    /// A resolver that the node's own asks for its guests; may be given several times [default: /etc/resolv.conf's]
    #[arg(long = "resolver", value_name = "IP:PORT")]
    pub(crate) resolvers: Vec<std::net::SocketAddr>,
    /// Megabits a second of one guest, each way
    #[arg(long, value_name = "MBIT", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) guest_bandwidth: u64,
    /// Connections that one guest may hold open
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) guest_connections: u32,
    /// auto: seal monitors off as far as this host can, and show what is missing; required: all of it or no start
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto")]
    pub(crate) seal: crate::engine::SealChoice,
    /// Disk that stays free: below it new work is refused [default: 1 GiB or 2% of the disk]
    #[arg(long, value_name = "MIB")]
    pub(crate) min_free_disk: Option<u64>,
    /// Sandboxes that one organization may have in one region
    #[arg(long, value_name = "N", default_value_t = fabric_types::Quota::default().sandboxes)]
    pub(crate) quota: u32,
    /// Sandboxes that one node may hold, whatever their shapes [default: as many as have room]
    #[arg(long, value_name = "N")]
    pub(crate) node_sandboxes: Option<u32>,
}

/// `atoll node`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct NodeArgs {
    /// The node's configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

/// `atoll image`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    pub(crate) action: ImageAction,
}

/// What to do with the guest image.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ImageAction {
    /// Build the image from Debian's packages, unless it is there already
    Build {
        /// The folder that holds images, one folder per digest of inputs
        #[arg(long, value_name = "DIR", default_value = ".atoll/image")]
        dir: PathBuf,
    },
    /// List the images, with their templates and who uses them
    Ls {
        /// The folder that holds images
        #[arg(long, value_name = "DIR", default_value = ".atoll/image")]
        dir: PathBuf,
    },
    /// Remove the images that nobody uses, with their templates, but for the one that this version of atoll runs
    ///
    /// An image is in use while a node runs with it, or a sandbox's machine that outlived its node. Stopped sandboxes start
    /// with the image that their node has; snapshots carry what they need.
    Prune {
        /// The folder that holds images
        #[arg(long, value_name = "DIR", default_value = ".atoll/image")]
        dir: PathBuf,
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
}

/// `atoll doctor`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct DoctorArgs {
    /// Where guest images are, to see whether one is built
    #[arg(long, value_name = "DIR", default_value = ".atoll/image")]
    pub(crate) image: PathBuf,
}

impl Args {
    /// Runs the command; its exit code.
    pub(crate) fn run(self) -> ExitCode {
        let json = self.client.json;
        let outcome = match self.command {
            Command::Client(command) => return client(command, self.client),
            Command::Dev(DevArgs { action: Some(DevAction::Stop { data }), .. }) => dev::stop(&data),
            Command::Dev(DevArgs { action: None, start }) => dev::start(start),
            Command::Node(args) => node::run(&args.config),
            Command::Image(ImageArgs { action }) => match action {
                ImageAction::Build { dir } => image::build(&dir, json),
                ImageAction::Ls { dir } => shelf::ls(&dir, json),
                ImageAction::Prune { dir, dry_run } => shelf::prune(&dir, dry_run, json),
            },
            Command::Doctor(args) => return doctor::run(&args.image, json),
            Command::Keeper => unreachable!("main dispatches the keeper before the command line is parsed"),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say_error(&error);
                ExitCode::from(EXIT_FAILED)
            }
        }
    }
}

fn client(command: gateway_cli::ClientCommand, global: gateway_cli::GlobalArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say_error(&anyhow::Error::new(error).context("can't start the asynchronous runtime"));
            return ExitCode::from(EXIT_FAILED);
        }
    };
    ExitCode::from(runtime.block_on(gateway_cli::run(command, global)))
}

#[expect(clippy::print_stderr, reason = "the one place where a failed command says why")]
fn say_error(error: &anyhow::Error) {
    eprintln!("atoll: {error:#}");
}
