//! The images of a folder: which there are, who uses them, and taking away what nobody does.
//!
//! ```text
//!   a node runs          holds a shared lock on its image's manifest
//!   a machine outlives its node   has files of the image open, or mapped
//!   neither              the folder can go: renamed to NAME.old first, so that it is whole or not there
//! ```
//! Templates and what hypervisors were found to do lie in an image's folder and go with it. Snapshots don't depend on them:
//! the store has its own copy of each template that a snapshot stands on.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::base::BASE;
use crate::error::ImageError;
use crate::manifest::MANIFEST_FILE;
use crate::staged::remove_folder;

/// The folder of an image's templates, in its own.
pub const TEMPLATES: &str = "templates";
/// What a name ends with while its folder is built, or on its way out.
const UNFINISHED: [&str; 2] = ["partial", "old"];
/// Bytes of a block as stat(2) counts them.
const BLOCK_BYTES: u64 = 512;

/// An image that this process uses: while this lives, nobody takes it away.
#[derive(Debug)]
pub struct Hold(#[expect(dead_code, reason = "its lock is what it is for")] File);

impl Hold {
    /// Holds the image in `dir`.
    ///
    /// # Errors
    /// When it has just been taken away.
    pub(crate) fn on(dir: &Path) -> Result<Self, ImageError> {
        let path = dir.join(MANIFEST_FILE);
        let failed = ImageError::file("hold", &path);
        let held = File::open(&path).and_then(|file| {
            file.lock_shared()?;
            // Whoever took it away held the lock meanwhile.
            let (mine, there) = (file.metadata()?, fs::metadata(&path)?);
            if mine.ino() == there.ino() { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
        });
        held.map(Self).map_err(failed)
    }
}

/// What lies in a folder of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An image.
    Image,
    /// What the images of all agents share.
    Base,
    /// A build that was cut short, or a removal.
    Unfinished,
}

/// Who uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Use {
    /// A node, or a build.
    Held,
    /// Processes that have files of it open or mapped.
    Processes(Vec<u32>),
    /// Nobody.
    Nobody,
}

/// One folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shelved {
    /// Where.
    pub dir: PathBuf,
    /// Its name: for an image, the digest of its inputs.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Bytes on the disk that nothing else shares.
    pub own_bytes: u64,
    /// Templates in it.
    pub templates: u32,
    /// Since when.
    pub made_at: SystemTime,
    /// Who uses it.
    pub used_by: Use,
}

/// All that lies under `root`, the newest first. Other users' processes are seen by root alone.
///
/// # Errors
/// When the folder can't be read; one that isn't there holds nothing.
pub fn shelf(root: &Path) -> Result<Vec<Shelved>, ImageError> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(ImageError::file("list", root))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let dir = entry.map_err(ImageError::file("list", root))?.path();
        if let Some(shelved) = look(&dir)? {
            found.push(shelved);
        }
    }
    found.sort_by(|a, b| b.made_at.cmp(&a.made_at).then_with(|| a.name.cmp(&b.name)));
    Ok(found)
}

/// Takes one away, unless somebody has begun to use it; whether it is gone.
///
/// # Errors
/// When a file can't be removed: what is left is unfinished, and goes the next time.
pub fn take_away(shelved: &Shelved) -> Result<bool, ImageError> {
    let Some(_locks) = alone(&shelved.dir)? else { return Ok(false) };
    if !processes_with(&files(&shelved.dir)?.files).is_empty() {
        return Ok(false);
    }
    let mut dir = shelved.dir.clone();
    if shelved.kind != Kind::Unfinished {
        dir = dir.with_extension("old");
        remove_folder(&dir)?;
        fs::rename(&shelved.dir, &dir).map_err(ImageError::file("rename", &shelved.dir))?;
    }
    remove_folder(&dir)?;
    Ok(true)
}

