//! The wall clock, read in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use fabric_types::UnixMillis;

/// Now, by the wall clock; 0 before 1970.
pub(crate) fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
