//! The virtio-serial port with the channel's name.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::fd::{FdChannel, NoBytes};

/// Where the kernel shows virtio-serial ports, each with its name.
pub(super) const PORTS: &str = "/sys/class/virtio-ports";

/// The device of the port with this name.
pub(super) fn find(ports: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(ports).ok()?.flatten().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("name")).ok()?;
        (found.trim_end() == name).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

/// Opens the port; it stays open for the machine's whole life, through every host that comes and goes.
pub(super) fn open(path: &Path) -> io::Result<FdChannel> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    FdChannel::new(file.into(), NoBytes::Wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        for (port, name) in [("vport1p1", "other\n"), ("vport1p2", "atoll\n")] {
            fs::create_dir(folder.path().join(port)).unwrap();
            fs::write(folder.path().join(port).join("name"), name).unwrap();
        }
        fs::create_dir(folder.path().join("vport1p3")).unwrap();
        assert_eq!(find(folder.path(), "atoll"), Some(PathBuf::from("/dev/vport1p2")));
        assert_eq!(find(folder.path(), "atol"), None);
        assert_eq!(find(Path::new("/nowhere"), "atoll"), None);
    }
}
