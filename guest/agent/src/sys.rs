//! What only unsafe code can ask of the kernel.
//!
//! Each block says why neither the standard library nor nix (with the workspace's features) has a safe form, and why it
//! holds.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Most of the kernel's log that is read: its ring is 256 KiB at Debian's default.
const KERNEL_LOG_BYTES: usize = 256 << 10;
/// syslog(2), SYSLOG_ACTION_READ_ALL.
const SYSLOG_READ_ALL: c_int = 3;
/// random(4): `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// random(4): `_IO('R', 0x07)`.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
/// Most bytes credited in one call: what fits the structure below.
pub(crate) const ENTROPY_BYTES_MAX: usize = 4096;

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Loads a kernel module from its file (finit_module(2)). One that is loaded already is no error.
pub(crate) fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: only the raw system call exists. It reads the open descriptor and a constant empty string and keeps
    // neither.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}

/// Credits entropy to the kernel's pool and has its generator reseeded from it at once (random(4)).
pub(crate) fn reseed(random: &File, entropy: &[u8]) -> io::Result<()> {
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: c_int,
        bytes: c_int,
        buffer: [u8; ENTROPY_BYTES_MAX],
    }
    let len = entropy.len().min(ENTROPY_BYTES_MAX);
    let bytes = c_int::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut info = PoolInfo { entropy_bits: bytes * 8, bytes, buffer: [0; ENTROPY_BYTES_MAX] };
    info.buffer[..len].copy_from_slice(&entropy[..len]);
    // SAFETY: an ioctl has no safe form. The kernel reads `bytes` bytes of `buffer`, which is at least that long, from
    // a structure laid out as rand_pool_info, and keeps no pointer.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: as above; this request takes no argument.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) })?;
    Ok(())
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With a code.
    Code(i32),
    /// By a signal.
    Signal(i32),
}

/// Collects one child that has ended, this one or any (waitpid(2)).
pub(crate) fn collect(which: Option<i32>) -> io::Result<Option<(i32, Exit)>> {
    let mut status = 0;
    // SAFETY: nix's form fails for signals that it has no name for, after the child is collected. The kernel writes
    // the status into an integer that outlives the call.
    let pid = check(unsafe { libc::waitpid(which.unwrap_or(-1), &raw mut status, libc::WNOHANG) })?;
    let exit = if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    };
    Ok((pid > 0).then_some((pid, exit)))
}

/// The kernel's log, as text (syslog(2)).
pub(crate) fn kernel_log() -> io::Result<String> {
    let mut buffer = vec![0u8; KERNEL_LOG_BYTES];
    let size = c_int::try_from(buffer.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: nix has no klogctl. The kernel writes at most `size` bytes into a buffer of that size.
    let len = check(unsafe { libc::klogctl(SYSLOG_READ_ALL, buffer.as_mut_ptr().cast(), size) })?;
    buffer.truncate(usize::try_from(len).unwrap_or(0));
    Ok(String::from_utf8_lossy(&buffer).into_owned())
}

/// An interface's request structure, with its name filled in (netdevice(7)).
fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is a C structure of integers and a union of such, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Brings an interface up (SIOCSIFFLAGS, netdevice(7)).
pub(crate) fn interface_up(socket: RawFd, name: &str) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: an ioctl has no safe form. The kernel reads the structure, which is initialized, and keeps no pointer.
    check(unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) }).map(drop)
}

/// Sets an interface's hardware address (SIOCSIFHWADDR, netdevice(7)).
pub(crate) fn interface_mac(socket: RawFd, name: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut request = interface_request(name)?;
    // SAFETY: as in `interface_request`.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: as in `interface_up`.
    check(unsafe { libc::ioctl(socket, libc::SIOCSIFHWADDR, &raw const request) }).map(drop)
}

/// An epoll instance that watches one descriptor, edge-triggered (epoll(7)).
///
/// A virtio-serial port without a host is in the state "hung up", which tokio takes for final. Its own epoll keeps that
/// state from tokio, which only sees that something has changed.
#[derive(Debug)]
pub(crate) struct Edge(OwnedFd);

impl Edge {
    /// Watches for `events` (`EPOLLIN` or `EPOLLOUT`). The descriptor must outlive the watch.
    pub(crate) fn new(fd: RawFd, events: c_int) -> io::Result<Self> {
        // SAFETY: nix's epoll isn't among the workspace's features. The call has no pointers; its result is checked
        // and owned by nobody else.
        let edge = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        let events = (events | libc::EPOLLET).cast_unsigned();
        let mut event = libc::epoll_event { events, u64: 0 };
        // SAFETY: as above; the kernel reads the event and keeps no pointer.
        check(unsafe { libc::epoll_ctl(edge.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
        Ok(Self(edge))
    }

    /// Takes what has happened, so that only what happens next is told.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: as above; the kernel writes at most the one event that the buffer holds, without waiting.
        check(unsafe { libc::epoll_wait(self.0.as_raw_fd(), &raw mut event, 1, 0) }).map(drop)
    }
}

/// Has the runtime tell when a descriptor becomes readable.
pub(crate) fn watch_readable<T: AsFd + AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: tokio's form is unsafe because `AsRawFd` alone promises nothing. `AsFd` promises that the descriptor
    // stays open and the same for as long as `fd` lives, which the result owns.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

impl AsRawFd for Edge {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Edge {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes a connection, in non-blocking mode (accept4(2)).
pub(crate) fn accept(listener: RawFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: nix gives a raw descriptor, which takes an unsafe block to own as well. No address is asked for, so the
    // kernel writes nothing; the result is checked and owned by nobody else.
    unsafe {
        let fd = check(libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Names the function that lets the standard library start a command in a folder by vfork instead of fork: it looks for
/// it by a weak symbol, which a static link would leave out.
#[used]
static SPAWN_IN_FOLDER: unsafe extern "C" fn(*mut libc::posix_spawn_file_actions_t, *const libc::c_char) -> c_int =
    posix_spawn_file_actions_addchdir_np;

// SAFETY: glibc's own declaration (spawn.h, since 2.29); it is named here, never called.
unsafe extern "C" {
    fn posix_spawn_file_actions_addchdir_np(
        actions: *mut libc::posix_spawn_file_actions_t,
        path: *const libc::c_char,
    ) -> c_int;
}
