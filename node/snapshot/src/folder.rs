//! The store on disk. All of it is synchronous; `store` calls it from threads that may block.
//!
//! ```text
//! schema              the layout's version
//! lock                held by the process that has the store
//! chunks/aa/DIGEST    a chunk's stored bytes, by the first byte of its name
//! manifests/DIGEST    a manifest's bytes; written only when all its chunks are durable
//! removed/DIGEST      a removed manifest, whose grace runs from the file's time
//! damaged/DIGEST      what didn't hash to its name
//! tmp/N               what is being written; emptied at the start
//! ```
//! A file gets its name only when its bytes are on disk, and a name is acknowledged only when its folder is.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use fabric_types::Digest;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tracing::warn;

use crate::chunk::{CHUNK_STORED_BYTES_MAX, digest_of};
use crate::error::{FileContext, StoreError};
use crate::manifest::MANIFEST_BYTES_MAX;

/// The layout's version.
const SCHEMA: u32 = 1;
/// Files that are synced at once.
const SYNCS_MAX: usize = 8;
/// Longest schema file that is read, in bytes.
const SCHEMA_BYTES_MAX: u64 = 64;

/// The store's folder, held by its lock for as long as this value lives.
pub(crate) struct Folder {
    dir: PathBuf,
    temporaries: AtomicU64,
    _lock: File,
}

