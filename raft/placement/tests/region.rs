//! What must hold of a region's ledger after any sequence of commands.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use fabric_types::{
    Capacity, Desired, Generation, Intervals, Minutes, NetworkPolicy, NodeId, NodeLimits, OrganizationId, Overcommit,
    Quota, SandboxId, Shape, UnixMillis,
};
use proptest::prelude::*;
use raft_placement::region::{Child, Command, Placement, Refusal, SPEC_BYTES_MAX, State, Usage};
use raft_placement::{Machine, Outcome, Versioned};

use support::{limits, node, place, sandbox, spec};

/// Few ids, so that commands meet.
fn command() -> impl Strategy<Value = Command> {
    let (nodes, boxes, generations) = (0u8..3, 0u8..6, 0u64..6);
    let desired =
        prop_oneof![Just(Desired::Running), Just(Desired::Paused), Just(Desired::Stopped), Just(Desired::Archived)];
    prop_oneof![
        3 => (boxes.clone(), generations.clone(), proptest::collection::vec((boxes.clone(), boxes.clone(), 1u64..6), 0..4))
            .prop_map(|(parent, from, children)| Command::Fork {
                parent: sandbox(parent),
                from: Generation(from),
                children: children.into_iter().map(|(number, name, generation)| Child {
                    id: sandbox(number), name: format!("box-{name}"), generation: Generation(generation) }).collect(),
                created_at: UnixMillis(2),
            }),
        3 => (boxes.clone(), generations.clone(), 1i64..4, 1i64..4, 2i64..5).prop_map(|(number, generation, was, vcpus, disk)| {
            let shape = |vcpus, disk| Shape::new(vcpus, 1024, disk).expect("a shape");
            let (from, shape) = (shape(was, 3), shape(vcpus, disk));
            Command::SetShape { id: sandbox(number), generation: Generation(generation), from, shape }
        }),
        1 => (proptest::option::of(0u8..2), 0u32..6, 0u64..9).prop_map(|(organization, sandboxes, vcpus)| Command::SetQuota {
            organization: organization.map(|number| OrganizationId(format!("org-{number}"))),
            quota: Quota { sandboxes, capacity: Capacity { vcpus, ..Quota::default().capacity } },
        }),
        2 => (nodes.clone(), 1u64..8, proptest::option::of(0u32..5)).prop_map(|(at, vcpus, sandboxes)| Command::RegisterNode {
            node: node(at), limits: NodeLimits { sandboxes, ..limits(vcpus) } }),
        1 => (nodes.clone(), any::<bool>()).prop_map(|(at, admitted)| Command::SetAdmitted { node: node(at), admitted }),
        1 => nodes.clone().prop_map(|at| Command::RemoveNode { node: node(at) }),
        8 => (boxes.clone(), boxes.clone(), 0u8..2, 1i64..4, nodes.clone(), generations.clone()).prop_map(
            |(number, name, organization, vcpus, at, generation)| Command::Place {
                spec: Box::new(spec(number, name, organization, vcpus)),
                node: node(at),
                generation: Generation(generation),
            }),
        3 => (boxes.clone(), generations.clone(), desired).prop_map(|(number, generation, desired)| Command::SetDesired {
            id: sandbox(number), generation: Generation(generation), desired }),
        5 => (boxes.clone(), generations.clone(), nodes, generations.clone()).prop_map(|(number, from, to, generation)| {
            Command::Move { id: sandbox(number), from: Generation(from), node: node(to), generation: Generation(generation) }
        }),
        1 => (boxes.clone(), "[a-z]{0,3}").prop_map(|(number, label)| Command::SetLabels {
            id: sandbox(number), labels: [("a".to_owned(), label)].into() }),
        1 => (boxes.clone(), 0u32..3).prop_map(|(number, minutes)| Command::SetIntervals {
            id: sandbox(number), intervals: Intervals { auto_stop: Some(Minutes(minutes)), auto_delete: None, ..Intervals::default() } }),
        1 => (boxes.clone(), any::<bool>()).prop_map(|(number, block_all)| Command::SetNetwork {
            id: sandbox(number), network: NetworkPolicy { block_all, ..NetworkPolicy::default() } }),
        1 => (boxes.clone(), any::<bool>()).prop_map(|(number, public)| Command::SetPublic { id: sandbox(number), public }),
        1 => (boxes.clone(), generations.clone()).prop_map(|(number, generation)| Command::Fail {
            id: sandbox(number), generation: Generation(generation), reason: "its machine ended".into() }),
        3 => (boxes, proptest::option::of(generations)).prop_map(|(number, generation)| Command::Delete {
            id: sandbox(number), generation: generation.map(Generation) }),
    ]
}

