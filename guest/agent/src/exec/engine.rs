//! Starts commands; a task of its own watches each to its end, whether anyone still listens or not.
//!
//! ```text
//! run, stream -> start -> watch: { output | timeout -> kill the group | ended } -> empty the pipes -> tell -> drain
//! ```
//!
//! A caller that goes away (a host that was replaced, a snapshot that was restored elsewhere) doesn't end a command:
//! its output is dropped and its timeout still holds.

use std::fs;
use std::future::pending;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{self, Stdio};
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

use super::command::Command;
use super::output::{Budget, Collected, Output};
use super::reaper::Reaper;
use crate::refusal::{Answer, file_error, refuse};
use crate::sys::Exit;

/// Commands at once: each holds pipes and output in the agent's memory. A model runs a few; a loop is stopped here.
const COMMANDS_MAX: usize = 64;
/// How long a killed command may take to be gone: one in the middle of disk I/O can't die before it is done.
const KILL_WAIT: Duration = Duration::from_secs(2);
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

/// Starts commands, a bounded number at once.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    reaper: Reaper,
    permits: Arc<Semaphore>,
    budget: Budget,
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
struct Running {
    group: Pid,
    ended: oneshot::Receiver<Exit>,
    stdout: Output,
    stderr: Output,
    started: Instant,
    _permit: OwnedSemaphorePermit,
}

/// What the watch saw.
struct Seen {
    exit: Option<Exit>,
    timed_out: bool,
    took: Duration,
    sink: Sink,
}

impl Engine {
    pub(crate) fn new(reaper: Reaper) -> Self {
        Self { reaper, permits: Arc::new(Semaphore::new(COMMANDS_MAX)), budget: Budget::default() }
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, command: Command) -> Answer<Ended> {
        let timeout = command.limits.timeout;
        let running = self.start(&command)?;
        let sink = Sink::Collect { stdout: self.collected(), stderr: self.collected() };
        let watch = tokio::spawn(watch(running, command, sink));
        let seen = watch.await.map_err(|_| refuse(AgentErrorCode::Internal, "the watch over a command broke off"))?;
        match (timeout, seen.timed_out) {
            (Some(timeout), true) => Ok(Ended::TimedOut(timeout)),
            _ => Ok(Ended::Reply(reply(seen))),
        }
    }

    /// Runs a command and gives its events as they come; the last is `Exit`.
    pub(crate) fn stream(&self, command: Command) -> Answer<mpsc::Receiver<ExecEvent>> {
        let running = self.start(&command)?;
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(async move {
            let last = events.clone();
            let seen = watch(running, command, Sink::Stream(events)).await;
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

    /// Starts the process. Nothing is awaited between its start and its registration.
    fn start(&self, command: &Command) -> Answer<Running> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| {
            refuse(
                AgentErrorCode::Busy,
                format!("{COMMANDS_MAX} commands are running already; try again when one has ended"),
            )
        })?;
        let action = "start";
        let failed = |error| file_error(action, &command.program)(error);
        let (out_reader, out_writer) = io::pipe().map_err(failed)?;
        let (stderr, err_writer) = if command.limits.merge {
            (Output::none(), out_writer.try_clone().map_err(failed)?)
        } else {
            let (reader, writer) = io::pipe().map_err(failed)?;
            (Output::new(reader).map_err(failed)?, writer)
        };
        let stdout = Output::new(out_reader).map_err(failed)?;
        let (stdin, stdin_writer) = stdin_of(command).map_err(failed)?;

        let mut process = process::Command::new(&command.program);
        process
            .args(&command.arguments)
            .env_clear()
            .envs(&command.environment)
            .current_dir(&command.cwd)
            .process_group(0)
            .stdin(stdin)
            .stdout(out_writer)
            .stderr(err_writer);
        let child = process.spawn().map_err(failed)?;
        let group = Pid::from_raw(child.id().cast_signed());
        let ended = self.reaper.register(group);
        if let Some(writer) = stdin_writer {
            feed(writer, command.stdin.clone());
        }
        Ok(Running { group, ended, stdout, stderr, started: Instant::now(), _permit: permit })
    }
}

/// Standard input: nothing, or a pipe and the end to write to.
fn stdin_of(command: &Command) -> io::Result<(Stdio, Option<PipeWriter>)> {
    if command.stdin.is_empty() {
        return Ok((Stdio::null(), None));
    }
    let (reader, writer) = io::pipe()?;
    Ok((reader.into(), Some(writer)))
}

/// Writes standard input beside everything else; a command that doesn't read it ends that with its own end.
fn feed(writer: PipeWriter, bytes: Vec<u8>) {
    tokio::spawn(async move {
        if let Ok(mut pipe) = Sender::from_owned_fd(OwnedFd::from(writer)) {
            // The command may well end without reading all of it.
            let _ = pipe.write_all(&bytes).await;
        }
    });
}

/// Watches a command to its end.
async fn watch(mut running: Running, command: Command, mut sink: Sink) -> Seen {
    let mut deadline = Deadline::new(command.limits.timeout, running.started);
    let exit = loop {
        tokio::select! {
            biased;
            exit = &mut running.ended => break exit.ok(),
            () = deadline.passes() => {
                if deadline.killed {
                    break None;
                }
                deadline.kill(running.group);
            }
            bytes = running.stdout.read() => sink.take(From::Stdout, bytes, &mut deadline, running.group).await,
            bytes = running.stderr.read() => sink.take(From::Stderr, bytes, &mut deadline, running.group).await,
        }
    };
    let took = running.started.elapsed();
    if let Some(scratch) = &command.scratch {
        // It lies in a folder for such files, which a boot empties.
        let _ = fs::remove_file(scratch);
    }
    for (from, output) in [(From::Stdout, &mut running.stdout), (From::Stderr, &mut running.stderr)] {
        let mut rest = Vec::new();
        output.empty(|bytes| match &mut sink {
            Sink::Collect { .. } => sink.collect(from, bytes),
            Sink::Stream(_) => rest.extend_from_slice(bytes),
        });
        sink.send(from, &rest).await;
    }
    running.stdout.drain();
    running.stderr.drain();
    Seen { exit, timed_out: deadline.killed, took, sink }
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
