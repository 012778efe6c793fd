//! The keeper's connections: a small thread for each, and the machine's state that they share.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fabric_types::Seal;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::config::{KeeperConfig, SCHEMA, VmRecord};
use super::pages::{self, Backing};
use super::protocol::{Based, Incoming, PROTOCOL, Reply, Request, encode, files_of, read_line};
use crate::checkpoint::{Files, Known, take};
use crate::durable::write_json;
use crate::process::{ProcessRef, boot_id, pid_of};
use crate::seal::Claim;

/// Connections at once: a node has two open and asks one thing more; the rest is slack for a second node taking over.
const CONNECTIONS_MAX: usize = 16;
/// Connections that wait for the end: one of each node, and a few whose end isn't seen yet.
const WAITERS_MAX: usize = 16;
/// Stack of a connection's thread, bytes: its deepest call is JSON of three paths.
const STACK_BYTES: usize = 128 << 10;
/// How long a connection may take to ask or to take its answer.
const PEER_LIMIT: Duration = Duration::from_secs(10);
/// How long a failed start waits for its node to come and hear why.
const REFUSE_LIMIT: Duration = Duration::from_secs(5);

/// What the main thread and the connections share.
pub(super) struct Machine {
    config: KeeperConfig,
    vmm: ProcessRef,
    claim: Option<Claim>,
    seal: Seal,
    /// What a checkpoint needs to know; none where the monitor can't be copied.
    known: Option<Known>,
    deadline: TimerFd,
    state: Mutex<State>,
    reaped: Condvar,
    connections: AtomicUsize,
    /// Held while `vm.json` is written, so that the end doesn't come between its two names.
    recording: Mutex<()>,
}

#[derive(Default)]
struct State {
    greeted: bool,
    confirmed: bool,
    /// Why the keeper killed the monitor.
    reason: Option<&'static str>,
    /// Whether somebody asked for the end, and so for the removal of the record.
    asked: bool,
    reaped: bool,
    waiters: Vec<UnixStream>,
}

