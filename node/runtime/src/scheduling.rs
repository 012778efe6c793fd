//! Tests of the whole runtime over a driver double: who does what when, and what is left after.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fabric_types::{Desired, Generation, Minutes, Phase, Shape, UnixMillis};
use node_hypervisor::VmState;
use node_snapshot::SnapshotStore;
use tokio::time::timeout;

use crate::double::{Double, is_current, leave_current};
use crate::folder::{Folders, Life, SCHEMA, SandboxRecord};
use crate::testing::{config, spec};
use crate::{AutoVerb, CreateFrom, GuestError, Intent, RunRequest, Runtime, RuntimeError, Verb};

/// Nothing here takes longer than a few mkfs.
const LIMIT: Duration = Duration::from_secs(60);
const ONE: Generation = Generation(1);

mod copies;
mod cuts;
mod life;
mod random;

struct Node {
    root: tempfile::TempDir,
    driver: Arc<Double>,
    store: Arc<SnapshotStore>,
    swap_after: Option<Duration>,
}

impl Node {
    async fn new() -> Self {
        // What the runtime logs is shown when a test fails. Another test of this process may have set it.
        let filter = tracing_subscriber::EnvFilter::new("node_runtime=info");
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        // In memory where that is possible: thousands of records are made durable, and no host is to crash here.
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        let config = config(root.path());
        for (path, text) in
            [(&config.image.root, "root"), (&config.image.kernel, "kernel"), (&config.image.initramfs, "initramfs")]
        {
            std::fs::write(path, text).expect("written");
        }
        let store = SnapshotStore::open(root.path().join("store")).await.expect("opened");
        Self { root, driver: Double::new(), store: Arc::new(store), swap_after: None }
    }

    async fn start(&self, pool_target: u32) -> Runtime {
        let config = crate::RuntimeConfig {
            pool: crate::PoolLimits::fixed(pool_target),
            swap_after: self.swap_after,
            ..config(self.root.path())
        };
        let network = crate::network::Network::new(None);
        let started = Runtime::start_over(config, self.driver.clone(), self.store.clone(), network, is_current).await;
        started.expect("started")
    }

    /// Lets machines be copied from now on.
    fn copies(&self) {
        self.driver.faults.copies.store(true, Ordering::Relaxed);
    }

    /// Leaves a checkpoint of every template that was made.
    fn leave_checkpoints(&self) {
        let entries = std::fs::read_dir(self.root.path().join("templates")).expect("listed");
        for path in entries.map(|entry| entry.expect("an entry").path()) {
            if path.join("template.json").is_file() {
                leave_current(&path, &path.with_extension("none.checkpoint"));
            }
        }
    }

    async fn filled(&self, pool_target: u32) -> Runtime {
        let runtime = self.start(pool_target).await;
        full(&runtime, pool_target).await;
        runtime
    }

    /// Homes and run folders that are there.
    fn left(&self) -> Vec<String> {
        let list = |dir: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(dir).expect("listed");
            entries.map(|entry| entry.expect("an entry").path().display().to_string()).collect()
        };
        let node = self.root.path().join("node");
        [node.join("sandboxes"), node.join("pool"), node.join("snapshots"), self.root.path().join("run")]
            .iter()
            .flat_map(|dir| list(dir))
            .collect()
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(LIMIT, wait).await.is_ok(), "in time: {what}");
}

async fn full(runtime: &Runtime, target: u32) {
    let mut pools = runtime.pools();
    let filled = pools.wait_for(|pools| pools.iter().any(|pool| pool.warm == target && pool.doing == "full"));
    timeout(LIMIT, filled).await.expect("filled in time").expect("the pool runs");
}

async fn in_phase(runtime: &Runtime, number: u8, phase: &str) {
    let id = spec(number).id;
    let mut observed = runtime.observed();
    let there = observed.wait_for(|all| all.get(&id).map_or("absent", |seen| seen.phase.as_str()) == phase);
    assert!(timeout(LIMIT, there).await.is_ok(), "{phase} in time: {:?}", runtime.observed().borrow().get(&id));
}

fn request(number: u8) -> RunRequest {
    RunRequest { spec: spec(number), generation: ONE }
}

fn intent(number: u8, desired: Desired) -> Intent {
    Intent { spec: spec(number), generation: ONE, desired }
}

#[tokio::test]
async fn a_create_takes_a_warm_clone_and_the_pool_fills_again() {
    let node = Node::new().await;
    let runtime = node.filled(2).await;
    // Not counted: a create that takes long finds the pool filling again beside it.
    let ready = node.driver.living();
    let observed = runtime.run(request(1)).await.expect("run");
    assert_eq!(observed.phase, Phase::Running);
    let machine = node.driver.of(spec(1).id.as_str()).expect("it has its identity");
    assert!(ready.iter().any(|clone| Arc::ptr_eq(clone, &machine)), "nothing was made on the request's time");
    assert_eq!(runtime.creates().last().map(|budget| budget.from), Some(CreateFrom::Warm));
    assert_eq!(machine.state(), VmState::Running);
    full(&runtime, 2).await;
}

