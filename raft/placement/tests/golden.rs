//! The written forms of commands and states, held against files. A line that no longer reads or writes as it
//! stands is a change of contract: it needs a new version, a new file, and this one still read.

use std::collections::BTreeMap;

use fabric_types::{
    Accelerator, Capacity, Desired, Digest, Fit, Generation, HypervisorKind, Intervals, KeyId, Minutes, Name,
    NetworkPolicy, NodeId, NodeLimits, OrganizationId, Overcommit, Quota, RegionCode, SandboxId, SandboxSpec, Shape,
    SnapshotId, Source, UnixMillis,
};
use raft_placement::{Machine, Schema, Versioned, catalog, region};

fn fra() -> RegionCode {
    "fra".parse().expect("a region")
}

fn node(number: u32) -> NodeId {
    NodeId::new(&fra(), number)
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn spec(number: u8, source: Source) -> Box<SandboxSpec> {
    Box::new(SandboxSpec {
        id: SandboxId::new(&fra(), [number; 16]),
        name: format!("box-{number}"),
        organization: OrganizationId("main".into()),
        source,
        shape: Shape::DEFAULT,
        labels: BTreeMap::from([("team".into(), "a b".into())]),
        env: BTreeMap::from([("LANG".into(), "C".into())]),
        user: "daytona".into(),
        public: false,
        network: NetworkPolicy::default(),
        intervals: Intervals { auto_stop: Some(Minutes(15)), auto_delete: None, ..Intervals::default() },
        created_at: UnixMillis(1_700_000_000_000),
    })
}

fn region_commands() -> Vec<region::Command> {
    use region::Command::*;
    let id = |number: u8| SandboxId::new(&fra(), [number; 16]);
    let limits = NodeLimits {
        physical: Capacity { vcpus: 2, memory_mib: 8192, disk_gib: 100 },
        overcommit: Overcommit::default(),
        sandboxes: None,
    };
    let manifest = Digest::from_bytes([0xab; 32]);
    let template = || Source::Template { template: name("default") };
    vec![
        RegisterNode { node: node(1), limits },
        RegisterNode { node: node(2), limits },
        RegisterNode { node: node(3), limits },
        SetAdmitted { node: node(2), admitted: false },
        RemoveNode { node: node(3) },
        Place { spec: spec(1, template()), node: node(1), generation: Generation(1) },
        Place { spec: spec(2, Source::Snapshot { manifest }), node: node(1), generation: Generation(1) },
        Place { spec: spec(3, template()), node: node(1), generation: Generation(1) },
        SetDesired { id: id(1), generation: Generation(1), desired: Desired::Stopped },
        SetAdmitted { node: node(2), admitted: true },
        Move { id: id(2), from: Generation(1), node: node(2), generation: Generation(2) },
        SetLabels { id: id(1), labels: BTreeMap::from([("team".into(), "b".into())]) },
        SetIntervals {
            id: id(1),
            intervals: Intervals { auto_stop: None, auto_delete: Some(Minutes(0)), ..Intervals::default() },
        },
        SetNetwork { id: id(1), network: NetworkPolicy { block_all: true, ..NetworkPolicy::default() } },
        SetPublic { id: id(1), public: true },
        Fail { id: id(2), generation: Generation(2), reason: "its machine ended".into() },
        Delete { id: id(3), generation: Some(Generation(1)) },
    ]
}

/// What version 2 added, after the commands of version 1.
fn region_commands_2() -> Vec<region::Command> {
    use region::Command::*;
    let id = |number: u8| SandboxId::new(&fra(), [number; 16]);
    let generation = Generation(1);
    let limits = NodeLimits {
        physical: Capacity { vcpus: 4, memory_mib: 16384, disk_gib: 200 },
        overcommit: Overcommit::default(),
        sandboxes: Some(100),
    };
    let network = NetworkPolicy {
        allow: vec!["203.0.113.0/24".parse().expect("a range")],
        allow_domains: vec!["*.example.com".parse().expect("a pattern")],
        ..NetworkPolicy::default()
    };
    let intervals = Intervals {
        auto_pause: Some(Minutes(5)),
        auto_archive: Some(Minutes(60)),
        ttl: Some(Minutes(1440)),
        ..Intervals::default()
    };
    let child = |number: u8| region::Child { id: id(number), name: format!("child-{number}"), generation };
    let quota = Quota { sandboxes: 50, ..Quota::default() };
    let mut commands = region_commands();
    commands.extend([
        RegisterNode { node: node(1), limits },
        SetQuota { organization: None, quota },
        SetQuota { organization: Some(OrganizationId("main".into())), quota: Quota { sandboxes: 60, ..quota } },
        SetNetwork { id: id(1), network },
        SetIntervals { id: id(1), intervals },
        SetShape { id: id(1), generation, from: Shape::DEFAULT, shape: Shape::new(2, 2048, 10).expect("a shape") },
        SetDesired { id: id(1), generation, desired: Desired::Running },
        Fork {
            parent: id(1),
            from: generation,
            children: vec![child(5), child(6)],
            created_at: UnixMillis(1_700_000_000_001),
        },
        SetDesired { id: id(1), generation, desired: Desired::Stopped },
        SetDesired { id: id(1), generation, desired: Desired::Archived },
    ]);
    commands
}

fn catalog_commands() -> Vec<catalog::Command> {
    use catalog::Command::*;
    let key = catalog::ApiKey {
        name: "first".into(),
        hash: Digest::from_bytes([1; 32]),
        organization: OrganizationId("main".into()),
        created_at: UnixMillis(1_700_000_000_000),
        shown: "e2b_1234".into(),
    };
    let other_key = catalog::ApiKey { hash: Digest::from_bytes([2; 32]), ..key.clone() };
    let entry = catalog::Node { fabric: ([127, 0, 0, 1], 8080).into(), http: "http://127.0.0.1:7080".into() };
    let template = catalog::Template {
        image: Digest::from_bytes([3; 32]),
        shape: Shape::DEFAULT,
        created_at: UnixMillis(1_700_000_000_000),
    };
    let snapshot = |number: u8| {
        Box::new(catalog::Snapshot {
            id: SnapshotId::new([number; 16]),
            name: name(&format!("before-{number}")),
            sandbox: SandboxId::new(&fra(), [1; 16]),
            organization: OrganizationId("main".into()),
            region: fra(),
            manifest: Digest::from_bytes([number; 32]),
            size_bytes: 1_073_741_824,
            stored_bytes: 5_557_452,
            stop_us: 71_250,
            created_at: UnixMillis(1_700_000_000_000),
            template: name("default"),
            shape: Shape::DEFAULT,
            fit: Fit {
                hypervisor: HypervisorKind::Qemu,
                version: "7.2.19".into(),
                machine: "pc-q35-7.2".into(),
                accelerator: Accelerator::Tcg,
                cpu_model: "max".into(),
                cpu_features: vec!["avx2".into()],
            },
            env: BTreeMap::from([("LANG".into(), "C".into())]),
            labels: BTreeMap::new(),
            user: "daytona".into(),
            network: NetworkPolicy::default(),
            replicas: BTreeMap::from([(node(1), catalog::ReplicaState::Complete)]),
        })
    };
    let iad: RegionCode = "iad".parse().expect("a region");
    let region = catalog::Region { name: "Frankfurt".into(), endpoint: "http://127.0.0.1:7080".into() };
    let id = |number: u8| SnapshotId::new([number; 16]);
    vec![
        UpsertRegion { code: fra(), region: region.clone() },
        UpsertRegion { code: iad.clone(), region },
        UpsertNode { node: node(1), entry: entry.clone() },
        UpsertNode { node: node(2), entry },
        RemoveRegion { code: iad },
        PutKey { id: KeyId::new([1; 16]), key },
        PutKey { id: KeyId::new([2; 16]), key: other_key },
        RemoveKey { id: KeyId::new([2; 16]) },
        UpsertTemplate { name: name("default"), template: template.clone() },
        UpsertTemplate { name: name("old"), template },
        RemoveTemplate { name: name("old") },
        PutSnapshot { snapshot: snapshot(1) },
        PutSnapshot { snapshot: snapshot(2) },
        DeleteSnapshot { id: id(2) },
        AddReplica { snapshot: id(1), node: node(2), state: catalog::ReplicaState::Pulling },
        RemoveReplica { snapshot: id(1), node: node(2) },
    ]
}

/// The same, with a snapshot of a sandbox that reached nothing.
fn catalog_commands_2() -> Vec<catalog::Command> {
    let mut commands = catalog_commands();
    for command in &mut commands {
        if let catalog::Command::PutSnapshot { snapshot } = command {
            snapshot.network.block_all = true;
        }
    }
    commands
}

/// Commands and the state that they build, in the form of the golden files: a line each, the state last.
fn lines<M: Machine>(commands: &[M::Command]) -> Vec<String> {
    let mut state = M::State::default();
    let mut lines = Vec::new();
    for command in commands {
        let outcome = M::apply(&mut state, command).unwrap_or_else(|refusal| panic!("{command}: {refusal}"));
        assert!(outcome.changed, "{command} changes nothing here");
        lines.push(serde_json::to_string(&Versioned(command.clone())).expect("JSON"));
    }
    lines.push(serde_json::to_string(&Versioned(state)).expect("JSON"));
    lines
}

fn check<M: Machine>(golden: &str, commands: &[M::Command]) {
    let written = lines::<M>(commands);
    assert_eq!(written.len(), golden.lines().count());
    for (written, golden) in written.iter().zip(golden.lines()) {
        assert_eq!(written, golden, "the written form has changed");
    }
    check_read::<M>(golden, commands);
}

/// Whether a file of this or an older version still reads, and builds what it built.
fn check_read<M: Machine>(golden: &str, commands: &[M::Command]) {
    let golden: Vec<_> = golden.lines().collect();
    let (state, commands_read) = golden.split_last().expect("a state at the end");
    let read = commands_read.iter().map(|line| parse::<M::Command>(line)).collect::<Vec<_>>();
    assert_eq!(read, commands);
    let mut replayed = M::State::default();
    read.iter().for_each(|command| {
        M::apply(&mut replayed, command).expect("applied as when it was written");
    });
    assert_eq!(parse::<M::State>(state), replayed);
}

fn parse<T: Schema>(line: &str) -> T {
    serde_json::from_str::<Versioned<T>>(line).unwrap_or_else(|error| panic!("{line}: {error}")).0
}

#[test]
fn placement_commands_and_state_of_version_1_are_still_read() {
    check_read::<region::Placement>(include_str!("golden/placement.v1.jsonl"), &region_commands());
}

#[test]
fn placement_commands_and_state_are_written_as_version_2() {
    check::<region::Placement>(include_str!("golden/placement.v2.jsonl"), &region_commands_2());
}

#[test]
fn catalog_commands_and_state_of_version_1_are_still_read() {
    check_read::<catalog::Catalog>(include_str!("golden/catalog.v1.jsonl"), &catalog_commands());
}

#[test]
fn catalog_commands_and_state_are_written_as_version_2() {
    check::<catalog::Catalog>(include_str!("golden/catalog.v2.jsonl"), &catalog_commands_2());
}

#[test]
fn every_kind_of_command_has_a_golden_line() {
    let kinds = |text: &str| {
        let parse = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        let kinds = text.lines().filter_map(|line| parse(line)["body"]["command"].as_str().map(str::to_owned));
        kinds.collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(kinds(include_str!("golden/placement.v1.jsonl")), 12);
    assert_eq!(kinds(include_str!("golden/placement.v2.jsonl")), 15);
    assert_eq!(kinds(include_str!("golden/catalog.v1.jsonl")), 11);
    assert_eq!(kinds(include_str!("golden/catalog.v2.jsonl")), 11);
}

#[test]
fn an_unknown_command_or_field_is_refused() {
    let unknown = r#"{"v":1,"body":{"command":"explode","node":"fra-1"}}"#;
    assert!(serde_json::from_str::<Versioned<region::Command>>(unknown).is_err());
    let extra = r#"{"v":1,"body":{"command":"remove_node","node":"fra-1","force":true}}"#;
    assert!(serde_json::from_str::<Versioned<region::Command>>(extra).is_err());
    let newer = r#"{"v":3,"body":{"command":"explode"}}"#;
    let error = serde_json::from_str::<Versioned<region::Command>>(newer).expect_err("newer").to_string();
    assert!(error.contains("this placement command has version 3"), "{error}");
}
