//! Two small file trees in a mount namespace of their own: the keeper's, and within it the monitor's.
//!
//! ```text
//! /                the keeper's root: a tmpfs
//!   proc           the host's, to watch the monitor by
//!   dev/null       for whom nothing is to be read
//!   DIR, RUN       the machine's folders, to write records and logs
//!   TEMPLATE       its memory file
//!   monitor/       the monitor's root: another tmpfs, read-only
//!     ...          what its view lists, each at its own path; no proc, no sys
//! ```
//!
//! The monitor sees neither of the machine's folders: what a taken-over monitor writes is never read by name by the
//! node, which is root.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, umask};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, pivot_root};
use thiserror::Error;

use super::view::View;

/// Where the trees are built before they become the root: nothing that goes into them lies there.
const STAGE: &str = "/sys";
/// The monitor's root within the keeper's.
pub(super) const MONITOR: &str = "/monitor";
/// Most that a tmpfs of folders and empty files takes.
const TMPFS: &str = "mode=755,size=1m";

/// What couldn't be mounted.
#[derive(Debug, Error)]
#[error("can't {action} {path}: {source}")]
pub(super) struct RootError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> RootError {
    move |source| RootError { action, path: path.to_owned(), source: source.into() }
}

/// Builds both trees and makes the keeper's its root. Call it in a mount namespace of its own. On an error the root is
/// what it was.
pub(super) fn enter(view: &View, folders: &[&Path]) -> Result<(), RootError> {
    // The folders between are for every user to pass; the keeper's own files are private again afterwards.
    let private = umask(Mode::from_bits_truncate(0o022));
    let entered = build_and_enter(view, folders);
    umask(private);
    entered
}

fn build_and_enter(view: &View, folders: &[&Path]) -> Result<(), RootError> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(failed("keep apart", Path::new("/")))?;
    let stage = Path::new(STAGE);
    let monitor = stage.join(MONITOR.trim_start_matches('/'));
    tmpfs(stage)?;
    fs::create_dir(&monitor).map_err(failed("make", &monitor))?;
    tmpfs(&monitor)?;
    for folder in folders {
        bind(stage, folder, false)?;
    }
    // Its submounts too: in a user namespace the kernel shows none without those that hide parts of it.
    let proc = stage.join("proc");
    fs::create_dir(&proc).map_err(failed("make", &proc))?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some("/proc"), &proc, none, flags, none).map_err(failed("bind", &proc))?;
    bind(stage, Path::new("/dev/null"), false)?;
    for (memory, _) in view.handed.iter().filter(|(path, _)| !path.starts_with("/dev")) {
        bind(stage, memory, true)?;
    }
    let shown = view.read.iter().chain(&view.shared).map(|path| (path, true));
    let written = view.write.iter().chain(&view.made).chain(&view.devices).map(|path| (path, false));
    for (path, read_only) in shown.chain(written) {
        bind(&monitor, path, read_only)?;
    }
    chdir(stage).map_err(failed("enter", stage))?;
    pivot_root(".", ".").map_err(failed("make the root", stage))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("let go of the host's files at", Path::new("/")))?;
    chdir("/").map_err(failed("enter", Path::new("/")))
}

fn tmpfs(at: &Path) -> Result<(), RootError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("atoll"), at, Some("tmpfs"), flags, Some(TMPFS)).map_err(failed("mount a tmpfs at", at))
}

/// Shows a host's file or folder at its own path below `root`. One that isn't there is left out, a link is made again.
fn bind(root: &Path, path: &Path, read_only: bool) -> Result<(), RootError> {
    let Ok(about) = fs::symlink_metadata(path) else { return Ok(()) };
    let target = root.join(path.strip_prefix("/").unwrap_or(path));
    if fs::symlink_metadata(&target).is_ok_and(|there| !there.is_dir()) || is_below_a_link(root, &target) {
        // Shown already, by itself or through a folder's link.
        return Ok(());
    }
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(failed("make", folder))?;
    }
    if about.is_symlink() && path.parent() == Some(Path::new("/")) {
        let to = fs::read_link(path).map_err(failed("read", path))?;
        return symlink(to, &target).map_err(failed("make", &target));
    }
    let is_folder = fs::metadata(path).is_ok_and(|about| about.is_dir());
    if is_folder {
        fs::create_dir_all(&target).map_err(failed("make", &target))?;
    } else {
        let mut options = OpenOptions::new();
        options.create(true).append(true).open(&target).map(drop::<File>).map_err(failed("make", &target))?;
    }
    let none: Option<&str> = None;
    mount(Some(path), &target, none, MsFlags::MS_BIND, none).map_err(failed("bind", path))?;
    let is_device = path.starts_with("/dev");
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | kept(&target)?;
    if !is_device {
        flags |= MsFlags::MS_NODEV;
    }
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(none, &target, none, flags, none).map_err(failed("limit", path))
}

/// `/lib` is often a link to `usr/lib`: what lies below it is shown there.
fn is_below_a_link(root: &Path, target: &Path) -> bool {
    let above = target.ancestors().skip(1).take_while(|folder| *folder != root);
    let mut above = above.map(|folder| fs::symlink_metadata(folder).is_ok_and(|about| about.is_symlink()));
    above.any(|is_link| is_link)
}

/// Flags of the source's mount that a user namespace may not take away.
fn kept(path: &Path) -> Result<MsFlags, RootError> {
    let flags = statvfs(path).map_err(failed("look at", path))?.flags();
    let pairs = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    Ok(pairs.into_iter().filter(|(has, _)| flags.contains(*has)).map(|(_, keep)| keep).collect())
}
