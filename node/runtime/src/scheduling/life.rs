//! Fork, swap, archive, resize and changes, over the driver double.

use std::os::unix::fs::FileExt;

use fabric_types::{SandboxSpec, Source};

use super::*;
use crate::double::Machine;

const GIB: u64 = 1 << 30;

pub(super) fn machine(node: &Node, number: u8) -> Arc<Machine> {
    node.driver.of(spec(number).id.as_str()).expect("it has a machine, and the machine its identity")
}

pub(super) fn remember(node: &Node, number: u8, text: &str) {
    text.clone_into(&mut machine(node, number).memory.lock().expect("no test panics in here"));
}

pub(super) fn memory(node: &Node, number: u8) -> String {
    machine(node, number).memory.lock().expect("no test panics in here").clone()
}

pub(super) fn child(number: u8, parent: u8) -> RunRequest {
    let source = Source::Fork { parent: spec(parent).id, generation: ONE };
    RunRequest { spec: SandboxSpec { source, ..spec(number) }, generation: ONE }
}

async fn act(runtime: &Runtime, number: u8, verb: Verb) -> Result<Phase, RuntimeError> {
    runtime.act(&spec(number).id, ONE, verb).await.map(|observed| observed.phase)
}

fn refused(answer: Result<impl std::fmt::Debug, RuntimeError>) -> String {
    match answer {
        Err(error @ RuntimeError::Refused { .. }) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_forks_children_have_their_parents_memory_and_an_identity_of_their_own() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    runtime.run(request(1)).await.expect("run");
    remember(&node, 1, "forty-two");
    let outcome = runtime.fork(&spec(1).id, ONE, vec![child(2, 1), child(3, 1)]).await.expect("forked");
    for made in outcome.children {
        assert_eq!(made.expect("a child").phase, Phase::Running);
    }
    in_phase(&runtime, 1, "running").await;
    let ids: Vec<_> = (1..=3)
        .map(|number| {
            assert_eq!(memory(&node, number), "forty-two");
            let machine = machine(&node, number);
            let identity = machine.identity.lock().expect("no test panics in here").clone().expect("it has one");
            assert_eq!(identity.hostname, spec(number).id.as_str());
            (identity.machine_id, identity.entropy)
        })
        .collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    assert_eq!(std::fs::read_dir(node.root.path().join("node/snapshots")).expect("listed").count(), 0);
    // A child is a sandbox like any other.
    act(&runtime, 2, Verb::Pause).await.expect("paused");
    let grandchild = {
        let mut request = child(4, 2);
        request.spec.source = Source::Fork { parent: spec(2).id, generation: ONE };
        request
    };
    let outcome = runtime.fork(&spec(2).id, ONE, vec![grandchild]).await.expect("forked");
    assert!(outcome.children[0].is_ok(), "{outcome:?}");
    assert_eq!(memory(&node, 4), "forty-two");
    in_phase(&runtime, 2, "paused").await;
    runtime.destroy_all(LIMIT).await;
    assert!(node.left().is_empty(), "{:?}", node.left());
    assert!(node.driver.living().is_empty());
}

#[tokio::test]
async fn a_child_that_fails_fails_alone_and_a_parent_that_cannot_be_frozen_leaves_no_child() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    runtime.run(request(1)).await.expect("run");
    let before = node.left().len();
    node.driver.faults.creations.store(1, Ordering::Relaxed);
    let outcome = runtime.fork(&spec(1).id, ONE, vec![child(2, 1), child(3, 1)]).await.expect("forked");
    assert_eq!(outcome.children.iter().filter(|made| made.is_ok()).count(), 1, "{outcome:?}");
    assert_eq!(runtime.observed().borrow().len(), 2);
    assert_eq!(node.left().len(), before + 2, "one home and one run folder more: {:?}", node.left());

    node.driver.faults.snapshots.store(1, Ordering::Relaxed);
    runtime.fork(&spec(1).id, ONE, vec![child(4, 1)]).await.expect_err("the parent couldn't be frozen");
    assert_eq!(runtime.observed().borrow().len(), 2);
    in_phase(&runtime, 1, "running").await;
    // Nothing stands in the way of another try.
    assert!(runtime.fork(&spec(1).id, ONE, vec![child(4, 1)]).await.expect("forked").children[0].is_ok());
}