#[tokio::test]
async fn a_create_is_idempotent_and_two_at_once_are_one() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    let (one, two) = tokio::join!(runtime.run(request(1)), runtime.run(request(1)));
    let (one, two) = (one.expect("run"), two.expect("run"));
    assert_eq!((one.phase, two.phase), (Phase::Running, Phase::Running));
    assert_eq!(runtime.observed().borrow().len(), 1);
}

#[tokio::test]
async fn a_create_goes_on_when_nobody_waits_for_it() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    let asked = runtime.clone();
    let waiting = tokio::spawn(async move { asked.run(request(1)).await });
    tokio::task::yield_now().await;
    waiting.abort();
    // Aborted before it was asked at all, or carried on: never half of it.
    let _ = waiting.await;
    if runtime.observed().borrow().contains_key(&spec(1).id) {
        in_phase(&runtime, 1, "running").await;
    }
}

#[tokio::test]
async fn another_shape_boots_its_template_once() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    let mut large = request(1);
    large.spec.shape = Shape::new(2, 2048, 4).expect("a shape");
    runtime.run(large.clone()).await.expect("run");
    assert_eq!(node.driver.created.load(Ordering::Relaxed), 2, "a template and a clone");
    large.spec.id = spec(2).id;
    runtime.run(large).await.expect("run");
    assert_eq!(node.driver.created.load(Ordering::Relaxed), 3, "a clone");
}

#[tokio::test]
async fn a_create_whose_identity_fails_fails_and_leaves_nothing() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    // The warm clone's, that of one that may have replaced it by then, and that of the clone made instead.
    node.driver.faults.identities.store(3, Ordering::Relaxed);
    let error = runtime.run(request(1)).await.expect_err("refused");
    assert!(matches!(error, RuntimeError::Guest { action: "take its identity", .. }), "{error}");
    assert!(runtime.observed().borrow().is_empty());
    full(&runtime, 1).await;
    assert_eq!(node.left().len(), 2, "only the warm clone's home and run folder: {:?}", node.left());
    assert_eq!(node.driver.living().len(), 1);
}

#[tokio::test]
async fn a_clone_that_fails_at_its_handover_is_replaced_by_another() {
    let node = Node::new().await;
    let runtime = node.filled(2).await;
    node.driver.faults.identities.store(1, Ordering::Relaxed);
    assert_eq!(runtime.run(request(1)).await.expect("run").phase, Phase::Running);
}

#[tokio::test]
async fn a_dead_warm_clone_is_replaced_and_a_failing_driver_is_told_of() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    node.driver.faults.creations.store(1, Ordering::Relaxed);
    node.driver.living().first().expect("a clone").die();
    let mut pools = runtime.pools();
    let told = pools.wait_for(|pools| pools.iter().any(|pool| pool.doing.contains("a fault of the test")));
    timeout(LIMIT, told).await.expect("in time").expect("the pool runs");
    full(&runtime, 1).await;
    // The dead one is taken apart beside everything else.
    until("nothing is left of it", || node.left().len() == 2).await;
}

#[tokio::test]
async fn a_sandbox_stops_starts_pauses_and_goes() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    runtime.run(request(1)).await.expect("run");
    let id = spec(1).id;
    for (verb, phase) in [
        (Verb::Pause, Phase::Paused),
        (Verb::Pause, Phase::Paused),
        (Verb::Resume, Phase::Running),
        (Verb::Stop { force: false }, Phase::Stopped),
        (Verb::Stop { force: true }, Phase::Stopped),
        (Verb::Start, Phase::Running),
        (Verb::Stop { force: true }, Phase::Stopped),
        (Verb::Delete, Phase::Gone),
        (Verb::Delete, Phase::Gone),
    ] {
        assert_eq!(runtime.act(&id, ONE, verb).await.expect("done").phase, phase, "{verb:?}");
    }
    assert!(runtime.observed().borrow().is_empty());
    assert!(node.driver.of(id.as_str()).is_none());
}

#[tokio::test]
async fn generations_are_checked_and_a_newer_one_replaces() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    let mut second = request(1);
    second.generation = Generation(2);
    runtime.run(second.clone()).await.expect("run");
    let id = spec(1).id;
    assert!(matches!(runtime.act(&id, ONE, Verb::Pause).await, Err(RuntimeError::Stale { .. })));
    assert!(matches!(runtime.run(request(1)).await, Err(RuntimeError::Stale { .. })));
    assert!(matches!(runtime.act(&id, Generation(3), Verb::Pause).await, Err(RuntimeError::Unknown(_))));
    assert!(matches!(runtime.guest(&id, ONE).await, Err(RuntimeError::Stale { .. })));
    second.generation = Generation(3);
    assert_eq!(runtime.run(second).await.expect("run").generation, Generation(3));
    assert_eq!(runtime.observed().borrow().len(), 1);
}

