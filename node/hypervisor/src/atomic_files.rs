//! Small files that are whole or absent after a crash, and JSON in them that carries a schema version. It knows nothing
//! of what is in them. Everything here blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a file may be for whom when nobody says otherwise, before the umask: what `File::create` gives.
const DEFAULT_MODE: u32 = 0o666;

/// Why a file could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum AtomicFileError {
    /// The file or its folder; `InvalidData` for JSON that doesn't parse.
    #[error("can't {action} {path}: {cause}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// How it failed. It stands in the sentence already, so it isn't the error's source.
        cause: io::Error,
    },
    /// A file has a schema that this version doesn't know.
    #[error("{path} has schema version {found}; this version reads up to {known}")]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest known.
        known: u32,
    },
}

impl AtomicFileError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::File { action, path: path.to_owned(), cause }
    }
}

/// Replaces a file whose mode is then `mode` less the umask: writes `NAME.tmp` beside it (in place of its extension),
/// syncs, renames and syncs the folder. One writer at a time.
///
/// # Errors
/// [`AtomicFileError::File`]; the file is then the old one or the new one.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), AtomicFileError> {
    let write = || -> io::Result<()> {
        let beside = path.with_extension("tmp");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(AtomicFileError::file("write", path))
}

/// [`replace`]s a file by a value as JSON, readable for whom the umask says.
///
/// # Errors
/// [`AtomicFileError::File`].
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<(), AtomicFileError> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::other);
    let mut bytes = text.map_err(AtomicFileError::file("write", path))?;
    bytes.push(b'\n');
    replace(path, &bytes, DEFAULT_MODE)
}

/// Reads a file whose object has a number `schema`, at most `known`, and no more of it than `bytes_max`.
///
/// # Errors
/// [`AtomicFileError::Schema`] for a newer one, however odd the rest is; [`AtomicFileError::File`] with `NotFound`
/// where there is none and with `InvalidData` for one that doesn't parse or is longer.
pub fn read_json<T: DeserializeOwned>(path: &Path, known: u32, bytes_max: u64) -> Result<T, AtomicFileError> {
    #[derive(serde::Deserialize)]
    struct Schema {
        schema: u32,
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(bytes_max).read_to_end(&mut bytes));
    read.map_err(AtomicFileError::file("read", path))?;
    let malformed = |error| AtomicFileError::file("read", path)(io::Error::new(io::ErrorKind::InvalidData, error));
    let Schema { schema } = serde_json::from_slice(&bytes).map_err(malformed)?;
    if schema > known {
        return Err(AtomicFileError::Schema { path: path.to_owned(), found: schema, known });
    }
    serde_json::from_slice(&bytes).map_err(malformed)
}

/// Removes a file; one that isn't there is a success.
///
/// # Errors
/// [`AtomicFileError::File`].
pub fn remove_file(path: &Path) -> Result<(), AtomicFileError> {
    gone(fs::remove_file(path), path)
}

/// Removes a folder and all in it; one that isn't there is a success.
///
/// # Errors
/// [`AtomicFileError::File`].
pub fn remove_folder(path: &Path) -> Result<(), AtomicFileError> {
    gone(fs::remove_dir_all(path), path)
}

fn gone(removed: io::Result<()>, path: &Path) -> Result<(), AtomicFileError> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(AtomicFileError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_than_the_bound_is_not_a_value() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        write_json(&path, &serde_json::json!({"schema": 1})).expect("written");
        let length = fs::metadata(&path).expect("there").len();
        read_json::<serde_json::Value>(&path, 1, length).expect("read");
        // Without the newline and the closing brace.
        let error = read_json::<serde_json::Value>(&path, 1, length - 2).expect_err("cut");
        assert!(matches!(error, AtomicFileError::File { action: "read", .. }), "{error}");
    }

    #[test]
    fn a_file_that_is_replaced_has_the_mode_that_was_asked_for() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        for text in ["one", "two"] {
            replace(&path, text.as_bytes(), 0o600).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("read"), text);
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn what_is_not_there_is_removed_already() {
        let folder = tempfile::tempdir().expect("a folder");
        remove_file(&folder.path().join("x")).expect("nothing to remove");
        remove_folder(&folder.path().join("x")).expect("nothing to remove");
        let error = remove_file(folder.path()).expect_err("a folder is no file");
        assert!(matches!(error, AtomicFileError::File { action: "remove", .. }), "{error}");
    }
}
