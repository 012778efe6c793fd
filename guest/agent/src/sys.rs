//! What only unsafe code can ask of the kernel.
//!
//! Each block says why neither the standard library nor nix (with the workspace's features) has a safe form, and why it
//! holds.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
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

/// Fills a buffer with random bytes of the kernel's (getrandom(2)).
pub(crate) fn random(buffer: &mut [u8; 8]) -> io::Result<()> {
    // SAFETY: nix's form isn't among the workspace's features. The kernel writes at most the buffer's length into it.
    check(unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) } as c_int).map(drop)
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

/// Sets how many files another process may have open, soft and hard (prlimit(2)).
pub(crate) fn set_open_files(pid: i32, limit: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: nix has no prlimit. The kernel reads the structure and keeps no pointer; the old value isn't asked for.
    check(unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) }).map(drop)
}

/// Most pages of one [`rewrite_pages`] (IOV_MAX, limits.h).
const PAGES_AT_ONCE: usize = 1024;

/// Writes the first byte of each page of a process with what it is (process_vm_readv(2), process_vm_writev(2)).
pub(crate) fn rewrite_pages(pid: i32, pages: &[u64]) -> io::Result<()> {
    let mut bytes = vec![0u8; pages.len()];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote: Vec<libc::iovec> =
        pages.iter().map(|&page| libc::iovec { iov_base: page as *mut c_void, iov_len: 1 }).collect();
    let count = remote.len().min(PAGES_AT_ONCE) as libc::c_ulong;
    // SAFETY: nix's form gives no slices of another process either. The kernel writes and reads at most the local buffer's
    // length there; the remote addresses are the other process's, in which it checks each and touches no memory of ours.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), count, 0) };
    if usize::try_from(read).ok() != Some(pages.len()) {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    let written = unsafe { libc::process_vm_writev(pid, &raw const local, 1, remote.as_ptr(), count, 0) };
    if usize::try_from(written).ok() != Some(pages.len()) {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets how nice all threads of a process group are (setpriority(2)).
pub(crate) fn set_group_niceness(group: i32, niceness: i32) -> io::Result<()> {
    // SAFETY: nix has no setpriority. The call has no pointers.
    check(unsafe { libc::setpriority(libc::PRIO_PGRP, group.cast_unsigned(), niceness) }).map(drop)
}

/// Sets how nice a process's first thread is, and those that it starts from then on (setpriority(2)).
pub(crate) fn set_niceness(pid: i32, niceness: i32) -> io::Result<()> {
    // SAFETY: nix has no setpriority. The call has no pointers.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, pid.cast_unsigned(), niceness) }).map(drop)
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

/// Asks for one change of an interface.
fn interface_ioctl(socket: RawFd, request: libc::c_ulong, interface: &libc::ifreq) -> io::Result<()> {
    // SAFETY: an ioctl has no safe form. The kernel reads the structure, which is initialized, and keeps no pointer.
    check(unsafe { libc::ioctl(socket, request, std::ptr::from_ref(interface)) }).map(drop)
}

/// Brings an interface up or down (SIOCSIFFLAGS, netdevice(7)).
pub(crate) fn interface_up(socket: RawFd, name: &str, up: bool) -> io::Result<()> {
    let mut request = interface_request(name)?;
    let flags = if up { libc::IFF_UP | libc::IFF_RUNNING } else { 0 };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    interface_ioctl(socket, libc::SIOCSIFFLAGS, &request)
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
    interface_ioctl(socket, libc::SIOCSIFHWADDR, &request)
}

/// Sets the largest packet that an interface sends (SIOCSIFMTU, netdevice(7)).
pub(crate) fn interface_mtu(socket: RawFd, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_mtu = c_int::from(mtu);
    interface_ioctl(socket, libc::SIOCSIFMTU, &request)
}

/// Sets an interface's address and the mask of its network (SIOCSIFADDR, SIOCSIFNETMASK, netdevice(7)).
pub(crate) fn interface_address(socket: RawFd, name: &str, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    for (change, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
        let mut request = interface_request(name)?;
        request.ifr_ifru.ifru_addr = socket_address(value);
        interface_ioctl(socket, change, &request)?;
    }
    Ok(())
}

/// Sends everything that is for no network of the machine's own to a gateway (SIOCADDRT, rtentry in route.h).
pub(crate) fn default_route(socket: RawFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: `rtentry` is a C structure of integers and pointers, for which all zeros is a value.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: an ioctl has no safe form. The kernel reads the structure, whose only pointer is null, and keeps none.
    check(unsafe { libc::ioctl(socket, libc::SIOCADDRT, &raw const route) }).map(drop)
}

/// An address in the general form of the sockets' interface: `sockaddr_in` (ip(7)) is a family, a port, four bytes.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: `sockaddr` is a C structure of integers, for which all zeros is a value.
    let mut general: libc::sockaddr = unsafe { std::mem::zeroed() };
    general.sa_family = libc::AF_INET as libc::sa_family_t;
    for (to, from) in general.sa_data[2..6].iter_mut().zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    general
}

/// Has a mounted ext4 take `blocks` blocks of its device (EXT4_IOC_RESIZE_FS, `_IOW('f', 16, __u64)` in ext4.h).
pub(crate) fn resize_ext4(root: &File, blocks: u64) -> io::Result<()> {
    const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
    // SAFETY: an ioctl has no safe form. The kernel reads the number and keeps no pointer.
    check(unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) }).map(drop)
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

/// A program to start.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The program's path.
    pub(crate) program: CString,
    /// Its arguments, its own name first.
    pub(crate) arguments: Vec<CString>,
    /// Its environment, as `NAME=value`.
    pub(crate) environment: Vec<CString>,
    /// Where it starts.
    pub(crate) cwd: CString,
    /// Descriptor `index` of the program is this one; all others are closed, as they are close-on-exec.
    pub(crate) descriptors: &'a [BorrowedFd<'a>],
    /// The cgroup that it is born in.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Most open files, soft and hard.
    pub(crate) open_files: Option<(u64, u64)>,
    /// Whether the kernel may end it when memory is short; else it inherits that it may not.
    pub(crate) expendable: bool,
}