#[tokio::test]
async fn what_was_deleted_does_not_come_back_by_a_late_run() {
    let node = Node::new().await;
    let runtime = node.start(0).await;
    let id = spec(1).id;
    assert_eq!(runtime.act(&id, ONE, Verb::Delete).await.expect("nothing is left").phase, Phase::Gone);
    let error = runtime.run(request(1)).await.expect_err("too late");
    assert!(matches!(error, RuntimeError::Phase { phase: Phase::Gone, .. }), "{error}");
}

#[tokio::test]
async fn more_requests_than_a_queue_holds_are_told_so() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    runtime.run(request(1)).await.expect("run");
    let id = spec(1).id;
    let asked = (0..40).map(|_| runtime.act(&id, ONE, Verb::Pause));
    let answers = futures::future::join_all(asked).await;
    let busy = answers.iter().filter(|answer| matches!(answer, Err(RuntimeError::Busy(_)))).count();
    assert!(busy > 0, "some were refused");
    assert!(answers.iter().any(Result::is_ok), "some were done");
}

#[tokio::test]
async fn a_machine_that_ends_by_itself_fails_its_sandbox() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    runtime.run(request(1)).await.expect("run");
    node.driver.of(spec(1).id.as_str()).expect("it lives").die();
    in_phase(&runtime, 1, "failed").await;
    let error = runtime.act(&spec(1).id, ONE, Verb::Start).await.expect_err("failed");
    assert!(error.to_string().contains("is failed: it can't be started"), "{error}");
    runtime.act(&spec(1).id, ONE, Verb::Delete).await.expect("deleted");
}

#[tokio::test]
async fn a_guest_client_ends_with_the_machine_that_it_was_of() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    runtime.run(request(1)).await.expect("run");
    let id = spec(1).id;
    let client = runtime.guest(&id, ONE).await.expect("a client");
    let ask = |path: &'static str| {
        let request = http::Request::post(path).body(http_body_util::Empty::<bytes::Bytes>::new());
        let client = client.clone();
        async move { client.send(request.expect("a request")).await }
    };
    assert_eq!(ask("/v1/exec").await.expect("answered").status(), 200);
    let endless = tokio::spawn(ask("/v1/exec/stream"));
    tokio::task::yield_now().await;
    runtime.act(&id, ONE, Verb::Stop { force: true }).await.expect("stopped");
    let cut = timeout(LIMIT, endless).await.expect("in time").expect("no panic");
    assert!(matches!(cut, Err(GuestError::Ended(_) | GuestError::Broken { .. })), "{cut:?}");
    assert!(matches!(runtime.guest(&id, ONE).await, Err(RuntimeError::Phase { .. })));
    runtime.act(&id, ONE, Verb::Start).await.expect("started");
    assert!(matches!(ask("/v1/exec").await, Err(GuestError::Ended(_))), "the old client stays ended");
    runtime.guest(&id, ONE).await.expect("a new client");
}

#[tokio::test]
async fn a_restart_adopts_what_lives_and_says_what_does_not() {
    let node = Node::new().await;
    let runtime = node.filled(2).await;
    for number in 1..=3 {
        runtime.run(request(number)).await.expect("run");
    }
    runtime.act(&spec(2).id, ONE, Verb::Pause).await.expect("paused");
    full(&runtime, 2).await;
    drop(runtime);
    node.driver.of(spec(3).id.as_str()).expect("it lives").die();
    let made = node.driver.created.load(Ordering::Relaxed);

    let runtime = node.start(2).await;
    let phases: Vec<_> = runtime.observed().borrow().values().map(|seen| seen.phase.as_str().to_owned()).collect();
    assert_eq!(phases, ["running", "paused", "stopped"]);
    full(&runtime, 2).await;
    // But for one that is to be a checkpoint: each process asks anew whether machines can be copied.
    assert!(node.driver.created.load(Ordering::Relaxed) <= made + 1, "the pool was adopted too");
    runtime.guest(&spec(1).id, ONE).await.expect("a client of an adopted one");

    runtime.reconcile((1..=3).map(|number| intent(number, Desired::Running)).collect());
    for number in 1..=3 {
        in_phase(&runtime, number, "running").await;
    }
}

