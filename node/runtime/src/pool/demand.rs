//! How many warm clones are wanted, and what is done next about it. Pure: instants come in, steps go out.
//!
//! ```text
//!   wanted = rate x refill time + two standard deviations of it, between min and max, within the memory budget
//!
//!   fewer than wanted ---> Make, once the creates have the processors no more (or have had them long enough); at once
//!                          where it is a copy, which takes next to nothing of them
//!   more than wanted  ---> Retire the oldest, once demand has been gone for a while
//!   enough, one is old --> Make its replacement, then Retire it
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::PoolLimits;

/// Windows in which takes are counted: the short one sees a rush at once, the long one forgets it slowly.
const WINDOWS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];
/// How long a shape that was asked for once is thought to be asked for again.
const SHAPE_KEPT: Duration = Duration::from_secs(300);
/// Takes that are remembered: more than creates can come in the longest window.
const TAKEN_MAX: usize = 4096;
/// The making of a clone before one was measured: what it takes under TCG on a busy host.
const REFILL_GUESSED: Duration = Duration::from_secs(1);
/// How much a new measurement counts against the old mean: one in so many.
const MEASUREMENTS: u32 = 4;
/// A create's first command should have the processors to itself: filling waits this long after the last take.
pub(super) const QUIET: Duration = Duration::from_millis(300);
/// Under creates that never pause, filling begins this long after a clone was first missing.
const MISSING_MAX: Duration = Duration::from_secs(1);
/// Clones that demand no longer asks for go when it has been quiet for so long.
const SHRINK_AFTER: Duration = Duration::from_secs(30);
/// A clone older than this is replaced: so old is the entropy that its own programs may have drawn, and so far its clock
/// was set back, at most.
const AGE_MAX: Duration = Duration::from_secs(1800);
/// Wait after the first failure; it doubles up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What was taken when, and how long a replacement takes.
#[derive(Debug, Default)]
pub(super) struct Demand {
    taken: VecDeque<Instant>,
    refill: Option<Duration>,
}

impl Demand {
    /// A clone was asked for.
    pub(super) fn took(&mut self, now: Instant) {
        let old = |at: &Instant| now.duration_since(*at) > SHAPE_KEPT;
        while self.taken.front().is_some_and(old) || self.taken.len() >= TAKEN_MAX {
            self.taken.pop_front();
        }
        self.taken.push_back(now);
    }

    /// A clone was made in this time.
    pub(super) fn made(&mut self, took: Duration) {
        let mean = |old: Duration| (old * (MEASUREMENTS - 1) + took) / MEASUREMENTS;
        self.refill = Some(self.refill.map_or(took, mean));
    }

    /// When one was last asked for.
    pub(super) fn last(&self) -> Option<Instant> {
        self.taken.back().copied()
    }

    /// How often the shape was asked for not long ago.
    pub(super) fn asked(&self, now: Instant) -> usize {
        self.taken.iter().rev().take_while(|at| now.duration_since(**at) <= SHAPE_KEPT).count()
    }

    /// Whether the shape was asked for not long ago.
    pub(super) fn recent(&self, now: Instant) -> bool {
        self.last().is_some_and(|at| now.duration_since(at) <= SHAPE_KEPT)
    }

    /// Clones asked for in a second, by the window that saw most.
    fn per_second(&self, now: Instant) -> f64 {
        let within = |window: Duration| {
            let count = self.taken.iter().rev().take_while(|at| now.duration_since(**at) <= window).count();
            f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / window.as_secs_f64()
        };
        WINDOWS.map(within).into_iter().fold(0.0, f64::max)
    }

    /// How many clones should stand ready, each of which takes `private_kib` for itself.
    pub(super) fn wanted(&self, limits: PoolLimits, private_kib: u64, now: Instant) -> u32 {
        let refill = self.refill.unwrap_or(REFILL_GUESSED) + QUIET;
        let expected = self.per_second(now) * refill.as_secs_f64();
        // A u32 of a small positive float: `as` saturates.
        let asked = (expected + 2.0 * expected.sqrt()).ceil() as u32;
        let paid = limits.memory_mib.saturating_mul(1024) / private_kib.max(1);
        let paid = u32::try_from(paid).unwrap_or(u32::MAX);
        asked.max(limits.min).min(limits.max).min(paid)
    }
}

