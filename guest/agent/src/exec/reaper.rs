//! Collects every process that ends, and tells who waits for one.
//!
//! The first process inherits every orphan, so it waits for any child. A command's end is told to its watcher; of the
//! others nobody asked. A command is registered on the runtime's only thread before anything else runs there, so its
//! end can't come first.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::sys::{self, Exit};

/// Which processes are collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Every child: the first process of a guest.
    Everything,
    /// Only those that were registered: a process among others, as in tests.
    #[cfg_attr(not(test), expect(dead_code, reason = "the agent is only ever the first process; its tests are not"))]
    Registered,
}

/// Registers processes; clones share one table.
#[derive(Debug, Clone)]
pub(crate) struct Reaper(Arc<Mutex<HashMap<Pid, oneshot::Sender<Exit>>>>);

impl Reaper {
    /// Starts collecting. Must be called on the runtime.
    pub(crate) fn start(scope: Scope) -> io::Result<Self> {
        let mut ended = signal(SignalKind::child())?;
        let reaper = Self(Arc::default());
        let table = reaper.clone();
        tokio::spawn(async move {
            loop {
                table.collect(scope);
                if ended.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Will tell how this child ends. Called right after it was started, before anything is awaited.
    pub(crate) fn register(&self, pid: Pid) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        self.table().insert(pid, sender);
        receiver
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Pid, oneshot::Sender<Exit>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, scope: Scope) {
        match scope {
            Scope::Everything => while self.collect_one(None) {},
            Scope::Registered => {
                let registered: Vec<Pid> = self.table().keys().copied().collect();
                for pid in registered {
                    self.collect_one(Some(pid));
                }
            }
        }
    }

    /// Whether one was collected.
    fn collect_one(&self, which: Option<Pid>) -> bool {
        let Ok(Some((pid, exit))) = sys::collect(which.map(Pid::as_raw)) else { return false };
        if let Some(watcher) = self.table().remove(&Pid::from_raw(pid)) {
            // A watcher that is gone has nothing to be told.
            let _ = watcher.send(exit);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A child's id; the reaper waits for it.
    fn spawn(script: &str) -> Pid {
        Pid::from_raw(Command::new("/bin/sh").args(["-c", script]).spawn().unwrap().id().cast_signed())
    }

    #[tokio::test]
    async fn each_end_is_told_to_its_watcher() {
        let reaper = Reaper::start(Scope::Registered).unwrap();
        let cases = [
            ("exit 0", Exit::Code(0)),
            ("exit 7", Exit::Code(7)),
            ("kill -9 $$", Exit::Signal(9)),
            ("kill -40 $$", Exit::Signal(40)),
        ];
        for (script, exit) in cases {
            let ended = reaper.register(spawn(script));
            assert_eq!(ended.await.unwrap(), exit, "{script}");
        }
    }

    #[tokio::test]
    async fn one_that_ended_long_before_its_signal_was_seen_is_told() {
        let reaper = Reaper::start(Scope::Registered).unwrap();
        let ended = reaper.register(spawn("exit 0"));
        // The runtime doesn't run meanwhile.
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(ended.await.unwrap(), Exit::Code(0));
    }
}