#[tokio::test]
async fn what_cannot_be_forked_is_refused_with_a_sentence() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    runtime.run(request(1)).await.expect("run");
    let parent = spec(1).id;
    assert!(refused(runtime.fork(&parent, ONE, vec![]).await).contains("0 children were asked for, and 1 to 16"));
    let many = (2..=18).map(|number| child(number, 1)).collect();
    assert!(refused(runtime.fork(&parent, ONE, many).await).contains("17 children"));
    assert!(refused(runtime.fork(&parent, ONE, vec![child(2, 1), child(2, 1)]).await).contains("an id of its own"));
    let outcome = runtime.fork(&parent, ONE, vec![request(2), child(3, 2)]).await.expect("asked");
    for made in outcome.children {
        assert!(refused(made).contains("doesn't say that it is a fork"));
    }
    let mut larger = child(2, 1);
    larger.spec.shape = Shape::new(2, 1024, 3).expect("a shape");
    let outcome = runtime.fork(&parent, ONE, vec![larger]).await.expect("asked");
    assert!(refused(outcome.children.into_iter().next().expect("one")).contains("a child has its parent's"));
    act(&runtime, 1, Verb::Stop { force: true }).await.expect("stopped");
    let error = runtime.fork(&parent, ONE, vec![child(2, 1)]).await.expect_err("stopped");
    assert!(error.to_string().contains("is stopped: it can't be forked"), "{error}");
    assert_eq!(runtime.observed().borrow().len(), 1, "no child is left");
    let alone = runtime.run(child(2, 1)).await.expect_err("too late");
    assert!(alone.to_string().contains("the parent's memory of that moment is gone"), "{alone}");
}

#[tokio::test]
async fn a_living_child_is_adopted_by_the_next_process() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    runtime.run(request(1)).await.expect("run");
    remember(&node, 1, "kept");
    runtime.fork(&spec(1).id, ONE, vec![child(2, 1)]).await.expect("forked");
    drop(runtime);
    let runtime = node.start(0).await;
    in_phase(&runtime, 2, "running").await;
    assert_eq!(memory(&node, 2), "kept");
}

#[tokio::test]
async fn a_sandbox_paused_for_long_has_no_machine_and_goes_on_where_it_was() {
    let mut node = Node::new().await;
    node.swap_after = Some(Duration::ZERO);
    let runtime = node.start(0).await;
    runtime.run(request(1)).await.expect("run");
    remember(&node, 1, "kept");
    let entropy = |node: &Node| {
        let machine = machine(node, 1);
        let identity = machine.identity.lock().expect("no test panics in here");
        identity.as_ref().expect("it has one").entropy.clone()
    };
    let before = entropy(&node);
    act(&runtime, 1, Verb::Pause).await.expect("paused");
    gone_to_disk(&node).await;
    in_phase(&runtime, 1, "paused").await;
    assert_eq!(act(&runtime, 1, Verb::Pause).await.expect("it is"), Phase::Paused);

    // A child of one whose memory is on disk.
    let outcome = runtime.fork(&spec(1).id, ONE, vec![child(2, 1)]).await.expect("forked");
    assert!(outcome.stop_us == 0 && outcome.children[0].is_ok(), "{outcome:?}");
    assert_eq!(memory(&node, 2), "kept");
    runtime.act(&spec(2).id, ONE, Verb::Delete).await.expect("deleted");

    // The next process of the node knows it.
    drop(runtime);
    let runtime = node.start(0).await;
    in_phase(&runtime, 1, "paused").await;
    assert_eq!(act(&runtime, 1, Verb::Resume).await.expect("resumed"), Phase::Running);
    assert_eq!(memory(&node, 1), "kept");
    assert_ne!(entropy(&node), before, "it has fresh entropy");
    runtime.guest(&spec(1).id, ONE).await.expect("a client");
    let swap = Folders::make(&config(node.root.path())).expect("made").sandbox(&spec(1).id).swap();
    assert!(!swap.exists(), "its files are gone");
}

