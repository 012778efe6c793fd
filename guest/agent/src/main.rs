//! PID 1 of every guest: mounts, reaps, and serves the host over one channel.
//!
//! ```text
//! boot       mounts, kernel modules, the root file system
//! machine    what an identity and a shutdown change in the machine
//! channel    the virtio-serial port or vsock, as sessions
//! http       the surface over HTTP/2, one connection a session
//! identity   who the guest is; nothing but health is answered before it
//! exec       commands and program texts
//! files      files and folders
//! facts      health and logs
//! console    log lines on the console, and kept
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
mod http;
mod identity;
mod machine;
mod refusal;
mod sys;

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
use crate::machine::Guest;

/// Where program texts lie while they run: gone with every boot.
const SCRATCH: &str = "/tmp/.atoll";
/// Threads that may wait for a disk at once.
const BLOCKING_THREADS_MAX: usize = 16;
/// How long such a thread waits for more to do.
const BLOCKING_IDLE: Duration = Duration::from_secs(10);
/// Open files of the agent, and of each command to begin with: 64 commands with three pipes, their children's pipes.
const OPEN_FILES: u64 = 4096;
/// As many as a command may raise it to.
const OPEN_FILES_MAX: u64 = 1 << 16;

fn main() {
    if std::process::id() != 1 {
        say("atoll-agent is the first process of a guest; there is nothing to do for it here");
        std::process::exit(2);
    }
    std::panic::set_hook(Box::new(|info| say(&format!("a fault in the agent: {info}"))));
    // A first process that ends is a kernel panic, which ends the machine: nothing can be served without these.
    if let Err(error) = run() {
        say(&format!("giving up: {error}"));
    }
    std::process::exit(1);
}

fn run() -> Result<(), Box<dyn Error>> {
    let root = boot::run()?;
    // Commands inherit it; what was is enough for the agent alone.
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES_MAX) {
        say(&format!("can't raise the limit of open files: {error}"));
    }
    let machine = Arc::new(Guest::new(root.disk)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_IDLE)
        .build()?;
    runtime.block_on(async {
        let agent = Arc::new(Agent {
            machine,
            identity: IdentityCell::default(),
            engine: Engine::new(Reaper::start(Scope::Everything)?),
            home: PathBuf::from(HOME),
            scratch: PathBuf::from(SCRATCH),
        });
        let mut channel = Channel::open().await?;
        say("up");
        loop {
            let session = channel.accept().await?;
            tokio::spawn(serve(Arc::clone(&agent), session));
        }
    })
}
