//! The keeper's process: starts the monitor, watches it, its deadline and its output, and notes how it ended.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fabric_types::HypervisorKind;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use thiserror::Error;

use super::config::{EndRecord, KeeperConfig, SCHEMA};
use super::console::{OUTPUT_BYTES, Output};
use super::plug::{Helper, PLACEHOLDER, PlugError, plug};
use super::protocol::Reply;
use super::serve::{Machine, refuse_one, serve};
use crate::checkpoint::{self, CheckpointError, Known, Memory, Restoring};
use crate::durable::{read_json, remove_file, write_json};
use crate::process::ProcessRef;
use crate::seal::{self, Handout, OomCounter, SealMode, Sealed, Sealing};
use crate::{MemorySource, VmError, sys, template};

/// How long a machine may stay unconfirmed: ten times what a restore takes on a busy host.
const CONFIRM_LIMIT: Duration = Duration::from_secs(60);
/// How often a keeper looks whether its folder is still there.
const FOLDER_EVERY: Duration = Duration::from_secs(10);

/// The processor's time that a monitor's first thread takes at once, the kernel's least. QEMU's passes messages between the
/// guest and its host, tens of microseconds each: woken on a processor where the guest computes it would wait for the
/// guest's slice, 3 ms. The guest's own stays: with all slices as short, 20 creates at once take half as long again.
const MESSAGES_SLICE: Duration = Duration::from_micros(100);

/// How a machine ends that the kernel kills for its cgroup's limit.
const OUT_OF_MEMORY: &str = "it was killed for using more than its limit of memory on the host";

