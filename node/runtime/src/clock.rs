//! The wall clock, read only here: decisions get their time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use fabric_types::UnixMillis;

/// Now, in milliseconds since the epoch; 0 on a host whose clock stands before it.
pub(crate) fn now() -> UnixMillis {
    UnixMillis(u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX))
}

/// Now, in nanoseconds since the epoch (a u64 of them lasts until the year 2554).
pub(crate) fn now_ns() -> u64 {
    u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX)
}

fn since_epoch() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
