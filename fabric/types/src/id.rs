//! Identifiers. Their text forms are contracts: both client wires carry them, so none holds a dash where a
//! client would split on one, and all are lower case.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Characters of a generated id, and how many of them follow the prefix: 36^16 is about 83 bits.
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const RANDOM_CHARS: usize = 16;
/// A region's code is 2 to 8 characters: it prefixes every sandbox id.
const REGION_CHARS: std::ops::RangeInclusive<usize> = 2..=8;
/// Longest accepted node id, in characters: it becomes a host folder and a certificate name.
const NODE_CHARS_MAX: usize = 63;

/// A text that isn't the id it was given for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// Not a region code.
    #[error("'{0}' is not a region code: 2 to 8 characters of a-z and 0-9, a letter first")]
    Region(String),
    /// Not a node id.
    #[error("'{0}' is not a node id: a region code, a dash and a number, as in fra-1")]
    Node(String),
    /// Not a sandbox id.
    #[error("'{0}' is not a sandbox id: a region code and 16 characters of a-z and 0-9")]
    Sandbox(String),
    /// Not a snapshot id.
    #[error("'{0}' is not a snapshot id: snap- and 16 characters of a-z and 0-9")]
    Snapshot(String),
    /// Not an API key's id.
    #[error("'{0}' is not a key id: key- and 16 characters of a-z and 0-9")]
    Key(String),
}

macro_rules! text_id {
    // The five ids differ only in their prefix and check; written once so that none forgets a conversion.
    ($name:ident) => {
        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

/// A region's short code, as in `fra`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegionCode(String);
text_id!(RegionCode);

impl FromStr for RegionCode {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let first_is_letter = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        if REGION_CHARS.contains(&text.len()) && first_is_letter && text.bytes().all(is_id_byte) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::Region(clip(text)))
        }
    }
}

/// A node's id: its region's code and a number from 1, as in `fra-1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);
text_id!(NodeId);

impl NodeId {
    /// The id of the `number`-th node (from 1) of a region.
    pub fn new(region: &RegionCode, number: u32) -> Self {
        Self(format!("{region}-{number}"))
    }

    /// The region that the node stands in.
    pub fn region(&self) -> RegionCode {
        let (region, _) = self.0.split_once('-').expect("a node id holds a dash: checked when it was parsed");
        RegionCode(region.to_owned())
    }
}

impl FromStr for NodeId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError::Node(clip(text));
        let (region, number) = text.split_once('-').ok_or_else(error)?;
        region.parse::<RegionCode>().map_err(|_| error())?;
        let number_is_plain = number.bytes().all(|byte| byte.is_ascii_digit()) && !number.starts_with('0');
        if text.len() <= NODE_CHARS_MAX && number_is_plain && number.parse::<u32>().is_ok() {
            Ok(Self(text.to_owned()))
        } else {
            Err(error())
        }
    }
}

/// A sandbox's id: its home region's code and 16 random characters, with no dash (the E2B wire splits on dashes).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);
text_id!(SandboxId);

impl SandboxId {
    /// An id from 16 random bytes, one for each character (the bias of `% 36` leaves over 82 bits).
    pub fn new(region: &RegionCode, chance: [u8; RANDOM_CHARS]) -> Self {
        Self(format!("{region}{}", random_chars(chance)))
    }

    /// The region where the sandbox was created: its home, unless the catalog says otherwise.
    pub fn home(&self) -> RegionCode {
        RegionCode(self.0[..self.0.len() - RANDOM_CHARS].to_owned())
    }
}

impl FromStr for SandboxId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = || IdError::Sandbox(clip(text));
        if !text.is_ascii() || text.len() <= RANDOM_CHARS {
            return Err(error());
        }
        let (region, rest) = text.split_at(text.len() - RANDOM_CHARS);
        region.parse::<RegionCode>().map_err(|_| error())?;
        if rest.bytes().all(is_id_byte) { Ok(Self(text.to_owned())) } else { Err(error()) }
    }
}

macro_rules! prefixed_id {
    ($name:ident, $prefix:literal, $error:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);
        text_id!($name);

        impl $name {
            /// An id from 16 random bytes, one for each character.
            pub fn new(chance: [u8; RANDOM_CHARS]) -> Self {
                Self(format!(concat!($prefix, "{}"), random_chars(chance)))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                match text.strip_prefix($prefix) {
                    Some(rest) if rest.len() == RANDOM_CHARS && rest.bytes().all(is_id_byte) => {
                        Ok(Self(text.to_owned()))
                    }
                    _ => Err(IdError::$error(clip(text))),
                }
            }
        }
    };
}
prefixed_id!(SnapshotId, "snap-", Snapshot, "A snapshot's id: `snap-` and 16 random characters.");
prefixed_id!(KeyId, "key-", Key, "An API key's id (not the key): `key-` and 16 random characters.");

fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn random_chars(chance: [u8; RANDOM_CHARS]) -> String {
    chance.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect()
}

/// At most 80 characters of a text that came from outside, for an error message.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_id_names_its_home_and_holds_no_dash() {
        let fra: RegionCode = "fra".parse().expect("a region code");
        let id = SandboxId::new(&fra, [7; 16]);
        assert_eq!(id.home(), fra);
        assert!(!id.as_str().contains('-'));
        assert_eq!(id.as_str().parse::<SandboxId>(), Ok(id.clone()));
        assert_eq!(id.as_str().len(), 19);
    }

    #[test]
    fn malformed_ids_are_refused() {
        for text in ["", "f", "FRA", "1ra", "fra-", "toolongcode", "fr a", "frä"] {
            assert!(text.parse::<RegionCode>().is_err(), "{text}");
        }
        for text in ["fra", "fra-0", "fra-01", "fra-+1", "fra--1", "fra-x", "fra-99999999999", "-1"] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
        for text in ["fra", "fraaaaaaaaaaaaaaaA", "äaaaaaaaaaaaaaaaaaa", "../etc/passwd/aaaaaaa"] {
            assert!(text.parse::<SandboxId>().is_err(), "{text}");
        }
        assert!("snap-short".parse::<SnapshotId>().is_err());
    }

    #[test]
    fn a_node_id_names_its_region() {
        let node: NodeId = "iad-12".parse().expect("a node id");
        assert_eq!(node.region().as_str(), "iad");
        assert_eq!(NodeId::new(&node.region(), 12), node);
    }
}
