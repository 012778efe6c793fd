//! The root file system: the shared EROFS image under an overlay on the sandbox's own disk.
//!
//! Without a disk the overlay lies in memory; without an image (a probe boots kernel and initramfs alone) the agent
//! stays in the initramfs, where it can tell its health and nothing more.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use guest_proto::boot::{DISK_DEVICE, MODULES_DIR, ROOT_DEVICE};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::BootError;
use super::mounts::mount_at;
use crate::console::say;

/// The image, in the initramfs.
const LOWER: &str = "/lower";
/// The sandbox's disk, in the initramfs.
const DISK: &str = "/disk";
/// The overlay, before it becomes the root.
const NEW_ROOT: &str = "/newroot";
/// How long a disk may take to appear after its driver is loaded. Drivers probe while they load: 2 s is for a host
/// that is out of breath.
const DISK_WAIT: Duration = Duration::from_secs(2);
/// Between two looks.
const DISK_POLL: Duration = Duration::from_millis(1);

/// The guest's root.
#[derive(Debug)]
pub(crate) struct Root {
    /// The disk's own root, which no path leads to any more: for the last remount.
    pub(crate) disk: Option<File>,
}

/// Mounts the root and moves into it.
pub(super) fn switch() -> Result<Root, BootError> {
    if !appears(Path::new(ROOT_DEVICE), DISK_WAIT) {
        say("no root disk: staying in the initramfs");
        return Ok(Root { disk: None });
    }
    for folder in [LOWER, DISK, NEW_ROOT] {
        let path = Path::new(folder);
        fs::create_dir_all(path).map_err(BootError::file("make", path))?;
    }
    mount_at(ROOT_DEVICE, "erofs", Path::new(LOWER), MsFlags::MS_RDONLY | MsFlags::MS_NOATIME, "")?;
    let on_disk = Path::new(DISK_DEVICE).exists();
    if on_disk {
        mount_at(DISK_DEVICE, "ext4", Path::new(DISK), MsFlags::MS_NOATIME, "discard")?;
    } else {
        say("no disk: what is written lies in memory");
        mount_at("tmpfs", "tmpfs", Path::new(DISK), MsFlags::empty(), "mode=755")?;
    }
    let disk = Path::new(DISK);
    for folder in ["upper", "work"] {
        let path = disk.join(folder);
        fs::create_dir_all(&path).map_err(BootError::file("make", &path))?;
    }
    let options = format!("lowerdir={LOWER},upperdir={DISK}/upper,workdir={DISK}/work");
    mount_at("overlay", "overlay", Path::new(NEW_ROOT), MsFlags::MS_NOATIME, &options)?;
    let disk = on_disk.then(|| File::open(disk).map_err(BootError::file("open", disk))).transpose()?;
    enter(Path::new(NEW_ROOT))?;
    Ok(Root { disk })
}

/// As switch_root(8): takes the kernel's file systems along, frees the initramfs and makes the overlay the root.
fn enter(new_root: &Path) -> Result<(), BootError> {
    for name in ["dev", "proc", "sys"] {
        let from = Path::new("/").join(name);
        move_mount(&from, &new_root.join(name))?;
    }
    // The agent itself stays in memory while it runs; the modules needn't.
    let _ = fs::remove_dir_all(MODULES_DIR);
    let wrap = |source: nix::Error| BootError::Mount { what: "the root".to_owned(), on: new_root.to_owned(), source };
    chdir(new_root).map_err(wrap)?;
    move_mount(Path::new("."), Path::new("/"))?;
    chroot(".").map_err(wrap)?;
    chdir("/").map_err(wrap)
}

fn move_mount(from: &Path, to: &Path) -> Result<(), BootError> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(|source| BootError::Mount {
        what: from.display().to_string(),
        on: to.to_owned(),
        source,
    })
}

/// Waits for a device's file.
fn appears(path: &Path, limit: Duration) -> bool {
    let start = Instant::now();
    while !path.exists() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(DISK_POLL);
    }
    true
}
