//! Calls that have no safe form, or none that lets itself be refused.
#![allow(unsafe_code)]

use std::io;

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

fn outcome(answer: libc::c_long) -> io::Result<String> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(format!("answered {answer}")) }
}

/// A call with arguments that no kernel would act on: what is found out is whether it gets as far.
pub(crate) fn call(number: libc::c_long, arguments: [libc::c_long; 3]) -> io::Result<String> {
    // SAFETY: why unsafe: a raw call. Why it holds: the arguments are null or invalid, so that the kernel refuses them
    // before it acts, and no memory is named.
    outcome(unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2], 0, 0) })
}

/// A socket, closed at once.
pub(crate) fn socket(family: libc::c_int, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: why unsafe: a raw call. Why it holds: it takes three numbers.
    let socket = unsafe { libc::socket(family, kind, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above, with the number that was just made.
    unsafe { libc::close(socket) };
    Ok(())
}

/// Attaches to a process as a debugger.
pub(crate) fn trace(pid: libc::pid_t) -> io::Result<String> {
    let zero: libc::c_long = 0;
    // SAFETY: why unsafe: a raw call. Why it holds: attaching takes no memory.
    outcome(unsafe { libc::syscall(libc::SYS_ptrace, libc::c_long::from(libc::PTRACE_ATTACH), pid, zero, zero) })
}

/// Reads a word of another process's memory.
pub(crate) fn read_memory(pid: libc::pid_t) -> io::Result<String> {
    let mut word = [0u8; 8];
    let local = libc::iovec { iov_base: word.as_mut_ptr().cast(), iov_len: word.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(0x40_0000), iov_len: word.len() };
    // SAFETY: why unsafe: a raw call that writes to memory. Why it holds: `word` is as long as it says and lives for
    // the length of the call; the other address is another process's.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    outcome(read as libc::c_long)
}

/// Forks into a user namespace of its own.
pub(crate) fn clone_user_namespace() -> io::Result<String> {
    let zero: libc::c_long = 0;
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    // SAFETY: why unsafe: a raw fork. Why it holds: with a null stack the child goes on in a copy of this one, and it
    // ends at once.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, zero, zero, zero, zero) };
    if child == 0 {
        // SAFETY: ends this process without running anything more of it.
        unsafe { libc::_exit(0) };
    }
    outcome(child)
}

/// Asks for every capability.
pub(crate) fn take_capabilities() -> io::Result<String> {
    let header = [CAPABILITY_VERSION, 0];
    let all = [u32::MAX; 6];
    // SAFETY: why unsafe: a raw call. Why it holds: both arrays have capset(2)'s layout and live for its length.
    outcome(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), all.as_ptr()) })
}
