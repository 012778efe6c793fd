//! The runtime with real machines: what a sandbox's owner and the next process of its node see.

// Other files of tests use the rest of it.
#[allow(dead_code)]
mod place;

use std::time::{Duration, Instant};

use fabric_types::{Phase, Shape, Source};
use node_runtime::Verb;
use place::{ONE, Place, clock_is_right, code_run, exec, full, id, ms, request, until};

/// Ends a test's node; nothing of it may be left.
async fn end(place: &Place, runtime: node_runtime::Runtime) {
    runtime.destroy_all(Duration::from_secs(60)).await;
    assert!(place.left().is_empty(), "{:?}", place.left());
    assert!(place.processes().is_empty(), "{:?}", place.processes());
}

/// A process in the guest that counts in a file, a line each 50 ms.
const COUNT: &str = "nohup sh -c 'n=0; while :; do n=$((n+1)); echo $n > /root/count; sleep 0.05; done' \
    >/dev/null 2>&1 & echo $!";

async fn count(runtime: &node_runtime::Runtime, number: u8) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        // The file isn't there at first, and empty for the moment in which it is written.
        if let Ok(count) = exec(runtime, number, "cat /root/count 2>/dev/null || true").await.parse() {
            return count;
        }
    }
    panic!("nobody counts");
}

