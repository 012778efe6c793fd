//! What must hold of the catalog after any sequence of commands.

use std::collections::{BTreeMap, BTreeSet};

use fabric_types::{
    Accelerator, Digest, Fit, HypervisorKind, KeyId, NetworkPolicy, NodeId, OrganizationId, RegionCode, SandboxId,
    Shape, SnapshotId, UnixMillis,
};
use proptest::prelude::*;
use raft_placement::catalog::{
    ApiKey, Catalog, Command, Node, Refusal, Region, ReplicaState, Snapshot, State, Template, durable,
};
use raft_placement::{Machine, Versioned};

const CODES: [&str; 3] = ["fra", "iad", "sin"];

fn region(number: usize) -> RegionCode {
    CODES[number % CODES.len()].parse().expect("a region")
}

fn node(number: usize) -> NodeId {
    NodeId::new(&region(number), 1)
}

fn snapshot(number: u8, name: u8, organization: u8) -> Snapshot {
    Snapshot {
        id: SnapshotId::new([number; 16]),
        name: format!("name-{name}").parse().expect("a name"),
        sandbox: SandboxId::new(&region(0), [1; 16]),
        organization: OrganizationId(format!("org-{organization}")),
        region: region(0),
        manifest: Digest::from_bytes([number; 32]),
        size_bytes: 1 << 30,
        stored_bytes: 1 << 20,
        stop_us: 70_000,
        created_at: UnixMillis(5),
        template: "default".parse().expect("a name"),
        shape: Shape::DEFAULT,
        fit: Fit {
            hypervisor: HypervisorKind::Qemu,
            version: "7.2.0".into(),
            machine: "pc-q35-7.2".into(),
            accelerator: Accelerator::Tcg,
            cpu_model: "max".into(),
            cpu_features: vec![],
        },
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        user: "root".into(),
        network: NetworkPolicy::default(),
        replicas: BTreeMap::new(),
    }
}

fn key(hash: u8) -> ApiKey {
    ApiKey {
        name: "ci".into(),
        hash: Digest::from_bytes([hash; 32]),
        organization: OrganizationId("org-0".into()),
        created_at: UnixMillis(3),
        shown: "e2b_12".into(),
    }
}

fn upsert_region(number: usize) -> Command {
    let region_entry = Region { name: "somewhere".into(), endpoint: "http://127.0.0.1:7080".into() };
    Command::UpsertRegion { code: region(number), region: region_entry }
}

fn upsert_node(number: usize, port: u16) -> Command {
    let entry = Node { fabric: ([127, 0, 0, 1], port).into(), http: "http://127.0.0.1:7080".into() };
    Command::UpsertNode { node: node(number), entry }
}

fn command() -> impl Strategy<Value = Command> {
    let id = |number: u8| SnapshotId::new([number; 16]);
    let replica = prop_oneof![Just(ReplicaState::Pulling), Just(ReplicaState::Complete)];
    prop_oneof![
        (0usize..3).prop_map(upsert_region),
        (0usize..3).prop_map(|number| Command::RemoveRegion { code: region(number) }),
        (0usize..3, 1u16..4).prop_map(|(number, port)| upsert_node(number, port)),
        (0usize..3).prop_map(|number| Command::RemoveNode { node: node(number) }),
        (0u8..4, 0u8..4).prop_map(|(id, hash)| Command::PutKey { id: KeyId::new([id; 16]), key: key(hash) }),
        (0u8..4).prop_map(|id| Command::RemoveKey { id: KeyId::new([id; 16]) }),
        (0u8..3).prop_map(|image| Command::UpsertTemplate {
            name: "default".parse().expect("a name"),
            template: Template {
                image: Digest::from_bytes([image; 32]),
                shape: Shape::DEFAULT,
                created_at: UnixMillis(1)
            },
        }),
        Just(Command::RemoveTemplate { name: "default".parse().expect("a name") }),
        (0u8..4, 0u8..4, 0u8..2).prop_map(|(number, name, organization)| Command::PutSnapshot {
            snapshot: Box::new(snapshot(number, name, organization))
        }),
        (0u8..4).prop_map(move |number| Command::DeleteSnapshot { id: id(number) }),
        (0u8..4, 0usize..3, replica).prop_map(move |(number, at, state)| Command::AddReplica {
            snapshot: id(number),
            node: node(at),
            state
        }),
        (0u8..4, 0usize..3)
            .prop_map(move |(number, at)| Command::RemoveReplica { snapshot: id(number), node: node(at) }),
    ]
}

