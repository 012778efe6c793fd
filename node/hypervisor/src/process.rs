//! Processes named so that a recycled number is never taken for them, and what /proc says of one.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// How often a process that should end is looked at: fine enough that a deletion isn't delayed noticeably.
const POLL: Duration = Duration::from_millis(1);

/// A process of one boot of the host: its number and its start, in clock ticks since that boot (field 22 of
/// /proc/PID/stat, proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRef {
    pub(crate) pid: u32,
    pub(crate) start_ticks: u64,
}

impl ProcessRef {
    /// The process that has this number now.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let stat = Stat::read(pid)?;
        Ok(Self { pid, start_ticks: stat.start_ticks })
    }

    /// Whether any of it still runs: until then it holds memory, files and cgroups.
    pub(crate) fn lives(self) -> bool {
        Stat::read(self.pid).is_ok_and(|stat| stat.start_ticks == self.start_ticks && !stat.has_ended())
    }

    /// Sends SIGKILL if it still runs.
    pub(crate) fn kill(self) {
        if self.lives() {
            // It can only have ended in between, which is what was asked for.
            let _ = kill(pid_of(self.pid), Signal::SIGKILL);
        }
    }

    /// Waits until it has ended. Blocks; for threads that may.
    pub(crate) fn wait_gone(self, limit: Duration) -> bool {
        let start = Instant::now();
        while self.lives() {
            if start.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// Waits until it has ended, giving way meanwhile.
    pub(crate) async fn gone(self, limit: Duration) -> bool {
        let start = Instant::now();
        while self.lives() {
            if start.elapsed() >= limit {
                return false;
            }
            tokio::time::sleep(POLL).await;
        }
        true
    }
}

/// The number as nix takes it.
pub(crate) fn pid_of(pid: u32) -> Pid {
    // Linux numbers end at 2^22 (PID_MAX_LIMIT).
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

/// The host's boot: a record of another boot names no process.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// What a process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) rss_kib: u64,
    pub(crate) private_kib: u64,
    pub(crate) cpu_ms: u64,
}

impl Usage {
    /// Reads it from /proc: `VmRSS`, `RssAnon` plus `VmSwap`, and the processor time of all threads.
    pub(crate) fn of(process: ProcessRef) -> io::Result<Self> {
        let stat = Stat::read(process.pid)?;
        if stat.start_ticks != process.start_ticks {
            return Err(io::ErrorKind::NotFound.into());
        }
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid))?;
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
        Ok(Self {
            rss_kib: status_kib(&status, "VmRSS:"),
            private_kib: status_kib(&status, "RssAnon:") + status_kib(&status, "VmSwap:"),
            cpu_ms: stat.cpu_ticks * 1000 / per_second.unwrap_or(100),
        })
    }
}

fn status_kib(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("0 kB");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

struct Stat {
    state: char,
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
}

impl Stat {
    /// A zombie has ended, but one with further threads is a first thread alone: killed with the others, it is often gone
    /// long before the last of them, above all where their processor time is limited.
    fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }

    fn read(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The command's name may hold spaces and parentheses: fields are counted from its last one.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            cpu_ticks: number(14)? + number(15)?,
            threads: number(20)?,
            start_ticks: number(22)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 111 222 13 14 15 16 17 18 98765 20";
        let stat = Stat::parse(text).expect("parsed");
        assert_eq!((stat.state, stat.cpu_ticks, stat.threads, stat.start_ticks), ('S', 333, 17, 98765));
    }

    #[test]
    fn a_zombie_has_ended_once_its_last_thread_has() {
        let ended = |state: char, threads: u32| {
            let text = format!("42 (qemu) {state} 1 2 3 4 5 6 7 8 9 10 111 222 13 14 15 16 {threads} 18 98765 20");
            Stat::parse(&text).expect("parsed").has_ended()
        };
        assert!(ended('Z', 1) && ended('X', 0));
        assert!(!ended('Z', 2), "another thread still runs");
        assert!(!ended('R', 1) && !ended('D', 4));
    }

    #[test]
    fn a_number_with_another_start_is_another_process() {
        let mut child = Command::new("sleep").arg("30").stdin(Stdio::null()).spawn().expect("sleep runs");
        let process = ProcessRef::of(child.id()).expect("it is there");
        let recycled = ProcessRef { start_ticks: process.start_ticks + 1, ..process };
        assert!(process.lives());
        assert!(!recycled.lives());
        recycled.kill();
        assert!(!process.wait_gone(Duration::from_millis(50)), "the other process was killed");
        process.kill();
        assert!(process.wait_gone(Duration::from_secs(30)), "a zombie counts as ended");
        child.wait().expect("reaped");
    }

    #[test]
    fn usage_of_this_process_is_above_nothing() {
        let usage = Usage::of(ProcessRef::of(std::process::id()).expect("ours")).expect("read");
        assert!(usage.rss_kib > 100 && usage.private_kib > 0 && usage.rss_kib >= usage.private_kib, "{usage:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_stat_or_none(text in ".{0,200}") {
            let _ = Stat::parse(&text);
        }
    }
}
