//! The keeper's process: starts the monitor with what it inherits, shut off from the host; `watch` goes on from there.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use fabric_types::HypervisorKind;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use thiserror::Error;

use super::config::{KeeperConfig, SCHEMA};
use super::events;
use super::plug::{Helper, PLACEHOLDER, PlugError, plug};
use super::serve::refuse_one;
use super::watch::{Watch, remove_sockets};
use crate::checkpoint::{self, CheckpointError, Known, Memory, Restoring};
use crate::durable::{read_json, remove_file};
use crate::process::ProcessRef;
use crate::seal::{self, SealMode, Sealed, Sealing};
use crate::{MemorySource, VmError, sys, template};

/// The processor's time that a monitor's first thread takes at once, the kernel's least. QEMU's passes messages between the
/// guest and its host, tens of microseconds each: woken on a processor where the guest computes it would wait for the
/// guest's slice, 3 ms. The guest's own stays: with all slices as short, 20 creates at once take half as long again.
const MESSAGES_SLICE: Duration = Duration::from_micros(100);

/// Why a keeper couldn't start its machine.
#[derive(Debug, Error)]
pub(super) enum StartError {
    #[error("usage: keeper --config FILE")]
    Usage,
    #[error(transparent)]
    Config(#[from] VmError),
    #[error("the keeper can't {action}: {source}")]
    System { action: &'static str, source: io::Error },
    #[error("can't listen on {path}: {source}")]
    Listen { path: PathBuf, source: io::Error },
    #[error("can't run {program}: {source}")]
    Program { program: PathBuf, source: io::Error },
    #[error("can't seal the machine: {0}")]
    Seal(io::Error),
    #[error(transparent)]
    Plug(#[from] PlugError),
    #[error("can't restore the monitor: {0}")]
    Checkpoint(#[from] CheckpointError),
}

/// A started monitor.
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) vmm: ProcessRef,
    pub(super) sealed: Sealed,
    /// What serves its network beside it.
    pub(super) helper: Option<Helper>,
    pub(super) known: Option<Known>,
    /// Where it tells its events, if it does.
    pub(super) events: Option<OwnedFd>,
}

/// Runs one machine's keeper until its monitor has ended: `keeper --config FILE`, with the listening socket `k` as
/// standard input. Call it before the process has a second thread; it needs no runtime. The arguments are those after
/// the subcommand's name.
pub fn keeper_main(args: &[OsString]) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing else can be told: the log is this process's standard error.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &[OsString]) -> Result<(), StartError> {
    match args {
        [word] if word == seal::NOTHING => return Ok(()),
        [word] if word == seal::TRIAL => return seal::trial().map_err(StartError::Seal),
        [word, folder] if word == seal::TRIAL_IN => return seal::trial_in(Path::new(folder)).map_err(StartError::Seal),
        _ => {}
    }
    let [flag, path] = args else { return Err(StartError::Usage) };
    if flag != "--config" {
        return Err(StartError::Usage);
    }
    detach()?;
    let config: KeeperConfig = read_json(Path::new(path), SCHEMA)?;
    remove_file(Path::new(path))?;
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(system("use its socket"))?;
    let listener = UnixListener::from(stdin);
    match start(&config) {
        Ok(started) => Watch::new(config, listener, started)?.run(),
        Err(error) => {
            refuse_one(&listener, &error.to_string());
            remove_sockets(&config);
            Err(error)
        }
    }
}

/// A session of its own: signals to the node's terminal or process group don't reach the keeper, nor the monitor. Files
/// are private, and a crash of the monitor writes no guest memory to disk. Neither process has huge pages, which QEMU
/// asks for in its tables and translated code: an idle clone is 2.7 MiB smaller without. A clone's memory, mapped
/// privately from a file, never has them.
fn detach() -> Result<(), StartError> {
    // Refused only to a group's leader, which then is apart already.
    let _ = nix::unistd::setsid();
    umask(Mode::from_bits_truncate(0o077));
    // An older kernel's monitors inherit what the node's caller forgot; it is none of the node's own.
    let _ = sys::keep_from_programs(3);
    // A kernel without huge pages refuses, and has none.
    let _ = nix::sys::prctl::set_thp_disable(true);
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|error| system("limit core files")(error.into()))
}

pub(super) fn system(action: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::System { action, source }
}