/// A file written under `tmp/` that has not got its name yet. Dropped, it is gone.
pub(crate) struct Staged {
    file: File,
    path: PathBuf,
    target: PathBuf,
    named: bool,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.named {
            // What can't be removed now is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Folder {
    /// Opens the store at `dir`, making it if it isn't there, and removes what an earlier process left unfinished.
    pub(crate) fn open(dir: PathBuf) -> Result<Self, StoreError> {
        fs::create_dir_all(&dir).at("make", &dir)?;
        let lock_path = dir.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).at("open", &lock_path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { dir }),
            Err(TryLockError::Error(source)) => return Err(StoreError::file("lock", &lock_path, source)),
        }
        let folder = Self { dir, temporaries: AtomicU64::new(0), _lock: lock };
        folder.check_schema()?;
        folder.empty_temporary()?;
        folder.make_folders()?;
        Ok(folder)
    }

    fn check_schema(&self) -> Result<(), StoreError> {
        let path = self.dir.join("schema");
        let mut found = String::new();
        match File::open(&path) {
            Ok(file) => {
                let read = file.take(SCHEMA_BYTES_MAX).read_to_string(&mut found);
                if let Err(source) = read
                    && source.kind() != io::ErrorKind::InvalidData
                {
                    return Err(StoreError::file("read", &path, source));
                }
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                if fs::exists(self.dir.join("chunks")).at("look at", &self.dir)? {
                    let found = "none".to_owned();
                    return Err(StoreError::Schema { dir: self.dir.clone(), found, known: SCHEMA });
                }
                let temporary = self.dir.join("schema.new");
                let mut file = File::create(&temporary).at("make", &temporary)?;
                writeln!(file, "{SCHEMA}").and_then(|()| file.sync_all()).at("write", &temporary)?;
                fs::rename(&temporary, &path).at("name", &path)?;
                return sync_folder(&self.dir);
            }
            Err(source) => return Err(StoreError::file("open", &path, source)),
        }
        let found = found.trim();
        if found == SCHEMA.to_string() {
            return Ok(());
        }
        Err(StoreError::Schema { dir: self.dir.clone(), found: found.to_owned(), known: SCHEMA })
    }

    fn empty_temporary(&self) -> Result<(), StoreError> {
        let tmp = self.dir.join("tmp");
        match fs::remove_dir_all(&tmp) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::file("empty", &tmp, source)),
            _ => Ok(()),
        }
    }

    fn make_folders(&self) -> Result<(), StoreError> {
        for name in ["tmp", "manifests", "removed", "damaged", "chunks"] {
            let path = self.dir.join(name);
            fs::create_dir_all(&path).at("make", &path)?;
        }
        for first in 0..=u8::MAX {
            let path = self.chunk_folder(first);
            match fs::create_dir(&path) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(StoreError::file("make", &path, source));
                }
                _ => {}
            }
        }
        sync_folder(&self.dir.join("chunks"))?;
        sync_folder(&self.dir)
    }

    pub(crate) fn chunk_folder(&self, first: u8) -> PathBuf {
        self.dir.join("chunks").join(format!("{first:02x}"))
    }

    pub(crate) fn chunk_path(&self, digest: &Digest) -> PathBuf {
        let mut path = self.chunk_folder(digest.as_bytes()[0]);
        path.push(digest.to_string());
        path
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    pub(crate) fn removed(&self) -> PathBuf {
        self.dir.join("removed")
    }

    pub(crate) fn damaged(&self) -> PathBuf {
        self.dir.join("damaged")
    }

    /// Whether there is a chunk of that name. Its bytes are checked when they are read.
    pub(crate) fn has_chunk(&self, digest: &Digest) -> Result<bool, StoreError> {
        let path = self.chunk_path(digest);
        fs::exists(&path).at("look for", &path)
    }

    /// A chunk's stored bytes, which hash to its name. Others are set aside.
    pub(crate) fn read_chunk(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.chunk_path(digest);
        match self.read_checked(&path, digest, CHUNK_STORED_BYTES_MAX, "chunk")? {
            Some(bytes) => Ok(bytes),
            None => Err(StoreError::NoChunk(*digest)),
        }
    }

    /// A manifest's bytes, which hash to its name.
    pub(crate) fn read_manifest(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.manifests().join(digest.to_string());
        match self.read_checked(&path, digest, MANIFEST_BYTES_MAX, "manifest")? {
            Some(bytes) => Ok(bytes),
            None => Err(StoreError::NoManifest(*digest)),
        }
    }

    /// The same for one whose grace may run already: what still refers to it may still read it.
    pub(crate) fn read_manifest_or_removed(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        match self.read_manifest(digest) {
            Err(StoreError::NoManifest(_)) => {}
            other => return other,
        }
        let path = self.removed().join(digest.to_string());
        match self.read_checked(&path, digest, MANIFEST_BYTES_MAX, "manifest")? {
            Some(bytes) => Ok(bytes),
            None => Err(StoreError::NoManifest(*digest)),
        }
    }

    fn read_checked(
        &self,
        path: &Path,
        digest: &Digest,
        bytes_max: usize,
        what: &'static str,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::file("open", path, source)),
        };
        let length = file.metadata().at("look at", path)?.len();
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(usize::MAX).min(bytes_max));
        file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).at("read", path)?;
        if bytes.len() <= bytes_max && digest_of(&bytes) == *digest {
            return Ok(Some(bytes));
        }
        let aside = self.damaged().join(digest.to_string());
        warn!(what, %digest, "bytes on disk don't hash to their name; they are set aside");
        match fs::rename(path, &aside) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::file("set aside", path, source)),
            _ => Err(StoreError::Damaged { what, digest: *digest }),
        }
    }

    /// Writes a chunk's bytes, which must hash to `digest`, without giving them their name yet.
    pub(crate) fn stage_chunk(&self, digest: &Digest, bytes: &[u8]) -> Result<Staged, StoreError> {
        self.stage(self.chunk_path(digest), bytes)
    }

    /// Writes and names a manifest, durably. Its chunks must be durable.
    pub(crate) fn put_manifest(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let staged = self.stage(self.manifests().join(digest.to_string()), bytes)?;
        self.commit(vec![staged], &BTreeSet::new())
    }

    fn stage(&self, target: PathBuf, bytes: &[u8]) -> Result<Staged, StoreError> {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("tmp").join(number.to_string());
        let file = File::create_new(&path).at("make", &path)?;
        let mut staged = Staged { file, path, target, named: false };
        staged.file.write_all(bytes).at("write", &staged.path)?;
        Ok(staged)
    }

    /// Gives staged files their names, durably. `also` are chunk folders (by first byte) whose names another writer
    /// may have given just now: they are made durable too.
    pub(crate) fn commit(&self, staged: Vec<Staged>, also: &BTreeSet<u8>) -> Result<(), StoreError> {
        // This only starts the writing, for all of them, so that the syncs have little left to wait for.
        for one in &staged {
            let _ = posix_fadvise(&one.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        at_once(&staged, |one| one.file.sync_data().at("sync", &one.path))?;
        let mut folders: BTreeSet<PathBuf> = also.iter().map(|first| self.chunk_folder(*first)).collect();
        for mut one in staged {
            fs::rename(&one.path, &one.target).at("name", &one.target)?;
            one.named = true;
            folders.extend(one.target.parent().map(Path::to_owned));
        }
        let folders: Vec<PathBuf> = folders.into_iter().collect();
        at_once(&folders, |folder| sync_folder(folder))
    }
}

/// Runs `sync` on all items, several at once: the file system puts syncs that wait together into one commit. For 64
/// files of 300 KiB on ext4 that takes 15 ms, where one after the other takes 40 to 170 ms.
fn at_once<T: Sync>(items: &[T], sync: impl Fn(&T) -> Result<(), StoreError> + Sync) -> Result<(), StoreError> {
    let share = items.len().div_ceil(SYNCS_MAX);
    if items.len() <= 1 {
        return items.iter().try_for_each(sync);
    }
    thread::scope(|scope| {
        let sync = &sync;
        let shares: Vec<_> =
            items.chunks(share).map(|share| scope.spawn(move || share.iter().try_for_each(sync))).collect();
        let done = shares.into_iter().map(|share| share.join().unwrap_or(Err(StoreError::Worker("sync files"))));
        done.fold(Ok(()), Result::and)
    })
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|folder| folder.sync_all()).at("sync", path)
}

/// The digests that files in a folder are named by; other files are left alone.
pub(crate) fn digests_in(path: &Path) -> Result<Vec<Digest>, StoreError> {
    let mut digests = Vec::new();
    for entry in fs::read_dir(path).at("list", path)? {
        let name = entry.at("list", path)?.file_name();
        if let Some(digest) = name.to_str().and_then(|name| name.parse().ok()) {
            digests.push(digest);
        }
    }
    digests.sort_unstable();
    Ok(digests)
}
