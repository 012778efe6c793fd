//! An API key's text: its form, the hash that is kept of it, and the part that may be shown. One owner, since the first
//! key of a development mesh and every later one must be of the same form.

use fabric_types::Digest;

/// Every client accepts this form: the E2B client asks for the prefix and 40 hexadecimal digits.
const PREFIX: &str = "e2b_";
const RANDOM_BYTES: usize = 20;
/// Characters that tell keys apart without giving them away: the prefix and 4 of 40 digits.
const SHOWN_CHARS: usize = 8;

/// A new key.
pub(crate) fn new() -> String {
    format!("{PREFIX}{}", hex::encode(rand::random::<[u8; RANDOM_BYTES]>()))
}

/// What is kept of a key: the BLAKE3 hash of its text.
pub(crate) fn hash(key: &str) -> Digest {
    Digest::from_bytes(*blake3::hash(key.as_bytes()).as_bytes())
}

/// The first characters of a key.
pub(crate) fn shown(key: &str) -> String {
    key.chars().take(SHOWN_CHARS).collect()
}
