//! Writes a `newc` cpio archive, the form of an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Uncompressed: under emulation unpacking costs more than loading. Every date is 0 and every owner root, so the same
//! inputs give the same bytes.

use std::io::{self, Write};

const MODE_FOLDER: u32 = 0o040_755;
const MODE_PROGRAM: u32 = 0o100_755;
const MODE_CONSOLE: u32 = 0o020_600;
const TRAILER: &str = "TRAILER!!!";

/// An archive that is being written.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    out: W,
    next_inode: u32,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, next_inode: 1 }
    }

    /// Adds a folder; its parents come first.
    pub(crate) fn folder(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, MODE_FOLDER, (0, 0), &[])
    }

    /// Adds a file that everybody may read and run.
    pub(crate) fn file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.entry(path, MODE_PROGRAM, (0, 0), bytes)
    }

    /// Adds /dev/console, without which the kernel gives its first process no standard output.
    pub(crate) fn console(&mut self) -> io::Result<()> {
        self.entry("dev/console", MODE_CONSOLE, (5, 1), &[])
    }

    /// Writes the trailer and gives the writer back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), bytes: &[u8]) -> io::Result<()> {
        let size = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let name_size = u32::try_from(path.len() + 1).map_err(|_| io::Error::from(io::ErrorKind::InvalidFilename))?;
        let fields =
            [self.next_inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0 /* no checksum */];
        self.next_inode += 1;
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(path);
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(header.len() + 1)?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len())
    }

    /// Each part ends at a multiple of four.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.folder("dev").unwrap();
        archive.console().unwrap();
        archive.file("init", b"#!five").unwrap();
        archive.file("empty", b"").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn every_part_is_aligned_and_the_archive_is_reproducible() {
        let bytes = sample();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(bytes, sample());
        assert_eq!(&bytes[..6], b"070701");
    }

    #[test]
    fn the_cpio_program_reads_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(mut child) = Command::new("cpio")
            .args(["--extract", "--make-directories", "--quiet", "init", "empty"])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .spawn()
        else {
            // The machine has no cpio: the boot test reads the archive with the kernel itself.
            return;
        };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(std::fs::read(folder.path().join("init")).unwrap(), b"#!five");
        assert_eq!(std::fs::read(folder.path().join("empty")).unwrap(), b"");
    }
}
