//! Machines that are being made ahead give way to those that serve: while sandboxes are in use they have less of the
//! processors, until they stand ready.
//!
//! Niceness of one thread counts only within its scheduling group, and a keeper with its monitor is a group of its own:
//! a cgroup where the node makes one for each machine (cpu.weight, cpu.shares), else the session's autogroup (sched(7)).
//! So it is the group's share that is lowered and raised again. Where neither can be written, machines are made at the
//! usual priority.

use std::fs;
use std::path::{Path, PathBuf};

/// Share of a machine that is being made, in hundredths of what it has.
const LOWERED_PERCENT: u64 = 10;
/// Niceness that gives a tenth of the usual share (the kernel's table of weights: 1024 at 0, 110 at 10).
const LOWERED_NICE: &str = "10";
/// Least share that the kernel takes: cpu.shares' 2 (v1), cpu.weight's 1 (v2).
const SHARE_MIN: u64 = 2;

/// A lowered group; dropping it raises it again.
#[derive(Debug)]
pub(crate) struct Lowered {
    file: PathBuf,
    usual: String,
}

impl Lowered {
    /// Lowers the group of a process; `None` where it can't be done. Blocks for microseconds.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        // A process in this node's own group would take the node down with it.
        let name = |pid: &str| {
            let autogroup = fs::read_to_string(format!("/proc/{pid}/autogroup")).ok()?;
            let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            Some((autogroup.split_whitespace().next()?.to_owned(), group))
        };
        if name("self")? == name(&pid.to_string())? {
            return None;
        }
        let (file, usual, lowered) = match cgroup_share(pid) {
            Some((file, share)) => {
                let lowered = (share * LOWERED_PERCENT / 100).max(SHARE_MIN);
                (file, share.to_string(), lowered.to_string())
            }
            None => (PathBuf::from(format!("/proc/{pid}/autogroup")), "0".to_owned(), LOWERED_NICE.to_owned()),
        };
        match fs::write(&file, lowered) {
            Ok(()) => Some(Self { file, usual }),
            Err(error) => {
                tracing::trace!(%error, file = %file.display(), "a machine that is being made keeps its priority");
                None
            }
        }
    }
}

impl Drop for Lowered {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.file, &self.usual) {
            // The machine has ended, or its group with it.
            tracing::debug!(%error, file = %self.file.display(), "a machine's priority couldn't be raised again");
        }
    }
}

/// The file with the processor share of the process's own cgroup, and what it says; none in the root cgroup.
fn cgroup_share(pid: u32) -> Option<(PathBuf, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    share_files(&text).into_iter().find_map(|file| {
        let share = fs::read_to_string(&file).ok()?.trim().parse().ok()?;
        Some((file, share))
    })
}

/// Where the share may lie, by the lines of /proc/PID/cgroup (cgroups(7)).
fn share_files(text: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    text.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let path = path.trim_start_matches('/');
            if path.is_empty() || path.split('/').any(|part| part == "..") {
                return None;
            }
            match controllers {
                "" => {
                    Some(vec![root.join(path).join("cpu.weight"), root.join("unified").join(path).join("cpu.weight")])
                }
                _ if controllers.split(',').any(|name| name == "cpu") => Some(vec![
                    root.join(controllers).join(path).join("cpu.shares"),
                    root.join("cpu").join(path).join("cpu.shares"),
                ]),
                _ => None,
            }
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_looked_for_in_the_process_s_own_cgroup_only() {
        let v2 = "0::/atoll/m1\n";
        assert_eq!(share_files(v2)[0], Path::new("/sys/fs/cgroup/atoll/m1/cpu.weight"));
        let v1 = "9:name=systemd:/\n2:cpu,cpuacct:/atoll/m1\n0::/\n";
        assert_eq!(share_files(v1)[0], Path::new("/sys/fs/cgroup/cpu,cpuacct/atoll/m1/cpu.shares"));
        assert!(share_files("1:cpu:/\n0::/\n").is_empty(), "the root cgroup is everyone's");
        assert!(share_files("0::/../../x\n").is_empty());
    }

    #[test]
    fn a_lowered_session_is_raised_again() {
        assert!(Lowered::of(std::process::id()).is_none(), "this process's own group is left alone");
        let mut child = std::process::Command::new("setsid").args(["sleep", "60"]).spawn().expect("started");
        // Between its start and its setsid(2) it is in this process's group.
        let lowered = (0..100).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            Lowered::of(child.id())
        });
        // A kernel without autogroups, or a host that forbids them, has nothing to lower.
        if let Some(lowered) = lowered {
            let (file, usual) = (lowered.file.clone(), lowered.usual.clone());
            // A share alone, or a session's number and its niceness.
            let now = || {
                let text = fs::read_to_string(&file).expect("read");
                text.split_whitespace().last().map(str::to_owned).expect("it says so")
            };
            assert_ne!(now(), usual);
            drop(lowered);
            assert_eq!(now(), usual);
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
    }
}
