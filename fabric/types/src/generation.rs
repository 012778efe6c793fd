//! The generation of a placement: it travels in every call that touches a sandbox.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many times a sandbox has been placed. It only grows; runtime, snapshot store, relay and agent reject a lower
/// one than they have seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation of a sandbox's first placement.
    pub const FIRST: Self = Self(1);

    /// The generation of the next placement.
    ///
    /// # Panics
    /// After 2^64 placements.
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a sandbox is not placed 2^64 times"))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
