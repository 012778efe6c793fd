//! Processes of one mesh, found by a mark, which is the name of its folder too; ended by pid.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The variable with the mark.
pub(crate) const MARK_VARIABLE: &str = "ATOLL_TEST_MESH";
const POLL: Duration = Duration::from_millis(20);

/// A process, with what tells it from a later one of the same number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in the kernel's ticks since boot.
    started: u64,
    /// Its words, joined by spaces.
    pub command: String,
}

impl Process {
    /// The process of a number, if it lives and isn't a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // proc_pid_stat(5): the name in parentheses may hold anything; state is field 3, start time field 22.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        let started = fields.get(19)?.parse().ok()?;
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&words).replace('\0', " ").trim_end().to_owned();
        Some(Self { pid, started, command })
    }

    /// Whether this very process still lives.
    pub fn lives(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Sends a signal, if it still lives.
    pub fn signal(&self, signal: Signal) {
        if self.lives() {
            // It may end between the two lines; then there is nothing to signal.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Waits until it has ended; whether it has within the limit.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.lives() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// The files that it has open, as far as they have a path.
    pub(crate) fn open_files(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else { return Vec::new() };
        let targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.filter(|path| path.is_absolute()).collect()
    }

    /// The inodes of its sockets.
    pub(crate) fn socket_inodes(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else { return Vec::new() };
        let inode = |path: PathBuf| path.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
        entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).filter_map(inode).collect()
    }
}

/// All living processes that carry a mark: in their environment, which a child inherits, or among their words. A
/// keeper starts with a clean environment, but its words name its folder.
pub fn marked(mark: &str) -> Vec<Process> {
    let wanted = format!("{MARK_VARIABLE}={mark}");
    let carries = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|pair| pair == wanted.as_bytes())
            || Process::of(*pid).is_some_and(|process| process.command.contains(mark))
    };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let own = std::process::id() as i32;
    pids.filter(|pid| *pid != own).filter(carries).filter_map(Process::of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_found_by_its_words_alone() {
        let mark = format!("words-{}", std::process::id());
        let program = format!(": {mark}; read line");
        let mut child =
            Command::new("sh").args(["-c", &program]).stdin(std::process::Stdio::piped()).spawn().expect("sh");
        let until = Instant::now() + Duration::from_secs(30);
        // It is started a moment before it has words.
        while marked(&mark).is_empty() && Instant::now() < until {
            std::thread::sleep(POLL);
        }
        assert_eq!(marked(&mark).iter().map(|process| process.pid).collect::<Vec<_>>(), [child.id() as i32]);
        drop(child.stdin.take());
        child.wait().expect("its end");
        assert!(marked(&mark).is_empty());
    }

    #[test]
    fn a_marked_process_is_found_with_its_children_and_gone_after() {
        let mark = format!("unit-{}", std::process::id());
        let mut child =
            Command::new("sh").args(["-c", "sleep 60 & wait"]).env(MARK_VARIABLE, &mark).spawn().expect("a shell");
        let until = Instant::now() + Duration::from_secs(30);
        let mut found = marked(&mark);
        // Between its fork and its exec the child has its parent's words.
        while !found.iter().any(|process| process.command == "sleep 60") && Instant::now() < until {
            std::thread::sleep(POLL);
            found = marked(&mark);
        }
        assert!(found.iter().any(|process| process.command == "sleep 60"), "{found:?}");
        found.iter().for_each(|process| process.signal(Signal::SIGKILL));
        child.wait().expect("its end");
        assert!(found.iter().all(|process| process.ends_within(Duration::from_secs(30))));
        assert!(marked(&mark).is_empty());
    }
}