fn assert_catalog_holds(state: &State) {
    let hashes: BTreeSet<_> = state.keys().values().map(|key| key.hash).collect();
    assert_eq!(hashes.len(), state.keys().len(), "two keys of one hash");
    for (id, key) in state.keys().iter() {
        assert_eq!(state.key_by_hash(&key.hash).map(|(id, _)| id), Some(id));
    }
    let names: BTreeSet<_> = state.snapshots().values().map(|found| (&found.organization, &found.name)).collect();
    assert_eq!(names.len(), state.snapshots().len(), "two snapshots of one name");
    for snapshot in state.snapshots().values() {
        let named = state.snapshot_named(&snapshot.organization, &snapshot.name).expect("found by its name");
        assert_eq!(named.id, snapshot.id);
        assert!(snapshot.replicas.keys().all(|node| state.nodes().contains_key(node)), "a copy on no node");
    }
    assert!(state.nodes().keys().all(|node| state.regions().contains_key(&node.region())), "a node in no region");
}

proptest! {
    #[test]
    fn any_sequence_keeps_the_catalog_true(
        commands in proptest::collection::vec(command(), 0..150), snapshot_at in 0usize..150,
    ) {
        let mut state = State::default();
        let mut restored: Option<State> = None;
        for (step, command) in commands.iter().enumerate() {
            if step == snapshot_at {
                let text = serde_json::to_string(&Versioned(state.clone())).expect("JSON");
                restored = Some(serde_json::from_str::<Versioned<State>>(&text).expect("a state").0);
            }
            let before = state.clone();
            let answer = Catalog::apply(&mut state, command);
            match &answer {
                Ok(outcome) => prop_assert_eq!(outcome.changed, state != before),
                Err(_) => prop_assert_eq!(&state, &before),
            }
            assert_catalog_holds(&state);
            if answer.is_ok() {
                let mut again = state.clone();
                if let Ok(outcome) = Catalog::apply(&mut again, command) {
                    prop_assert!(!outcome.changed);
                }
                prop_assert_eq!(&again, &state);
            }
            if let Some(restored) = &mut restored {
                prop_assert_eq!(Catalog::apply(restored, command), answer);
                prop_assert_eq!(&*restored, &state);
            }
        }
    }
}

fn mesh() -> State {
    let mut state = State::default();
    for number in 0..3 {
        Catalog::apply(&mut state, &upsert_region(number)).expect("a region");
        Catalog::apply(&mut state, &upsert_node(number, 8080)).expect("a node");
    }
    Catalog::apply(&mut state, &Command::PutSnapshot { snapshot: Box::new(snapshot(0, 0, 0)) }).expect("a snapshot");
    state
}

#[test]
fn a_snapshot_is_durable_only_with_complete_copies_in_two_regions() {
    let mut state = mesh();
    let id = SnapshotId::new([0; 16]);
    let add = |state: &mut State, at: usize, replica| {
        let command = Command::AddReplica { snapshot: id.clone(), node: node(at), state: replica };
        Catalog::apply(state, &command).expect("added");
        durable(state.snapshots().get(&id).expect("it is there"))
    };
    assert!(!add(&mut state, 0, ReplicaState::Complete));
    assert!(!add(&mut state, 1, ReplicaState::Pulling));
    assert!(add(&mut state, 1, ReplicaState::Complete));
    assert!(add(&mut state, 1, ReplicaState::Pulling), "a complete copy stays complete");
    Catalog::apply(&mut state, &Command::RemoveNode { node: node(1) }).expect("gone");
    assert!(!durable(state.snapshots().get(&id).expect("it is there")));
}

#[test]
fn two_copies_in_one_region_are_not_durable() {
    let mut found = snapshot(0, 0, 0);
    found.replicas = [("fra-1", ReplicaState::Complete), ("fra-2", ReplicaState::Complete)]
        .map(|(node, state)| (node.parse().expect("a node"), state))
        .into();
    assert!(!durable(&found));
}

#[test]
fn a_snapshots_name_is_unique_in_its_organization() {
    let mut state = mesh();
    let put = |number, organization| Command::PutSnapshot { snapshot: Box::new(snapshot(number, 0, organization)) };
    let refused = Catalog::apply(&mut state, &put(1, 0)).expect_err("taken");
    assert_eq!(refused, Refusal::NameTaken { name: "name-0".into(), holder: SnapshotId::new([0; 16]) });
    Catalog::apply(&mut state, &put(1, 1)).expect("another organization");
}

#[test]
fn a_removed_key_is_not_found_by_its_hash() {
    let mut state = mesh();
    let id = KeyId::new([9; 16]);
    Catalog::apply(&mut state, &Command::PutKey { id: id.clone(), key: key(7) }).expect("a key");
    assert!(state.key_by_hash(&Digest::from_bytes([7; 32])).is_some());
    Catalog::apply(&mut state, &Command::RemoveKey { id }).expect("removed");
    assert!(state.key_by_hash(&Digest::from_bytes([7; 32])).is_none());
}