/// What a folder is, if it is one of ours.
fn look(dir: &Path) -> Result<Option<Shelved>, ImageError> {
    let (Some(name), true) = (dir.file_name().and_then(|name| name.to_str()), dir.is_dir()) else { return Ok(None) };
    let unfinished = dir.extension().is_some_and(|ending| UNFINISHED.iter().any(|unfinished| ending == *unfinished));
    let kind = match (unfinished, name.starts_with(BASE), dir.join(MANIFEST_FILE).is_file()) {
        (true, _, _) => Kind::Unfinished,
        (false, true, _) => Kind::Base,
        (false, false, true) => Kind::Image,
        // Somebody else's.
        (false, false, false) => return Ok(None),
    };
    let Files { files, own_bytes } = files(dir)?;
    let used_by = match alone(dir)? {
        None => Use::Held,
        Some(_) => match processes_with(&files) {
            processes if processes.is_empty() => Use::Nobody,
            processes => Use::Processes(processes),
        },
    };
    let templates = fs::read_dir(dir.join(TEMPLATES)).into_iter().flatten().flatten();
    // A template's own folder has no ending; its checkpoints and locks have.
    let templates = templates.filter(|entry| entry.path().is_dir() && entry.path().extension().is_none()).count();
    let made_at = fs::metadata(dir).and_then(|about| about.modified()).map_err(ImageError::file("look at", dir))?;
    Ok(Some(Shelved {
        dir: dir.to_owned(),
        name: name.to_owned(),
        kind,
        own_bytes,
        templates: u32::try_from(templates).unwrap_or(u32::MAX),
        made_at,
        used_by,
    }))
}

/// The locks of whoever is alone with a folder, if nobody else has one: its builders', and its users'.
fn alone(dir: &Path) -> Result<Option<Vec<File>>, ImageError> {
    let mut locks = Vec::new();
    for path in [dir.with_extension("lock"), dir.join(MANIFEST_FILE)] {
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(ImageError::file("open", &path))?,
        };
        match file.try_lock() {
            Ok(()) => locks.push(file),
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(ImageError::file("lock", &path)(error)),
        }
    }
    Ok(Some(locks))
}

/// The files below a folder.
struct Files {
    /// Each but the manifest, as its device and number.
    files: HashSet<(u64, u64)>,
    /// Bytes on the disk of those that have no other name.
    own_bytes: u64,
}

fn files(dir: &Path) -> Result<Files, ImageError> {
    let mut found = Files { files: HashSet::new(), own_bytes: 0 };
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            // It was removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(ImageError::file("list", &folder))?,
        };
        for entry in entries.flatten() {
            let Ok(about) = fs::symlink_metadata(entry.path()) else { continue };
            if about.is_dir() {
                folders.push(entry.path());
            } else {
                // Whoever looks has the manifest open for its lock; whoever uses the image has other files of it.
                if entry.path() != dir.join(MANIFEST_FILE) {
                    found.files.insert((about.dev(), about.ino()));
                }
                found.own_bytes += if about.nlink() == 1 { about.blocks() * BLOCK_BYTES } else { 0 };
            }
        }
    }
    Ok(found)
}

/// The processes that have one of these files open or mapped, by number: a sealed one has names of its own for them.
fn processes_with(files: &HashSet<(u64, u64)>) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<u32> = numbers.filter(|&pid| has_open(pid, files) || has_mapped(pid, files)).collect();
    found.sort_unstable();
    found
}

fn has_open(pid: u32, files: &HashSet<(u64, u64)>) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut opened = descriptors.filter_map(|entry| fs::metadata(entry.path()).ok());
    opened.any(|about| files.contains(&(about.dev(), about.ino())))
}