/// What [`next`] decides from.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Level {
    /// Clones that stand ready.
    pub(super) warm: u32,
    /// Clones that are being made.
    pub(super) making: u32,
    /// Clones wanted.
    pub(super) target: u32,
    /// When the oldest of those that stand ready was made.
    pub(super) oldest: Option<Instant>,
    /// Whether one of them stands ready that isn't a copy, though it could be one: it takes several times the memory.
    pub(super) outdated: bool,
    /// When one was last taken.
    pub(super) taken_at: Option<Instant>,
    /// Since when there are fewer than wanted.
    pub(super) missing_since: Option<Instant>,
    /// Failures in a row.
    pub(super) failures: u32,
    /// When the last one was.
    pub(super) failed_at: Option<Instant>,
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Make one more.
    Make,
    /// End the oldest.
    Retire,
}

/// The next step and when it is due; none while nothing but time has to pass.
pub(super) fn next(level: &Level, now: Instant) -> Option<(Instant, Step)> {
    let aged_at = if level.outdated { Some(now) } else { level.oldest.map(|made_at| made_at + AGE_MAX) };
    if level.warm > level.target {
        let quiet_at = level.taken_at.map_or(now, |taken_at| taken_at + SHRINK_AFTER);
        return Some((aged_at.map_or(quiet_at, |aged_at| aged_at.min(quiet_at)), Step::Retire));
    }
    if let Some(failed_at) = level.failed_at
        && level.making == 0
    {
        let due = failed_at + backoff(level.failures);
        return (level.warm < level.target).then_some((due, Step::Make));
    }
    if level.warm + level.making < level.target {
        let quiet_at = level.taken_at.map_or(now, |taken_at| taken_at + QUIET);
        let missing_at = level.missing_since.map_or(now, |since| since + MISSING_MAX);
        return Some((quiet_at.min(missing_at), Step::Make));
    }
    // Its replacement comes first: demand never sees fewer.
    aged_at.filter(|_| level.making == 0).map(|aged_at| (aged_at, Step::Make))
}

