//! Instants as the wires write them: RFC 3339, UTC, milliseconds.

use fabric_types::UnixMillis;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// An instant as text. One that no calendar holds is written as the epoch.
pub(crate) fn rfc3339(instant: UnixMillis) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(instant.0) * 1_000_000)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}

/// Seconds since the epoch, which a guest may have set to anything, as text.
pub(crate) fn rfc3339_seconds(seconds: i64) -> String {
    rfc3339(UnixMillis(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)))
}

/// An instant read from text, as a client's filter gives it.
pub(crate) fn parse(text: &str) -> Option<UnixMillis> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok().map(UnixMillis)
}

/// Now, by the wall clock: for answers to people only.
pub(crate) fn now() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_reads_back_what_it_prints() {
        let instant = UnixMillis(1_795_000_000_123);
        assert_eq!(parse(&rfc3339(instant)), Some(instant));
        assert!(rfc3339(instant).ends_with(".123Z"));
    }

    #[test]
    fn impossible_instants_are_the_epoch() {
        assert_eq!(rfc3339(UnixMillis(u64::MAX)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339_seconds(-5), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339_seconds(i64::MAX), "1970-01-01T00:00:00Z");
    }
}
