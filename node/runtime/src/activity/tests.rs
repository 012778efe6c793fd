use crate::testing::phases;
use proptest::prelude::*;

use super::*;

const START: UnixMillis = UnixMillis(1_000_000);

fn minutes(count: u64) -> UnixMillis {
    UnixMillis(START.0 + count * 60_000)
}

/// What is due of a sandbox that was created and last used at `START`.
fn at(phase: &Phase, intervals: Intervals, now: UnixMillis) -> Option<AutoVerb> {
    due(phase, intervals, START, START, now)
}

#[test]
fn an_idle_sandbox_stops_after_its_interval_and_not_before() {
    let intervals = Intervals { auto_stop: Some(Minutes(15)), auto_delete: Some(Minutes(1)), ..Intervals::default() };
    assert_eq!(at(&Phase::Running, intervals, UnixMillis(minutes(15).0 - 1)), None);
    assert_eq!(at(&Phase::Running, intervals, minutes(15)), Some(AutoVerb::Stop));
    assert_eq!(at(&Phase::Paused, intervals, UnixMillis(u64::MAX)), None);
}

#[test]
fn a_sandbox_pauses_first_and_stops_where_both_are_due() {
    let intervals = Intervals { auto_pause: Some(Minutes(5)), auto_stop: Some(Minutes(15)), ..Intervals::default() };
    assert_eq!(at(&Phase::Running, intervals, minutes(4)), None);
    assert_eq!(at(&Phase::Running, intervals, minutes(5)), Some(AutoVerb::Pause));
    assert_eq!(at(&Phase::Running, intervals, minutes(15)), Some(AutoVerb::Stop));
}

#[test]
fn a_stopped_sandbox_is_archived_and_then_deleted() {
    let intervals =
        Intervals { auto_archive: Some(Minutes(60)), auto_delete: Some(Minutes(90)), ..Intervals::default() };
    assert_eq!(at(&Phase::Stopped, intervals, minutes(59)), None);
    assert_eq!(at(&Phase::Stopped, intervals, minutes(60)), Some(AutoVerb::Archive));
    assert_eq!(at(&Phase::Archived, intervals, minutes(89)), None);
    assert_eq!(at(&Phase::Archived, intervals, minutes(90)), Some(AutoVerb::Delete));
    assert_eq!(at(&Phase::Stopped, intervals, minutes(90)), Some(AutoVerb::Delete));
    assert_eq!(at(&Phase::Running, intervals, minutes(1_000)), None);
}

#[test]
fn auto_delete_of_zero_is_at_once_and_only_of_a_stopped_one() {
    let intervals = Intervals { auto_delete: Some(Minutes(0)), ..Intervals::default() };
    for phase in phases() {
        let stopped = matches!(phase, Phase::Stopped | Phase::Archived);
        assert_eq!(at(&phase, intervals, START), stopped.then_some(AutoVerb::Delete), "{phase:?}");
    }
}

#[test]
fn a_time_to_live_counts_from_the_creation_whatever_the_sandbox_does() {
    let intervals = Intervals { ttl: Some(Minutes(30)), ..Intervals::default() };
    for phase in phases() {
        let going = matches!(phase, Phase::Deleting | Phase::Gone);
        let used_now = due(&phase, intervals, START, minutes(30), minutes(30));
        assert_eq!(used_now, (!going).then_some(AutoVerb::Delete), "{phase:?}");
        assert_eq!(due(&phase, intervals, START, START, UnixMillis(minutes(30).0 - 1)), None, "{phase:?}");
    }
}

#[test]
fn a_request_under_way_keeps_a_sandbox_busy() {
    let activity = Activity::new(UnixMillis(10));
    let request = activity.begin();
    assert_eq!(activity.last(UnixMillis(99)), UnixMillis(99));
    drop(request);
    assert_eq!(activity.last(UnixMillis(500)), UnixMillis(99));
}

fn any_intervals() -> impl Strategy<Value = Intervals> {
    let one = || proptest::option::of((0_u32..100_000).prop_map(Minutes));
    (one(), one(), one(), one(), one()).prop_map(|(auto_stop, auto_pause, auto_archive, auto_delete, ttl)| Intervals {
        auto_stop,
        auto_pause,
        auto_archive,
        auto_delete,
        ttl,
    })
}

proptest! {
    #[test]
    fn nothing_is_ever_due_without_an_interval(created in any::<u64>(), last in any::<u64>(), now in any::<u64>()) {
        for phase in phases() {
            let found = due(&phase, Intervals::default(), UnixMillis(created), UnixMillis(last), UnixMillis(now));
            prop_assert_eq!(found, None);
        }
    }

    #[test]
    fn a_clock_that_went_back_asks_for_nothing_but_what_is_at_once(
        intervals in any_intervals(), last in 1_u64..u64::MAX / 2, back in 1_u64..,
    ) {
        let (last, now) = (UnixMillis(last), UnixMillis(last.saturating_sub(back)));
        let at_once = [intervals.auto_stop, intervals.auto_pause, intervals.auto_archive, intervals.auto_delete, intervals.ttl]
            .contains(&Some(Minutes(0)));
        for phase in phases() {
            let found = due(&phase, intervals, last, last, now);
            prop_assert!(found.is_none() || at_once, "{:?} {:?}", phase, found);
        }
    }

    #[test]
    fn what_is_due_stays_due_or_gives_way_to_what_comes_later(
        intervals in any_intervals(), idle in 0_u64..10_000_000_000, more in 0_u64..10_000_000_000,
    ) {
        // How far down the life a verb leads.
        let depth = |verb: Option<AutoVerb>| match verb {
            None => 0,
            Some(AutoVerb::Pause) => 1,
            Some(AutoVerb::Stop) => 2,
            Some(AutoVerb::Archive) => 3,
            Some(AutoVerb::Delete) => 4,
        };
        for phase in phases() {
            let (now, later) = (UnixMillis(START.0 + idle), UnixMillis(START.0 + idle + more));
            prop_assert!(depth(at(&phase, intervals, later)) >= depth(at(&phase, intervals, now)));
        }
    }

    #[test]
    fn a_use_puts_off_all_but_the_time_to_live(intervals in any_intervals(), age in 0_u64..10_000_000_000) {
        let now = UnixMillis(START.0 + age);
        let without = Intervals { ttl: None, ..intervals };
        let found = due(&Phase::Running, without, START, now, now);
        let at_once = [intervals.auto_stop, intervals.auto_pause].contains(&Some(Minutes(0)));
        prop_assert!(found.is_none() || at_once);
    }
}
