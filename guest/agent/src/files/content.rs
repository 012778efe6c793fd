//! A file's bytes, in and out, in pieces.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use guest_proto::surface::{AgentErrorCode, FileInfo};

use super::blocking;
use super::info::info;
use crate::refusal::{Answer, file_error, refuse};

/// Bytes of one piece that is read from a file.
const PIECE_BYTES: usize = 64 << 10;
/// Mode of a new file.
const NEW_MODE: u32 = 0o644;

/// How the name of a temporary file begins.
const TEMPORARY: &str = ".atoll-upload-";

/// Numbers the temporary files of this agent.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A file that is being read.
#[derive(Debug)]
pub(crate) struct Download {
    file: Arc<File>,
}

impl Download {
    /// Opens a regular file. A pipe or a device would hold the agent up for ever.
    pub(crate) async fn open(path: PathBuf) -> Answer<Self> {
        blocking(move || {
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(&path)
                .map_err(file_error("open", &path))?;
            let metadata = file.metadata().map_err(file_error("look at", &path))?;
            if !metadata.is_file() {
                let message = format!("can't read {}: it is no regular file", path.display());
                return Err(refuse(AgentErrorCode::Conflict, message));
            }
            Ok(Self { file: Arc::new(file) })
        })
        .await
    }

    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = BytesMut::zeroed(PIECE_BYTES);
            let read = (&*file).read(&mut piece)?;
            piece.truncate(read);
            io::Result::Ok(piece.freeze())
        });
        let piece = read.await.map_err(io::Error::other)??;
        Ok((!piece.is_empty()).then_some(piece))
    }
}

/// A file that is being written beside its place. Dropped before [`Upload::finish`], it leaves nothing.
#[derive(Debug)]
pub(crate) struct Upload {
    target: PathBuf,
    temporary: Temporary,
    file: Arc<File>,
    mode: Option<u32>,
}

/// Removes the temporary file unless it was renamed.
#[derive(Debug)]
struct Temporary(Option<PathBuf>);

impl Temporary {
    /// It has another name now.
    fn keep(&mut self) {
        self.0 = None;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // It lies beside its target under a name that tells what it is.
            let _ = fs::remove_file(path);
        }
    }
}

impl Upload {
    /// Makes the parents and the temporary file.
    pub(crate) async fn create(path: PathBuf, mode: Option<u32>) -> Answer<Self> {
        blocking(move || {
            // A link is written through, as `cat >` does.
            let target = fs::canonicalize(&path).unwrap_or(path);
            if target.is_dir() {
                let message = format!("can't write {}: it is a folder", target.display());
                return Err(refuse(AgentErrorCode::Conflict, message));
            }
            let (Some(parent), Some(_)) = (target.parent(), target.file_name()) else {
                return Err(refuse(AgentErrorCode::BadRequest, format!("{} names no file", target.display())));
            };
            fs::create_dir_all(parent).map_err(file_error("make the folder", parent))?;
            let temporary = parent.join(format!("{TEMPORARY}{}", NEXT.fetch_add(1, Ordering::Relaxed)));
            // One of an agent before a restore may have the same number.
            let _ = fs::remove_file(&temporary);
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)
                .map_err(file_error("make a file beside", &target))?;
            Ok(Self { temporary: Temporary(Some(temporary)), target, file: Arc::new(file), mode })
        })
        .await
    }

    /// Appends bytes.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Answer<()> {
        let file = Arc::clone(&self.file);
        let target = self.target.clone();
        blocking(move || (&*file).write_all(&bytes).map_err(file_error("write", &target))).await
    }

    /// Puts the file in its place. Without a mode it keeps that of the file it replaces.
    pub(crate) async fn finish(mut self) -> Answer<FileInfo> {
        blocking(move || {
            let target = &self.target;
            let before = fs::metadata(target).ok().map(|metadata| metadata.permissions().mode() & 0o7777);
            let mode = self.mode.or(before).unwrap_or(NEW_MODE);
            self.file.set_permissions(Permissions::from_mode(mode)).map_err(file_error("set the mode of", target))?;
            if let Some(temporary) = &self.temporary.0 {
                fs::rename(temporary, target).map_err(file_error("put in place", target))?;
            }
            self.temporary.keep();
            info(target)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    async fn upload(path: &Path, bytes: &'static [u8], mode: Option<u32>) -> Answer<FileInfo> {
        let mut upload = Upload::create(path.to_owned(), mode).await?;
        for piece in bytes.chunks(3) {
            upload.write(Bytes::from_static(piece)).await?;
        }
        upload.finish().await
    }

    fn leftovers(folder: &Path) -> usize {
        fs::read_dir(folder)
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(TEMPORARY))
            .count()
    }

    #[tokio::test]
    async fn what_goes_up_comes_down() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/file");
        let info = upload(&path, b"some bytes", None).await.unwrap();
        assert_eq!((info.size, info.permissions.as_str()), (10, "0644"));
        let mut download = Download::open(path.clone()).await.unwrap();
        assert_eq!(download.next().await.unwrap().unwrap(), &b"some bytes"[..]);
        assert_eq!(download.next().await.unwrap(), None);
        // A mode is kept when the file is replaced, and set when it is given.
        assert_eq!(upload(&path, b"x", Some(0o755)).await.unwrap().permissions, "0755");
        assert_eq!(upload(&path, b"y", None).await.unwrap().permissions, "0755");
        assert_eq!(leftovers(path.parent().unwrap()), 0);
    }

    #[tokio::test]
    async fn an_upload_that_breaks_off_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"old").unwrap();
        let mut broken = Upload::create(path.clone(), None).await.unwrap();
        broken.write(Bytes::from_static(b"half")).await.unwrap();
        assert_eq!(leftovers(folder.path()), 1);
        drop(broken);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(leftovers(folder.path()), 0);
    }

    #[tokio::test]
    async fn what_is_no_regular_file_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [fifo, folder.path().to_owned(), PathBuf::from("/dev/zero")] {
            assert_eq!(Download::open(path).await.unwrap_err().code, AgentErrorCode::Conflict);
        }
        let error = upload(folder.path(), b"x", None).await.unwrap_err();
        assert_eq!(error.code, AgentErrorCode::Conflict);
        assert_eq!(upload(Path::new("/"), b"x", None).await.unwrap_err().code, AgentErrorCode::Conflict);
        let full = upload(Path::new("/dev/full/x"), b"x", None).await.unwrap_err();
        assert_eq!(full.code, AgentErrorCode::Conflict);
    }

    #[tokio::test]
    async fn a_link_is_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, b"old").unwrap();
        symlink(&real, &link).unwrap();
        upload(&link, b"new", None).await.unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
