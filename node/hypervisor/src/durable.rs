//! The files that this crate keeps, with its limit and errors; how a file is replaced is [`atomic_files`]'s matter.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::VmError;
use crate::atomic_files::{self, AtomicFileError};

/// Largest JSON file of ours, bytes: a machine's record is 2 KiB, and whatever is much larger isn't ours.
const JSON_BYTES_MAX: u64 = 1 << 20;

impl From<AtomicFileError> for VmError {
    fn from(error: AtomicFileError) -> Self {
        match error {
            AtomicFileError::File { action, path, cause } => Self::File { action, path, source: cause },
            AtomicFileError::Schema { path, found, known } => Self::Schema { path, found, known },
        }
    }
}

/// Replaces a record, durably.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), VmError> {
    Ok(atomic_files::write_json(path, value)?)
}

/// Reads a record whose `schema` is at most `known`; one that isn't there is an error.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, known: u32) -> Result<T, VmError> {
    Ok(atomic_files::read_json(path, known, JSON_BYTES_MAX)?)
}

/// Removes a file that may not be there.
pub(crate) fn remove_file(path: &Path) -> Result<(), VmError> {
    Ok(atomic_files::remove_file(path)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        schema: u32,
        word: String,
    }

    #[test]
    fn what_was_written_is_read_back_and_nothing_lies_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        for word in ["one", "two"] {
            let sample = Sample { schema: 1, word: word.into() };
            write_json(&path, &sample).expect("written");
            assert_eq!(read_json::<Sample>(&path, 1).expect("read"), sample);
        }
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_newer_schema_is_refused_with_a_sentence() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        fs::write(&path, r#"{"schema": 9, "unheard": []}"#).expect("written");
        let error = read_json::<Sample>(&path, 1).expect_err("newer");
        assert!(error.to_string().ends_with("has schema version 9; this version reads up to 1"), "{error}");
    }

    #[test]
    fn a_half_written_file_is_an_error_and_not_a_value() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        for half in ["", "{", r#"{"schema": 1"#, r#"{"schema": 1}"#] {
            fs::write(&path, half).expect("written");
            assert!(matches!(read_json::<Sample>(&path, 1), Err(VmError::File { .. })), "{half}");
        }
    }
}
