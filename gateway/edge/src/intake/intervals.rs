//! What is done to a sandbox by itself, in whole minutes.

use fabric_types::{Intervals, Minutes};

use crate::refusal::{Answer, Refusal};

/// Intervals as a client gave them; what is absent is never.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct GivenIntervals {
    /// Idle minutes until a stop; 0 is never.
    pub(crate) stop: Option<i64>,
    /// Idle minutes until a pause; 0 is never.
    pub(crate) pause: Option<i64>,
    /// Stopped minutes until it is archived; 0 is never.
    pub(crate) archive: Option<i64>,
    /// Stopped minutes until a deletion; 0 is at once, -1 never.
    pub(crate) delete: Option<i64>,
    /// Minutes from its creation until a deletion; 0 is never.
    pub(crate) ttl: Option<i64>,
}

/// All intervals, as a create gives them.
pub(crate) fn intervals(given: GivenIntervals) -> Answer<Intervals> {
    Ok(Intervals {
        auto_stop: auto_stop(given.stop.unwrap_or(0))?,
        auto_pause: auto_pause(given.pause.unwrap_or(0))?,
        auto_archive: auto_archive(given.archive.unwrap_or(0))?,
        auto_delete: auto_delete(given.delete.unwrap_or(-1))?,
        ttl: ttl(given.ttl.unwrap_or(0))?,
    })
}

/// Idle minutes until a stop; 0 is never.
pub(crate) fn auto_stop(minutes: i64) -> Answer<Option<Minutes>> {
    unless_zero("the auto-stop interval", minutes)
}

/// Idle minutes until a pause; 0 is never.
pub(crate) fn auto_pause(minutes: i64) -> Answer<Option<Minutes>> {
    unless_zero("the auto-pause interval", minutes)
}

/// Stopped minutes until a sandbox is archived; 0 is never: the longest interval that there is.
pub(crate) fn auto_archive(minutes: i64) -> Answer<Option<Minutes>> {
    unless_zero("the auto-archive interval", minutes)
}

/// Stopped minutes until a deletion; 0 is at once, -1 never.
pub(crate) fn auto_delete(minutes: i64) -> Answer<Option<Minutes>> {
    if minutes == -1 { Ok(None) } else { whole_minutes("the auto-delete interval", minutes).map(Some) }
}

/// Minutes from its creation until a deletion; 0 is never.
pub(crate) fn ttl(minutes: i64) -> Answer<Option<Minutes>> {
    unless_zero("the time to live", minutes)
}

fn unless_zero(what: &str, minutes: i64) -> Answer<Option<Minutes>> {
    let minutes = whole_minutes(what, minutes)?;
    Ok((minutes.0 > 0).then_some(minutes))
}

/// A number of minutes that is 0 or more.
fn whole_minutes(what: &str, minutes: i64) -> Answer<Minutes> {
    u32::try_from(minutes)
        .map(Minutes)
        .map_err(|_| Refusal::bad(format!("{what} of {minutes} minutes is not possible: 0 to {}", u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_minutes_are_refused_with_what_is_possible() {
        for error in [auto_stop(-1), auto_pause(-1), auto_archive(-3), auto_delete(-2), ttl(i64::MAX)] {
            let message = error.expect_err("refused").0.message;
            assert!(message.contains("not possible: 0 to 4294967295"), "{message}");
        }
    }

    #[test]
    fn what_is_not_given_or_zero_is_never_and_a_deletion_of_zero_at_once() {
        assert_eq!(intervals(GivenIntervals::default()).expect("none"), Intervals::default());
        let zeros = GivenIntervals { stop: Some(0), pause: Some(0), archive: Some(0), delete: Some(0), ttl: Some(0) };
        let read = intervals(zeros).expect("zeros");
        assert_eq!(read, Intervals { auto_delete: Some(Minutes(0)), ..Intervals::default() });
        let given = GivenIntervals { stop: Some(15), pause: Some(5), ttl: Some(60), ..GivenIntervals::default() };
        let read = intervals(given).expect("some");
        assert_eq!(
            (read.auto_stop, read.auto_pause, read.ttl),
            (Some(Minutes(15)), Some(Minutes(5)), Some(Minutes(60)))
        );
    }
}
