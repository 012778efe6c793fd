//! PID 1 of every guest: mounts, reaps, and serves the host over one channel.
//!
//! ```text
//! boot       mounts, kernel modules, the root file system
//! machine    what an identity and a shutdown change in the machine
//! channel    the virtio-serial port or vsock, as sessions
//! http       the surface over HTTP/2, one connection a session
//! identity   who the guest is; nothing but health is answered before it
//! exec       commands and program texts
//! interpreter  stateful interpreters: contexts, and executions in them
//! warm       interpreters started ahead
//! limits     what commands may use together
//! network    the network card
//! files      files and folders
//! facts      health and logs
//! console    log lines on the console, and kept
//! hostile    the door, fed with anything
//! sys        what only unsafe code can ask of the kernel
//! ```
//!
//! One thread runs everything but what waits for a disk: a guest has one processor, and each thread costs it.

mod boot;
mod channel;
mod console;
mod exec;
mod facts;
mod files;
mod hostile;
mod http;
mod identity;
mod interpreter;
mod limits;
mod machine;
mod network;
mod refusal;
mod sys;
mod warm;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use guest_proto::surface::HOME;
use nix::sys::resource::{Resource, setrlimit};

use crate::channel::Channel;
use crate::console::say;
use crate::exec::{Engine, Reaper, Scope};
use crate::http::{Agent, serve};
use crate::identity::IdentityCell;
use crate::interpreter::Contexts;
use crate::limits::Bounds;
use crate::machine::Guest;
use crate::warm::Place;

/// Where program texts lie while they run: gone with every boot.
const SCRATCH: &str = "/tmp/.atoll";
/// Where the interpreters' side of what is parked lies.
const SCRIPTS: &str = "/run/atoll/warm";
/// Threads that may wait for a disk at once.
const BLOCKING_THREADS_MAX: usize = 16;
/// How long such a thread waits for more to do.
const BLOCKING_IDLE: Duration = Duration::from_secs(10);
/// Open files of the agent: 64 commands with three pipes, uploads, parked interpreters. A command has its own limit.
const OPEN_FILES: u64 = 4096;
/// As many as a command may have.
const OPEN_FILES_MAX: u64 = 1 << 20;

pub use hostile::hostile;

/// Runs the agent: never returns. Anything but the first process of a guest is told so.
pub fn run() -> ! {
    if std::process::id() != 1 {
        say("atoll-agent is the first process of a guest; there is nothing to do for it here");
        std::process::exit(2);
    }
    std::panic::set_hook(Box::new(|info| say(&format!("a fault in the agent: {info}"))));
    // A first process that ends is a kernel panic, which ends the machine: nothing can be served without these.
    if let Err(error) = serve_host() {
        say(&format!("giving up: {error}"));
    }
    std::process::exit(1);
}

fn serve_host() -> Result<(), Box<dyn Error>> {
    let root = boot::run()?;
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES_MAX) {
        say(&format!("can't raise the limit of open files: {error}"));
    }
    let bounds = Arc::new(Bounds::make());
    let machine = Arc::new(Guest::new(root.disk, Arc::clone(&bounds))?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_IDLE)
        .build()?;
    runtime.block_on(async {
        let reaper = Reaper::start(Scope::Everything)?;
        let place = Place::new(PathBuf::from(HOME), PathBuf::from(SCRATCH), PathBuf::from(SCRIPTS))?;
        let agent = Arc::new(Agent {
            machine,
            identity: IdentityCell::default(),
            engine: Engine::new(reaper.clone(), Arc::clone(&bounds)),
            contexts: Contexts::default(),
            warm: warm::start(&place, reaper, bounds),
            place,
        });
        let mut channel = Channel::open().await?;
        say("up");
        loop {
            let session = channel.accept().await?;
            tokio::spawn(serve(Arc::clone(&agent), session));
        }
    })
}
