//! A folder that is built once: complete under its name, or not there.
//!
//! ```text
//! ROOT/NAME.lock     held by whoever builds it or waits for it
//! ROOT/NAME.partial  the build; removed by the next one if it was cut short
//! ROOT/NAME/         complete and synced
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::ImageError;

/// The folder `root/name`, which `build` fills if it isn't there; `build` syncs what it writes. Two builders of one
/// folder don't collide: the second waits (told by `waiting`) and finds it.
pub(crate) fn once(
    root: &Path,
    name: &str,
    waiting: &mut dyn FnMut(&Path),
    build: &mut dyn FnMut(&Path) -> Result<(), ImageError>,
) -> Result<PathBuf, ImageError> {
    let dir = root.join(name);
    if dir.is_dir() {
        return Ok(dir);
    }
    let lock_path = root.join(format!("{name}.lock"));
    let lock = File::create(&lock_path).map_err(ImageError::file("make", &lock_path))?;
    if lock.try_lock().is_err() {
        waiting(&lock_path);
        lock.lock().map_err(ImageError::file("lock", &lock_path))?;
    }
    if dir.is_dir() {
        return Ok(dir);
    }
    let partial = root.join(format!("{name}.partial"));
    remove_folder(&partial)?;
    fs::create_dir(&partial).map_err(ImageError::file("make", &partial))?;
    if let Err(error) = build(&partial) {
        // The error that matters is the build's; a leftover folder is removed by the next build.
        let _ = remove_folder(&partial);
        return Err(error);
    }
    sync(&partial)?;
    fs::rename(&partial, &dir).map_err(ImageError::file("rename", &partial))?;
    sync(root)?;
    Ok(dir)
}

/// Removes a folder and all in it, if it is there.
pub(crate) fn remove_folder(path: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ImageError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Has a file's or folder's bytes on the disk.
pub(crate) fn sync(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(ImageError::file("sync", path))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn many_builders_build_once() {
        let root = tempfile::tempdir().unwrap();
        let (builds, waits) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let dir =
                        once(root.path(), "x", &mut |_| _ = waits.fetch_add(1, Ordering::Relaxed), &mut |partial| {
                            builds.fetch_add(1, Ordering::Relaxed);
                            thread::sleep(Duration::from_millis(200));
                            fs::write(partial.join("file"), b"whole").map_err(ImageError::file("write", partial))
                        });
                    assert_eq!(fs::read(dir.unwrap().join("file")).unwrap(), b"whole");
                });
            }
        });
        assert_eq!(builds.load(Ordering::Relaxed), 1);
        assert!(waits.load(Ordering::Relaxed) <= 3);
    }

    #[test]
    fn a_build_that_fails_or_was_cut_short_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("x.partial")).unwrap();
        fs::write(root.path().join("x.partial/half"), b"").unwrap();
        let fail = &mut |_: &Path| Err(ImageError::KernelPackage { what: "told to".to_owned() });
        assert!(once(root.path(), "x", &mut |_| {}, fail).is_err());
        assert!(!root.path().join("x").exists() && !root.path().join("x.partial").exists());
        let dir = once(root.path(), "x", &mut |_| {}, &mut |_| Ok(())).unwrap();
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    }
}
