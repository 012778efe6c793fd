//! A monitor's memory, read and written whole or not at all from outside (process_vm_readv(2)).

use std::io::{self, IoSlice, IoSliceMut};

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};

use crate::process::pid_of;

/// Fills the buffer from `at` on.
pub(super) fn read_at(pid: u32, at: u64, buffer: &mut [u8]) -> io::Result<()> {
    let (remote, length) = ([place(at, buffer.len())?], buffer.len());
    match process_vm_readv(pid_of(pid), &mut [IoSliceMut::new(buffer)], &remote)? {
        read if read == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Eight bytes as a number.
pub(super) fn word_at(pid: u32, at: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    read_at(pid, at, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Writes all bytes from `at` on.
pub(super) fn write_at(pid: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
    match process_vm_writev(pid_of(pid), &[IoSlice::new(bytes)], &[place(at, bytes.len())?])? {
        written if written == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

fn place(at: u64, len: usize) -> io::Result<RemoteIoVec> {
    Ok(RemoteIoVec { base: usize::try_from(at).map_err(io::Error::other)?, len })
}