/// Waits until more has been counted.
async fn counts_on(runtime: &node_runtime::Runtime, number: u8, than: u64, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while count(runtime, number).await <= than {
        assert!(Instant::now() < deadline, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_a_create_hands_over_a_warm_clone_that_runs_code() {
    let Some(place) = Place::new("create from the pool") else { return };
    let runtime = place.filled(3).await;
    for number in 1..=3 {
        let start = Instant::now();
        let observed = runtime.run(request(number)).await.expect("run");
        let ran = ms(start);
        assert_eq!(observed.phase, Phase::Running);
        assert_eq!(exec(&runtime, number, "echo hi").await, "hi");
        let first = ms(start);
        assert_eq!(exec(&runtime, number, "echo hi").await, "hi");
        println!("run {ran:.1} ms, first exec done at {first:.1} ms, second at {:.1} ms", ms(start));
    }
    let start = Instant::now();
    assert_eq!(code_run(&runtime, 1, "python", "print(6 * 7)").await, "42");
    println!("python {:.1} ms", ms(start));
    let start = Instant::now();
    assert_eq!(code_run(&runtime, 1, "javascript", "console.log(6 * 7)").await, "42");
    println!("javascript {:.1} ms", ms(start));
    assert_eq!(exec(&runtime, 1, "echo $COLOUR").await, "blue");
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    assert_ne!(exec(&runtime, 1, "uname -r").await, host.trim());
    full(&runtime, 3).await;
    end(&place, runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_two_clones_differ_in_everything_that_must_be_their_own() {
    let Some(place) = Place::new("clones differ") else { return };
    let runtime = place.filled(2).await;
    for number in 1..=2 {
        runtime.run(request(number)).await.expect("run");
    }
    for own in [
        "head -c 32 /dev/urandom | base64",
        "cat /proc/sys/kernel/random/uuid",
        "cat /etc/machine-id",
        "hostname",
        "python3 -c 'import uuid, secrets; print(uuid.uuid4(), secrets.token_hex())'",
    ] {
        let (one, two) = (exec(&runtime, 1, own).await, exec(&runtime, 2, own).await);
        assert!(!one.is_empty() && one != two, "{own}: {one} {two}");
    }
    assert_eq!(exec(&runtime, 1, "hostname").await, "Box-1");
    exec(&runtime, 1, "echo mine > /root/mine").await;
    assert_eq!(exec(&runtime, 2, "ls /root/mine 2>/dev/null || echo none").await, "none");
    clock_is_right(&runtime, 1).await;
    end(&place, runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_stop_and_start_keep_the_disk_and_who_it_is() {
    let Some(place) = Place::new("stop and start") else { return };
    let runtime = place.filled(1).await;
    runtime.run(request(1)).await.expect("run");
    exec(&runtime, 1, "echo kept > /root/kept; touch /etc/also-kept").await;
    let machine_id = exec(&runtime, 1, "cat /etc/machine-id").await;
    let start = Instant::now();
    let stopped = runtime.act(&id(1), ONE, Verb::Stop { force: false }).await.expect("stopped");
    println!("stop {:.1} ms", ms(start));
    assert_eq!(stopped.phase, Phase::Stopped);
    let start = Instant::now();
    runtime.act(&id(1), ONE, Verb::Start).await.expect("started");
    println!("start {:.1} ms", ms(start));
    assert_eq!(exec(&runtime, 1, "cat /root/kept; ls /etc/also-kept").await, "kept\n/etc/also-kept");
    assert_eq!(exec(&runtime, 1, "cat /etc/machine-id").await, machine_id);
    assert_eq!(exec(&runtime, 1, "hostname").await, "Box-1");
    let start = Instant::now();
    runtime.act(&id(1), ONE, Verb::Pause).await.expect("paused");
    runtime.act(&id(1), ONE, Verb::Resume).await.expect("resumed");
    println!("pause and resume {:.1} ms", ms(start));
    assert_eq!(exec(&runtime, 1, "cat /root/kept").await, "kept");
    end(&place, runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_a_restored_snapshot_counts_on_as_someone_else() {
    let Some(place) = Place::new("snapshot and restore") else { return };
    let runtime = place.filled(1).await;
    runtime.run(request(1)).await.expect("run");
    let pid = exec(&runtime, 1, COUNT).await;
    exec(&runtime, 1, "echo on disk > /root/note; sync").await;
    let before = count(&runtime, 1).await;
    let start = Instant::now();
    let snapshot = "snap-aaaaaaaaaaaaaaaa".parse().expect("a snapshot id");
    let taken = runtime.snapshot(&id(1), ONE, snapshot).await.expect("snapshot");
    println!("snapshot {:.1} ms, of which stopped {} us; {taken:?}", ms(start), taken.stop_us);
    counts_on(&runtime, 1, before, "the original counts on").await;
    exec(&runtime, 1, "echo changed > /root/note").await;

    for number in 2..=3 {
        let mut from = request(number);
        from.spec.source = Source::Snapshot { manifest: taken.manifest };
        let start = Instant::now();
        runtime.run(from).await.expect("restored");
        println!("restore {:.1} ms", ms(start));
        let first = count(&runtime, number).await;
        assert!(first >= before, "it went back to {first} from {before}");
        assert_eq!(exec(&runtime, number, &format!("kill -0 {pid} && echo lives")).await, "lives");
        assert_eq!(exec(&runtime, number, "cat /root/note").await, "on disk");
        counts_on(&runtime, number, first, "it counts on").await;
    }
    let ids = [1, 2, 3].map(|number| exec(&runtime, number, "cat /etc/machine-id; hostname"));
    let ids = futures::future::join_all(ids).await;
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
    assert_eq!(place.left().iter().filter(|path| path.ends_with("snapshots")).count(), 0);

    // A snapshot of a restored one, and back again.
    let again = "snap-bbbbbbbbbbbbbbbb".parse().expect("a snapshot id");
    let taken = runtime.snapshot(&id(3), ONE, again).await.expect("snapshot");
    println!("second snapshot: {taken:?}");
    let mut from = request(4);
    from.spec.source = Source::Snapshot { manifest: taken.manifest };
    runtime.run(from).await.expect("restored");
    assert_eq!(exec(&runtime, 4, &format!("kill -0 {pid} && echo lives")).await, "lives");
    end(&place, runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_a_snapshot_is_resumed_where_its_template_never_was() {
    let Some(here) = Place::new("template out of a store") else { return };
    let Some(there) = Place::new("template out of a store").map(Place::without_templates) else { return };
    let store = here.store().await;
    let runtime = here.start_with(0, store.clone()).await;
    runtime.run(request(1)).await.expect("run");
    exec(&runtime, 1, COUNT).await;
    let before = count(&runtime, 1).await;
    let snapshot = "snap-aaaaaaaaaaaaaaaa".parse().expect("a snapshot id");
    let taken = runtime.snapshot(&id(1), ONE, snapshot).await.expect("snapshot");
    end(&here, runtime).await;

    let runtime = there.start_with(0, store).await;
    let mut from = request(2);
    from.spec.source = Source::Snapshot { manifest: taken.manifest };
    let mut unlike = from.clone();
    unlike.spec.shape = Shape::new(2, 1024, 3).expect("a shape");
    let refused = runtime.run(unlike).await.expect_err("another shape");
    assert!(refused.to_string().contains("needs shape 1x1024x3"), "{refused}");
    let start = Instant::now();
    runtime.run(from).await.expect("restored");
    println!("restore with its template from the store {:.1} ms", ms(start));
    assert!(count(&runtime, 2).await >= before);
    end(&there, runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_a_new_process_of_the_node_adopts_what_lives() {
    let Some(place) = Place::new("adoption") else { return };
    let store = place.store().await;
    let runtime = place.start_with(1, store.clone()).await;
    full(&runtime, 1).await;
    runtime.run(request(1)).await.expect("run");
    full(&runtime, 1).await;
    let pid = exec(&runtime, 1, COUNT).await;
    let before = count(&runtime, 1).await;
    let request = http::Request::post("/v1/exec")
        .body(http_body_util::Full::new(bytes::Bytes::from_static(br#"{"command": "sleep 60"}"#)));
    let client = runtime.guest(&id(1), ONE).await.expect("a client");
    // In the middle of a request, as a killed node would be.
    let cut = tokio::spawn(async move { client.send(request.expect("a request")).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(runtime);
    assert!(cut.await.expect("no panic").is_err());

    let start = Instant::now();
    let runtime = place.start_with(1, store).await;
    println!("start with adoption {:.1} ms", ms(start));
    assert_eq!(runtime.observed().borrow()[&id(1)].phase, Phase::Running);
    assert_eq!(runtime.pools().borrow()[0].warm, 1, "the warm clone was adopted");
    counts_on(&runtime, 1, before, "it counts on").await;
    assert_eq!(exec(&runtime, 1, &format!("kill -0 {pid} && echo lives")).await, "lives");
    runtime.run(place::request(2)).await.expect("run");
    assert_eq!(exec(&runtime, 2, "hostname").await, "Box-2");
    end(&place, runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_a_killed_machine_is_told_and_one_killed_meanwhile_starts_from_its_disk() {
    let Some(place) = Place::new("killed machines") else { return };
    let store = place.store().await;
    let runtime = place.start_with(0, store.clone()).await;
    for number in 1..=2 {
        let start = Instant::now();
        runtime.run(request(number)).await.expect("run");
        println!("run without a pool {:.1} ms", ms(start));
    }
    exec(&runtime, 2, "echo kept > /root/kept; sync").await;
    kill(&place, &id(1));
    let mut observed = runtime.observed();
    let failed = observed.wait_for(|all| all.get(&id(1)).is_some_and(|seen| seen.phase.as_str() == "failed"));
    tokio::time::timeout(Duration::from_secs(30), failed).await.expect("in time").expect("the runtime runs");
    drop(runtime);
    kill(&place, &id(2));
    let runtime = place.start_with(0, store).await;
    assert_eq!(runtime.observed().borrow()[&id(2)].phase, Phase::Stopped);
    assert_eq!(runtime.observed().borrow()[&id(1)].phase.as_str(), "failed");
    runtime.act(&id(2), ONE, Verb::Start).await.expect("started");
    assert_eq!(exec(&runtime, 2, "cat /root/kept").await, "kept");
    end(&place, runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_twenty_creates_and_deletes_leave_the_node_as_it_was() {
    let Some(place) = Place::new("creates and deletes") else { return };
    let runtime = place.filled(2).await;
    // A checkpoint is made, and clones are replaced by its copies, beside everything else.
    let mut before = (0, 0);
    let settled = || {
        before = (place.left().len(), place.processes().len());
        // Counted again: a machine's folders come before it and go after it.
        before.0 == 4 && place.left().len() == 4 && runtime.pools().borrow()[0].doing == "full"
    };
    until("two clones, and nothing else", settled).await;
    for number in 1..=20 {
        runtime.run(request(number)).await.expect("run");
        assert_eq!(exec(&runtime, number, "echo hi").await, "hi");
        let start = Instant::now();
        assert_eq!(runtime.act(&id(number), ONE, Verb::Delete).await.expect("deleted").phase, Phase::Gone);
        println!("delete {:.1} ms", ms(start));
    }
    full(&runtime, 2).await;
    let again = || (place.left().len(), place.processes().len()) == before;
    until("the node is as it was", again).await;
    end(&place, runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_another_shape_boots_its_template_and_has_what_was_asked() {
    let Some(place) = Place::new("another shape") else { return };
    let runtime = place.start_with(0, place.store().await).await;
    let mut small = request(1);
    small.spec.shape = Shape::new(2, 512, 1).expect("a shape");
    let start = Instant::now();
    runtime.run(small).await.expect("run");
    println!("run in another shape {:.1} ms", ms(start));
    assert_eq!(exec(&runtime, 1, "nproc").await, "2");
    let memory: u64 = exec(&runtime, 1, "awk '/MemTotal/ {print $2}' /proc/meminfo").await.parse().expect("KiB");
    assert!((350_000..525_000).contains(&memory), "{memory} KiB");
    end(&place, runtime).await;
}

/// Kills the monitor of a sandbox, found by its command line.
fn kill(place: &Place, id: &fabric_types::SandboxId) {
    let name = id.as_str();
    let dir = place.path("node").join("sandboxes").join(name);
    let dir = dir.to_str().expect("a plain path");
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc").expect("listed").filter_map(Result::ok) {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains("qemu-system") && line.contains(dir) {
            let pid: i32 = entry.file_name().to_str().expect("a pid").parse().expect("a pid");
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("killed");
            killed += 1;
        }
    }
    assert_eq!(killed, 1, "one monitor of {name}");
}
