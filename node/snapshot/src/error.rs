//! Why the store failed.

use std::io;
use std::path::{Path, PathBuf};

use fabric_types::Digest;
use thiserror::Error;

use crate::manifest::{FileName, ManifestError};

/// Why an operation of the store failed. Whatever failed, what was in the store before is still there and whole.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another process has the folder.
    #[error("the snapshot store {dir} is in use by another process")]
    Locked {
        /// Which.
        dir: PathBuf,
    },
    /// The folder was written by a newer version, or isn't a store.
    #[error("the snapshot store {dir} has schema version {found}; this version reads up to {known}")]
    Schema {
        /// Which.
        dir: PathBuf,
        /// What its schema file says.
        found: String,
        /// The newest known.
        known: u32,
    },
    /// No room.
    #[error("can't {action} {path}: the disk is full; nothing in the store has changed")]
    Full {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
    },
    /// A file.
    #[error("can't {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// How it failed.
        #[source]
        source: io::Error,
    },
    /// Not in the store.
    #[error("manifest {0} is not in this store")]
    NoManifest(Digest),
    /// Not in the store: it has to be pulled.
    #[error("chunk {0} is not in this store")]
    NoChunk(Digest),
    /// Its bytes don't hash to its name. It has been set aside and has to be pulled again.
    #[error("{what} {digest} is damaged and was set aside; pull the snapshot again")]
    Damaged {
        /// `chunk` or `manifest`.
        what: &'static str,
        /// Which.
        digest: Digest,
    },
    /// Bytes that are not what they were given for.
    #[error("these bytes are {found}, not {expected}")]
    WrongDigest {
        /// What they hash to.
        found: Digest,
        /// What they should.
        expected: Digest,
    },
    /// Bytes that can't be a chunk.
    #[error("a chunk of {bytes} bytes is not possible: 1 to {limit}")]
    ChunkSize {
        /// How many.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A chunk whose hash is right, but which does not hold what the manifest says.
    #[error("chunk {digest} doesn't hold the {pages} pages that its manifest says: {cause}")]
    Content {
        /// Which.
        digest: Digest,
        /// Pages that it should hold.
        pages: u32,
        /// What is wrong.
        cause: String,
    },
    /// The compressor.
    #[error("can't compress a chunk: {0}")]
    Compress(#[source] io::Error),
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// What was given to be stored is not as described.
    #[error("{path} can't be stored: {why}")]
    Input {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The manifest has another shape than what was asked of it.
    #[error("manifest {manifest} has no file '{file}': it is not {expected}")]
    Shape {
        /// Which.
        manifest: Digest,
        /// The file that is lacking.
        file: FileName,
        /// What it should be.
        expected: &'static str,
    },
    /// Parents of parents without end.
    #[error("manifest {0} has more than {1} generations of parents")]
    Depth(Digest, usize),
    /// A worker of the store ended before its time.
    #[error("the snapshot store's worker ended while it was to {0}")]
    Worker(&'static str),
}

impl StoreError {
    /// A file's error, told apart from a full disk.
    pub(crate) fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { action, path: path.to_owned() },
            _ => Self::File { action, path: path.to_owned(), source },
        }
    }
}

/// Names an `io::Result`'s action and file.
pub(crate) trait FileContext<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> FileContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::file(action, path, source))
    }
}
