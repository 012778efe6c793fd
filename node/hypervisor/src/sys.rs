//! The few Linux calls that have no safe form.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

pub(crate) mod seal;
pub(crate) mod trace;

mod ioctls {
    // `FICLONE` of linux/fs.h: `_IOW(0x94, 9, int)`.
    nix::ioctl_write_int!(ficlone, 0x94, 9);
    // `TUNSETIFF` of linux/if_tun.h.
    nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);
}

/// Has the kernel kill the command's process when the thread that starts it ends (`PR_SET_PDEATHSIG`, prctl(2)). Call
/// it and `spawn` from a thread that lives as long as the process. The kernel forgets the wish where the program is
/// set-user-id or carries file capabilities.
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let before_exec = move || {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        // The parent may have died before the wish was heard: then nobody would ever kill this process.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ECHILD)) }
    };
    // SAFETY: why unsafe: a closure that runs between fork and exec may only call what is async-signal-safe.
    // Why it holds: it makes two system calls, compares numbers, and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

/// Has the kernel close every descriptor from `first` on when a program is started (close_range(2), Linux 5.11): what this
/// process was left with by whoever started it is nothing for a monitor.
pub(crate) fn keep_from_programs(first: u32) -> io::Result<()> {
    // SAFETY: why unsafe: neither std nor nix wraps this call. Why it holds: it marks descriptors and closes none.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2), Linux 5.3).
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: why unsafe: neither std nor nix wraps this call. Why it holds: it takes two integers and touches no
    // memory.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0 as libc::c_long) };
    let descriptor = i32::try_from(answer).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: why unsafe: a number becomes an owner. Why it holds: the kernel has just made it and nobody else knows
    // it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Has a process's first thread hand over the processor after so short a time that, woken, it takes it from one that
/// computes (`sched_runtime` of a thread in the fair class, Linux 6.12; an older kernel ignores it). What the thread starts
/// from now on has the usual time. The kernel takes 0.1 to 100 ms (sched(7), kernel/sched/syscalls.c).
pub(crate) fn set_slice(pid: u32, slice: Duration) -> io::Result<()> {
    let mut attributes = schedule_of(pid)?;
    attributes.sched_flags = libc::SCHED_FLAG_RESET_ON_FORK as u64;
    attributes.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: why unsafe: neither std nor nix wraps this call. Why it holds: it reads one `sched_attr`, which says its own
    // size and lives for the length of the call.
    let answer = unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attributes, 0) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How a thread is scheduled (sched_getattr(2)).
fn schedule_of(thread: u32) -> io::Result<libc::sched_attr> {
    let size = u32::try_from(size_of::<libc::sched_attr>()).map_err(io::Error::other)?;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: why unsafe: neither std nor nix wraps this call. Why it holds: it writes at most `size` bytes, which are one
    // `sched_attr`'s.
    let answer = unsafe { libc::syscall(libc::SYS_sched_getattr, thread, &raw mut attributes, size, 0) };
    if answer == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

/// The newest version of landlock that the kernel offers (landlock_create_ruleset(2)); 0 where it offers none.
pub(crate) fn landlock_version() -> i64 {
    /// `LANDLOCK_CREATE_RULESET_VERSION` of linux/landlock.h.
    const VERSION: libc::c_long = 1;
    let nothing: libc::c_long = 0;
    // SAFETY: why unsafe: neither std nor nix wraps this call. Why it holds: asked for the version it takes no
    // attributes (a null pointer of length 0) and touches no memory.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, nothing, VERSION) };
    answer.max(0)
}

/// Shares all of `source`'s blocks with `target` (ioctl_ficlone(2)); an error where the file system can't.
pub(crate) fn clone_file(source: &File, target: &File) -> io::Result<()> {
    let source =
        libc::c_ulong::try_from(source.as_raw_fd()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: why unsafe: an ioctl's argument isn't typed. Why it holds: FICLONE takes an open descriptor's number,
    // both files are open for the length of the call, and no memory is passed.
    unsafe { ioctls::ficlone(target.as_raw_fd(), source) }.map(drop).map_err(io::Error::from)
}

/// Attaches an open `/dev/net/tun` to the tap of this name: whole frames, `header` says whether with virtio's header
/// before them (Documentation/networking/tuntap.rst).
pub(crate) fn attach_tap(tun: &File, name: &str, header: bool) -> io::Result<()> {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    if name.is_empty() || name.len() >= ifr_name.len() || name.contains('%') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a device's name has 1 to 15 bytes, none of them '%'"));
    }
    for (to, &from) in ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = from.cast_signed();
    }
    let header = if header { libc::IFF_VNET_HDR } else { 0 };
    let ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | header) as libc::c_short;
    let request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } };
    // SAFETY: why unsafe: an ioctl's argument isn't typed. Why it holds: TUNSETIFF reads and writes one `ifreq`, which
    // lives for the length of the call, and its name ends with a zero.
    unsafe { ioctls::tunsetiff(tun.as_raw_fd(), &raw const request) }.map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_a_threads_own_and_nothing_else_of_it_changes() {
        let own = || schedule_of(nix::unistd::gettid().as_raw().unsigned_abs()).expect("a schedule");
        let test = move || {
            let before = own();
            set_slice(nix::unistd::gettid().as_raw().unsigned_abs(), Duration::from_micros(200)).expect("set");
            let after = own();
            assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, before.sched_nice));
            // Before Linux 6.12 there is none to see.
            assert!(before.sched_runtime == 0 || after.sched_runtime == 200_000, "{}", after.sched_runtime);
            let child = std::thread::spawn(own).join().expect("a thread");
            assert_eq!(child.sched_runtime, before.sched_runtime);
        };
        std::thread::spawn(test).join().expect("a thread");
    }
}