/// Bytes of the stack on which a child sets itself up: a few frames of system calls' wrappers.
const CHILD_STACK_BYTES: usize = 64 << 10;

/// What a child reads while it sets itself up, in its parent's memory.
struct Setup {
    program: *const c_char,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    cwd: *const c_char,
    descriptors: Vec<c_int>,
    open_files: Option<libc::rlimit>,
    expendable: bool,
    /// Why it couldn't become the program.
    errno: c_int,
}

/// Arguments of clone3(2), first version and `cgroup`.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Starts a program in a process group of its own, as vfork does: its parent waits until it has become the program, and
/// copies nothing. Gives the process's id.
///
/// The standard library's way has no form for a cgroup, and copies the agent's memory where it is given more than it knows.
pub(crate) fn launch(launch: &Launch<'_>) -> io::Result<i32> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let pointers = |strings: &[CString]| {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect::<Vec<*const c_char>>()
    };
    // Above every number that is given to the program, so that none is overwritten before it is used.
    let above = c_int::try_from(launch.descriptors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut kept = Vec::new();
    for descriptor in launch.descriptors {
        // SAFETY: nix's form gives a raw descriptor, which takes an unsafe block to own as well. The result is checked and
        // owned by nobody else.
        kept.push(unsafe {
            OwnedFd::from_raw_fd(check(libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above))?)
        });
    }
    let mut setup = Setup {
        program: launch.program.as_ptr(),
        arguments: pointers(&launch.arguments),
        environment: pointers(&launch.environment),
        cwd: launch.cwd.as_ptr(),
        descriptors: kept.iter().map(OwnedFd::as_raw_fd).collect(),
        open_files: launch.open_files.map(|(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard }),
        expendable: launch.expendable,
        errno: 0,
    };
    let mut stack: Vec<u64> = Vec::with_capacity(CHILD_STACK_BYTES / 8);
    // A stack is aligned to 16 bytes (System V ABI, AMD64 supplement).
    let base = (stack.as_mut_ptr() as u64 + 15) & !15;
    let flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
    let exit_signal = libc::SIGCHLD as u64;
    let stack_size = CHILD_STACK_BYTES as u64 - 16;
    let arguments = CloneArguments {
        flags: flags | CLONE_INTO_CGROUP,
        exit_signal,
        stack: base,
        stack_size,
        cgroup: launch.cgroup.map_or(0, |cgroup| cgroup.as_raw_fd() as u64),
        ..CloneArguments::default()
    };
    // Where it isn't born into a cgroup the older call does: containers know no clone3.
    let (number, first, second) = match launch.cgroup {
        Some(_) => (libc::SYS_clone3, std::ptr::from_ref(&arguments) as u64, size_of::<CloneArguments>() as u64),
        None => (libc::SYS_clone, flags | exit_signal, base + stack_size),
    };
    let result: i64;
    // SAFETY: std has no clone. No signal handler of ours runs in the child, since all signals are blocked until it is
    // another program. The child has its own stack, shares memory with its parent, which the kernel holds until the child
    // has become the program or ended, and touches only `setup`, which outlives that. It never returns from `child`. The
    // child's registers are the parent's, so the two that hold the function and its argument are there.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") 0u64,
            in("r10") 0u64,
            in("r8") 0u64,
            in("r12") &raw mut setup,
            in("r13") child as unsafe extern "C" fn(*mut Setup) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
    }
    drop(stack);
    if result < 0 {
        return Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EINVAL)));
    }
    let pid = i32::try_from(result).map_err(|_| io::ErrorKind::InvalidData)?;
    if setup.errno != 0 {
        // It has ended: its collection doesn't wait.
        let _ = collect(Some(pid));
        return Err(io::Error::from_raw_os_error(setup.errno));
    }
    Ok(pid)
}

