//! Starts commands; a task of its own watches each to its end, whether anyone still listens or not.
//!
//! ```text
//! run, stream -> start -> watch: { output | timeout -> kill the group | ended } -> empty the pipes -> tell -> drain
//! ```
//!
//! A caller that goes away (a host that was replaced, a snapshot that was restored elsewhere) doesn't end a command:
//! its output is dropped and its timeout still holds.

use std::ffi::CString;
use std::fs;
use std::future::pending;
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guest_proto::surface::{AgentErrorCode, ExecEvent, ExecReply};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::command::{Command, strings};
use super::output::{Budget, Collected, Output};
use super::reaper::Reaper;
use crate::limits::Bounds;
use crate::refusal::{Answer, file_error, refuse};
use crate::sys::{self, Exit, Launch};
use crate::warm::{Ends, NICE, Parked};

/// Commands at once: each holds pipes and output in the agent's memory. A model runs a few; a loop is stopped here.
const COMMANDS_MAX: usize = 64;
/// How long a killed command may take to be gone: one in the middle of disk I/O can't die before it is done.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// Output that is wanted at the end only is read when the command has run for so long, or has ended: until then its pipes
/// hold 64 KiB each (pipe(7)).
const COLLECT_AFTER: Duration = Duration::from_millis(10);
/// What a command leaves is removed so long after its end: its answer goes first, and most let go of their outputs
/// meanwhile.
const CLEAN_UP_AFTER: Duration = Duration::from_millis(20);
/// Events on their way to a slow reader; a full queue holds the command back by its pipe.
const EVENTS_MAX: usize = 8;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself.
    Reply(ExecReply),
    /// By its timeout, which killed its process group.
    TimedOut(Duration),
}

impl Ended {
    /// With what is in one output alone in the output that a merged command has.
    pub(crate) fn merged(mut self, merge: bool) -> Self {
        if let Self::Reply(reply) = &mut self
            && merge
        {
            reply.stdout = std::mem::take(&mut reply.stderr);
        }
        self
    }
}

/// Starts commands, a bounded number at once.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    reaper: Reaper,
    permits: Arc<Semaphore>,
    budget: Budget,
    bounds: Arc<Bounds>,
}

/// Where output goes.
#[derive(Debug)]
enum Sink {
    Collect { stdout: Collected, stderr: Collected },
    Stream(mpsc::Sender<ExecEvent>),
}

#[derive(Debug, Clone, Copy)]
enum From {
    Stdout,
    Stderr,
}

/// A started command.
pub(crate) struct Running {
    /// Its process, and its process group.
    pub(crate) group: Pid,
    /// How it ends.
    pub(crate) ended: oneshot::Receiver<Exit>,
    /// Its standard output.
    pub(crate) stdout: Output,
    /// Its standard error.
    pub(crate) stderr: Output,
    /// Where one that was parked may tell its end before it is gone.
    ends: Option<Ends>,
    started: Instant,
    bounds: Arc<Bounds>,
    /// How many processes had been ended for memory before it started.
    memory_kills: u64,
}

/// What the watch saw.
struct Seen {
    exit: Option<Exit>,
    timed_out: bool,
    took: Duration,
    sink: Sink,
}

impl Engine {
    pub(crate) fn new(reaper: Reaper, bounds: Arc<Bounds>) -> Self {
        Self { reaper, permits: Arc::new(Semaphore::new(COMMANDS_MAX)), budget: Budget::default(), bounds }
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, command: Command) -> Answer<Ended> {
        self.run_in(None, command).await
    }

    /// Runs a command to its end in a parked interpreter, or in a process of its own.
    pub(crate) async fn run_in(&self, parked: Option<Parked>, command: Command) -> Answer<Ended> {
        let timeout = command.limits.timeout;
        let permit = self.permit()?;
        let running = self.begin(parked, &command)?;
        let sink = Sink::Collect { stdout: self.collected(), stderr: self.collected() };
        let watch = tokio::spawn(watch(running, command, sink, permit));
        let seen = watch.await.map_err(|_| refuse(AgentErrorCode::Internal, "the watch over a command broke off"))?;
        match (timeout, seen.timed_out) {
            (Some(timeout), true) => Ok(Ended::TimedOut(timeout)),
            _ => Ok(Ended::Reply(reply(seen))),
        }
    }

    /// Runs a command and gives its events as they come; the last is `Exit`.
    pub(crate) fn stream(&self, command: Command) -> Answer<mpsc::Receiver<ExecEvent>> {
        let permit = self.permit()?;
        let running = self.begin(None, &command)?;
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(async move {
            let last = events.clone();
            let seen = watch(running, command, Sink::Stream(events), permit).await;
            let (exit_code, signal) = exit_numbers(seen.exit);
            let exit = ExecEvent::Exit { exit_code, signal, timed_out: seen.timed_out, truncated: false };
            // A reader that is gone needs no end.
            let _ = last.send(exit).await;
        });
        Ok(receiver)
    }

    fn collected(&self) -> Collected {
        Collected::new(self.budget.clone())
    }