/// Waits until no machine lives.
async fn gone_to_disk(node: &Node) {
    let gone = async {
        while !node.driver.living().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LIMIT, gone).await.expect("in time");
}

#[tokio::test]
async fn a_memory_that_cannot_be_written_or_read_back_stays_where_it_is() {
    let mut node = Node::new().await;
    node.swap_after = Some(Duration::ZERO);
    let runtime = node.start(0).await;
    runtime.run(request(1)).await.expect("run");
    remember(&node, 1, "kept");
    node.driver.faults.snapshots.store(1, Ordering::Relaxed);
    act(&runtime, 1, Verb::Pause).await.expect("paused");
    assert_eq!(act(&runtime, 1, Verb::Pause).await.expect("it is"), Phase::Paused);
    assert_eq!(node.driver.living().len(), 1, "it stays in memory");
    act(&runtime, 1, Verb::Resume).await.expect("resumed");

    act(&runtime, 1, Verb::Pause).await.expect("paused");
    gone_to_disk(&node).await;
    node.driver.faults.creations.store(1, Ordering::Relaxed);
    act(&runtime, 1, Verb::Resume).await.expect_err("no machine");
    in_phase(&runtime, 1, "paused").await;
    assert!(node.driver.living().is_empty());
    act(&runtime, 1, Verb::Resume).await.expect("resumed at the second try");
    assert_eq!(memory(&node, 1), "kept");

    // One that doesn't take its identity is paused again, in memory, and can be resumed.
    act(&runtime, 1, Verb::Pause).await.expect("paused");
    gone_to_disk(&node).await;
    node.driver.faults.identities.store(1, Ordering::Relaxed);
    act(&runtime, 1, Verb::Resume).await.expect_err("no identity");
    in_phase(&runtime, 1, "paused").await;
    act(&runtime, 1, Verb::Resume).await.expect("resumed");
    assert_eq!(memory(&node, 1), "kept");
}

#[tokio::test]
async fn a_sandbox_whose_memory_is_on_disk_is_stopped_and_deleted_like_any_other() {
    let mut node = Node::new().await;
    node.swap_after = Some(Duration::ZERO);
    let runtime = node.start(0).await;
    for (number, verb) in [(1, Verb::Stop { force: false }), (2, Verb::Stop { force: true }), (3, Verb::Delete)] {
        runtime.run(request(number)).await.expect("run");
        act(&runtime, number, Verb::Pause).await.expect("paused");
        gone_to_disk(&node).await;
        act(&runtime, number, verb).await.expect("done");
        assert!(node.driver.living().is_empty(), "{verb:?}");
    }
    let homes = Folders::make(&config(node.root.path())).expect("made");
    assert!(!homes.sandbox(&spec(1).id).swap().exists() && !homes.sandbox(&spec(2).id).swap().exists());
    assert!(!homes.sandbox(&spec(3).id).dir().exists());
    act(&runtime, 1, Verb::Start).await.expect("started from its disk");
}

