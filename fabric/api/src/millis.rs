//! Milliseconds that keep their thousandths on the wire and can be compared in tests.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Milliseconds kept as whole microseconds, written as a number such as 41.25.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis {
    /// The microseconds.
    pub micros: u64,
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.micros as f64 / 1000.0)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let millis = f64::deserialize(deserializer)?;
        Ok(Self { micros: (millis * 1000.0).round().max(0.0) as u64 })
    }
}