/// The wait after the `failures`-th failure in a row.
fn backoff(failures: u32) -> Duration {
    let (least, most) = BACKOFF;
    least.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: PoolLimits = PoolLimits { min: 2, max: 16, memory_mib: 4096, spares: 0 };

    fn level(warm: u32, target: u32) -> Level {
        Level { warm, target, ..Level::default() }
    }

    fn rush(count: usize, now: Instant) -> Demand {
        let mut demand = Demand::default();
        (0..count).for_each(|_| demand.took(now));
        demand
    }

    #[test]
    fn a_full_pool_does_nothing_and_an_empty_one_fills_at_once() {
        let now = Instant::now();
        assert_eq!(next(&level(4, 4), now), None);
        assert_eq!(next(&level(0, 0), now), None);
        assert_eq!(next(&level(0, 4), now), Some((now, Step::Make)));
        assert_eq!(next(&Level { making: 1, ..level(3, 4) }, now), None, "the last one is on its way");
    }

    #[test]
    fn filling_waits_for_quiet_but_not_for_ever() {
        let now = Instant::now();
        let taken = Level { taken_at: Some(now), missing_since: Some(now), ..level(3, 4) };
        assert_eq!(next(&taken, now), Some((now + QUIET, Step::Make)));
        let later = now + MISSING_MAX;
        let busy = Level { taken_at: Some(later), missing_since: Some(now), ..level(3, 4) };
        assert_eq!(next(&busy, later), Some((later, Step::Make)));
    }

    #[test]
    fn a_clone_that_could_be_a_copy_is_replaced_now_and_goes_then() {
        let now = Instant::now();
        let outdated = Level { outdated: true, oldest: Some(now), ..level(4, 4) };
        assert_eq!(next(&outdated, now), Some((now, Step::Make)));
        let replaced = Level { warm: 5, taken_at: Some(now), ..outdated };
        assert_eq!(next(&replaced, now), Some((now, Step::Retire)), "at once, however busy it is");
        assert_eq!(next(&Level { outdated: false, ..outdated }, now), Some((now + AGE_MAX, Step::Make)));
    }

    #[test]
    fn an_old_clone_is_replaced_before_it_goes() {
        let now = Instant::now();
        let old = Level { oldest: Some(now), ..level(4, 4) };
        assert_eq!(next(&old, now), Some((now + AGE_MAX, Step::Make)));
        assert_eq!(next(&Level { making: 1, ..old }, now), None);
        let aged = now + AGE_MAX;
        let replaced = Level { warm: 5, taken_at: Some(aged), ..old };
        assert_eq!(next(&replaced, aged), Some((aged, Step::Retire)), "at once, however busy it is");
    }

    #[test]
    fn a_pool_shrinks_only_when_it_has_been_quiet() {
        let now = Instant::now();
        let over = Level { taken_at: Some(now), oldest: Some(now), ..level(6, 4) };
        assert_eq!(next(&over, now), Some((now + SHRINK_AFTER, Step::Retire)));
    }

    #[test]
    fn failures_wait_twice_as_long_each_up_to_a_minute() {
        let now = Instant::now();
        let waits: Vec<_> = (1..=8)
            .map(|failures| next(&Level { failures, failed_at: Some(now), ..level(0, 4) }, now))
            .map(|step| step.expect("tried again").0.duration_since(now).as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn a_rush_raises_what_is_wanted_and_quiet_lowers_it_again() {
        let now = Instant::now();
        let demand = rush(40, now);
        let high = demand.wanted(LIMITS, 40 << 10, now);
        assert!(high > LIMITS.min, "{high}");
        let calm = demand.wanted(LIMITS, 40 << 10, now + Duration::from_secs(61));
        assert_eq!(calm, LIMITS.min);
    }

    #[test]
    fn a_shape_is_forgotten_some_minutes_after_it_was_last_asked_for() {
        let now = Instant::now();
        let demand = rush(1, now);
        assert!(demand.recent(now + SHAPE_KEPT) && !demand.recent(now + SHAPE_KEPT * 2));
        assert!(!Demand::default().recent(now));
    }

    #[test]
    fn memory_bounds_what_is_wanted_even_below_the_least() {
        let now = Instant::now();
        let limits = PoolLimits { memory_mib: 100, ..LIMITS };
        assert_eq!(rush(1000, now).wanted(limits, 50 << 10, now), 2);
        assert_eq!(rush(0, now).wanted(limits, 100 << 10, now), 1);
    }

    proptest! {
        #[test]
        fn what_is_wanted_keeps_every_limit(
            takes in 0_usize..400, made_ms in 1_u64..10_000, min in 0_u32..8, more in 0_u32..64,
            memory_mib in 0_u64..8192, private_kib in 1_u64..1 << 20, later_s in 0_u64..120,
        ) {
            let now = Instant::now();
            let mut demand = rush(takes, now);
            demand.made(Duration::from_millis(made_ms));
            let limits = PoolLimits { min, max: min + more, memory_mib, spares: 0 };
            let wanted = demand.wanted(limits, private_kib, now + Duration::from_secs(later_s));
            prop_assert!(wanted <= limits.max);
            prop_assert!(u64::from(wanted) * private_kib <= memory_mib * 1024);
            prop_assert!(wanted >= min || u64::from(min) * private_kib > memory_mib * 1024);
        }

        #[test]
        fn more_demand_never_asks_for_less(fewer in 0_usize..200, more in 0_usize..200) {
            let now = Instant::now();
            let few = rush(fewer, now).wanted(LIMITS, 1, now);
            let many = rush(fewer + more, now).wanted(LIMITS, 1, now);
            prop_assert!(few <= many);
        }

        #[test]
        fn no_step_leads_away_from_the_target(warm in 0_u32..32, making in 0_u32..4, target in 0_u32..32) {
            let now = Instant::now();
            match next(&Level { making, ..level(warm, target) }, now) {
                Some((_, Step::Make)) => prop_assert!(warm + making < target),
                Some((_, Step::Retire)) => prop_assert!(warm > target),
                None => prop_assert!(warm <= target && warm + making >= target),
            }
        }

        #[test]
        fn the_wait_never_shrinks_and_never_passes_its_limit(failures in 1_u32..) {
            prop_assert!(backoff(failures) <= backoff(failures.saturating_add(1)));
            prop_assert!(backoff(failures) <= BACKOFF.1);
        }
    }
}