#[tokio::test]
async fn an_archived_sandbox_has_no_disk_here_and_starts_from_the_store() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    runtime.run(request(1)).await.expect("run");
    let home = Folders::make(&config(node.root.path())).expect("made").sandbox(&spec(1).id);
    let error = act(&runtime, 1, Verb::Archive).await.expect_err("it runs");
    assert!(error.to_string().contains("is running: it can't be archived"), "{error}");
    act(&runtime, 1, Verb::Stop { force: true }).await.expect("stopped");
    let disk = mark(&home.disk());
    let stopped_at = runtime.observed().borrow()[&spec(1).id].last_activity;
    assert_eq!(act(&runtime, 1, Verb::Archive).await.expect("archived"), Phase::Archived);
    assert_eq!(act(&runtime, 1, Verb::Archive).await.expect("it is"), Phase::Archived);
    assert_eq!(act(&runtime, 1, Verb::Stop { force: false }).await.expect("it is"), Phase::Archived);
    assert_eq!(runtime.observed().borrow()[&spec(1).id].last_activity, stopped_at, "its time goes on");
    assert_eq!(files(home.dir()), ["sandbox.json"]);
    let held = node.store.manifests().await.expect("listed");
    assert_eq!(runtime.archives().into_iter().collect::<Vec<_>>(), held);

    drop(runtime);
    let runtime = node.start(0).await;
    in_phase(&runtime, 1, "archived").await;
    assert_eq!(runtime.archives().len(), 1);
    assert_eq!(act(&runtime, 1, Verb::Start).await.expect("started"), Phase::Running);
    assert!(pieces(&home.disk()) == disk, "the disk is what it was");
    assert!(runtime.archives().is_empty() && node.store.manifests().await.expect("listed").is_empty());

    act(&runtime, 1, Verb::Stop { force: true }).await.expect("stopped");
    act(&runtime, 1, Verb::Archive).await.expect("archived");
    act(&runtime, 1, Verb::Delete).await.expect("deleted");
    assert!(node.store.manifests().await.expect("listed").is_empty(), "its archive goes with it");
    assert!(node.left().is_empty(), "{:?}", node.left());
}

#[tokio::test]
async fn two_archives_of_equal_disks_go_one_by_one() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    for number in 1..=2 {
        runtime.run(request(number)).await.expect("run");
        act(&runtime, number, Verb::Stop { force: true }).await.expect("stopped");
        act(&runtime, number, Verb::Archive).await.expect("archived");
    }
    assert_eq!(node.store.manifests().await.expect("listed").len(), 2, "equal disks have two names");
    act(&runtime, 1, Verb::Delete).await.expect("deleted");
    act(&runtime, 2, Verb::Start).await.expect("the other's is still there");
}

#[tokio::test]
async fn an_archive_that_fails_leaves_a_stopped_sandbox() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    runtime.run(request(1)).await.expect("run");
    act(&runtime, 1, Verb::Stop { force: true }).await.expect("stopped");
    let home = Folders::make(&config(node.root.path())).expect("made").sandbox(&spec(1).id);
    let (disk, aside) = (home.disk(), home.dir().join("aside"));
    std::fs::rename(&disk, &aside).expect("set aside");
    act(&runtime, 1, Verb::Archive).await.expect_err("no disk");
    in_phase(&runtime, 1, "stopped").await;
    std::fs::rename(&aside, &disk).expect("put back");
    act(&runtime, 1, Verb::Archive).await.expect("archived");
}

/// Where a test looks at a disk: where the file system begins, far behind it, and at the end.
const OFFSETS: [u64; 3] = [0, GIB, 3 * GIB - 4096];

/// Writes something where nothing is, and gives what is looked at.
fn mark(disk: &Path) -> Vec<Vec<u8>> {
    let file = std::fs::OpenOptions::new().write(true).open(disk).expect("a disk");
    for offset in &OFFSETS[1..] {
        file.write_all_at(b"marked", *offset).expect("written");
    }
    pieces(disk)
}

fn pieces(disk: &Path) -> Vec<Vec<u8>> {
    let file = std::fs::File::open(disk).expect("a disk");
    assert_eq!(file.metadata().expect("there").len(), 3 * GIB);
    let read = |offset: &u64| {
        let mut piece = vec![0; 4096];
        file.read_exact_at(&mut piece, *offset).expect("read");
        piece
    };
    OFFSETS.iter().map(read).collect()
}

pub(super) fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("listed");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("plain")).collect();
    names.sort();
    names
}

fn with_shape(number: u8, cpu: i64, memory_mib: i64, disk_gib: i64) -> SandboxSpec {
    SandboxSpec { shape: Shape::new(cpu, memory_mib, disk_gib).expect("a shape"), ..spec(number) }
}

