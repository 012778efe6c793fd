//! A vsock listener (vsock(7)): the channel under Cloud Hypervisor.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::fd::{FdChannel, NoBytes};
use crate::sys::{accept, watch_readable};

/// Connections that wait: each makes those before it worthless.
const BACKLOG: i32 = 4;
/// Virtio's number of a socket device (virtio 1.2, section 5).
const VIRTIO_SOCKET: &str = "0x0013";

/// Whether the machine has a vsock device.
pub(super) fn is_present() -> bool {
    fs::read_dir("/sys/bus/virtio/devices").is_ok_and(|entries| {
        entries
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path().join("device")).ok())
            .any(|kind| kind.trim() == VIRTIO_SOCKET)
    })
}

/// Takes the host's connections.
#[derive(Debug)]
pub(crate) struct VsockListener(AsyncFd<OwnedFd>);

impl VsockListener {
    pub(super) fn bind(port: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        bind(fd.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
        listen(&fd, Backlog::new(BACKLOG)?)?;
        Self::from_listening(fd)
    }

    /// Takes over a listening socket in non-blocking mode.
    pub(super) fn from_listening(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(watch_readable(fd)?))
    }

    /// The next connection. Cancel safe.
    pub(super) async fn accept(&self) -> io::Result<FdChannel> {
        let fd = self.0.async_io(Interest::READABLE, |fd| accept(fd.as_raw_fd())).await?;
        FdChannel::new(fd, NoBytes::End)
    }
}
