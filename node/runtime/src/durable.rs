//! Records and folders on disk, with this crate's limit and errors; how a file is replaced is the matter of
//! `node_hypervisor::atomic_files`. Everything here blocks.

use std::fs;
use std::io;
use std::path::Path;

use node_hypervisor::atomic_files::{self, AtomicFileError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::RuntimeError;

/// Largest record, bytes: a sandbox's labels and environment are limited to 64 KiB at the edge.
const RECORD_BYTES_MAX: u64 = 4 << 20;

/// Names an `io::Result`'s action and file.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, RuntimeError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, RuntimeError> {
        self.map_err(|source| RuntimeError::File { action, path: path.to_owned(), source })
    }
}

impl From<AtomicFileError> for RuntimeError {
    fn from(error: AtomicFileError) -> Self {
        match error {
            AtomicFileError::File { action, path, cause } => Self::File { action, path, source: cause },
            AtomicFileError::Schema { path, found, known } => Self::Schema { path, found, known },
        }
    }
}

/// Replaces a record, durably.
pub(crate) fn write(path: &Path, record: &impl Serialize) -> Result<(), RuntimeError> {
    Ok(atomic_files::write_json(path, record)?)
}

/// Reads a record whose `schema` is at most `known`; `None` where there is no such file.
///
/// # Errors
/// [`RuntimeError::Schema`] for a newer one, [`RuntimeError::File`] with `InvalidData` for one that doesn't parse.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, known: u32) -> Result<Option<T>, RuntimeError> {
    match atomic_files::read_json(path, known, RECORD_BYTES_MAX) {
        Ok(record) => Ok(Some(record)),
        Err(AtomicFileError::File { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes a folder and all in it; one that isn't there is a success.
pub(crate) fn remove_folder(path: &Path) -> Result<(), RuntimeError> {
    Ok(atomic_files::remove_folder(path)?)
}

/// Removes what nobody needs any more. Where that fails the next start does it.
pub(crate) async fn remove_beside(folder: std::path::PathBuf) {
    if let Err(error) = blocking(move || remove_folder(&folder)).await {
        tracing::warn!(%error, "files that nobody needs couldn't be removed; the next start does it");
    }
}

/// Removes a file; one that isn't there is a success.
pub(crate) fn remove_file(path: &Path) -> Result<(), RuntimeError> {
    Ok(atomic_files::remove_file(path)?)
}

/// Makes a folder and its parents.
pub(crate) fn make_folder(path: &Path) -> Result<(), RuntimeError> {
    fs::create_dir_all(path).at("make the folder", path)
}

/// Runs blocking work off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    #[cfg(test)]
    crate::cut::point().await;
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work can't be cancelled once it runs; before that only a runtime that is being dropped does it,
            // and then nobody waits here.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        schema: u32,
        word: String,
    }

    #[test]
    fn a_record_reads_back_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        assert_eq!(read::<Sample>(&path, 1).expect("absent"), None);
        let sample = Sample { schema: 1, word: "one".to_owned() };
        write(&path, &sample).expect("written");
        assert_eq!(read::<Sample>(&path, 1).expect("read"), Some(sample));
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_newer_or_damaged_record_is_an_error_and_never_a_value() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        fs::write(&path, r#"{"schema": 2, "other": true}"#).expect("written");
        assert!(matches!(read::<Sample>(&path, 1), Err(RuntimeError::Schema { found: 2, known: 1, .. })));
        for half in ["", "{", r#"{"schema": 1"#, r#"{"schema": 1}"#] {
            fs::write(&path, half).expect("written");
            assert!(matches!(read::<Sample>(&path, 1), Err(RuntimeError::File { .. })), "{half}");
        }
    }
}