/// Lines of /proc/PID/maps: address, rights, offset, `major:minor` in hexadecimal, number, name (proc(5)).
fn has_mapped(pid: u32, files: &HashSet<(u64, u64)>) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        let device = fields.next().and_then(|device| device.split_once(':'));
        let number = fields.next().and_then(|number| number.parse().ok());
        let (Some((major, minor)), Some(number)) = (device, number) else { return false };
        let (Ok(major), Ok(minor)) = (u64::from_str_radix(major, 16), u64::from_str_radix(minor, 16)) else {
            return false;
        };
        number != 0 && files.contains(&(nix::sys::stat::makedev(major, minor), number))
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// A folder that looks like an image, with a template.
    fn image(root: &Path, name: &str) -> PathBuf {
        let dir = root.join(name);
        fs::create_dir_all(dir.join("templates/t1")).unwrap();
        fs::write(dir.join("templates/t1.lock"), b"").unwrap();
        fs::write(dir.join("templates/t1/memory"), vec![1; 8192]).unwrap();
        fs::write(dir.join(MANIFEST_FILE), b"{}").unwrap();
        dir
    }

    fn only(root: &Path) -> Shelved {
        let mut found = shelf(root).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn what_nobody_uses_goes_whole() {
        let root = tempfile::tempdir().unwrap();
        let dir = image(root.path(), "abc");
        fs::write(root.path().join("abc.lock"), b"").unwrap();
        fs::write(root.path().join("a file"), b"").unwrap();
        fs::create_dir(root.path().join("a folder")).unwrap();
        let found = only(root.path());
        assert_eq!((found.name.as_str(), found.kind, found.templates), ("abc", Kind::Image, 1));
        assert!(found.own_bytes >= 8192 && found.used_by == Use::Nobody, "{found:?}");
        assert!(take_away(&found).unwrap());
        assert!(!dir.exists() && root.path().join("a folder").exists());
        assert!(take_away(&found).is_err(), "it is gone");
        assert_eq!(shelf(&root.path().join("none")).unwrap(), []);
    }

    #[test]
    fn what_a_node_holds_stays_until_it_lets_go() {
        let root = tempfile::tempdir().unwrap();
        let dir = image(root.path(), "abc");
        let hold = Hold::on(&dir).unwrap();
        let too = Hold::on(&dir).unwrap();
        assert_eq!(only(root.path()).used_by, Use::Held);
        assert!(!take_away(&only(root.path())).unwrap() && dir.exists());
        drop((hold, too));
        assert!(take_away(&only(root.path())).unwrap());
        assert!(Hold::on(&dir).is_err());
    }

    #[test]
    fn what_a_process_has_open_or_mapped_stays() {
        let root = tempfile::tempdir().unwrap();
        let dir = image(root.path(), "abc");
        let own = Use::Processes(vec![std::process::id()]);
        let file = File::open(dir.join("templates/t1/memory")).unwrap();
        assert_eq!(only(root.path()).used_by, own);
        assert!(!take_away(&only(root.path())).unwrap() && dir.exists());
        drop(file);
        // A program that runs from the folder has it mapped and not open.
        fs::copy("/bin/sleep", dir.join("sleep")).unwrap();
        let mut child = std::process::Command::new(dir.join("sleep")).arg("60").spawn().unwrap();
        let its = Use::Processes(vec![child.id()]);
        // It is started a moment before its program is mapped.
        let start = Instant::now();
        while only(root.path()).used_by != its && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let seen = only(root.path()).used_by;
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen, its);
        assert!(take_away(&only(root.path())).unwrap());
    }

    #[test]
    fn what_was_cut_short_is_unfinished_and_goes() {
        let root = tempfile::tempdir().unwrap();
        for name in ["abc.partial", "base-1.old"] {
            fs::create_dir(root.path().join(name)).unwrap();
            let found = only(root.path());
            assert_eq!(found.kind, Kind::Unfinished);
            assert!(take_away(&found).unwrap() && shelf(root.path()).unwrap().is_empty());
        }
        let builds = File::create(root.path().join("abc.lock")).unwrap();
        fs::create_dir(root.path().join("abc.partial")).unwrap();
        builds.lock().unwrap();
        assert_eq!(only(root.path()).used_by, Use::Held, "a build is under way");
        assert!(!take_away(&only(root.path())).unwrap());
    }
}
