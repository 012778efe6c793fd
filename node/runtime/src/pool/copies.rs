//! What a shelf knows of its template's checkpoint, and when one is made. Pure: instants come in.
//!
//! ```text
//! Unknown ---> Making ---> Ready ---- a copy came to nothing ----+
//!   ^             |                                              v
//!   |             +---- failed ----------------------------> Waiting(until)
//!   |             +---- this driver or host can't ---> Never     |
//!   +------------------------------------------------------------+
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// Wait after one that couldn't be made: it costs seconds of a processor.
const FAILED_RETRY: Duration = Duration::from_secs(300);
/// Wait after copies came to nothing: as long as a checkpoint isn't used then.
const LOST_RETRY: Duration = Duration::from_secs(60);
/// Times that another shape than the default one was asked for before a checkpoint of it is worth its seconds.
const ASKED_MIN: usize = 2;

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Copies {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// One is being looked for, or made.
    Making,
    /// There is one: clones are copies of it.
    Ready,
    /// None can be had before this.
    Waiting(Instant),
    /// The driver or the host makes none.
    Never,
}

impl Copies {
    /// When one is to be looked for or made; none while there is no need of it.
    pub(super) fn due(self, is_default: bool, target: u32, asked: usize, now: Instant) -> Option<Instant> {
        // Whoever makes nothing ahead makes all the more on demand.
        let worth = if is_default { target > 0 || asked > 0 } else { asked >= ASKED_MIN };
        match self {
            Self::Unknown => worth.then_some(now),
            Self::Waiting(until) => worth.then_some(until),
            Self::Making | Self::Ready | Self::Never => None,
        }
    }

    /// One couldn't be made.
    pub(super) fn failed(now: Instant) -> Self {
        Self::Waiting(now + FAILED_RETRY)
    }

    /// A copy was to be made, and wasn't one.
    pub(super) fn lost(now: Instant) -> Self {
        Self::Waiting(now + LOST_RETRY)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_is_made_at_once_where_clones_are_wanted_and_never_where_it_cannot_be() {
        let now = Instant::now();
        assert_eq!(Copies::Unknown.due(true, 1, 0, now), Some(now));
        assert_eq!(Copies::Unknown.due(true, 0, 0, now), None, "nothing is made ahead, and nobody asks");
        assert_eq!(Copies::Unknown.due(true, 0, 1, now), Some(now), "a create without a pool is a copy, too");
        for settled in [Copies::Making, Copies::Ready, Copies::Never] {
            assert_eq!(settled.due(true, 8, 9, now), None);
        }
    }

    #[test]
    fn a_shape_that_was_asked_for_once_is_not_worth_it_yet() {
        let now = Instant::now();
        assert_eq!(Copies::Unknown.due(false, 1, 1, now), None);
        assert_eq!(Copies::Unknown.due(false, 0, ASKED_MIN, now), Some(now));
        assert_eq!(Copies::Unknown.due(false, 1, ASKED_MIN, now), Some(now));
    }

    proptest! {
        #[test]
        fn a_failure_is_followed_by_a_wait(target in 1_u32.., asked in 0_usize..9) {
            let now = Instant::now();
            for waiting in [Copies::failed(now), Copies::lost(now)] {
                prop_assert!(waiting.due(true, target, asked, now).is_some_and(|at| at >= now + LOST_RETRY));
            }
        }
    }
}