#[tokio::test]
async fn a_disk_grows_while_its_sandbox_runs_and_never_shrinks() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    runtime.run(request(1)).await.expect("run");
    runtime.update(with_shape(1, 1, 1024, 5), ONE).await.expect("grown");
    assert_eq!(machine(&node, 1).file_system_bytes(), 5 * GIB);
    let smaller = refused(runtime.update(with_shape(1, 1, 1024, 4), ONE).await);
    assert!(smaller.contains("it has 5 GiB") || smaller.contains("has 5 GiB and can't shrink to 4"), "{smaller}");
    let faster = refused(runtime.update(with_shape(1, 2, 1024, 5), ONE).await);
    assert!(faster.contains("stop it, resize it and start it"), "{faster}");
    act(&runtime, 1, Verb::Pause).await.expect("paused");
    assert!(refused(runtime.update(with_shape(1, 1, 1024, 6), ONE).await).contains("resume it first"));
    drop(runtime);
    let runtime = node.start(0).await;
    assert!(refused(runtime.update(with_shape(1, 1, 1024, 3), ONE).await).contains("shrink"), "its size was recorded");
}

#[tokio::test]
async fn a_stopped_sandbox_starts_in_its_new_shape() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    runtime.run(request(1)).await.expect("run");
    act(&runtime, 1, Verb::Stop { force: true }).await.expect("stopped");
    runtime.update(with_shape(1, 2, 2048, 6), ONE).await.expect("resized");
    act(&runtime, 1, Verb::Archive).await.expect("archived");
    runtime.update(with_shape(1, 2, 2048, 7), ONE).await.expect("resized");
    act(&runtime, 1, Verb::Start).await.expect("started");
    let machine = machine(&node, 1);
    assert_eq!(machine.spec().shape, Shape::new(2, 2048, 7).expect("a shape"));
    assert_eq!(machine.file_system_bytes(), 7 * GIB);
    // One that was booted is forked like one that was cloned.
    remember(&node, 1, "kept");
    let mut forked = child(2, 1);
    forked.spec.shape = machine.spec().shape;
    assert!(runtime.fork(&spec(1).id, ONE, vec![forked]).await.expect("forked").children[0].is_ok());
    assert_eq!(memory(&node, 2), "kept");
}

#[tokio::test]
async fn a_refused_change_is_not_offered_again_by_reconciliation() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    let mut wanted = intent(1, Desired::Running);
    runtime.run(request(1)).await.expect("run");
    wanted.spec.shape = Shape::new(2, 1024, 3).expect("a shape");
    runtime.reconcile(vec![wanted.clone()]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(machine(&node, 1).spec().shape, Shape::DEFAULT);
    // What can be taken is taken.
    wanted.spec.shape = Shape::DEFAULT;
    wanted.spec.intervals.auto_delete = Some(Minutes(0));
    runtime.reconcile(vec![wanted]);
    act(&runtime, 1, Verb::Stop { force: true }).await.expect("stopped");
    let mut due = runtime.due();
    let told = due.wait_for(|due| due.iter().any(|action| action.verb == AutoVerb::Delete));
    timeout(LIMIT, told).await.expect("in time").expect("the runtime runs");
}

#[tokio::test]
async fn a_time_to_live_and_an_archive_become_due() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    let (mut short, mut archived) = (request(1), request(2));
    short.spec.intervals.ttl = Some(Minutes(1));
    archived.spec.intervals.auto_archive = Some(Minutes(0));
    for request in [short, archived] {
        runtime.run(request).await.expect("run");
    }
    act(&runtime, 2, Verb::Stop { force: true }).await.expect("stopped");
    let mut due = runtime.due();
    let told = due.wait_for(|due| {
        let has = |number, verb| due.iter().any(|action| action.id == spec(number).id && action.verb == verb);
        // It was created in 1970.
        has(1, AutoVerb::Delete) && has(2, AutoVerb::Archive)
    });
    timeout(LIMIT, told).await.expect("in time").expect("the runtime runs");
}