/// The child's side of [`launch`]: only system calls, no memory of its own.
unsafe extern "C" fn child(setup: *mut Setup) -> ! {
    // SAFETY: `launch` passes a structure that outlives this and that nobody else touches meanwhile. Everything called is
    // safe after vfork: it allocates nothing and takes no lock. Pointers were made from strings that outlive the call.
    unsafe {
        let setup = &mut *setup;
        if let Err(errno) = become_program(setup) {
            setup.errno = errno;
        }
        libc::_exit(127)
    }
}

/// # Safety
/// As in [`child`], the only caller.
unsafe fn become_program(setup: &Setup) -> Result<(), c_int> {
    // SAFETY: by the caller's promise.
    unsafe {
        let done = |result: c_int| if result < 0 { Err(*libc::__errno_location()) } else { Ok(()) };
        done(libc::setpgid(0, 0))?;
        // The agent's own is not its commands'; a process among others may not raise it, and has no other.
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        for (number, &from) in setup.descriptors.iter().enumerate() {
            done(libc::dup2(from, number as c_int))?;
        }
        done(libc::chdir(setup.cwd))?;
        if let Some(limit) = &setup.open_files {
            done(libc::setrlimit(libc::RLIMIT_NOFILE, limit))?;
        }
        if setup.expendable {
            let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file >= 0 {
                libc::write(file, c"0".as_ptr().cast::<c_void>(), 1);
                libc::close(file);
            }
        }
        // Rust ignores it, and what is ignored stays so in another program.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::execve(setup.program, setup.arguments.as_ptr(), setup.environment.as_ptr());
        Err(*libc::__errno_location())
    }
}