    fn permit(&self) -> Answer<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            refuse(
                AgentErrorCode::Busy,
                format!("{COMMANDS_MAX} commands are running already; try again when one has ended"),
            )
        })
    }

    /// Starts a command in a parked interpreter, or in a process of its own. Whoever calls watches it.
    pub(crate) fn begin(&self, parked: Option<Parked>, command: &Command) -> Answer<Running> {
        match parked {
            Some(parked) => self.use_parked(parked, command),
            None => self.start(command),
        }
    }

    /// Has a parked interpreter run a command. If it has died, a fresh process does.
    fn use_parked(&self, mut parked: Parked, command: &Command) -> Answer<Running> {
        let memory_kills = self.bounds.memory_kills();
        if let Some(files) = self.bounds.own_open_files() {
            // One that has just died is found out by what follows.
            let _ = sys::set_open_files(parked.pid.as_raw(), files);
        }
        let started = Instant::now();
        if parked.tell(command).is_err() {
            return self.start(command);
        }
        let failed = |error| file_error("start", &command.program)(error);
        let stderr = if command.limits.merge { Output::none() } else { Output::new(parked.stderr).map_err(failed)? };
        let stdout = Output::new(parked.stdout).map_err(failed)?;
        let bounds = Arc::clone(&self.bounds);
        let ends = Some(parked.ends);
        Ok(Running { group: parked.pid, ended: parked.ended, stdout, stderr, ends, started, bounds, memory_kills })
    }

    /// Starts the process. Nothing is awaited between its start and its registration.
    fn start(&self, command: &Command) -> Answer<Running> {
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(libc::EAGAIN) => refuse(AgentErrorCode::Busy, self.bounds.pids_sentence()),
            _ => file_error("start", &command.program)(error),
        };
        let (out_reader, out_writer) = io::pipe().map_err(failed)?;
        let (stderr, err_writer) = if command.limits.merge {
            (Output::none(), None)
        } else {
            let (reader, writer) = io::pipe().map_err(failed)?;
            (Output::new(reader).map_err(failed)?, Some(writer))
        };
        let stdout = Output::new(out_reader).map_err(failed)?;
        let (stdin, stdin_writer) = stdin_of(command).map_err(failed)?;
        let memory_kills = self.bounds.memory_kills();
        let started = Instant::now();
        let name = |path: &std::path::Path| CString::new(path.as_os_str().as_encoded_bytes());
        let launch = || {
            let program = name(&command.program)?;
            let mut arguments = vec![program.clone()];
            for argument in &command.arguments {
                arguments.push(CString::new(argument.as_str())?);
            }
            sys::launch(&Launch {
                program,
                arguments,
                environment: strings(&command.environment)?,
                cwd: name(&command.cwd)?,
                descriptors: &[stdin.as_fd(), out_writer.as_fd(), err_writer.as_ref().unwrap_or(&out_writer).as_fd()],
                cgroup: self.bounds.group(),
                open_files: self.bounds.open_files(),
                expendable: true,
            })
        };
        let group = Pid::from_raw(launch().map_err(failed)?);
        let ended = self.reaper.register(group);
        if let Some(writer) = stdin_writer {
            feed(writer, command.stdin.clone());
        }
        let bounds = Arc::clone(&self.bounds);
        Ok(Running { group, ended, stdout, stderr, ends: None, started, bounds, memory_kills })
    }
}

/// Standard input: nothing, or a pipe and the end to write to.
fn stdin_of(command: &Command) -> io::Result<(OwnedFd, Option<PipeWriter>)> {
    if command.stdin.is_empty() {
        return Ok((fs::File::open("/dev/null")?.into(), None));
    }
    let (reader, writer) = io::pipe()?;
    Ok((reader.into(), Some(writer)))
}

/// Writes bytes to a pipe beside everything else; a command that doesn't read them ends that with its own end.
pub(crate) fn feed(writer: PipeWriter, bytes: Vec<u8>) {
    tokio::spawn(async move {
        if let Ok(mut pipe) = Sender::from_owned_fd(OwnedFd::from(writer)) {
            // The command may well end without reading all of it.
            let _ = pipe.write_all(&bytes).await;
        }
    });
}

