//! `atoll dev`: a whole mesh on this machine, one process per node.
//!
//! ```text
//! layout      names, ports, folders, voters (pure)
//! record      dev.json: what lasts between two starts
//! lock        one supervisor per folder
//! prepare     authority, identities, configuration files
//! process     node processes by their pid files
//! supervisor  starts nodes, starts the dead again, waits for readiness, ends all
//! teardown    the end: sandboxes deleted, processes, sockets and folders gone
//! say         what a person sees
//! ```

mod host;
mod layout;
mod lock;
mod prepare;
pub(crate) use prepare::identity_folder;
mod process;
mod record;
pub(crate) mod say;
mod supervisor;
mod teardown;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use node_hypervisor::atomic_files;

use crate::args::DevStartArgs;
use layout::Layout;
use lock::Lock;
use record::Record;

/// A detached start gives up on a supervisor that says nothing for so long; an image and template built from nothing
/// take about two minutes on two slow cores.
const DETACH_LIMIT: Duration = Duration::from_secs(900);
/// The longest that `atoll dev stop` waits for the supervisor: deleting sandboxes is bounded below that.
const STOP_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// Starts a mesh, in the foreground or detached.
pub(crate) fn start(args: DevStartArgs) -> anyhow::Result<()> {
    let data = absolute_new(&args.data)?;
    let args = DevStartArgs { data, ..args };
    // Everything that can be wrong with the words is said before anything is started.
    Layout::new(&args.data, &args.regions, args.nodes_per_region, args.port_base)?;
    if args.detach {
        return detach(&args);
    }
    let lock = Lock::take(&args.data)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the asynchronous runtime")?;
    runtime.block_on(supervisor::run(args, lock))
}

/// Stops the mesh of a folder, whether its supervisor lives or not; returns when all is gone.
pub(crate) fn stop(data: &Path) -> anyhow::Result<()> {
    let Ok(data) = data.canonicalize() else {
        bail!("there is no mesh in {}: the folder doesn't exist", data.display());
    };
    let Some(record) = Record::load(&data)? else {
        bail!("there is no mesh in {}: it has no dev.json", data.display());
    };
    if let Some(supervisor) = Lock::holder(&data)? {
        say::line(&format!("stopping the mesh in {} (process {supervisor})", data.display()));
        lock::terminate(supervisor);
        let until = Instant::now() + STOP_LIMIT;
        while Lock::holder(&data)?.is_some() {
            if Instant::now() >= until {
                bail!(
                    "process {supervisor} has not ended in {} s; see the logs under {}",
                    STOP_LIMIT.as_secs(),
                    data.display()
                );
            }
            std::thread::sleep(POLL);
        }
    }
    // A supervisor that was killed leaves its nodes: what is left is ended here, and a clean folder costs nothing.
    let _lock = Lock::take(&data)?;
    let layout = Layout::new(&data, &record.regions, record.nodes_per_region, 7080)?;
    teardown::all(&layout, &record.run)?;
    say::line("stopped: no process, socket or sandbox of it is left");
    Ok(())
}

/// Starts the same command as a process of its own and waits until its mesh is ready.
fn detach(args: &DevStartArgs) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt as _;

    if let Some(holder) = Lock::holder(&args.data)? {
        bail!("{} is in use by process {holder}; stop it with: atoll dev stop --data {0}", args.data.display());
    }
    std::fs::create_dir_all(&args.data).with_context(|| format!("can't make {}", args.data.display()))?;
    atomic_files::remove_file(&args.data.join("env"))?;
    let log_path = args.data.join("dev.log");
    let log = std::fs::File::create(&log_path).with_context(|| format!("can't write {}", log_path.display()))?;
    let words = std::env::args_os().skip(1).filter(|word| word != "--detach");
    let mut child = Command::new(this_program()?)
        .args(words)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("can't share the log")?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .context("can't start the mesh's supervisor")?;
    let until = Instant::now() + DETACH_LIMIT;
    let mut shown = 0;
    loop {
        shown = say::copy_new_lines(&log_path, shown);
        if args.data.join("env").exists() {
            return Ok(());
        }
        if let Some(status) = child.try_wait().context("can't wait for the mesh's supervisor")? {
            say::copy_new_lines(&log_path, shown);
            bail!("the mesh did not start ({status}); its words are above and in {}", log_path.display());
        }
        if Instant::now() >= until {
            lock::terminate(child.id());
            bail!(
                "the mesh was not ready in {} s and was told to stop; see {}",
                DETACH_LIMIT.as_secs(),
                log_path.display()
            );
        }
        std::thread::sleep(POLL);
    }
}

/// An absolute path of a folder that may not exist yet, made with its parents.
fn absolute_new(path: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(path).with_context(|| format!("can't make the folder {}", path.display()))?;
    path.canonicalize().with_context(|| format!("can't find the folder {}", path.display()))
}

/// This program's own file. Linux marks the path of one that was replaced; the newer version at that path serves as well.
fn this_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("can't find this program's own file")?;
    let text = program.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| program.clone(), PathBuf::from))
}
