//! When a sandbox was last used, and what its intervals ask for: a decision with the time passed in.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use fabric_types::{Intervals, Minutes, Phase, UnixMillis};

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

/// What a sandbox's intervals ask for at `now`, if anything. `last` is its last use or change; going into the archive is no
/// change, so that a stopped sandbox's time to its deletion goes on there.
///
/// ```text
/// any            older than ttl                       delete
/// running        unused for auto_stop                 stop
///                unused for auto_pause                pause
/// stopped        for auto_delete (0 is at once)       delete
///                for auto_archive                     archive
/// archived       stopped for auto_delete              delete
/// ```
/// Where two are due the one further down the life wins: what stops needn't be paused first. A paused sandbox stays: it
/// costs no processor, and after a while no memory.
pub(crate) fn due(
    phase: &Phase,
    intervals: Intervals,
    created: UnixMillis,
    last: UnixMillis,
    now: UnixMillis,
) -> Option<AutoVerb> {
    let passed =
        |limit: Option<Minutes>, since: UnixMillis| limit.is_some_and(|limit| now.since(since) >= limit.as_millis());
    let expired = passed(intervals.ttl, created).then_some(AutoVerb::Delete);
    match phase {
        // It goes already.
        Phase::Deleting | Phase::Gone => None,
        Phase::Running => expired
            .or_else(|| passed(intervals.auto_stop, last).then_some(AutoVerb::Stop))
            .or_else(|| passed(intervals.auto_pause, last).then_some(AutoVerb::Pause)),
        Phase::Stopped => expired
            .or_else(|| passed(intervals.auto_delete, last).then_some(AutoVerb::Delete))
            .or_else(|| passed(intervals.auto_archive, last).then_some(AutoVerb::Archive)),
        Phase::Archived => expired.or_else(|| passed(intervals.auto_delete, last).then_some(AutoVerb::Delete)),
        // Paused on purpose, on their way somewhere, or beyond help.
        Phase::Requested
        | Phase::Placed
        | Phase::Starting
        | Phase::Paused
        | Phase::Snapshotting
        | Phase::Stopping
        | Phase::Archiving
        | Phase::Failed { .. } => expired,
    }
}

#[cfg(test)]
mod tests;