fn assert_ledger_holds(before: &State, state: &State) {
    let mut names = BTreeSet::new();
    let mut usage: BTreeMap<OrganizationId, Usage> = BTreeMap::new();
    let mut reserved: BTreeMap<NodeId, (Capacity, u32)> = BTreeMap::new();
    for (id, record) in state.sandboxes().iter() {
        assert_eq!(*id, record.spec.id);
        assert!(names.insert((record.spec.organization.clone(), record.spec.name.clone())), "two of one name");
        assert!(state.nodes().contains_key(&record.node), "a sandbox without a node");
        let named = state.named(&record.spec.organization, &record.spec.name).expect("found by its name");
        assert_eq!(named.spec.id, *id);
        let (sum, count) = reserved.entry(record.node.clone()).or_default();
        let held = match record.desired {
            Desired::Archived => Capacity::default(),
            Desired::Running | Desired::Paused | Desired::Stopped => Capacity::of(record.spec.shape),
        };
        (*sum, *count) = (sum.plus(held), *count + 1);
        let used = usage.entry(record.spec.organization.clone()).or_default();
        *used = Usage { sandboxes: used.sandboxes + 1, reserved: used.reserved.plus(held) };
    }
    for organization in ["org-0", "org-1"].map(|name| OrganizationId(name.into())) {
        let (was, is, quota) = (before.usage(&organization), state.usage(&organization), state.quota(&organization));
        assert_eq!(is, usage.remove(&organization).unwrap_or_default());
        assert!(is.sandboxes <= quota.sandboxes.max(was.sandboxes), "more sandboxes than the quota");
        assert!(is.reserved.vcpus <= quota.capacity.vcpus.max(was.reserved.vcpus), "more vCPU than the quota");
    }
    assert!(usage.is_empty());
    for (id, node) in state.nodes().iter() {
        assert!(node.reserved.fits(node.limits.reservable()), "{id} is oversold");
        let was = before.nodes().get(id).map_or(0, |node| node.sandboxes);
        assert!(node.sandboxes <= node.limits.sandboxes.unwrap_or(u32::MAX).max(was), "{id} holds too many");
        assert_eq!((node.reserved, node.sandboxes), reserved.remove(id).unwrap_or_default(), "{id}");
    }
}

fn written(state: &State) -> String {
    serde_json::to_string(&Versioned(state.clone())).expect("JSON")
}

fn read(text: &str) -> State {
    serde_json::from_str::<Versioned<State>>(text).expect("a state").0
}

