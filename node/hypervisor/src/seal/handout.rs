//! Descriptors that the keeper hands a monitor instead of what it asked to open (seccomp_unotify(2)).
//!
//! QEMU 7 and Cloud Hypervisor open the memory that a clone maps privately for reading and writing; with that right, a
//! monitor that a guest has taken over could change the memory that every later clone starts from. Here the open is
//! answered with a descriptor that only reads, which is all that a private mapping needs. `/dev/kvm` is handed out the
//! same way, so that the machine's user needs no right to it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};

use super::view::View;
use crate::process::pid_of;
use crate::sys::seal::{Asked, answer, next};

/// Longest path that is compared, bytes: PATH_MAX of Linux.
const PATH_BYTES_MAX: usize = 4096;
/// A page: memory behind a path's end may not be there.
const PAGE: usize = 4096;

/// What may be handed out.
#[derive(Debug)]
pub(crate) struct Handout {
    files: Vec<(PathBuf, File)>,
    listener: Option<OwnedFd>,
}

impl Handout {
    /// Opens what the view hands out, while the keeper still may.
    pub(super) fn open(view: &View) -> io::Result<Self> {
        let open = |(path, write): &(PathBuf, bool)| {
            Ok((path.clone(), OpenOptions::new().read(true).write(*write).open(path)?))
        };
        let files = view.handed.iter().map(open).collect::<io::Result<_>>()?;
        Ok(Self { files, listener: None })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub(super) fn listen(&mut self, listener: Option<OwnedFd>) {
        self.listener = listener;
    }

    /// Readable when a monitor asks.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Answers what is asked now. A monitor that has ended meanwhile is not an error.
    pub(crate) fn serve(&mut self) {
        let Some(listener) = &self.listener else { return };
        match next(listener) {
            Ok(asked) => {
                let path = path_of(&asked);
                let file = path.ok().and_then(|path| self.files.iter().find(|(known, _)| *known == path));
                // It may have been killed while it waited.
                let _ = answer(listener, &asked, file.map(|(_, file)| file.as_fd()));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Nobody can ask any more.
            Err(_) => self.listener = None,
        }
    }
}

/// The path in the asking process's memory. It may change after it is read: what is handed out can be had anyway, and
/// a call that goes on is checked by the kernel.
fn path_of(asked: &Asked) -> io::Result<PathBuf> {
    let mut bytes = Vec::new();
    let mut at = usize::try_from(asked.path).map_err(|_| io::ErrorKind::InvalidInput)?;
    while bytes.len() < PATH_BYTES_MAX {
        let mut piece = [0; PAGE];
        let length = PAGE - at % PAGE;
        let remote = [RemoteIoVec { base: at, len: length }];
        let read = process_vm_readv(pid_of(asked.pid), &mut [IoSliceMut::new(&mut piece[..length])], &remote)?;
        if let Some(end) = piece[..read].iter().position(|&byte| byte == 0) {
            bytes.extend_from_slice(&piece[..end]);
            return Ok(Path::new(&OsString::from_vec(bytes)).to_owned());
        }
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&piece[..read]);
        at += read;
    }
    Err(io::ErrorKind::InvalidData.into())
}