/// Why a keeper couldn't start its machine.
#[derive(Debug, Error)]
enum StartError {
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
struct Started {
    child: Child,
    vmm: ProcessRef,
    sealed: Sealed,
    /// What serves its network beside it.
    helper: Option<Helper>,
    known: Option<Known>,
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
        Ok(Started { child, vmm, sealed, helper, known }) => {
            let ended = Watch::new(config, listener, child, vmm, sealed, known).and_then(Watch::run);
            drop(helper);
            ended
        }
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

fn system(action: &'static str) -> impl Fn(io::Error) -> StartError {
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
    // It holds the other end of what the monitor's process reports on.
    drop(command);
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
    Ok(Started { child, vmm, sealed, helper: plug.and_then(|plug| plug.helper), known })
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

/// The main thread's state: the only one that reaps.
struct Watch {
    machine: Arc<Machine>,
    listener: UnixListener,
    child: Child,
    pidfd: OwnedFd,
    console: Output,
    errors: Output,
    handout: Option<Handout>,
    oom: Option<OomCounter>,
    started: Instant,
    looked: Instant,
}

impl Watch {
    fn new(
        config: KeeperConfig,
        listener: UnixListener,
        mut child: Child,
        vmm: ProcessRef,
        sealed: Sealed,
        known: Option<Known>,
    ) -> Result<Self, StartError> {
        let folder = config.spec.folder.clone();
        let pidfd = sys::pidfd_open(vmm.pid).map_err(system("watch its monitor"))?;
        let output = |pipe, log| Output::new(pipe, log, Instant::now()).map_err(system("read its monitor"));
        let console = output(child.stdout.take().map(Into::into), folder.console_log())?;
        let errors = output(child.stderr.take().map(Into::into), folder.vmm_log())?;
        let Sealed { seal, claim, handout, oom } = sealed;
        let machine = Machine::new(config, vmm, claim, seal, known).map_err(system("make a timer"))?;
        Ok(Self {
            machine: Arc::new(machine),
            listener,
            child,
            pidfd,
            console,
            errors,
            handout,
            oom,
            started: Instant::now(),
            looked: Instant::now(),
        })
    }

    fn run(mut self) -> Result<(), StartError> {
        let mut buffer = vec![0; OUTPUT_BYTES];
        while !self.turn(&mut buffer)? {}
        self.console.drain(&mut buffer, Instant::now());
        self.errors.drain(&mut buffer, Instant::now());
        let status = self.machine.reap(|| self.child.wait()).map_err(system("reap its monitor"))?;
        self.finish(status)
    }

    /// Waits for one event and handles it; true when the monitor has ended.
    fn turn(&mut self, buffer: &mut [u8]) -> Result<bool, StartError> {
        let begun = Instant::now();
        let timeout = self.next_look(begun);
        let (ready, first_output) = {
            let mut fds = vec![
                readable(self.pidfd.as_fd()),
                readable(self.machine.deadline().as_fd()),
                readable(self.listener.as_fd()),
            ];
            // What the monitor's opens are answered with comes first: it waits.
            let asks = self.handout.as_ref().and_then(Handout::listener);
            fds.extend(asks.map(readable));
            let first_output = fds.len();
            let outputs = [&self.console, &self.errors].map(|output| output.due(begun));
            fds.extend(outputs.into_iter().flatten().map(readable));
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(system("wait")(error.into())),
            }
            (fds.iter().map(|fd| fd.any().unwrap_or(false)).collect::<Vec<bool>>(), first_output)
        };
        if first_output > 3
            && ready[3]
            && let Some(handout) = &mut self.handout
        {
            handout.serve();
        }
        if ready[first_output..].contains(&true) {
            let now = Instant::now();
            self.console.drain(buffer, now);
            self.errors.drain(buffer, now);
        }
        if ready[1] && self.machine.deadline_passed() {
            self.machine.kill("its deadline passed");
        }
        if ready[2]
            && let Ok((stream, _)) = self.listener.accept()
        {
            serve(&self.machine, stream);
        }
        if self.confirm_left() == Some(Duration::ZERO) {
            self.machine.kill("nobody confirmed it in time");
        }
        self.look_for_folder();
        Ok(ready[0])
    }

    /// How long a machine that nobody has confirmed may still live.
    fn confirm_left(&self) -> Option<Duration> {
        let settled = self.machine.config().ahead || self.machine.is_confirmed() || self.machine.is_doomed();
        (!settled).then(|| CONFIRM_LIMIT.saturating_sub(self.started.elapsed()))
    }

    fn next_look(&self, now: Instant) -> PollTimeout {
        let rests = [&self.console, &self.errors].map(|output| output.rest(now));
        let soonest = rests.into_iter().flatten().chain(self.confirm_left()).min().unwrap_or(FOLDER_EVERY);
        // Rounded up: what waits for a part of a millisecond would ask again and again.
        PollTimeout::try_from(soonest.min(FOLDER_EVERY) + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
    }

    /// Ends a machine whose folder was removed: no node can find it any more, and it would run for ever.
    fn look_for_folder(&mut self) {
        if self.looked.elapsed() < FOLDER_EVERY {
            return;
        }
        self.looked = Instant::now();
        // A folder that is mounted here has no links left when it is gone on the host.
        let gone = match fs::metadata(&self.machine.config().spec.folder.dir) {
            Ok(about) => about.nlink() == 0,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if gone {
            self.machine.kill("its folder was removed");
        }
    }

    /// Notes and tells how it ended, and removes what can't be used again.
    fn finish(mut self, status: ExitStatus) -> Result<(), StartError> {
        self.machine.finish_recording();
        let starved = self.oom.as_mut().is_some_and(OomCounter::has_killed) && status.signal().is_some();
        let reason = self.machine.reason().or(starved.then_some(OUT_OF_MEMORY));
        let how = how(reason, status, &self.errors.log.last_line());
        let config = self.machine.config();
        remove_sockets(config);
        let folder = &config.spec.folder;
        let noted = if self.machine.keeps_record() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let at_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            write_json(&folder.end_record(), &EndRecord { schema: SCHEMA, how: how.clone(), at_unix_ms })
        } else {
            remove_file(&folder.record())
        };
        self.machine.tell_waiters(&Reply::Ended { how });
        Ok(noted?)
    }
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

fn remove_sockets(config: &KeeperConfig) {
    let folder = &config.spec.folder;
    let sockets = config.listeners.iter().map(|listener| listener.path.clone());
    for path in sockets.chain([folder.keeper_socket()]).chain(config.remove.iter().cloned()) {
        // A leftover is removed by the next start in this folder.
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
    }
}

/// How it ended, as a sentence without its subject.
fn how(reason: Option<&str>, status: ExitStatus, last_error: &str) -> String {
    let cause = match (status.code(), status.signal()) {
        (Some(0), _) => "the monitor exited by itself with status 0 (the guest powered off or reset)".to_owned(),
        (Some(code), _) => format!("the monitor exited with status {code}"),
        (None, Some(signal)) => format!("the monitor was killed by signal {signal}"),
        (None, None) => format!("the monitor ended: {status}"),
    };
    match reason {
        Some(reason) => reason.to_owned(),
        // Monitors warn of what is meant (a card without a far side): that is no cause.
        None if last_error.is_empty() || last_error.contains("warning:") || status.success() => cause,
        None => format!("{cause}: {last_error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_who_ended_it() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(how(Some("its deadline passed"), ExitStatus::from_raw(9), "x"), "its deadline passed");
        assert_eq!(how(None, ExitStatus::from_raw(9), ""), "the monitor was killed by signal 9");
        assert_eq!(how(None, exited(1), "no such disk"), "the monitor exited with status 1: no such disk");
        assert_eq!(how(None, ExitStatus::from_raw(9), "x: warning: y"), "the monitor was killed by signal 9");
        assert!(how(None, exited(0), "a warning").ends_with("(the guest powered off or reset)"));
    }

    #[test]
    fn other_arguments_are_refused() {
        for args in [vec![], vec!["--config"], vec!["--file", "x"], vec!["--config", "a", "b"]] {
            let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
            assert!(matches!(run(&args), Err(StartError::Usage)));
        }
    }
}
