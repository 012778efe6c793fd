//! One region's descriptor: its file is a contract, read by Rust and by Terraform.

use std::io;

use fabric_types::{IdError, RegionCode};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The version of the descriptor's form that this code reads and writes.
pub const SCHEMA: u32 = 1;
/// Longest name and endpoint, in characters: they are shown in tables and sent in answers.
const TEXT_CHARS_MAX: usize = 200;

/// A region: its code, where it lies and where it is reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct RegionDescriptor {
    /// The short code.
    pub code: RegionCode,
    /// Its name for people.
    pub name: String,
    /// Its country, two letters (ISO 3166-1).
    pub country: Option<String>,
    /// Where it lies, if that is known.
    pub location: Option<Location>,
    /// Where it is reached.
    pub endpoints: Endpoints,
}

/// A place on earth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Location {
    latitude_deg: f64,
    longitude_deg: f64,
}

/// Where a region is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoints {
    /// The base URL of its HTTP endpoint. The built-in descriptors hold that of `atoll dev` with its default ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
}

/// A descriptor that can't be used.
#[derive(Debug, Error)]
pub enum RegionError {
    /// The file.
    #[error("can't read {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// How.
        source: io::Error,
    },
    /// What is in it.
    #[error("{path} is no region descriptor: {cause}")]
    Malformed {
        /// Which file.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// Too much of it.
    #[error("{path} holds more than {limit} {unit}")]
    TooLarge {
        /// Which file or folder.
        path: String,
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
}

impl RegionDescriptor {
    /// A region of which only the code is known: it has no place, so it is never nearer than one that has.
    pub fn unknown(code: RegionCode) -> Self {
        Self { name: code.as_str().to_owned(), code, country: None, location: None, endpoints: Endpoints::default() }
    }

    /// Reads a descriptor from JSON. A newer schema is refused before anything else is looked at; the error names no
    /// file.
    pub fn parse(json: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let version: Version = serde_json::from_str(json).map_err(|error| error.to_string())?;
        check_schema(version.schema)?;
        serde_json::from_str(json).map_err(|error| error.to_string())
    }
}

impl Location {
    /// A place from degrees: latitude north and longitude east are positive. `None` if there is no such place.
    pub fn new(latitude_deg: f64, longitude_deg: f64) -> Option<Self> {
        let there = (-90.0..=90.0).contains(&latitude_deg) && (-180.0..=180.0).contains(&longitude_deg);
        there.then_some(Self { latitude_deg, longitude_deg })
    }

    /// Degrees north.
    pub fn latitude_deg(self) -> f64 {
        self.latitude_deg
    }

    /// Degrees east.
    pub fn longitude_deg(self) -> f64 {
        self.longitude_deg
    }
}

/// The descriptor as it stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    schema: u32,
    code: String,
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    country: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latitude: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    longitude: Option<f64>,
    #[serde(default)]
    endpoints: Endpoints,
}

impl TryFrom<Raw> for RegionDescriptor {
    type Error = String;
    fn try_from(raw: Raw) -> Result<Self, String> {
        check_schema(raw.schema)?;
        let location = match (raw.latitude, raw.longitude) {
            (None, None) => None,
            (Some(latitude), Some(longitude)) => Some(
                Location::new(latitude, longitude)
                    .ok_or_else(|| format!("latitude {latitude}, longitude {longitude} is nowhere on earth"))?,
            ),
            _ => return Err("latitude and longitude go together".into()),
        };
        if let Some(country) = &raw.country
            && !(country.len() == 2 && country.bytes().all(|letter| letter.is_ascii_uppercase()))
        {
            return Err(format!("'{}' is no country: two capital letters", short(country)));
        }
        check_text("name", &raw.name)?;
        if let Some(http) = &raw.endpoints.http {
            check_text("endpoint", http)?;
            if !(http.starts_with("http://") || http.starts_with("https://")) {
                return Err(format!("'{}' is no endpoint: it must begin with http:// or https://", short(http)));
            }
        }
        let code = raw.code.parse().map_err(|error: IdError| error.to_string())?;
        Ok(Self { code, name: raw.name, country: raw.country, location, endpoints: raw.endpoints })
    }
}

impl From<RegionDescriptor> for Raw {
    fn from(region: RegionDescriptor) -> Self {
        Self {
            schema: SCHEMA,
            code: region.code.into(),
            name: region.name,
            country: region.country,
            latitude: region.location.map(Location::latitude_deg),
            longitude: region.location.map(Location::longitude_deg),
            endpoints: region.endpoints,
        }
    }
}

fn check_schema(schema: u32) -> Result<(), String> {
    if schema == SCHEMA {
        Ok(())
    } else {
        Err(format!("its schema is {schema}, and this version of Atoll knows {SCHEMA} only"))
    }
}

fn check_text(what: &str, text: &str) -> Result<(), String> {
    if text.is_empty() || text.chars().count() > TEXT_CHARS_MAX || text.chars().any(char::is_control) {
        return Err(format!("its {what} must be 1 to {TEXT_CHARS_MAX} printable characters"));
    }
    Ok(())
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"schema":1,"code":"fra","name":"Frankfurt","country":"DE","latitude":50.11,"longitude":8.68,"endpoints":{"http":"http://127.0.0.1:7080"}}"#;

    #[test]
    fn a_descriptor_reads_back_as_written() {
        let region = RegionDescriptor::parse(WHOLE).expect("a descriptor");
        assert_eq!(serde_json::to_string(&region).expect("writes"), WHOLE);
        let bare = RegionDescriptor::unknown("zz1".parse().expect("a code"));
        let json = serde_json::to_string(&bare).expect("writes");
        assert_eq!(RegionDescriptor::parse(&json).expect("reads"), bare);
    }

    #[test]
    fn what_a_descriptor_gets_wrong_is_said() {
        for (json, said) in [
            (r#"{"schema":2,"code":"fra","new":true}"#, "its schema is 2, and this version of Atoll knows 1 only"),
            (r#"{"code":"fra","name":"x"}"#, "missing field `schema`"),
            (r#"{"schema":1,"code":"FRA","name":"x"}"#, "'FRA' is not a region code"),
            (r#"{"schema":1,"code":"fra","name":"x","planet":"earth"}"#, "unknown field `planet`"),
            (r#"{"schema":1,"code":"fra","name":"x","endpoints":{"htp":"y"}}"#, "unknown field `htp`"),
            (r#"{"schema":1,"code":"fra","name":"x","latitude":1}"#, "latitude and longitude go together"),
            (r#"{"schema":1,"code":"fra","name":"x","latitude":91,"longitude":0}"#, "nowhere on earth"),
            (r#"{"schema":1,"code":"fra","name":"x","country":"Germany"}"#, "'Germany' is no country"),
            (r#"{"schema":1,"code":"fra","name":""}"#, "its name must be 1 to 200 printable characters"),
            (r#"{"schema":1,"code":"fra","name":"x","endpoints":{"http":"ftp://x"}}"#, "'ftp://x' is no endpoint"),
            ("[]", "invalid length"),
        ] {
            let error = RegionDescriptor::parse(json).expect_err(json);
            assert!(error.contains(said), "{json}: {error}");
        }
    }
}
