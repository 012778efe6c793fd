//! Disks: sparse raw files with an ext4 in them, and copies that keep the holes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use fabric_types::DiskGib;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::{VmError, sys};

/// Options of mkfs.ext4. The journal has ext4's least size (4 MiB), so that a killed machine's disk needs no check;
/// inode tables count as zeroed, since the file is all holes: nothing is written for them here, nor by the guest's
/// kernel later.
const MKFS_OPTIONS: [&str; 13] = [
    "-q",
    "-F",
    "-b",
    "4096",
    "-m",
    "0",
    "-J",
    "size=4",
    "-E",
    "lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0",
    "-O",
    "^resize_inode",
    "-L",
];
/// The file system's label.
const LABEL: &str = "atoll";

/// Makes a machine's own disk: a sparse raw file of `size` with an empty ext4, about 400 KiB of it allocated. Blocks
/// for some 10 ms; it runs `mkfs.ext4` (package e2fsprogs). An existing file is replaced.
pub fn make_disk(path: &Path, size: DiskGib) -> Result<(), VmError> {
    let failed = |source| VmError::File { action: "make the disk", path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
    file.set_len(u64::from(size.0) << 30).map_err(failed)?;
    let output = Command::new("mkfs.ext4")
        .args(MKFS_OPTIONS)
        .arg(LABEL)
        .arg(path)
        .env("PATH", search_path())
        .stdin(Stdio::null())
        .output()
        .map_err(|source| VmError::Program {
            program: "mkfs.ext4".into(),
            source,
            advice: "install the package e2fsprogs",
        })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().chars().take(300).collect();
    Err(VmError::Refused { monitor: "mkfs.ext4", command: path.display().to_string(), message })
}

/// Copies a file and keeps its holes: by sharing blocks where the file system can, else what is allocated only. Blocks;
/// a fresh disk takes under a millisecond. An existing `target` is replaced.
pub fn copy_sparse(source: &Path, target: &Path) -> Result<(), VmError> {
    let from =
        File::open(source).map_err(|error| VmError::File { action: "open", path: source.to_owned(), source: error })?;
    let failed = |source| VmError::File { action: "copy into", path: target.to_owned(), source };
    let to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(target).map_err(failed)?;
    if sys::clone_file(&from, &to).is_ok() {
        return Ok(());
    }
    let length = from.metadata().map_err(failed)?.len();
    to.set_len(length).map_err(failed)?;
    let mut at = 0;
    while let Some((start, end)) = next_extent(&from, at, length).map_err(failed)? {
        copy_range(&from, &to, start, end).map_err(failed)?;
        at = end;
    }
    Ok(())
}

/// The next range of `file` that holds data, from `at` on (lseek(2), `SEEK_DATA`, `SEEK_HOLE`).
pub(crate) fn next_extent(file: &File, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= length {
        return Ok(None);
    }
    let seek = |from: u64, whence| lseek(file, from.cast_signed(), whence).map(i64::cast_unsigned);
    let start = match seek(at, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = seek(start, Whence::SeekHole)?;
    Ok(Some((start, end.min(length))))
}

fn copy_range(mut from: &File, mut to: &File, start: u64, end: u64) -> io::Result<()> {
    from.seek(SeekFrom::Start(start))?;
    to.seek(SeekFrom::Start(start))?;
    // Between two files std moves the bytes inside the kernel (copy_file_range(2)).
    match io::copy(&mut from.take(end - start), &mut to)? {
        copied if copied == end - start => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// mkfs.ext4 lies in /sbin, which a user's PATH may lack.
fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_fresh_disk_is_small_and_its_copy_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let (disk, copy) = (folder.path().join("disk"), folder.path().join("copy"));
        make_disk(&disk, DiskGib(3)).expect("made");
        copy_sparse(&disk, &copy).expect("copied");
        for path in [&disk, &copy] {
            let about = fs::metadata(path).expect("there");
            assert_eq!(about.len(), 3 << 30);
            assert!(about.blocks() * 512 < 5 << 20, "{} bytes allocated", about.blocks() * 512);
        }
        let check =
            Command::new("e2fsck").args(["-f", "-n"]).arg(&copy).env("PATH", search_path()).output().expect("e2fsck");
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    }

    #[test]
    fn a_copy_holds_the_same_bytes_and_holes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (source, target) = (folder.path().join("a"), folder.path().join("b"));
        let file = File::create(&source).expect("created");
        file.set_len(8 << 20).expect("sized");
        for (at, byte) in [(0, 1u8), (1 << 20, 2), ((8 << 20) - 4096, 3)] {
            file.write_all_at(&[byte; 4096], at).expect("written");
        }
        fs::write(&target, vec![9; 9 << 20]).expect("an older file is there");
        copy_sparse(&source, &target).expect("copied");
        assert_eq!(fs::read(&source).expect("read"), fs::read(&target).expect("read"));
        assert!(fs::metadata(&target).expect("there").blocks() * 512 <= 64 << 10);
    }

    #[test]
    fn a_missing_source_leaves_no_target() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("b");
        assert!(copy_sparse(&folder.path().join("a"), &target).is_err());
        assert!(!target.exists());
    }
}
