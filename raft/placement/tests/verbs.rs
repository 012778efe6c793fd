//! Forks, shapes, archives and quotas in a region's ledger.

mod support;

use fabric_types::{Capacity, Desired, Generation, NodeLimits, OrganizationId, Quota, Shape, Source, UnixMillis};
use raft_placement::Machine;
use raft_placement::region::{CHILDREN_MAX, Child, Command, Placement, Refusal, State};

use support::{limits, node, place, sandbox};

fn apply(state: &mut State, command: Command) -> Result<bool, Refusal> {
    Placement::apply(state, &command).map(|outcome| outcome.changed)
}

/// Two nodes of 4 vCPU, sandbox 0 on the first.
fn region() -> State {
    let mut state = State::default();
    for at in 0..2 {
        apply(&mut state, Command::RegisterNode { node: node(at), limits: limits(4) }).expect("registered");
    }
    apply(&mut state, place(0, 0, 1)).expect("placed");
    state
}

fn desired(desired: Desired) -> Command {
    Command::SetDesired { id: sandbox(0), generation: Generation(1), desired }
}

fn fork(numbers: impl IntoIterator<Item = u8>) -> Command {
    let child = |number| Child { id: sandbox(number), name: format!("child-{number}"), generation: Generation(1) };
    let children = numbers.into_iter().map(child).collect();
    Command::Fork { parent: sandbox(0), from: Generation(1), children, created_at: UnixMillis(9) }
}

fn shape(state: &State, vcpus: i64, disk: i64) -> Command {
    let shape = Shape::new(vcpus, 1024, disk).expect("a shape");
    let from = state.sandboxes().get(&sandbox(0)).expect("placed").spec.shape;
    Command::SetShape { id: sandbox(0), generation: Generation(1), from, shape }
}

fn resize(state: &mut State, vcpus: i64, disk: i64) -> Result<bool, Refusal> {
    let command = shape(state, vcpus, disk);
    apply(state, command)
}

fn reserved(state: &State) -> Capacity {
    state.nodes().get(&node(0)).expect("registered").reserved
}

#[test]
fn children_begin_on_their_parents_node_as_their_parent_was() {
    let mut state = region();
    assert_eq!(apply(&mut state, fork([1, 2])), Ok(true));
    let (parent, child) = (state.sandboxes().get(&sandbox(0)), state.sandboxes().get(&sandbox(2)));
    let (parent, child) = (parent.expect("a parent").clone(), child.expect("a child").clone());
    assert_eq!((child.node, child.desired, child.generation), (node(0), Desired::Running, Generation(1)));
    assert_eq!(child.spec.source, Source::Fork { parent: sandbox(0), generation: Generation(1) });
    assert_eq!((child.spec.name.as_str(), child.spec.created_at), ("child-2", UnixMillis(9)));
    assert_eq!((child.spec.shape, child.spec.env), (parent.spec.shape, parent.spec.env));
    assert_eq!(apply(&mut state, fork([1, 2])), Ok(false), "a repetition");
}

#[test]
fn a_fork_that_does_not_fit_as_a_whole_places_nobody() {
    let mut state = region();
    let before = state.clone();
    let refused = apply(&mut state, fork(1..=4)).expect_err("4 vCPU, one of them taken");
    assert!(matches!(&refused, Refusal::NoRoom { needed, .. } if needed.vcpus == 4), "{refused}");
    assert!(matches!(apply(&mut state, fork([])), Err(Refusal::Children { children: 0, .. })));
    assert!(matches!(apply(&mut state, fork([1, 1])), Err(Refusal::Children { .. })));
    let many = 1..=u8::try_from(CHILDREN_MAX).expect("few") + 1;
    assert!(matches!(apply(&mut state, fork(many)), Err(Refusal::Children { .. })));
    assert_eq!(state, before);
    apply(&mut state, place(1, 1, 1)).expect("placed");
    assert!(matches!(apply(&mut state, fork([2, 1])), Err(Refusal::Exists { .. })));
    assert!(!state.sandboxes().contains_key(&sandbox(2)));
}

#[test]
fn only_what_has_memory_is_forked_and_only_what_is_stopped_archived() {
    let mut state = region();
    let refused = apply(&mut state, desired(Desired::Archived)).expect_err("it runs");
    assert_eq!(
        refused.to_string(),
        format!("sandbox {} is meant to be running; for this it must be stopped first", sandbox(0))
    );
    apply(&mut state, desired(Desired::Paused)).expect("paused");
    apply(&mut state, fork([1])).expect("its memory is there");
    apply(&mut state, desired(Desired::Stopped)).expect("stopped");
    assert!(matches!(apply(&mut state, fork([2])), Err(Refusal::WrongIntent { .. })));
}

