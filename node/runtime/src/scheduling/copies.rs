//! Forks whose children are copies of their parent's machine, and nodes that are killed while they make a checkpoint.

use tokio::runtime::Builder;

use super::life::{child, memory, remember};
use super::*;
use crate::cut;

async fn parent(node: &Node) -> Runtime {
    node.copies();
    let runtime = node.start(0).await;
    runtime.run(request(1)).await.expect("run");
    remember(node, 1, "forty-two");
    // The pool makes one as well, since a sandbox was asked for: it isn't to be taken for a fork's.
    let made = || node.driver.taken.load(Ordering::Relaxed) == 1 && node.left().len() == 2;
    until("the template has its checkpoint", made).await;
    runtime
}

fn is_copy(node: &Node, number: u8) -> bool {
    let machine = node.driver.of(spec(number).id.as_str()).expect("it lives");
    machine.spec().checkpoint.is_some()
}

#[tokio::test]
async fn children_are_copies_with_an_identity_of_their_own_and_copies_have_children() {
    let node = Node::new().await;
    let runtime = parent(&node).await;
    let taken = node.driver.taken.load(Ordering::Relaxed);
    let outcome = runtime.fork(&spec(1).id, ONE, vec![child(2, 1), child(3, 1)]).await.expect("forked");
    assert!(outcome.children.iter().all(Result::is_ok), "{outcome:?}");
    runtime.act(&spec(2).id, ONE, Verb::Pause).await.expect("paused");
    let outcome = runtime.fork(&spec(2).id, ONE, vec![child(4, 2)]).await.expect("forked");
    assert!(outcome.children[0].is_ok(), "{outcome:?}");
    in_phase(&runtime, 2, "paused").await;
    for number in 2..=4 {
        assert!(is_copy(&node, number) && memory(&node, number) == "forty-two", "{number}");
        let machine = node.driver.of(spec(number).id.as_str()).expect("it lives");
        let identity = machine.identity.lock().expect("no test panics in here").clone().expect("it has one");
        assert_eq!(identity.hostname, spec(number).id.as_str());
    }
    assert_eq!(node.driver.taken.load(Ordering::Relaxed), taken + 2, "one stop each");
    assert_eq!(std::fs::read_dir(node.root.path().join("node/snapshots")).expect("listed").count(), 0);
    runtime.destroy_all(LIMIT).await;
    assert!(node.left().is_empty() && node.driver.living().is_empty());
}

#[tokio::test]
async fn a_copy_is_snapshotted_stopped_and_adopted_like_any_sandbox() {
    let node = Node::new().await;
    let runtime = parent(&node).await;
    runtime.fork(&spec(1).id, ONE, vec![child(2, 1)]).await.expect("forked");
    let snapshot = "snap-aaaaaaaaaaaaaaaa".parse().expect("a snapshot id");
    runtime.snapshot(&spec(2).id, ONE, snapshot).await.expect("snapshotted");
    drop(runtime);
    let runtime = node.start(0).await;
    in_phase(&runtime, 2, "running").await;
    assert_eq!(memory(&node, 2), "forty-two");
    runtime.act(&spec(2).id, ONE, Verb::Stop { force: false }).await.expect("stopped");
    runtime.act(&spec(2).id, ONE, Verb::Start).await.expect("started");
    assert!(!is_copy(&node, 2), "it booted");
    let outcome = runtime.fork(&spec(2).id, ONE, vec![child(3, 2)]).await.expect("forked");
    assert!(outcome.children[0].is_ok() && !is_copy(&node, 3), "what was booted is kept as files: {outcome:?}");
    runtime.destroy_all(LIMIT).await;
}

