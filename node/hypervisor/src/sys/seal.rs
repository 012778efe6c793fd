//! The calls of the seal: what a monitor does to itself between fork and exec, and the answers to its opens.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// Capabilities end here: two words of bits.
const CAPABILITIES: libc::c_ulong = 64;

mod ioctls {
    use libc::{seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp};
    // linux/seccomp.h, magic '!'.
    nix::ioctl_readwrite!(notif_recv, b'!', 0, seccomp_notif);
    nix::ioctl_readwrite!(notif_send, b'!', 1, seccomp_notif_resp);
    nix::ioctl_write_ptr!(notif_addfd, b'!', 3, seccomp_notif_addfd);
}

/// What a monitor's process does before its program runs.
#[derive(Debug)]
pub(crate) struct Child {
    /// Its root, if there is one.
    pub(crate) root: Option<&'static CStr>,
    /// Its user and the group of shared files.
    pub(crate) user: Option<(u32, u32)>,
    /// Whether capabilities are given up.
    pub(crate) give_up: bool,
    /// Landlock's rules.
    pub(crate) rules: Option<OwnedFd>,
    /// The filter; empty for none.
    pub(crate) filter: Vec<libc::sock_filter>,
    /// Whether the filter asks the keeper.
    pub(crate) asks: bool,
    /// Most open descriptors.
    pub(crate) descriptors: u64,
    /// Most processes of its user.
    pub(crate) processes: Option<u64>,
    /// Whether its program is stopped before its first instruction, for its keeper to make another process of it.
    pub(crate) traced: bool,
    /// A socket to say how it went; the other end is the keeper's.
    pub(crate) report: OwnedFd,
    /// The keeper's end, which the child must not hold open.
    pub(crate) keepers: RawFd,
}

/// What failed, as bits of the report's number.
pub(crate) mod failed {
    /// Limits of descriptors and processes.
    pub(crate) const RLIMITS: u32 = 1;
    /// Capabilities.
    pub(crate) const CAPABILITIES: u32 = 2;
    /// `no_new_privs`.
    pub(crate) const NO_NEW_PRIVILEGES: u32 = 4;
    /// Landlock.
    pub(crate) const LANDLOCK: u32 = 8;
    /// The filter.
    pub(crate) const SECCOMP: u32 = 16;
}

/// Has the command's process seal itself, and be killed by the kernel when the thread that starts it ends. Call it and
/// `spawn` from a thread that lives as long as the process.
pub(crate) fn seal_command(command: &mut Command, child: Child) {
    // SAFETY: why unsafe: a closure that runs between fork and exec may only call what is async-signal-safe.
    // Why it holds: `enter` makes system calls over what was made ready before the fork, and allocates nothing.
    unsafe { command.pre_exec(move || enter(&child)) };
}

fn enter(child: &Child) -> io::Result<()> {
    // SAFETY: why unsafe: a descriptor is closed by number. Why it holds: this process has forked and won't return to
    // the owner of that number.
    unsafe { libc::close(child.keepers) };
    let mut bits = 0;
    let mut note = |done: bool, bit: u32| bits |= if done { 0 } else { bit };
    if let Some(root) = child.root {
        enter_root(root)?;
    }
    let limited = setrlimit(Resource::RLIMIT_NOFILE, child.descriptors, child.descriptors).is_ok();
    let counted = child.processes.is_none_or(|most| setrlimit(Resource::RLIMIT_NPROC, most, most).is_ok());
    note(limited && counted, failed::RLIMITS);
    if child.give_up {
        give_up_bounding_set();
    }
    if let Some((uid, shared)) = child.user {
        become_user(uid, shared)?;
    }
    if child.give_up {
        note(give_up_capabilities().is_ok(), failed::CAPABILITIES);
        note(nix::sys::prctl::set_no_new_privs().is_ok(), failed::NO_NEW_PRIVILEGES);
    }
    // After the change of user, which takes the wish back.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    if let Some(rules) = &child.rules {
        note(restrict(rules).is_ok(), failed::LANDLOCK);
    }
    // Before the filter, which refuses it.
    if child.traced {
        nix::sys::ptrace::traceme()?;
    }
    let mut listener = None;
    if !child.filter.is_empty() {
        match install(&child.filter, child.asks) {
            Ok(fd) => listener = fd,
            Err(_) => note(false, failed::SECCOMP),
        }
    }
    // Fails where the keeper has died before the wish was heard: then nobody would ever kill this process.
    send(&child.report, bits, listener)
}

fn enter_root(root: &CStr) -> io::Result<()> {
    let none: Option<&CStr> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    chdir(root)?;
    pivot_root(c".", c".")?;
    umount2(c".", MntFlags::MNT_DETACH)?;
    chdir(c"/")?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(none, c"/", none, flags, none)?;
    Ok(())
}

/// Takes another user, for good.
pub(crate) fn become_user(uid: u32, shared: u32) -> io::Result<()> {
    setgroups(&[Gid::from_raw(shared)])?;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    Ok(())
}

/// Empties the set of capabilities that a program could ever give back. Call it before the change of user, which takes
/// the right to.
pub(crate) fn give_up_bounding_set() {
    let zero: libc::c_ulong = 0;
    for capability in 0..CAPABILITIES {
        // SAFETY: why unsafe: prctl isn't typed. Why it holds: this option takes a number and no memory. It fails for
        // numbers that the kernel doesn't know, and for a process without CAP_SETPCAP, which has none to lose here:
        // with no_new_privs the bounding set gives nothing.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, zero, zero, zero) };
    }
}

