//! The machine's own user: a number that no two living machines of a host share, and what it is given.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

/// The first number: far above what distributions, subordinate ranges and directories hand out.
pub(super) const FIRST: u32 = 2_000_000_000;
/// How many there are; machines of one host end long before.
pub(super) const COUNT: u32 = 65_536;
/// How many numbers are tried.
const TRIES: u32 = 512;
/// The group of what all machines read: the image and their template.
pub(crate) const SHARED_GROUP: u32 = FIRST - 1;

/// A user for as long as this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) uid: u32,
    /// An abstract socket of the host's network: its name can be bound once, and is free when the keeper is gone,
    /// however that ended.
    _name: OwnedFd,
}

/// Takes a free number; the first that is tried comes from the folder. Call it in the host's network namespace.
pub(super) fn claim(folder: &Path) -> io::Result<Claim> {
    let hash = blake3::hash(folder.as_os_str().as_encoded_bytes());
    let start = hash.as_bytes()[..4].iter().fold(0u32, |sum, &byte| sum << 8 | u32::from(byte));
    for step in 0..TRIES {
        let uid = FIRST + start.wrapping_add(step) % COUNT;
        let address = SocketAddr::from_abstract_name(format!("atoll-machine-user-{uid}"))?;
        match UnixDatagram::bind_addr(&address) {
            Ok(socket) => return Ok(Claim { uid, _name: socket.into() }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::QuotaExceeded, "no free user number was found"))
}

/// Whether the numbers exist where this process runs: in a user namespace they may not (user_namespaces(7)).
pub(super) fn is_mapped(uid_map: &str) -> bool {
    uid_map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) = (numbers.next(), numbers.next(), numbers.next()) else {
            return false;
        };
        first <= u64::from(SHARED_GROUP) && first + count >= u64::from(FIRST) + u64::from(COUNT)
    })
}

/// Gives the machine its own file or folder.
pub(super) fn give(path: &Path, uid: u32) -> io::Result<()> {
    chown(path, Some(uid), Some(uid))
}

/// Lets every machine read a file that they share, if not everybody may anyway.
pub(super) fn share(path: &Path) -> io::Result<()> {
    let about = fs::metadata(path)?;
    let wanted = if about.is_dir() { 0o5 } else { 0o4 };
    if about.mode() & wanted == wanted {
        return Ok(());
    }
    if about.gid() != SHARED_GROUP {
        chown(path, None, Some(SHARED_GROUP))?;
    }
    let mode = about.mode() & 0o7777 | wanted << 3;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_living_machines_never_share_a_user() {
        // Numbers are the host's: the same test may run in another process.
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        let (one, other) = (claim(folder).expect("free"), claim(folder).expect("free"));
        assert_ne!(one.uid, other.uid);
        let freed = one.uid;
        drop(one);
        assert_eq!(claim(folder).expect("free").uid, freed);
        assert!((FIRST..FIRST + COUNT).contains(&other.uid));
    }

    #[test]
    fn a_narrow_map_has_no_machine_users() {
        assert!(is_mapped("         0          0 4294967295\n"));
        assert!(!is_mapped("0 100000 65536\n"));
        assert!(!is_mapped("0 1000 1\n1 100000 65536\n"));
        assert!(!is_mapped("x"));
    }
}