/// Watches a command to its end.
async fn watch(mut running: Running, command: Command, mut sink: Sink, _permit: OwnedSemaphorePermit) -> Seen {
    let mut deadline = Deadline::new(command.limits.timeout, running.started);
    let mut at_once = matches!(sink, Sink::Stream(_));
    let later = tokio::time::sleep(if at_once { Duration::ZERO } else { COLLECT_AFTER });
    tokio::pin!(later);
    let exit = loop {
        tokio::select! {
            biased;
            exit = told(&mut running.ends) => {
                // It is being taken apart now, which the answer goes before; it may be gone already.
                let _ = sys::set_niceness(running.group.as_raw(), NICE);
                break Some(exit);
            }
            exit = &mut running.ended => break exit.ok(),
            () = &mut later, if !at_once => at_once = true,
            () = deadline.passes() => {
                if deadline.killed {
                    break None;
                }
                deadline.kill(running.group);
            }
            bytes = running.stdout.read(), if at_once => {
                sink.take(From::Stdout, bytes, &mut deadline, running.group).await;
            }
            bytes = running.stderr.read(), if at_once => {
                sink.take(From::Stderr, bytes, &mut deadline, running.group).await;
            }
        }
    };
    let took = running.started.elapsed();
    for (from, output) in [(From::Stdout, &mut running.stdout), (From::Stderr, &mut running.stderr)] {
        let mut rest = Vec::new();
        output.empty(|bytes| match &mut sink {
            Sink::Collect { .. } => sink.collect(from, bytes),
            Sink::Stream(_) => rest.extend_from_slice(bytes),
        });
        sink.send(from, &rest).await;
    }
    if exit.is_some_and(may_be_memory) && running.bounds.memory_kills() > running.memory_kills {
        let sentence = running.bounds.memory_sentence();
        let from = if command.limits.merge { From::Stdout } else { From::Stderr };
        sink.collect(from, sentence.as_bytes());
        sink.send(from, sentence.as_bytes()).await;
    }
    tokio::spawn(clean_up(command.scratch, running.stdout, running.stderr));
    Seen { exit, timed_out: deadline.killed, took, sink }
}

/// Removes what a command leaves, once its answer is out, and reads on what its children still write.
async fn clean_up(scratch: Option<PathBuf>, mut stdout: Output, mut stderr: Output) {
    tokio::time::sleep(CLEAN_UP_AFTER).await;
    if let Some(scratch) = scratch {
        // It lies in a folder for such files, which a boot empties.
        let _ = fs::remove_file(scratch);
    }
    tokio::join!(stdout.drain(), stderr.drain());
}

/// How one that was parked says that it ends.
async fn told(ends: &mut Option<Ends>) -> Exit {
    match ends {
        Some(ends) => ends.told().await,
        None => pending().await,
    }
}

/// Whether a command's end is how one ends that was killed for memory, itself or the one that its shell waited for.
fn may_be_memory(exit: Exit) -> bool {
    let killed = Signal::SIGKILL as i32;
    matches!(exit, Exit::Signal(signal) if signal == killed) || matches!(exit, Exit::Code(code) if code == 128 + killed)
}

/// The moment that kills, then the moment that gives up on the killed.
#[derive(Debug)]
struct Deadline {
    at: Option<tokio::time::Instant>,
    killed: bool,
}

impl Deadline {
    fn new(timeout: Option<Duration>, started: Instant) -> Self {
        Self { at: timeout.map(|timeout| (started + timeout).into()), killed: false }
    }

    async fn passes(&self) {
        match self.at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => pending().await,
        }
    }

    fn kill(&mut self, group: Pid) {
        self.killed = true;
        self.at = Some(tokio::time::Instant::now() + KILL_WAIT);
        // One that has just ended by itself can't be killed any more.
        let _ = killpg(group, Signal::SIGKILL);
    }
}

impl Sink {
    /// Takes output. A reader that is slow holds the command back, but not its timeout.
    async fn take(&mut self, from: From, bytes: &[u8], deadline: &mut Deadline, group: Pid) {
        if let Self::Collect { .. } = self {
            return self.collect(from, bytes);
        }
        tokio::select! {
            biased;
            () = self.send(from, bytes) => {}
            () = deadline.passes(), if !deadline.killed => deadline.kill(group),
        }
    }

    fn collect(&mut self, from: From, bytes: &[u8]) {
        match (self, from) {
            (Self::Collect { stdout, .. }, From::Stdout) => stdout.push(bytes),
            (Self::Collect { stderr, .. }, From::Stderr) => stderr.push(bytes),
            (Self::Stream(_), _) => {}
        }
    }

    async fn send(&self, from: From, bytes: &[u8]) {
        let Self::Stream(events) = self else { return };
        if bytes.is_empty() || events.is_closed() {
            return;
        }
        let data = STANDARD.encode(bytes);
        let event = match from {
            From::Stdout => ExecEvent::Stdout { data },
            From::Stderr => ExecEvent::Stderr { data },
        };
        // A reader that is gone gets nothing; the command goes on.
        let _ = events.send(event).await;
    }
}

/// An exit as the surface tells it: the code, or 128+n and n.
fn exit_numbers(exit: Option<Exit>) -> (i32, Option<i32>) {
    match exit {
        Some(Exit::Code(code)) => (code, None),
        Some(Exit::Signal(signal)) => (128 + signal, Some(signal)),
        // Killed, and not gone yet.
        None => (128 + Signal::SIGKILL as i32, Some(Signal::SIGKILL as i32)),
    }
}

fn reply(seen: Seen) -> ExecReply {
    let (exit_code, signal) = exit_numbers(seen.exit);
    let took_ms = u64::try_from(seen.took.as_millis()).unwrap_or(u64::MAX);
    let Sink::Collect { stdout, stderr } = seen.sink else {
        return ExecReply { exit_code, signal, took_ms, ..ExecReply::default() };
    };
    ExecReply {
        exit_code,
        signal,
        stdout: STANDARD.encode(&stdout.bytes),
        stderr: STANDARD.encode(&stderr.bytes),
        truncated: stdout.truncated || stderr.truncated,
        took_ms,
    }
}
