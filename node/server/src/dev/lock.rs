//! One supervisor per data folder: a lock that the kernel lets go when its holder ends, however it ends.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The lock, held until dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock and writes this process's pid into it.
    pub(crate) fn take(data: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(data).with_context(|| format!("can't make {}", data.display()))?;
        let file = open(data)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let write = |file: &mut File| {
                    file.set_len(0)?;
                    file.rewind()?;
                    writeln!(file, "{}", std::process::id())
                };
                write(&mut file).with_context(|| format!("can't write {}", path(data).display()))?;
                Ok(Self { _file: file })
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                let holder =
                    read_pid(file).map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
                bail!(
                    "{0} is in use by {holder}; stop it with `atoll dev stop --data {0}` or give another --data",
                    data.display()
                );
            }
            Err((_, error)) => Err(error).with_context(|| format!("can't lock {}", path(data).display())),
        }
    }

    /// The process that holds the lock of a folder, if one does.
    pub(crate) fn holder(data: &Path) -> anyhow::Result<Option<u32>> {
        if !path(data).exists() {
            return Ok(None);
        }
        match Flock::lock(open(data)?, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(None),
            Err((file, Errno::EWOULDBLOCK)) => Ok(Some(read_pid(file).unwrap_or(0))),
            Err((_, error)) => Err(error).with_context(|| format!("can't look at {}", path(data).display())),
        }
    }
}

/// Asks a supervisor to end as Ctrl-C would.
pub(crate) fn terminate(pid: u32) {
    let Ok(raw) = i32::try_from(pid) else { return };
    if raw > 1 && nix::sys::signal::kill(nix::unistd::Pid::from_raw(raw), nix::sys::signal::Signal::SIGTERM).is_err() {
        tracing::debug!(pid, "the supervisor has ended already");
    }
}

fn path(data: &Path) -> PathBuf {
    data.join("lock")
}

fn open(data: &Path) -> anyhow::Result<File> {
    let path = path(data);
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("can't open {}", path.display()))
}

fn read_pid(mut file: File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_supervisor_is_refused_with_the_first_ones_pid() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = Lock::take(folder.path()).expect("the lock");
        let error = Lock::take(folder.path()).expect_err("in use");
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        assert_eq!(Lock::holder(folder.path()).expect("looked"), Some(std::process::id()));
        drop(first);
        assert_eq!(Lock::holder(folder.path()).expect("looked"), None);
        Lock::take(folder.path()).expect("free again");
    }
}