#[test]
fn an_archived_sandbox_reserves_nothing_and_must_find_room_to_start_again() {
    let mut state = region();
    apply(&mut state, desired(Desired::Stopped)).expect("stopped");
    assert_eq!(reserved(&state).vcpus, 1, "a stopped one can always start");
    apply(&mut state, desired(Desired::Archived)).expect("archived");
    assert_eq!(reserved(&state), Capacity::default());
    for number in 1..=4 {
        apply(&mut state, place(number, 0, 1)).expect("what it gave back can be used");
    }
    let refused = apply(&mut state, desired(Desired::Running)).expect_err("no room");
    assert!(matches!(refused, Refusal::NoRoom { .. }), "{refused}");
    apply(&mut state, Command::Delete { id: sandbox(4), generation: None }).expect("deleted");
    apply(&mut state, desired(Desired::Running)).expect("there is room again");
    assert_eq!(reserved(&state).vcpus, 4);
}

#[test]
fn a_disk_grows_live_and_the_rest_of_a_shape_only_while_stopped() {
    let mut state = region();
    resize(&mut state, 1, 5).expect("the disk grows");
    assert_eq!(reserved(&state), Capacity { vcpus: 1, memory_mib: 1024, disk_gib: 5 });
    let from = Shape::DEFAULT;
    let late = Command::SetShape { id: sandbox(0), generation: Generation(1), from, shape: from };
    apply(&mut state, late).expect_err("decided from a shape that it no longer has");
    assert!(matches!(resize(&mut state, 2, 5), Err(Refusal::WrongIntent { .. })));
    apply(&mut state, desired(Desired::Stopped)).expect("stopped");
    resize(&mut state, 4, 5).expect("fits");
    assert!(matches!(resize(&mut state, 5, 5), Err(Refusal::NoRoom { .. })));
    resize(&mut state, 1, 5).expect("processors shrink");
    assert_eq!(reserved(&state).vcpus, 1);
    apply(&mut state, desired(Desired::Archived)).expect("archived");
    assert!(matches!(resize(&mut state, 1, 6), Err(Refusal::WrongIntent { .. })));
}

#[test]
fn a_quota_is_named_when_it_is_reached() {
    let mut state = region();
    let two = Quota { sandboxes: 2, ..Quota::default() };
    let own = Some(OrganizationId("org-0".into()));
    apply(&mut state, Command::SetQuota { organization: own, quota: two }).expect("set");
    apply(&mut state, place(1, 1, 1)).expect("the second");
    let refused = apply(&mut state, place(2, 1, 1)).expect_err("the third");
    assert_eq!(state.within_quota(&OrganizationId("org-0".into()), Shape::DEFAULT), Err(refused.clone()));
    assert_eq!(state.within_quota(&OrganizationId("org-1".into()), Shape::DEFAULT), Ok(()));
    assert_eq!(
        refused.to_string(),
        "organization 'org-0' may have 2 sandboxes in this region: it has 2, and 1 more are asked for; delete or \
         archive sandboxes, or have the quota raised"
    );
    assert!(matches!(apply(&mut state, fork([2])), Err(Refusal::QuotaReached { .. })));
    let vcpus = Quota { sandboxes: 9, capacity: Capacity { vcpus: 2, ..Quota::default().capacity } };
    let own = Some(OrganizationId("org-0".into()));
    apply(&mut state, Command::SetQuota { organization: own, quota: vcpus }).expect("set");
    apply(&mut state, desired(Desired::Stopped)).expect("stopped");
    let refused = resize(&mut state, 2, 3).expect_err("a third vCPU");
    assert!(matches!(&refused, Refusal::QuotaReached { unit, .. } if unit == "vCPU"), "{refused}");
    assert_eq!(state.quota(&OrganizationId("org-1".into())), Quota::default());
}

#[test]
fn a_node_takes_no_more_sandboxes_than_it_may_hold() {
    let mut state = region();
    let limits = NodeLimits { sandboxes: Some(2), ..limits(4) };
    apply(&mut state, Command::RegisterNode { node: node(0), limits }).expect("registered");
    assert_eq!(apply(&mut state, fork([1, 2])), Err(Refusal::NodeFull { node: node(0), limit: 2 }));
    apply(&mut state, place(1, 0, 1)).expect("the second");
    assert_eq!(apply(&mut state, place(2, 0, 1)), Err(Refusal::NodeFull { node: node(0), limit: 2 }));
    apply(&mut state, place(2, 1, 1)).expect("another node has no such limit");
}