impl Machine {
    pub(super) fn new(
        config: KeeperConfig,
        vmm: ProcessRef,
        claim: Option<Claim>,
        seal: Seal,
        known: Option<Known>,
    ) -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let deadline = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        Ok(Self {
            config,
            vmm,
            claim,
            seal,
            known,
            deadline,
            state: Mutex::default(),
            reaped: Condvar::new(),
            connections: AtomicUsize::new(0),
            recording: Mutex::default(),
        })
    }

    /// What the monitor maps its guest's memory from, and where that differs from the template's `memory`.
    fn backing(&self, memory: &Path) -> io::Result<(Backing, &[(u64, u64)])> {
        match self.known.as_ref().and_then(Known::backing) {
            Some((backing, differs)) => Ok((backing.clone(), differs)),
            None => Ok((Backing::at(memory)?, &[])),
        }
    }

    pub(super) fn config(&self) -> &KeeperConfig {
        &self.config
    }

    pub(super) fn deadline(&self) -> &TimerFd {
        &self.deadline
    }

    /// Whether the timer has really run out: a node may have set it anew between poll and here.
    pub(super) fn deadline_passed(&self) -> bool {
        self.deadline.wait().is_ok()
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.state().confirmed
    }

    /// Whether the monitor has been sent its end already.
    pub(super) fn is_doomed(&self) -> bool {
        let state = self.state();
        state.reason.is_some() || state.asked
    }

    pub(super) fn reason(&self) -> Option<&'static str> {
        self.state().reason
    }

    /// Whether `vm.json` stays and `ended.json` is written: for a machine that somebody counted on and nobody ended.
    pub(super) fn keeps_record(&self) -> bool {
        let state = self.state();
        state.confirmed && !state.asked
    }

    /// Kills the monitor. Its number can't have been recycled: it is reaped only under the lock.
    pub(super) fn kill(&self, reason: &'static str) {
        let mut state = self.state();
        state.reason.get_or_insert(reason);
        self.signal(&state, Signal::SIGKILL);
    }

    pub(super) fn reap(&self, wait: impl FnOnce() -> io::Result<ExitStatus>) -> io::Result<ExitStatus> {
        let mut state = self.state();
        let status = wait();
        state.reaped = true;
        self.reaped.notify_all();
        status
    }

    /// After the monitor was reaped: waits for a record that is being written. None is begun any more.
    pub(super) fn finish_recording(&self) {
        drop(self.recording.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Answers all who wait for the end.
    pub(super) fn tell_waiters(&self, reply: &Reply) {
        for stream in self.state().waiters.drain(..) {
            answer(&stream, reply);
        }
    }

    fn signal(&self, state: &State, signal: Signal) {
        if !state.reaped {
            // The only failure is that it has ended, which is noticed elsewhere.
            let _ = kill(pid_of(self.vmm.pid), signal);
        }
    }

    /// Only plain values are written under the lock, so a panicked thread leaves them whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one connection on a thread of its own; past the limit it is closed without an answer.
pub(super) fn serve(machine: &Arc<Machine>, stream: UnixStream) {
    if machine.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
        machine.connections.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let mine = Arc::clone(machine);
    let work = move || {
        // A peer that broke off has nobody left to tell.
        let _ = connection(&mine, stream);
        mine.connections.fetch_sub(1, Ordering::Relaxed);
    };
    if thread::Builder::new().stack_size(STACK_BYTES).spawn(work).is_err() {
        machine.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells the first who asks why there is no machine.
pub(super) fn refuse_one(listener: &UnixListener, message: &str) {
    let start = Instant::now();
    if listener.set_nonblocking(true).is_err() {
        return;
    }
    while start.elapsed() < REFUSE_LIMIT {
        if let Ok((stream, _)) = listener.accept() {
            let _ = stream.set_nonblocking(false);
            let _ = stream.set_read_timeout(Some(PEER_LIMIT));
            let _ = read_line(&mut BufReader::new(&stream));
            answer(&stream, &Reply::Failed { message: message.to_owned() });
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn answer(mut stream: &UnixStream, reply: &Reply) {
    let Ok(line) = encode(reply) else { return };
    let _ = stream.set_write_timeout(Some(PEER_LIMIT));
    let _ = stream.write_all(&line);
}

fn connection(machine: &Machine, stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PEER_LIMIT))?;
    let mut reader = BufReader::with_capacity(1024, Incoming::new(&stream));
    let Some(line) = read_line(&mut reader)? else { return Ok(()) };
    let reply = match serde_json::from_slice(&line) {
        Ok(Request::Hello) => return greet(machine, &stream, reader),
        Ok(Request::Wait) => return wait(machine, stream.try_clone()?),
        Ok(Request::End { grace_ms }) => {
            return end(machine, stream.try_clone()?, Duration::from_millis(grace_ms.into()));
        }
        Ok(request) => perform(machine, &request, reader.get_mut().files()),
        Err(error) => Reply::Failed { message: format!("that is no request: {error}") },
    };
    answer(&stream, &reply);
    Ok(())
}

/// Greets. The first greeting is the creator's: the record is written while the monitor starts, and until the creator
/// has confirmed, the end of its connection is the end of the machine.
fn greet(machine: &Machine, stream: &UnixStream, mut reader: BufReader<Incoming<'_>>) -> io::Result<()> {
    let keeper = ProcessRef::of(std::process::id())?;
    let (first, confirmed) = {
        let mut state = machine.state();
        (!std::mem::replace(&mut state.greeted, true), state.confirmed)
    };
    answer(stream, &Reply::Here { protocol: PROTOCOL, keeper, vmm: machine.vmm, confirmed });
    if !first {
        return Ok(());
    }
    let recorded = record(machine, keeper);
    // The machine is being prepared: how long that may take is the main thread's to say.
    stream.set_read_timeout(None)?;
    let line = read_line(&mut reader).ok().flatten();
    let asked = line.and_then(|line| serde_json::from_slice(&line).ok());
    match (asked, recorded) {
        (Some(Request::Confirm), Ok(())) => {
            machine.state().confirmed = true;
            answer(stream, &Reply::Done);
        }
        (Some(Request::Confirm), Err(message)) => {
            answer(stream, &Reply::Failed { message });
            machine.kill("its record could not be written");
        }
        _ => machine.kill("its node went before the machine was complete"),
    }
    Ok(())
}

fn record(machine: &Machine, keeper: ProcessRef) -> Result<(), String> {
    let config = machine.config();
    let record = VmRecord {
        schema: SCHEMA,
        driver: config.driver,
        boot_id: boot_id().map_err(|error| format!("can't read the boot id: {error}"))?,
        keeper,
        vmm: machine.vmm,
        spec: config.spec.clone(),
        uid: machine.claim.as_ref().map(|claim| claim.uid),
        seal: machine.seal.clone(),
    };
    let _recording = machine.recording.lock().unwrap_or_else(PoisonError::into_inner);
    if machine.state().reaped {
        return Err("the monitor has ended".to_owned());
    }
    write_json(&config.spec.folder.record(), &record).map_err(|error| error.to_string())
}

/// Lets a connection be answered by the main thread when the monitor has ended.
fn wait(machine: &Machine, stream: UnixStream) -> io::Result<()> {
    let mut state = machine.state();
    // A node that waits anew each time has closed its earlier connections.
    state.waiters.retain(is_open);
    if state.waiters.len() >= WAITERS_MAX {
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    state.waiters.push(stream);
    Ok(())
}

/// Whether the peer still listens: one that waits sends nothing more, so all there could be to read is the end.
fn is_open(stream: &UnixStream) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(stream.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
}

fn end(machine: &Machine, stream: UnixStream, grace: Duration) -> io::Result<()> {
    let mut state = machine.state();
    state.asked = true;
    state.reason.get_or_insert("it was shut down");
    state.waiters.push(stream);
    if !grace.is_zero() {
        machine.signal(&state, Signal::SIGTERM);
        let waited = machine.reaped.wait_timeout_while(state, grace, |state| !state.reaped);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    machine.signal(&state, Signal::SIGKILL);
    Ok(())
}

fn perform(machine: &Machine, request: &Request, given: Vec<File>) -> Reply {
    let start = Instant::now();
    let pid = machine.vmm.pid;
    // As the node opened them; else as this keeper can.
    let files = || if given.is_empty() { files_of(request) } else { Ok(given) };
    let moved = match request {
        Request::Deadline { boottime_ms } => return set_deadline(machine, *boottime_ms),
        Request::SavePages { memory, .. } => with_two(files(), |pages, runs| {
            let (memory, further) = machine.backing(memory)?;
            pages::save(pid, &memory, further, pages, runs)
        }),
        Request::LayPages { memory, .. } => {
            with_two(files(), |pages, runs| pages::lay(pid, &Backing::at(memory)?, pages, runs))
        }
        Request::TakeCheckpoint { based, .. } => files().and_then(|files| take_checkpoint(machine, *based, &files)),
        Request::Confirm => return Reply::Failed { message: "only the creating connection confirms".to_owned() },
        Request::Hello | Request::Wait | Request::End { .. } => {
            return Reply::Failed { message: "answered elsewhere".to_owned() };
        }
    };
    match moved {
        Ok(bytes) => Reply::Pages { bytes, took_us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX) },
        Err(error) => Reply::Failed { message: format!("the machine's pages can't be moved: {error}") },
    }
}

fn take_checkpoint(machine: &Machine, based: Based, files: &[File]) -> io::Result<u64> {
    let wanted = 4 + usize::from(based.pages) + usize::from(based.memory);
    let [manifest, pages, guest, runs, rest @ ..] = files else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a checkpoint comes as four descriptors or more"));
    };
    if files.len() != wanted {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a checkpoint comes with what it is based on"));
    }
    let base = rest.first().filter(|_| based.pages);
    let own_memory = rest.last().filter(|_| based.memory);
    let Some(known) = &machine.known else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this monitor isn't one that can be copied"));
    };
    let files = Files { manifest, pages, guest, runs, base, memory: own_memory };
    take(machine.vmm.pid, known, &files).map_err(io::Error::other)
}

fn with_two(files: io::Result<Vec<File>>, work: impl FnOnce(&File, &File) -> io::Result<u64>) -> io::Result<u64> {
    match files?.as_slice() {
        [pages, runs] => work(pages, runs),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "pages and runs come as two descriptors or none")),
    }
}

fn set_deadline(machine: &Machine, boottime_ms: Option<u64>) -> Reply {
    let set = match boottime_ms {
        // Zero would disarm the timer; a deadline of zero has passed as surely as one of 1 ms.
        Some(ms) => {
            let at = TimeSpec::milliseconds(i64::try_from(ms.max(1)).unwrap_or(i64::MAX));
            machine.deadline.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
        }
        None => machine.deadline.unset(),
    };
    match set {
        Ok(()) => Reply::Done,
        Err(error) => Reply::Failed { message: format!("the deadline can't be set: {error}") },
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for stream in self.state().waiters.drain(..) {
            // Nobody will answer; the peer sees the end of the stream.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
