//! What the guest's commands may use together, so that the agent always lives: a cgroup for them, none for the agent.
//!
//! ```text
//! /sys/fs/cgroup        the agent, and the interpreter that others are forked from: no limits
//! /sys/fs/cgroup/box    every command, from its first instruction: memory.max, pids.max
//! ```
//!
//! A command that is root can write these files; what it then breaks is its own guest.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use guest_proto::surface::GuestLimits;

use crate::console::say;
use crate::sys;

/// Where the hierarchy is mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// The commands' group.
const BOX: &str = "box";
/// Processes and threads of all commands if the identity names no number: a model's build or tests run some hundred; a
/// thousand shells' stacks and page tables fit half a gibibyte.
const PIDS_DEFAULT: u32 = 1024;
/// Fewer than this start no interpreter: node alone has 11 threads.
const PIDS_MIN: u32 = 32;
/// Open files of one process, if the identity names no number: to begin with, and what it may raise that to.
const OPEN_FILES_DEFAULT: (u64, u64) = (4096, 1 << 16);
/// Fewer than this start no interpreter.
const OPEN_FILES_MIN: u32 = 64;
/// Memory that is kept from the commands: the agent's own and what it holds of outputs (64 MiB), the forking interpreter, the kernel's tables.
const RESERVED_BYTES: u64 = 128 << 20;
/// The agent's: ten times a command's share of the processor, of which it takes little.
const AGENT_NICENESS: i32 = -10;
/// At least this part of the memory is theirs, in a guest so small that the reserve would be most of it.
const SHARE_MIN: u64 = 2;

/// The limits in force.
#[derive(Debug)]
pub(crate) struct Bounds {
    group: Option<Group>,
    /// Zero for the default.
    open_files: AtomicU64,
}

/// The commands' cgroup.
#[derive(Debug)]
struct Group {
    folder: File,
    path: PathBuf,
    events: File,
    memory_max: u64,
    pids_max: AtomicU64,
}

impl Bounds {
    /// No group: for a process among others, as in tests, or a kernel without the controllers.
    pub(crate) fn none() -> Self {
        Self { group: None, open_files: AtomicU64::new(0) }
    }

    /// Makes the commands' group and keeps the agent alive before all others. What can't be had is said and left.
    pub(crate) fn make() -> Self {
        if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
            say(&format!("can't keep the agent from being ended for memory: {error}"));
        }
        // The first process: what has come or is to be told isn't kept waiting by commands. Theirs is as ever (`sys::launch`).
        if let Err(error) = sys::set_niceness(0, AGENT_NICENESS) {
            say(&format!("can't put the agent before the commands: {error}"));
        }
        match Group::make(Path::new(ROOT)) {
            Ok(group) => Self { group: Some(group), open_files: AtomicU64::new(0) },
            Err(error) => {
                say(&format!("can't limit the commands' memory and processes: {error}"));
                Self::none()
            }
        }
    }

    /// Puts an identity's limits in force.
    pub(crate) fn set(&self, limits: &GuestLimits) -> io::Result<()> {
        let open_files = limits.open_files.map_or(0, |files| files.max(OPEN_FILES_MIN));
        self.open_files.store(u64::from(open_files), Ordering::Relaxed);
        match &self.group {
            Some(group) => group.set_pids(limits.pids.unwrap_or(PIDS_DEFAULT).max(PIDS_MIN)),
            None => Ok(()),
        }
    }

    /// The folder that commands are born in.
    pub(crate) fn group(&self) -> Option<BorrowedFd<'_>> {
        self.group.as_ref().map(|group| group.folder.as_fd())
    }

    /// Soft and hard limit of open files; none where the agent limits nothing.
    pub(crate) fn open_files(&self) -> Option<(u64, u64)> {
        let default = self.group.as_ref().map(|_| OPEN_FILES_DEFAULT);
        self.own_open_files().map(|files| (files, files)).or(default)
    }

    /// The limit of open files that the identity named.
    pub(crate) fn own_open_files(&self) -> Option<u64> {
        Some(self.open_files.load(Ordering::Relaxed)).filter(|&files| files > 0)
    }

    /// How many processes the kernel has ended because the commands' memory was used up.
    pub(crate) fn memory_kills(&self) -> u64 {
        let Some(group) = &self.group else { return 0 };
        let mut text = [0; 256];
        let len = group.events.read_at(&mut text, 0).unwrap_or(0);
        parse_kills(&text[..len])
    }

    /// What is said of a command that was ended for memory.
    pub(crate) fn memory_sentence(&self) -> String {
        let mib = self.group.as_ref().map_or(0, |group| group.memory_max >> 20);
        format!("\natoll: a process was killed: out of memory (the sandbox's commands may use {mib} MiB together)\n")
    }

    /// What is said when no process can be started any more.
    pub(crate) fn pids_sentence(&self) -> String {
        let pids = self.group.as_ref().map_or(0, |group| group.pids_max.load(Ordering::Relaxed));
        format!("the sandbox's commands have {pids} processes and threads, as many as they may; end some first")
    }
}

impl Group {
    fn make(root: &Path) -> io::Result<Self> {
        fs::write(root.join("cgroup.subtree_control"), "+memory +pids")?;
        let path = root.join(BOX);
        fs::create_dir_all(&path)?;
        let memory_max = commands_memory(total_memory(&fs::read_to_string("/proc/meminfo")?));
        fs::write(path.join("memory.max"), memory_max.to_string())?;
        let group = Self {
            folder: File::open(&path)?,
            events: File::open(path.join("memory.events"))?,
            path,
            memory_max,
            pids_max: AtomicU64::new(0),
        };
        group.set_pids(PIDS_DEFAULT)?;
        Ok(group)
    }

    fn set_pids(&self, pids: u32) -> io::Result<()> {
        if self.pids_max.swap(u64::from(pids), Ordering::Relaxed) == u64::from(pids) {
            return Ok(());
        }
        fs::write(self.path.join("pids.max"), pids.to_string())
    }
}

/// The commands' part of the machine's memory.
fn commands_memory(total_bytes: u64) -> u64 {
    total_bytes.saturating_sub(RESERVED_BYTES).max(total_bytes / SHARE_MIN)
}

/// `MemTotal` of /proc/meminfo, in bytes.
fn total_memory(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or("");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) << 10
}

/// `oom_kill` of memory.events.
fn parse_kills(text: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(text);
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_keeps_a_reserve_and_the_commands_at_least_half() {
        assert_eq!(commands_memory(1 << 30), (1 << 30) - RESERVED_BYTES);
        assert_eq!(commands_memory(128 << 20), 64 << 20);
        assert_eq!(total_memory("MemTotal:        1004600 kB\nMemFree:   1 kB\n"), 1_004_600 << 10);
    }

    #[test]
    fn kills_are_counted_by_the_kernels_own_line() {
        assert_eq!(parse_kills(b"low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"), 2);
        assert_eq!(parse_kills(b"oom_kill x"), 0);
    }

    #[test]
    fn no_limit_is_so_low_that_nothing_starts() {
        let bounds = Bounds::none();
        assert_eq!(bounds.open_files(), None);
        bounds.set(&GuestLimits { pids: Some(0), open_files: Some(1) }).unwrap();
        assert_eq!(bounds.open_files(), Some((64, 64)));
        bounds.set(&GuestLimits::default()).unwrap();
        assert_eq!(bounds.own_open_files(), None);
    }
}
