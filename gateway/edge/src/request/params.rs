//! Query parameters: strictly decoded, and each at most once unless it may repeat.

use axum::extract::FromRequestParts;
use http::request::Parts;

use crate::refusal::{Answer, Refusal};

/// Most parameters of one request.
const PARAMS_MAX: usize = 256;

/// The query parameters of a request, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        Self::parse(parts.uri.query().unwrap_or(""))
    }
}

impl Params {
    fn parse(query: &str) -> Answer<Self> {
        let mut params = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            params.push((decode(name)?, decode(value)?));
            if params.len() > PARAMS_MAX {
                return Err(Refusal::bad(format!("the query has more than {PARAMS_MAX} parameters")));
            }
        }
        Ok(Self(params))
    }

    /// Refuses parameters that the path doesn't know, so that a mistyped one is not quietly ignored.
    pub(crate) fn only(&self, known: &[&str]) -> Answer<()> {
        match self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) => {
                let shown: String = name.chars().take(80).collect();
                Err(Refusal::bad(format!("unknown query parameter '{shown}'; this path takes {}", known.join(", "))))
            }
        }
    }

    /// A parameter that may be there once. An empty one counts as absent.
    pub(crate) fn one(&self, name: &str) -> Answer<Option<&str>> {
        let mut values = self.0.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let first = values.next();
        if values.next().is_some() {
            return Err(Refusal::bad(format!("the query parameter '{name}' is there twice")));
        }
        Ok(first.filter(|value| !value.is_empty()))
    }

    /// A parameter that must be there once.
    pub(crate) fn required(&self, name: &str) -> Answer<&str> {
        self.one(name)?.ok_or_else(|| Refusal::bad(format!("the query parameter '{name}' is missing")))
    }

    /// Every value of a parameter that may repeat.
    pub(crate) fn all<'params>(&'params self, name: &'params str) -> impl Iterator<Item = &'params str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A whole number.
    pub(crate) fn number(&self, name: &str) -> Answer<Option<i64>> {
        self.parsed(name, "a whole number")
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self, name: &str) -> Answer<Option<bool>> {
        self.parsed(name, "true or false")
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str, what: &str) -> Answer<Option<T>> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let shown: String = text.chars().take(80).collect();
        let refused = || Refusal::bad(format!("the query parameter '{name}' must be {what}, not '{shown}'"));
        text.parse().map(Some).map_err(|_| refused())
    }
}

/// Percent-decoding that refuses what the lenient kind would mend: half an escape, what isn't UTF-8, and NUL.
fn decode(text: &str) -> Answer<String> {
    let shown = || text.chars().take(80).collect::<String>();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
                    return Err(Refusal::bad(format!("'{}' holds a % without two hexadecimal digits", shown())));
                };
                // Two hexadecimal digits are at most 255.
                bytes.push(u8::try_from(high << 4 | low).unwrap_or_default());
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    let decoded =
        String::from_utf8(bytes).map_err(|_| Refusal::bad(format!("'{}' is not UTF-8 once decoded", shown())))?;
    if decoded.contains('\0') {
        return Err(Refusal::bad(format!("'{}' holds the NUL character", shown())));
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_may_repeat() {
        let params = Params::parse("a=1&b=x%20y+z&a=2&c&&").expect("a query");
        assert_eq!(params.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(params.one("b").expect("once"), Some("x y z"));
        assert_eq!(params.one("c").expect("once"), None);
        assert!(params.one("a").is_err());
        assert!(params.number("b").is_err());
        assert!(params.only(&["a", "b"]).is_err());
    }

    #[test]
    fn broken_escapes_are_refused() {
        for query in ["a=%", "a=%4", "a=%zz", "a=%ff", "a=%00", "%00=1"] {
            assert!(Params::parse(query).is_err(), "{query}");
        }
    }
}
