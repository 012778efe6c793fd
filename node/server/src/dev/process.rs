//! Node processes by their pid files: which live, and ending them. A pid is only touched while its argv says
//! `atoll node` with this mesh's configuration: numbers are used again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a process that is being waited for is looked at.
const POLL: Duration = Duration::from_millis(50);

/// A node's process that lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeProcess(Pid);

impl NodeProcess {
    /// The live process of a node folder, if its pid file names one.
    pub(crate) fn of(folder: &Path) -> Option<Self> {
        let pid: i32 = std::fs::read_to_string(folder.join("pid")).ok()?.trim().parse().ok()?;
        let process = Self(Pid::from_raw(pid));
        process.is_node_of(folder).then_some(process)
    }

    fn is_node_of(self, folder: &Path) -> bool {
        let Ok(bytes) = std::fs::read(format!("/proc/{}/cmdline", self.0)) else { return false };
        let words: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
        let config = config_file(folder);
        words.contains(&b"node".as_slice()) && words.contains(&config.as_os_str().as_encoded_bytes())
    }

    /// Sends a signal; a process that has ended meanwhile is no error.
    pub(crate) fn signal(self, signal: Signal) {
        if let Err(error) = kill(self.0, signal)
            && error != nix::errno::Errno::ESRCH
        {
            tracing::warn!(pid = self.0.as_raw(), %signal, %error, "can't signal a node's process");
        }
    }

    /// Waits until it has ended, at most so long; whether it has.
    pub(crate) fn wait_end(self, folder: &Path, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.is_node_of(folder) && !self.is_zombie() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// An ended child of ours that nobody has waited for yet keeps its argv empty, so this is only for certainty.
    fn is_zombie(self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", self.0))
            .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
    }
}

/// The configuration file of a node folder.
pub(crate) fn config_file(folder: &Path) -> PathBuf {
    folder.join("config.toml")
}