proptest! {
    #[test]
    fn any_sequence_keeps_the_ledger_true_and_generations_growing(
        commands in proptest::collection::vec(command(), 0..120),
        snapshot_at in 0usize..120,
    ) {
        let mut state = State::default();
        let mut restored: Option<State> = None;
        let mut latest: BTreeMap<SandboxId, Generation> = BTreeMap::new();
        for (step, command) in commands.iter().enumerate() {
            if step == snapshot_at {
                restored = Some(read(&written(&state)));
            }
            let before = state.clone();
            let answer = Placement::apply(&mut state, command);
            match &answer {
                Ok(Outcome { revision, changed }) => {
                    prop_assert_eq!(*revision, state.revision());
                    prop_assert_eq!(*changed, state != before);
                    prop_assert_eq!(state.revision(), before.revision() + u64::from(*changed));
                }
                Err(_) => prop_assert_eq!(&state, &before),
            }
            assert_ledger_holds(&before, &state);
            for (id, record) in state.sandboxes().iter() {
                let seen = latest.entry(id.clone()).or_insert(record.generation);
                prop_assert!(record.generation >= *seen, "{} went back from {} to {}", id, seen, record.generation);
                let moved = before.sandboxes().get(id).is_none_or(|old| old.node != record.node);
                prop_assert!(!moved || !before.sandboxes().contains_key(id) || record.generation > *seen);
                *seen = record.generation;
            }
            if let Some(restored) = &mut restored {
                prop_assert_eq!(Placement::apply(restored, command), answer);
                prop_assert_eq!(&*restored, &state);
            }
        }
        prop_assert_eq!(read(&written(&state)), state);
    }

    #[test]
    fn a_command_applied_twice_has_no_second_effect(
        commands in proptest::collection::vec(command(), 0..80), repeated in command(),
    ) {
        let mut state = State::default();
        for command in &commands {
            let _ = Placement::apply(&mut state, command);
        }
        if Placement::apply(&mut state, &repeated).is_ok() {
            let once = state.clone();
            if let Ok(outcome) = Placement::apply(&mut state, &repeated) {
                prop_assert!(!outcome.changed);
            }
            prop_assert_eq!(state, once);
        }
    }
}

fn region_with_a_sandbox() -> State {
    let mut state = State::default();
    for at in 0..2 {
        let command = Command::RegisterNode { node: node(at), limits: limits(2) };
        Placement::apply(&mut state, &command).expect("registered");
    }
    Placement::apply(&mut state, &place(0, 0, 1)).expect("placed");
    state
}

#[test]
fn a_stale_move_is_refused_with_the_latest_generation() {
    let mut state = region_with_a_sandbox();
    let to = |from, at, generation| Command::Move {
        id: sandbox(0),
        from: Generation(from),
        node: node(at),
        generation: Generation(generation),
    };
    Placement::apply(&mut state, &to(1, 1, 2)).expect("moved");
    let refused = Placement::apply(&mut state, &to(1, 0, 3)).expect_err("stale");
    assert_eq!(refused, Refusal::Stale { id: sandbox(0), given: Generation(1), current: Generation(2) });
    assert_eq!(refused.to_string(), format!("generation 1 of sandbox {} is stale: 2 is the latest", sandbox(0)));
    assert!(Placement::apply(&mut state, &to(2, 0, 2)).is_err(), "a generation that doesn't grow");
    assert_eq!(state.nodes().get(&node(0)).map(|node| node.sandboxes), Some(0));
}

#[test]
fn a_full_node_refuses_one_more_and_says_what_is_free() {
    let mut state = region_with_a_sandbox();
    Placement::apply(&mut state, &place(1, 0, 1)).expect("the second fits");
    let refused = Placement::apply(&mut state, &place(2, 0, 1)).expect_err("the third doesn't");
    assert!(matches!(refused, Refusal::NoRoom { free: Capacity { vcpus: 0, .. }, .. }), "{refused}");
    let lower = Command::RegisterNode { node: node(0), limits: limits(1) };
    assert!(matches!(Placement::apply(&mut state, &lower), Err(Refusal::LimitsBelowReserved { .. })));
    let leave = Command::RemoveNode { node: node(0) };
    assert_eq!(Placement::apply(&mut state, &leave), Err(Refusal::NodeHolds { node: node(0), sandboxes: 2 }));
}

#[test]
fn a_name_is_taken_in_its_own_organization_alone() {
    let mut state = region_with_a_sandbox();
    let same_name = |number, organization| Command::Place {
        spec: Box::new(spec(number, 0, organization, 1)),
        node: node(1),
        generation: Generation::FIRST,
    };
    let refused = Placement::apply(&mut state, &same_name(1, 0)).expect_err("taken");
    assert_eq!(refused, Refusal::NameTaken { name: "box-0".into(), holder: sandbox(0) });
    Placement::apply(&mut state, &same_name(1, 1)).expect("another organization");
    Placement::apply(&mut state, &Command::Delete { id: sandbox(0), generation: None }).expect("deleted");
    Placement::apply(&mut state, &same_name(2, 0)).expect("the name is free again");
}

