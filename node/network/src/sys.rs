//! The one system call that no crate at hand makes: a tap that outlives whoever made it.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

/// What a tap is: whole Ethernet frames, no header before them. Whoever opens it chooses the virtio header itself.
const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI;

mod raw {
    #![allow(missing_docs)]
    // The request codes of linux/if_tun.h: type 'T', numbers 202 to 204, an int each.
    nix::ioctl_write_ptr_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
    nix::ioctl_write_int_bad!(set_persistent, nix::request_code_write!(b'T', 203, size_of::<libc::c_int>()));
    nix::ioctl_write_int_bad!(set_owner, nix::request_code_write!(b'T', 204, size_of::<libc::c_int>()));
}

/// Attaches to a tap of this name in the calling thread's network namespace, made if there is none.
fn attach(name: &str) -> io::Result<File> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid `ifreq`: integers, arrays of them and unions of both. Safe code can't make one,
    // since its union's fields are private.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the device's name is too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = FLAGS as libc::c_short;
    // SAFETY: the file is an open tun device and the request a whole, initialised `ifreq` that lives until the call is
    // over, as TUNSETIFF wants it. Safe code can't pass a pointer to the kernel.
    unsafe { raw::set_interface(tun.as_raw_fd(), &request) }?;
    Ok(tun)
}

/// Makes a tap that stays after this process, and that only `owner` (and whoever administers the namespace) may open.
pub(crate) fn make_tap(name: &str, owner: u32) -> io::Result<()> {
    let tun = attach(name)?;
    // SAFETY: the file is an attached tun device, and both requests take a plain integer: there is no memory to be wrong
    // about. No crate wraps them.
    unsafe {
        raw::set_owner(tun.as_raw_fd(), owner as libc::c_int)?;
        raw::set_persistent(tun.as_raw_fd(), 1)?;
    }
    Ok(())
}