fn start(config: &KeeperConfig) -> Result<Started, StartError> {
    let mut arguments = config.arguments.clone();
    let mut inherited = Vec::new();
    let mut sealing = Sealing::limits(config);
    // First, while nothing else is inheritable: its helper is a program too.
    let wanted = arguments.iter().any(|argument| argument.contains(PLACEHOLDER));
    let plug = if wanted { plug(&config.spec.network)? } else { None };
    if let Some(plug) = &plug {
        for argument in &mut arguments {
            *argument = argument.replace(PLACEHOLDER, &plug.descriptor.as_raw_fd().to_string());
        }
    }
    let (events, tells) = events(&mut arguments)?.unzip();
    for listener in &config.listeners {
        let failed = |source| StartError::Listen { path: listener.path.clone(), source };
        let _ = fs::remove_file(&listener.path);
        let socket = UnixListener::bind(&listener.path).map_err(failed)?;
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|error| failed(error.into()))?;
        let placeholder = format!("{{fd:{}}}", listener.name);
        for argument in &mut arguments {
            *argument = argument.replace(&placeholder, &socket.as_raw_fd().to_string());
        }
        inherited.push((listener.name.clone(), socket));
    }
    let failed = |source| StartError::Program { program: config.program.clone(), source };
    // While the keeper sees the host's files and may open them.
    let plugged = plug.as_ref().map(|plug| &plug.descriptor);
    let checkpoint = config.spec.checkpoint.as_deref();
    let restoring =
        checkpoint.map(|folder| checkpoint::prepare(folder, &config.spec, &inherited, plugged)).transpose()?;
    let known = known(config, &inherited, plugged, restoring.as_ref());
    let program = sealing.enclose(config).map_err(failed)?;
    let mut command = Command::new(program);
    command.args(&arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sealing.command(config, &mut command).map_err(StartError::Seal)?;
    let mut child = command.spawn().map_err(failed)?;
    // They hold the other ends of what the monitor's process reports on.
    drop((command, tells));
    let settled = sealing.settle().map_err(StartError::Seal).and_then(|sealed| {
        let shown: Vec<String> = [config.program.display().to_string()].into_iter().chain(arguments).collect();
        let restored = restoring.map(|restoring| restoring.run(child.id(), &shown, config.seal.mode != SealMode::Off));
        restored.transpose()?;
        Ok(sealed)
    });
    let sealed = settled.inspect_err(|_| {
        // It may have ended by itself already.
        let _ = child.kill();
        let _ = child.wait();
    })?;
    // A monitor that ends at once is a zombie until it is reaped, so its number and start are still there.
    let vmm = ProcessRef::of(child.id()).map_err(system("see its monitor"))?;
    // What fails is only that messages wait for the processor.
    let _ = sys::set_slice(vmm.pid, MESSAGES_SLICE);
    Ok(Started { child, vmm, sealed, helper: plug.and_then(|plug| plug.helper), known, events })
}

/// A pipe for the events of a monitor whose arguments ask for one: the end that is read, and the one that it inherits.
fn events(arguments: &mut [String]) -> Result<Option<(OwnedFd, OwnedFd)>, StartError> {
    if !arguments.iter().any(|argument| argument.contains(events::PLACEHOLDER)) {
        return Ok(None);
    }
    let failed = system("make a pipe for its monitor's events");
    let (reader, writer) = io::pipe().map_err(&failed)?;
    fcntl(&writer, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|error| failed(error.into()))?;
    for argument in arguments {
        *argument = argument.replace(events::PLACEHOLDER, &writer.as_raw_fd().to_string());
    }
    Ok(Some((reader.into(), writer.into())))
}

/// What a checkpoint of the monitor needs to know; none for a monitor that isn't QEMU's, or whose files can't be seen.
fn known(
    config: &KeeperConfig,
    listeners: &[(String, UnixListener)],
    plug: Option<&OwnedFd>,
    restoring: Option<&Restoring>,
) -> Option<Known> {
    if config.driver != HypervisorKind::Qemu {
        return None;
    }
    let (listeners, plug) = restoring.map_or_else(
        || {
            let numbers = listeners.iter().map(|(name, listener)| (name.clone(), listener.as_raw_fd()));
            (numbers.collect(), plug.map(AsRawFd::as_raw_fd))
        },
        Restoring::numbers,
    );
    let spec = &config.spec;
    let memory = match (restoring, &spec.memory) {
        (Some(restoring), _) => Some(restoring.memory().clone()),
        (None, MemorySource::Clone { template } | MemorySource::Restore { template, .. }) => {
            Some(Memory::of_template(&template::memory_file(template)).ok()?)
        }
        (None, MemorySource::Boot | MemorySource::BootTemplate { .. } | MemorySource::BootOver { .. }) => None,
    };
    let program = seal::find(&config.program).ok()?;
    let files = [spec.image.root.as_path(), spec.disk.as_path()];
    Known::look(&program, (&spec.network).into(), files, memory, listeners, plug).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_arguments_are_refused() {
        for args in [vec![], vec!["--config"], vec!["--file", "x"], vec!["--config", "a", "b"]] {
            let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
            assert!(matches!(run(&args), Err(StartError::Usage)));
        }
    }
}
