//! The kernel's own file systems.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};

use super::BootError;

/// One mount: type, place, flags, options.
type Mount = (&'static str, &'static str, MsFlags, &'static str);

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Before the root: what finding it needs.
const EARLY: &[Mount] =
    &[("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755"), ("proc", "/proc", SAFE, ""), ("sysfs", "/sys", SAFE, "")];

/// In the root: what programs expect.
const LATE: &[Mount] = &[
    ("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "mode=620,gid=5,ptmxmode=666"),
    ("tmpfs", "/dev/shm", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    ("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=755"),
    ("tmpfs", "/tmp", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", SAFE, ""),
];

pub(super) fn early() -> Result<(), BootError> {
    EARLY.iter().try_for_each(mount_one)
}

pub(super) fn late() -> Result<(), BootError> {
    LATE.iter().try_for_each(mount_one)?;
    for (link, target) in
        [("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "fd/0"), ("/dev/stdout", "fd/1"), ("/dev/stderr", "fd/2")]
    {
        // devtmpfs may have them already.
        let _ = std::os::unix::fs::symlink(target, link);
    }
    Ok(())
}

fn mount_one(&(kind, on, flags, options): &Mount) -> Result<(), BootError> {
    // Where it can't be made the mount says so.
    let _ = fs::create_dir_all(on);
    mount_at(kind, kind, Path::new(on), flags, options)
}

/// mount(2) with an error that names both sides.
pub(super) fn mount_at(what: &str, kind: &str, on: &Path, flags: MsFlags, options: &str) -> Result<(), BootError> {
    mount(Some(what), on, Some(kind), flags, Some(options)).map_err(|source| BootError::Mount {
        what: what.to_owned(),
        on: on.to_owned(),
        source,
    })
}
