//! JSON files that are whole or absent, each with a schema version.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::VmError;

/// Largest JSON file of ours, bytes: a machine's record is 2 KiB, and whatever is much larger isn't ours.
const JSON_BYTES_MAX: u64 = 1 << 20;

/// Writes beside, syncs, renames over `path` and syncs the folder.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), VmError> {
    let write = || -> io::Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
        bytes.push(b'\n');
        let beside = path.with_extension("tmp");
        let mut file = File::create(&beside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| VmError::File { action: "write", path: path.to_owned(), source })
}

/// Reads a file whose object has a number `schema`, at most `known`.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, known: u32) -> Result<T, VmError> {
    #[derive(serde::Deserialize)]
    struct Schema {
        schema: u32,
    }
    let failed = |source| VmError::File { action: "read", path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(JSON_BYTES_MAX).read_to_end(&mut bytes)).map_err(failed)?;
    let malformed = |error: serde_json::Error| failed(io::Error::new(io::ErrorKind::InvalidData, error));
    let Schema { schema } = serde_json::from_slice(&bytes).map_err(malformed)?;
    if schema > known {
        return Err(VmError::Schema { path: path.to_owned(), found: schema, known });
    }
    serde_json::from_slice(&bytes).map_err(malformed)
}

/// Removes a file that may not be there.
pub(crate) fn remove_file(path: &Path) -> Result<(), VmError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(VmError::File { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
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
