//! Watches a started monitor: its end, its deadline, its outputs and the keeper's socket; notes how it ended.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::config::{EndRecord, KeeperConfig, SCHEMA};
use super::console::{OUTPUT_BYTES, Output};
use super::events::{Events, RESET};
use super::plug::Helper;
use super::protocol::Reply;
use super::run::{StartError, Started, system};
use super::serve::{Machine, serve};
use crate::durable::{remove_file, write_json};
use crate::seal::{Handout, OomCounter, Sealed};
use crate::sys;

/// How often a keeper looks whether its folder is still there.
const FOLDER_EVERY: Duration = Duration::from_secs(10);

/// How long a machine may stay unconfirmed: ten times what a restore takes on a busy host.
const CONFIRM_LIMIT: Duration = Duration::from_secs(60);

/// How a machine ends that the kernel kills for its cgroup's limit.
const OUT_OF_MEMORY: &str = "it was killed for using more than its limit of memory on the host";

/// The main thread's state: the only one that reaps.
pub(super) struct Watch {
    machine: Arc<Machine>,
    listener: UnixListener,
    child: Child,
    pidfd: OwnedFd,
    console: Output,
    errors: Output,
    events: Events,
    /// What serves its network beside it; it ends with this.
    _helper: Option<Helper>,
    handout: Option<Handout>,
    oom: Option<OomCounter>,
    started: Instant,
    looked: Instant,
}

impl Watch {
    pub(super) fn new(config: KeeperConfig, listener: UnixListener, started: Started) -> Result<Self, StartError> {
        let Started { mut child, vmm, sealed, helper, known, events } = started;
        let folder = config.spec.folder.clone();
        let pidfd = sys::pidfd_open(vmm.pid).map_err(system("watch its monitor"))?;
        let output = |pipe, log| Output::new(pipe, log, Instant::now()).map_err(system("read its monitor"));
        let console = output(child.stdout.take().map(Into::into), folder.console_log())?;
        let errors = output(child.stderr.take().map(Into::into), folder.vmm_log())?;
        let events = Events::new(events, folder.events_log(), Instant::now()).map_err(system("hear its monitor"))?;
        let Sealed { seal, claim, handout, oom } = sealed;
        let machine = Machine::new(config, vmm, claim, seal, known).map_err(system("make a timer"))?;
        Ok(Self {
            machine: Arc::new(machine),
            listener,
            child,
            pidfd,
            console,
            errors,
            events,
            _helper: helper,
            handout,
            oom,
            started: Instant::now(),
            looked: Instant::now(),
        })
    }

    /// Watches until the monitor has ended.
    pub(super) fn run(mut self) -> Result<(), StartError> {
        let mut buffer = vec![0; OUTPUT_BYTES];
        while !self.turn(&mut buffer)? {}
        self.drain(&mut buffer);
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
            let outputs = [self.console.due(begun), self.errors.due(begun), self.events.due(begun)];
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
            self.drain(buffer);
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

    fn drain(&mut self, buffer: &mut [u8]) {
        let now = Instant::now();
        self.console.drain(buffer, now);
        self.errors.drain(buffer, now);
        self.events.drain(buffer, now);
    }

    /// How long a machine that nobody has confirmed may still live.
    fn confirm_left(&self) -> Option<Duration> {
        let settled = self.machine.config().ahead || self.machine.is_confirmed() || self.machine.is_doomed();
        (!settled).then(|| CONFIRM_LIMIT.saturating_sub(self.started.elapsed()))
    }

    fn next_look(&self, now: Instant) -> PollTimeout {
        let rests = [self.console.rest(now), self.errors.rest(now), self.events.rest(now)];
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
        let reset = self.events.reset().then_some(RESET);
        let reason = self.machine.reason().or(starved.then_some(OUT_OF_MEMORY)).or(reset);
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

pub(super) fn remove_sockets(config: &KeeperConfig) {
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
}