#[tokio::test]
async fn children_whose_copy_is_refused_come_from_files_and_the_next_fork_begins_with_those() {
    let node = Node::new().await;
    let runtime = parent(&node).await;
    node.driver.faults.refused_copies.store(1, Ordering::Relaxed);
    let outcome = runtime.fork(&spec(1).id, ONE, vec![child(2, 1), child(3, 1)]).await.expect("forked");
    assert!(outcome.children.iter().all(Result::is_ok), "{outcome:?}");
    assert_eq!([2, 3].iter().filter(|number| is_copy(&node, **number)).count(), 1);
    assert!([2, 3].iter().all(|number| memory(&node, *number) == "forty-two"));
    let taken = node.driver.taken.load(Ordering::Relaxed);
    let outcome = runtime.fork(&spec(1).id, ONE, vec![child(4, 1)]).await.expect("forked");
    assert!(outcome.children[0].is_ok() && !is_copy(&node, 4), "{outcome:?}");
    assert_eq!(node.driver.taken.load(Ordering::Relaxed), taken);
    runtime.destroy_all(LIMIT).await;
    assert!(node.left().is_empty(), "{:?}", node.left());
}

#[tokio::test]
async fn a_parent_that_cannot_be_written_down_is_kept_as_files() {
    let node = Node::new().await;
    let runtime = parent(&node).await;
    node.driver.faults.checkpoints.store(1, Ordering::Relaxed);
    let outcome = runtime.fork(&spec(1).id, ONE, vec![child(2, 1)]).await.expect("forked");
    assert!(outcome.children[0].is_ok() && !is_copy(&node, 2), "{outcome:?}");
    assert_eq!(memory(&node, 2), "forty-two");
    runtime.destroy_all(LIMIT).await;
    assert!(node.left().is_empty(), "{:?}", node.left());
}

/// More steps than a node has until its pool is full of copies.
const STEPS_MAX: u32 = 300;
/// Nodes at a time: they wait most of the time.
const AT_ONCE: u32 = 8;

/// A node that is killed after so many steps, and the next one. Whether the first got through.
fn killed_after(steps: u32) -> bool {
    let process = || Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
    let first = process();
    let (node, through) = first.block_on(async {
        let node = Node::new().await;
        node.copies();
        cut::after(steps);
        let begun = async {
            let runtime = node.start(1).await;
            all_copies(&node, &runtime).await;
        };
        let through = tokio::select! {
            biased;
            () = begun => true,
            () = cut::reached() => false,
        };
        (node, through)
    });
    first.shutdown_timeout(LIMIT);
    cut::never();
    process().block_on(async {
        let runtime = node.start(1).await;
        all_copies(&node, &runtime).await;
        runtime.run(request(1)).await.unwrap_or_else(|error| panic!("after {steps} steps: {error}"));
        all_copies(&node, &runtime).await;
        let entries = std::fs::read_dir(node.root.path().join("templates")).expect("listed");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"));
        let made: Vec<_> = names.filter(|name| name.contains(".checkpoint")).collect();
        assert!(made.len() == 1 && made[0].ends_with(".checkpoint"), "after {steps} steps: {made:?}");
        runtime.destroy_all(LIMIT).await;
        assert!(node.left().is_empty(), "after {steps} steps: {:?}", node.left());
        assert!(node.driver.living().is_empty(), "after {steps} steps");
    });
    through
}

async fn all_copies(node: &Node, runtime: &Runtime) {
    let all = async {
        loop {
            full(runtime, 1).await;
            let living = node.driver.living();
            let nobodys = living.iter().filter(|machine| {
                let identity = machine.identity.lock().expect("no test panics in here");
                identity.as_ref().is_none_or(|identity| identity.rehearsal)
            });
            if nobodys.map(|machine| machine.spec().checkpoint.is_some()).eq([true]) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(LIMIT, all).await.is_ok(), "{:?}", runtime.pools().borrow());
}

#[test]
fn a_node_killed_at_any_step_of_a_checkpoint_leaves_nothing_to_the_next() {
    std::thread::scope(|scope| {
        let work = |first: u32| {
            let through = (first..STEPS_MAX).step_by(AT_ONCE as usize).find(|steps| killed_after(*steps));
            assert!(through.is_some(), "it never got through");
        };
        for first in 0..AT_ONCE {
            scope.spawn(move || work(first));
        }
    });
}