#[tokio::test]
async fn a_clone_that_was_claimed_but_not_identified_gets_its_identity_at_adoption() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    runtime.run(request(1)).await.expect("run");
    let machine = node.driver.of(spec(1).id.as_str()).expect("it lives");
    drop(runtime);
    // As if the node had been killed between the record and the identity.
    machine.identity.lock().expect("no test panics in here").take();
    let runtime = node.start(0).await;
    in_phase(&runtime, 1, "running").await;
    assert!(node.driver.of(spec(1).id.as_str()).is_some(), "it has its identity");
}

#[tokio::test]
async fn a_warm_clone_that_had_an_owner_is_never_given_to_another() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    let clone = node.driver.living().pop().expect("a clone");
    drop(runtime);
    // As if the node had been killed between the identity and the record.
    clone.identity.lock().expect("no test panics in here").as_mut().expect("a rehearsal's").generation = 1;
    let _runtime = node.start(0).await;
    assert!(node.left().is_empty(), "{:?}", node.left());
}

#[tokio::test]
async fn half_made_and_half_deleted_homes_are_gone_after_a_start() {
    let node = Node::new().await;
    let folders = Folders::make(&config(node.root.path())).expect("made");
    for (number, life) in [(1, Life::Making), (2, Life::Deleting)] {
        let home = folders.sandbox(&spec(number).id);
        home.make().expect("made");
        let machine = Some(home.machine(folders.run([number; 8])));
        std::fs::create_dir_all(folders.run([number; 8])).expect("made");
        home.write_sandbox(&SandboxRecord {
            schema: SCHEMA,
            spec: spec(number),
            generation: ONE,
            life,
            machine,
            port: None,
            disk_grew: false,
            template: "t".to_owned(),
            machine_id: String::new(),
            begun_at: UnixMillis(0),
            last_activity: UnixMillis(0),
        })
        .expect("written");
    }
    folders.clone_home([9; 8]).make().expect("made");
    let runtime = node.start(0).await;
    assert!(runtime.observed().borrow().is_empty());
    assert!(node.left().is_empty(), "{:?}", node.left());
}

#[tokio::test]
async fn reconcile_brings_what_is_there_to_what_is_wanted() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    runtime.reconcile(vec![intent(1, Desired::Running), intent(2, Desired::Paused), intent(3, Desired::Stopped)]);
    in_phase(&runtime, 1, "running").await;
    in_phase(&runtime, 2, "paused").await;
    in_phase(&runtime, 3, "failed").await;
    runtime.reconcile(vec![intent(1, Desired::Stopped), intent(2, Desired::Running), intent(3, Desired::Stopped)]);
    in_phase(&runtime, 1, "stopped").await;
    in_phase(&runtime, 2, "running").await;
}

#[tokio::test]
async fn an_older_intent_does_not_undo_a_direct_request() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    runtime.reconcile(vec![intent(1, Desired::Running)]);
    in_phase(&runtime, 1, "running").await;
    runtime.act(&spec(1).id, ONE, Verb::Stop { force: true }).await.expect("stopped");
    // Longer than intents are looked at again.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    in_phase(&runtime, 1, "stopped").await;
    runtime.reconcile(vec![intent(1, Desired::Running)]);
    in_phase(&runtime, 1, "running").await;
}

#[tokio::test]
async fn intervals_are_told_of_and_no_longer_when_done() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    let mut at_once = request(1);
    at_once.spec.intervals.auto_delete = Some(Minutes(0));
    runtime.run(at_once).await.expect("run");
    let id = spec(1).id;
    runtime.act(&id, ONE, Verb::Stop { force: true }).await.expect("stopped");
    let mut due = runtime.due();
    let told = due.wait_for(|due| due.iter().any(|action| action.id == id && action.verb == AutoVerb::Delete));
    timeout(LIMIT, told).await.expect("in time").expect("the runtime runs");
    runtime.act(&id, ONE, Verb::Delete).await.expect("deleted");
    timeout(LIMIT, due.wait_for(|due| due.is_empty())).await.expect("in time").expect("the runtime runs");
}

#[tokio::test]
async fn a_drain_leaves_machines_and_takes_nothing_new() {
    let node = Node::new().await;
    let runtime = node.filled(1).await;
    runtime.run(request(1)).await.expect("run");
    full(&runtime, 1).await;
    runtime.drain(LIMIT).await;
    assert!(matches!(runtime.run(request(2)).await, Err(RuntimeError::Stopping)));
    assert_eq!(node.driver.living().len(), 2);
}

#[tokio::test]
async fn destroying_all_leaves_nothing() {
    let node = Node::new().await;
    let runtime = node.filled(2).await;
    for number in 1..=2 {
        runtime.run(request(number)).await.expect("run");
    }
    // In the middle of filling again.
    tokio::time::sleep(Duration::from_millis(310)).await;
    runtime.destroy_all(LIMIT).await;
    assert!(node.left().is_empty(), "{:?}", node.left());
    assert!(runtime.observed().borrow().is_empty());
}