/// Empties every other set of capabilities.
pub(crate) fn give_up_capabilities() -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: as above: the option takes numbers only. Kernels before 4.3 have no such set.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, zero, zero, zero) };
    let header = [CAPABILITY_VERSION, 0];
    let none = [0u32; 6];
    // SAFETY: why unsafe: neither std nor nix wraps this call. Why it holds: both arrays have the layout of
    // capset(2) (version and process; two times effective, permitted and inheritable) and live for its length.
    let answer = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn restrict(rules: &OwnedFd) -> io::Result<()> {
    // SAFETY: why unsafe: neither std nor nix wraps this call. Why it holds: it takes a descriptor and flags.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the kernel knows filters that ask (`SECCOMP_GET_ACTION_AVAIL`, Linux 4.14; the action 5.0).
pub(crate) fn filters_ask() -> bool {
    let action = libc::SECCOMP_RET_USER_NOTIF;
    let flags: libc::c_ulong = 0;
    // SAFETY: why unsafe: neither std nor nix wraps this call. Why it holds: it reads one number that lives for its
    // length.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, flags, &raw const action) == 0 }
}

fn install(filter: &[libc::sock_filter], asks: bool) -> io::Result<Option<RawFd>> {
    let program = libc::sock_fprog {
        // A filter has some hundred steps.
        len: u16::try_from(filter.len()).unwrap_or(0),
        filter: filter.as_ptr().cast_mut(),
    };
    let flags = if asks { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    // SAFETY: why unsafe: neither std nor nix wraps this call. Why it holds: the kernel copies the program, which lives
    // for the length of the call, and doesn't write to it.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match answer {
        0 => Ok(None),
        fd if fd > 0 => Ok(RawFd::try_from(fd).ok()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends the number, and the descriptor with it.
fn send(socket: &OwnedFd, bits: u32, descriptor: Option<RawFd>) -> io::Result<()> {
    /// `CMSG_SPACE` of one descriptor, as words so that it is aligned.
    const CONTROL_WORDS: usize = 3;
    let mut bytes = bits.to_ne_bytes();
    let mut piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = [0u64; CONTROL_WORDS];
    // SAFETY: why unsafe: the message is made of pointers, and its header of zeroes. Why it holds: a zeroed msghdr is
    // an empty message; all it points to lives until sendmsg returns; `control` has room for one header and one
    // descriptor, which is what CMSG_FIRSTHDR and CMSG_DATA are used for.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        if let Some(descriptor) = descriptor {
            let length = u32::try_from(size_of::<RawFd>()).unwrap_or(4);
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(length) as usize;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(length) as usize;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(descriptor);
        }
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An open that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    id: u64,
    /// Who asks, as a number of this process's namespace.
    pub(crate) pid: u32,
    /// Where its path lies in that process.
    pub(crate) path: u64,
}

/// The next open that a filter puts to this process.
pub(crate) fn next(listener: &OwnedFd) -> io::Result<Asked> {
    // SAFETY: why unsafe: zeroes become a structure, and an ioctl fills it. Why it holds: it consists of integers, and
    // the kernel requires that it comes zeroed; it lives for the length of the call.
    let notif = unsafe {
        let mut notif: libc::seccomp_notif = std::mem::zeroed();
        ioctls::notif_recv(listener.as_raw_fd(), &raw mut notif)?;
        notif
    };
    let argument = usize::from(libc::c_long::from(notif.data.nr) == libc::SYS_openat);
    Ok(Asked { id: notif.id, pid: notif.pid, path: notif.data.args[argument] })
}

/// Answers it by a descriptor, or lets it go on.
pub(crate) fn answer(listener: &OwnedFd, asked: &Asked, with: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(descriptor) = with else {
        // SAFETY: as below, with a structure of integers only.
        let mut response: libc::seccomp_notif_resp = unsafe { std::mem::zeroed() };
        response.id = asked.id;
        response.flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or(1);
        // SAFETY: why unsafe: an ioctl reads what a pointer names. Why it holds: it lives for the length of the call.
        unsafe { ioctls::notif_send(listener.as_raw_fd(), &raw mut response)? };
        return Ok(());
    };
    let request = libc::seccomp_notif_addfd {
        id: asked.id,
        flags: u32::try_from(libc::SECCOMP_ADDFD_FLAG_SEND).unwrap_or(2),
        srcfd: descriptor.as_raw_fd().cast_unsigned(),
        newfd: 0,
        newfd_flags: libc::O_CLOEXEC.cast_unsigned(),
    };
    // SAFETY: why unsafe: an ioctl reads what a pointer names. Why it holds: it lives for the length of the call, and
    // the descriptor is open meanwhile.
    unsafe { ioctls::notif_addfd(listener.as_raw_fd(), &raw const request)? };
    Ok(())
}

/// Takes ownership of a descriptor that came in a message.
pub(crate) fn received(descriptor: RawFd) -> OwnedFd {
    // SAFETY: why unsafe: a number becomes an owner. Why it holds: the kernel made it for the message that was just
    // received, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
