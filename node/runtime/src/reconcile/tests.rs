//! Every row of the table, and properties over random worlds.

use fabric_types::{FailReason, Minutes};
use proptest::prelude::*;

use super::*;
use crate::testing::spec;

const NOW: UnixMillis = UnixMillis(10_000_000);

fn intent(number: u8, generation: u64, desired: Desired) -> Intent {
    Intent { spec: spec(number), generation: Generation(generation), desired }
}

fn seen(number: u8, generation: u64, phase: Phase) -> (SandboxId, Seen) {
    let spec = spec(number);
    let id = spec.id.clone();
    (
        id,
        Seen {
            spec,
            generation: Generation(generation),
            phase,
            begun_at: UnixMillis(0),
            idle: true,
            outdated: false,
            refused: None,
        },
    )
}

fn one(intents: &[Intent], world: Vec<(SandboxId, Seen)>) -> Vec<Command> {
    step(intents, &world.into_iter().collect(), &BTreeMap::new(), NOW)
}

fn act(number: u8, verb: Verb) -> Vec<Command> {
    vec![Command::Act(spec(number).id, Generation(1), verb)]
}

fn failed() -> Phase {
    Phase::Failed { reason: FailReason::MachineLost("it ended".to_owned()) }
}

#[test]
fn each_pair_of_phase_and_desire_follows_the_table() {
    use Desired::{Archived as WantArchived, Paused as WantPaused, Running as WantRunning, Stopped as WantStopped};
    let rows: [(Phase, Desired, Option<Verb>); 20] = [
        (Phase::Running, WantArchived, Some(Verb::Stop { force: false })),
        (Phase::Paused, WantArchived, Some(Verb::Stop { force: false })),
        (Phase::Stopped, WantArchived, Some(Verb::Archive)),
        (Phase::Archived, WantArchived, None),
        (Phase::Archived, WantStopped, None),
        (Phase::Archived, WantRunning, Some(Verb::Start)),
        (Phase::Archived, WantPaused, Some(Verb::Start)),
        (Phase::Archiving, WantRunning, None),
        (Phase::Running, WantRunning, None),
        (Phase::Running, WantPaused, Some(Verb::Pause)),
        (Phase::Running, WantStopped, Some(Verb::Stop { force: false })),
        (Phase::Paused, WantRunning, Some(Verb::Resume)),
        (Phase::Paused, WantPaused, None),
        (Phase::Paused, WantStopped, Some(Verb::Stop { force: false })),
        (Phase::Stopped, WantRunning, Some(Verb::Start)),
        (Phase::Stopped, WantPaused, Some(Verb::Start)),
        (Phase::Stopped, WantStopped, None),
        (failed(), WantRunning, None),
        (Phase::Starting, WantStopped, None),
        (Phase::Snapshotting, WantPaused, None),
    ];
    for (phase, desired, expected) in rows {
        let commands = one(&[intent(1, 1, desired)], vec![seen(1, 1, phase.clone())]);
        assert_eq!(commands, expected.map_or_else(Vec::new, |verb| act(1, verb)), "{phase:?} {desired:?}");
    }
}

#[test]
fn an_unknown_sandbox_is_run_and_a_stopped_one_without_disk_is_lost() {
    let request = Box::new(RunRequest { spec: spec(1), generation: Generation(1) });
    assert_eq!(one(&[intent(1, 1, Desired::Running)], vec![]), vec![Command::Run(request.clone())]);
    assert_eq!(one(&[intent(1, 1, Desired::Stopped)], vec![]), vec![Command::Lost(request)]);
}

#[test]
fn what_consensus_does_not_know_is_deleted_after_its_grace() {
    let (id, mut young) = seen(1, 1, Phase::Running);
    assert_eq!(one(&[], vec![(id.clone(), young.clone())]), act(1, Verb::Delete));
    young.begun_at = UnixMillis(NOW.0 - UNCOMMITTED_GRACE_MS + 1);
    assert_eq!(one(&[], vec![(id, young)]), vec![]);
}

#[test]
fn what_was_deleted_stays_deleted_until_it_is_placed_anew() {
    let buried: BTreeMap<_, _> = [(spec(1).id, HeldBack::Buried(Generation(3)))].into();
    assert_eq!(step(&[intent(1, 3, Desired::Running)], &BTreeMap::new(), &buried, NOW), vec![]);
    assert_eq!(step(&[intent(1, 4, Desired::Running)], &BTreeMap::new(), &buried, NOW).len(), 1);
}

#[test]
fn a_run_that_failed_waits() {
    let held: BTreeMap<_, _> = [(spec(1).id, HeldBack::Until(UnixMillis(NOW.0 + 1)))].into();
    assert_eq!(step(&[intent(1, 1, Desired::Running)], &BTreeMap::new(), &held, NOW), vec![]);
    let later = UnixMillis(NOW.0 + 1);
    assert_eq!(step(&[intent(1, 1, Desired::Running)], &BTreeMap::new(), &held, later).len(), 1);
}

#[test]
fn a_newer_placement_replaces_and_an_older_one_is_ignored() {
    assert_eq!(one(&[intent(1, 2, Desired::Running)], vec![seen(1, 1, Phase::Running)]), act(1, Verb::Delete));
    assert_eq!(one(&[intent(1, 1, Desired::Stopped)], vec![seen(1, 2, Phase::Running)]), vec![]);
}

#[test]
fn a_direct_request_is_not_undone_by_an_older_intent() {
    let (id, mut busy) = seen(1, 1, Phase::Stopped);
    busy.outdated = true;
    assert_eq!(one(&[intent(1, 1, Desired::Running)], vec![(id, busy)]), vec![]);
}

