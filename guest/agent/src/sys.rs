//! What only unsafe code can ask of the kernel.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Loads a kernel module from its file (finit_module(2)). One that is loaded already is no error.
pub(crate) fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: neither the standard library nor nix (without its kmod feature) has this call.
    // It reads the open descriptor and a constant empty string and keeps neither.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}
