//! How votes, entries and marks are written: a byte for the version of the form, then JSON. The form is a contract,
//! held by a golden file.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::StoreError;

/// The version of the form that this program writes and the newest that it reads.
pub(crate) const RECORD_VERSION: u8 = 1;

/// A value's written form.
pub(crate) fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![RECORD_VERSION];
    serde_json::to_writer(&mut bytes, value).map_err(|error| corrupt(what, &error))?;
    Ok(bytes)
}

/// Reads a value's written form.
pub(crate) fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, StoreError> {
    match bytes.split_first() {
        Some((&RECORD_VERSION, body)) => serde_json::from_slice(body).map_err(|error| corrupt(what, &error)),
        Some((version, _)) => Err(corrupt(
            what,
            &format_args!("it has version {version}; this program knows {RECORD_VERSION}: upgrade it"),
        )),
        None => Err(corrupt(what, &"it is empty")),
    }
}

fn corrupt(what: &'static str, cause: &dyn fmt::Display) -> StoreError {
    StoreError::Corrupt { what, cause: cause.to_string() }
}
