//! JSON bodies: strict, and with errors that name the field, the line and the column.

use std::collections::HashSet;
use std::fmt;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use http::{HeaderMap, header};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::refusal::Refusal;

/// A body of JSON. An empty one is an error; one that may be left out is `JsonBody<Option<T>>`, which takes `null` too.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T, S> FromRequest<S> for JsonBody<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let declared = declared_json(request.headers());
        // The front has collected the body and held it against its limit.
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|error| Refusal::bad(format!("the body can't be read: {}", error.body_text())))?;
        declared?;
        read(&body).map(Self)
    }
}

/// An absent content type passes: the body itself tells.
fn declared_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(declared) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let kind = declared.to_str().unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json")) {
        return Ok(());
    }
    let shown: String = kind.chars().take(80).collect();
    Err(Refusal::bad(format!("the body must be JSON: content-type is '{shown}', not application/json")))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let text = std::str::from_utf8(body).map_err(|error| {
        Refusal::bad(format!("the body is not UTF-8: byte {} is part of no character", error.valid_up_to()))
    })?;
    if text.trim_ascii().is_empty() {
        return serde_json::from_str("null")
            .map_err(|_| Refusal::bad("the body is empty: send a JSON object, at least {}"));
    }
    let mut checked = serde_json::Deserializer::from_str(text);
    Strict.deserialize(&mut checked).and_then(|()| checked.end()).map_err(|error| {
        let kind = if error.is_data() { "JSON that can't be taken" } else { "malformed JSON" };
        Refusal::bad(format!("{kind}: {error}"))
    })?;
    let mut typed = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut typed).map_err(|error| {
        let path: String = error.path().to_string().chars().take(120).collect();
        let inner: String = error.inner().to_string().chars().take(300).collect();
        Refusal::bad(if path == "." {
            format!("mistyped JSON: {inner}")
        } else {
            format!("mistyped JSON: field '{path}': {inner}")
        })
    })
}

/// Reads any JSON and keeps nothing, but refuses what a typed reader would quietly lose: a key that is there twice,
/// and the NUL character, which no command line, environment or path can hold.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if text.contains('\0') { Err(E::custom("a text holds the NUL character")) } else { Ok(()) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Strict)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key.contains('\0') {
                return Err(A::Error::custom("a key holds the NUL character"));
            }
            if keys.contains(&key) {
                let shown: String = key.chars().take(80).collect();
                return Err(A::Error::custom(format_args!("the key '{shown}' is there twice")));
            }
            keys.insert(key);
            entries.next_value_seed(Strict)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Shape {
        #[serde(rename = "cpu")]
        _cpu: Option<i64>,
        #[serde(rename = "labels", default)]
        _labels: std::collections::BTreeMap<String, String>,
    }

    fn refused(body: &[u8]) -> String {
        read::<Shape>(body).expect_err("refused").0.message
    }

    #[test]
    fn malformed_json_is_told_with_line_and_column() {
        assert_eq!(refused(b"{\n  \"cpu\": }"), "malformed JSON: expected value at line 2 column 10");
        assert!(refused(b"{} x").contains("trailing characters"));
        assert!(refused(b"").contains("empty"));
        assert!(refused(b"\xff{}").contains("not UTF-8"));
        assert!(refused("[".repeat(100_000).as_bytes()).contains("recursion limit"));
    }

    #[test]
    fn a_mistyped_field_is_named() {
        let message = refused(br#"{"cpu": "two"}"#);
        assert!(message.contains("field 'cpu'") && message.contains("line 1"), "{message}");
        assert!(refused(br#"{"cpu": 1.5}"#).contains("field 'cpu'"));
        assert!(refused(br#"{"cpu": 99999999999999999999}"#).contains("field 'cpu'"));
        assert!(refused(br#"{"labels": {"a": 1}}"#).contains("field 'labels.a'"));
        assert!(refused(b"[]").contains("mistyped JSON"));
    }

    #[test]
    fn what_a_typed_reader_would_lose_is_refused() {
        assert!(refused(br#"{"labels": {"a": "1", "a": "2"}}"#).contains("'a' is there twice"));
        assert!(refused(br#"{"labels": {"a": "\u0000"}}"#).contains("NUL"));
    }
}