#[test]
fn a_create_that_arrives_after_its_delete_does_not_bring_the_sandbox_back() {
    let mut state = region_with_a_sandbox();
    Placement::apply(&mut state, &Command::Delete { id: sandbox(0), generation: None }).expect("deleted");
    let state_after = read(&written(&state));
    for mut state in [state, state_after] {
        let refused = Placement::apply(&mut state, &place(0, 0, 1)).expect_err("it was deleted");
        assert_eq!(refused, Refusal::Stale { id: sandbox(0), given: Generation(1), current: Generation(1) });
        Placement::apply(&mut state, &place(0, 1, 2)).expect("a higher generation may");
    }
}

#[test]
fn a_draining_node_takes_nothing_but_keeps_what_it_has() {
    let mut state = region_with_a_sandbox();
    Placement::apply(&mut state, &Command::SetAdmitted { node: node(0), admitted: false }).expect("draining");
    assert_eq!(Placement::apply(&mut state, &place(1, 0, 1)), Err(Refusal::NotAdmitted { node: node(0) }));
    let restart = Command::Move { id: sandbox(0), from: Generation(1), node: node(0), generation: Generation(2) };
    Placement::apply(&mut state, &restart).expect("a new placement on the same node");
}

#[test]
fn texts_past_their_limit_are_refused() {
    let mut state = region_with_a_sandbox();
    let labels = BTreeMap::from([("a".to_owned(), "b".repeat(SPEC_BYTES_MAX))]);
    let refused = Placement::apply(&mut state, &Command::SetLabels { id: sandbox(0), labels });
    assert!(matches!(refused, Err(Refusal::TooLarge { .. })));
    let reason = "a".repeat(2000);
    let refused = Placement::apply(&mut state, &Command::Fail { id: sandbox(0), generation: Generation(1), reason });
    assert!(matches!(refused, Err(Refusal::TooLarge { .. })));
}

#[test]
fn a_state_that_contradicts_itself_is_not_read() {
    let state = region_with_a_sandbox();
    let text = written(&state);
    let oversold = text.replace(r#""vcpus":2,"#, r#""vcpus":0,"#);
    assert_ne!(text, oversold);
    let error = serde_json::from_str::<Versioned<State>>(&oversold).expect_err("oversold").to_string();
    assert!(error.contains("node fra-1 is oversold"), "{error}");
}

#[test]
fn a_copy_of_a_large_state_costs_little() {
    let mut state = State::default();
    let large = NodeLimits {
        physical: Capacity { vcpus: 1_000_000, memory_mib: 1_000_000_000, disk_gib: 1_000_000 },
        overcommit: Overcommit::default(),
        sandboxes: None,
    };
    Placement::apply(&mut state, &Command::RegisterNode { node: node(0), limits: large }).expect("registered");
    for number in 0..20_000u32 {
        let mut spec = spec(0, 0, 0, 1);
        // As many as a quota allows each.
        spec.organization = OrganizationId(format!("org-{}", number / 1_000));
        let mut chance = [0; 16];
        for (digit, byte) in chance.iter_mut().enumerate().take(6) {
            *byte = u8::try_from(number / 36u32.pow(digit as u32) % 36).expect("below 36");
        }
        spec.id = SandboxId::new(&"fra".parse().expect("a region"), chance);
        spec.name = spec.id.to_string();
        let command = Command::Place { spec: Box::new(spec), node: node(0), generation: Generation::FIRST };
        Placement::apply(&mut state, &command).expect("placed");
    }
    let mut copies: Vec<_> = (0..100)
        .map(|_| {
            let begun = std::time::Instant::now();
            let copy = state.clone();
            (begun.elapsed(), copy)
        })
        .collect();
    // A deep copy of 20,000 records takes tens of milliseconds. Of a hundred the middle one counts: a pause of the
    // machine makes a few of them long.
    copies.sort_by_key(|(took, _)| *took);
    assert!(copies[50].0 < std::time::Duration::from_millis(10), "{:?} for a copy", copies[50].0);
}
