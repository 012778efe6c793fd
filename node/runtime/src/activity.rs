//! When a sandbox was last used, and what its intervals ask for: a decision with the time passed in.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use fabric_types::{Intervals, Phase, UnixMillis};

use crate::AutoVerb;

/// When a sandbox last changed or was used, shared by its driver and its guest clients.
#[derive(Debug)]
pub(crate) struct Activity {
    last_ms: AtomicU64,
    in_flight: AtomicU32,
}

impl Activity {
    pub(crate) fn new(now: UnixMillis) -> Self {
        Self { last_ms: AtomicU64::new(now.0), in_flight: AtomicU32::new(0) }
    }

    /// Notes a use. The clock may step back; the last use doesn't.
    pub(crate) fn touch(&self, now: UnixMillis) {
        self.last_ms.fetch_max(now.0, Ordering::Relaxed);
    }

    /// The last use; `now` while a request is under way.
    pub(crate) fn last(&self, now: UnixMillis) -> UnixMillis {
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            self.touch(now);
        }
        UnixMillis(self.last_ms.load(Ordering::Relaxed))
    }

    /// Counts a request as under way until the value is dropped.
    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self)
    }
}

/// A request under way.
pub(crate) struct InFlight<'a>(&'a Activity);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a sandbox's intervals ask for at `now`, if anything.
pub(crate) fn due(phase: &Phase, intervals: Intervals, last: UnixMillis, now: UnixMillis) -> Option<AutoVerb> {
    let idle_ms = now.since(last);
    match phase {
        Phase::Running => intervals.auto_stop.filter(|limit| idle_ms >= limit.as_millis()).map(|_| AutoVerb::Stop),
        Phase::Stopped => intervals.auto_delete.filter(|limit| idle_ms >= limit.as_millis()).map(|_| AutoVerb::Delete),
        // A paused one was paused on purpose; the others are on their way somewhere, or beyond help.
        Phase::Requested
        | Phase::Placed
        | Phase::Starting
        | Phase::Paused
        | Phase::Snapshotting
        | Phase::Stopping
        | Phase::Archiving
        | Phase::Archived
        | Phase::Deleting
        | Phase::Gone
        | Phase::Failed { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use fabric_types::Minutes;
    use proptest::prelude::*;

    use super::*;

    fn intervals(auto_stop: Option<u32>, auto_delete: Option<u32>) -> Intervals {
        Intervals { auto_stop: auto_stop.map(Minutes), auto_delete: auto_delete.map(Minutes), ..Intervals::default() }
    }

    #[test]
    fn an_idle_sandbox_stops_after_its_interval_and_not_before() {
        let start = UnixMillis(1_000_000);
        let both = intervals(Some(15), Some(1));
        assert_eq!(due(&Phase::Running, both, start, UnixMillis(start.0 + 15 * 60_000 - 1)), None);
        assert_eq!(due(&Phase::Running, both, start, UnixMillis(start.0 + 15 * 60_000)), Some(AutoVerb::Stop));
        assert_eq!(due(&Phase::Paused, both, start, UnixMillis(u64::MAX)), None);
    }

    #[test]
    fn auto_delete_of_zero_is_at_once_and_only_of_a_stopped_one() {
        let now = UnixMillis(5);
        assert_eq!(due(&Phase::Stopped, intervals(None, Some(0)), now, now), Some(AutoVerb::Delete));
        assert_eq!(due(&Phase::Running, intervals(None, Some(0)), now, now), None);
    }

    #[test]
    fn a_request_under_way_keeps_a_sandbox_busy() {
        let activity = Activity::new(UnixMillis(10));
        let request = activity.begin();
        assert_eq!(activity.last(UnixMillis(99)), UnixMillis(99));
        drop(request);
        assert_eq!(activity.last(UnixMillis(500)), UnixMillis(99));
    }

    proptest! {
        #[test]
        fn nothing_is_ever_due_without_an_interval(last in any::<u64>(), now in any::<u64>()) {
            for phase in [Phase::Running, Phase::Stopped, Phase::Paused, Phase::Starting] {
                prop_assert_eq!(due(&phase, intervals(None, None), UnixMillis(last), UnixMillis(now)), None);
            }
        }

        #[test]
        fn a_clock_that_went_back_stops_nothing(last in 1_u64.., back in 1_u64.., minutes in 1_u32..) {
            let now = UnixMillis(last.saturating_sub(back));
            prop_assert_eq!(due(&Phase::Running, intervals(Some(minutes), None), UnixMillis(last), now), None);
        }
    }
}