#[test]
fn changed_intervals_reach_the_sandbox() {
    let mut wanted = intent(1, 1, Desired::Running);
    wanted.spec.intervals.auto_stop = Some(Minutes(5));
    let expected = vec![Command::Update(Box::new(wanted.spec.clone()))];
    assert_eq!(one(&[wanted], vec![seen(1, 1, Phase::Running)]), expected);
}

#[test]
fn a_forks_child_is_waited_for_and_then_lost_and_never_run_alone() {
    let mut child = intent(2, 1, Desired::Running);
    child.spec.source = Source::Fork { parent: spec(1).id, generation: Generation(1) };
    child.spec.created_at = UnixMillis(NOW.0 - UNCOMMITTED_GRACE_MS + 1);
    assert_eq!(one(&[child.clone()], vec![]), vec![]);
    child.spec.created_at = UnixMillis(NOW.0 - UNCOMMITTED_GRACE_MS);
    let request = Box::new(RunRequest { spec: child.spec.clone(), generation: Generation(1) });
    assert_eq!(one(&[child], vec![]), vec![Command::Lost(request)]);
}

#[test]
fn a_spec_that_was_refused_is_not_offered_again() {
    let mut wanted = intent(1, 1, Desired::Running);
    wanted.spec.intervals.auto_stop = Some(Minutes(5));
    let (id, mut there) = seen(1, 1, Phase::Running);
    there.refused = Some(wanted.spec.clone());
    assert_eq!(one(&[wanted.clone()], vec![(id.clone(), there.clone())]), vec![]);
    wanted.spec.intervals.auto_stop = Some(Minutes(6));
    assert_eq!(one(&[wanted], vec![(id, there)]).len(), 1);
}

fn any_phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        Just(Phase::Placed),
        Just(Phase::Starting),
        Just(Phase::Running),
        Just(Phase::Paused),
        Just(Phase::Snapshotting),
        Just(Phase::Stopping),
        Just(Phase::Stopped),
        Just(Phase::Archiving),
        Just(Phase::Archived),
        Just(Phase::Deleting),
        Just(failed()),
    ]
}

fn any_desired() -> impl Strategy<Value = Desired> {
    prop_oneof![Just(Desired::Running), Just(Desired::Paused), Just(Desired::Stopped), Just(Desired::Archived)]
}

/// What a verb makes of a phase when it succeeds.
fn outcome(phase: &Phase, verb: Verb) -> Option<Phase> {
    match verb {
        Verb::Start | Verb::Resume => Some(Phase::Running),
        Verb::Stop { .. } => Some(Phase::Stopped),
        Verb::Pause => Some(Phase::Paused),
        Verb::Archive => Some(Phase::Archived),
        Verb::Delete => (*phase == Phase::Gone).then_some(Phase::Gone),
    }
}

proptest! {
    /// Steps whose commands succeed come to rest within three, and at rest every sandbox that can be is where it is wanted.
    #[test]
    fn steps_converge(
        wanted in proptest::collection::btree_map(0_u8..6, (1_u64..3, any_desired()), 0..6),
        there in proptest::collection::btree_map(0_u8..6, (1_u64..3, any_phase()), 0..6),
    ) {
        let intents: Vec<_> = wanted.iter().map(|(n, (g, d))| intent(*n, *g, *d)).collect();
        let mut world: BTreeMap<_, _> = there.iter().map(|(n, (g, p))| seen(*n, *g, p.clone())).collect();
        for _ in 0..4 {
            for command in step(&intents, &world, &BTreeMap::new(), NOW) {
                match command {
                    Command::Run(request) | Command::Lost(request) => {
                        let seen = Seen {
                            spec: request.spec.clone(),
                            generation: request.generation,
                            phase: Phase::Running,
                            begun_at: NOW,
                            idle: true,
                            outdated: false,
                            refused: None,
                        };
                        world.insert(request.spec.id.clone(), seen);
                    }
                    Command::Act(id, generation, verb) => {
                        let seen = world.get_mut(&id).expect("only what is seen is acted on");
                        prop_assert_eq!(seen.generation, generation);
                        match outcome(&seen.phase, verb) {
                            Some(phase) => seen.phase = phase,
                            None => { world.remove(&id); }
                        }
                    }
                    Command::Update(spec) => {
                        let id = spec.id.clone();
                        world.get_mut(&id).expect("only what is seen is updated").spec = *spec;
                    }
                }
            }
        }
        prop_assert_eq!(step(&intents, &world, &BTreeMap::new(), NOW), vec![]);
        for intent in &intents {
            let seen = &world[&intent.spec.id];
            let there = match (intent.desired, &seen.phase) {
                (Desired::Running, Phase::Running)
                | (Desired::Paused, Phase::Paused)
                | (Desired::Stopped, Phase::Stopped | Phase::Archived)
                | (Desired::Archived, Phase::Archived) => true,
                (_, phase) => !matches!(phase, Phase::Running | Phase::Paused | Phase::Stopped | Phase::Archived),
            };
            let newer = seen.generation > intent.generation;
            prop_assert!(there || newer, "{:?} wanted {:?}", seen.phase, intent.desired);
        }
    }

    /// Nothing under way is ever interfered with.
    #[test]
    fn what_is_under_way_gets_no_verb(phase in any_phase(), desired in any_desired(), generation in 1_u64..3) {
        let (id, mut busy) = seen(1, 1, phase);
        busy.idle = false;
        let world = BTreeMap::from([(id, busy)]);
        prop_assert_eq!(step(&[intent(1, generation, desired)], &world, &BTreeMap::new(), NOW), vec![]);
        prop_assert_eq!(step(&[], &world, &BTreeMap::new(), NOW), vec![]);
    }
}
