//! The schema number that every command and state carries, on the wire and on disk.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A type with a written form that has a version.
pub trait Schema: Serialize + DeserializeOwned + 'static {
    /// What it is called in errors.
    const WHAT: &'static str;
    /// The version that this program writes, and the newest that it reads.
    const VERSION: u32;
}

/// A value with its schema version: `{"v":1,"body":...}`. The version is read before the body, so that a newer
/// body is refused with a sentence and not with a puzzle about its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T>(pub T);

impl<T: fmt::Display> fmt::Display for Versioned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Schema> Serialize for Versioned<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("v", &T::VERSION)?;
        map.serialize_entry("body", &self.0)?;
        map.end()
    }
}

impl<'de, T: Schema> Deserialize<'de> for Versioned<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(VersionFirst(PhantomData))
    }
}

struct VersionFirst<T>(PhantomData<T>);

impl<'de, T: Schema> Visitor<'de> for VersionFirst<T> {
    type Value = Versioned<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {} with its version first", T::WHAT)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let what = T::WHAT;
        let key = map.next_key::<String>()?;
        if key.as_deref() != Some("v") {
            return Err(A::Error::custom(format!("a {what} must begin with its version, 'v'")));
        }
        let version: u32 = map.next_value()?;
        if version == 0 || version > T::VERSION {
            let ours = T::VERSION;
            return Err(A::Error::custom(format!(
                "this {what} has version {version}; this program knows versions 1 to {ours}: upgrade it"
            )));
        }
        if map.next_key::<String>()?.as_deref() != Some("body") {
            return Err(A::Error::custom(format!("a {what} must have its 'body' after its version")));
        }
        let body = map.next_value()?;
        match map.next_key::<String>()? {
            None => Ok(Versioned(body)),
            Some(extra) => Err(A::Error::custom(format!("a {what} has no field '{extra}'"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        text: String,
    }

    impl Schema for Note {
        const WHAT: &'static str = "note";
        const VERSION: u32 = 2;
    }

    #[test]
    fn a_value_reads_back_and_older_versions_are_read() {
        let note = Versioned(Note { text: "a".into() });
        let text = serde_json::to_string(&note).expect("JSON");
        assert_eq!(text, r#"{"v":2,"body":{"text":"a"}}"#);
        assert_eq!(serde_json::from_str::<Versioned<Note>>(&text).expect("parses"), note);
        let older = r#"{"v":1,"body":{"text":"a"}}"#;
        assert_eq!(serde_json::from_str::<Versioned<Note>>(older).expect("parses"), note);
    }

    #[test]
    fn a_newer_version_is_refused_with_a_sentence_before_its_body_is_read() {
        let newer = r#"{"v":3,"body":{"prose":["unknown"]}}"#;
        let error = serde_json::from_str::<Versioned<Note>>(newer).expect_err("newer").to_string();
        assert!(error.contains("this note has version 3; this program knows versions 1 to 2"), "{error}");
    }

    #[test]
    fn a_value_without_a_version_is_refused() {
        for text in [r#"{"body":{"text":"a"},"v":1}"#, "{}", r#"{"v":0,"body":{"text":"a"}}"#, r#"{"v":1}"#, "3"] {
            assert!(serde_json::from_str::<Versioned<Note>>(text).is_err(), "{text}");
        }
    }
}
