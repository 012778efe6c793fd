//! The rest of a sandbox's life on real machines: fork, pause, swap, resize, archive, and a start that can be forked. The
//! figures that these tests print are what `make bench` measures properly.

// Other files of tests use the rest of it.
#[allow(dead_code)]
mod place;

use std::time::{Duration, Instant};

use fabric_types::{Phase, SandboxSpec, Shape, Source};
use node_runtime::{PoolLimits, Runtime, Verb};
use place::{ONE, Place, child, clock_is_right, exec, id, ms, request};

/// Memory that a parent has changed before it is forked.
const DIRTY_MIB: u32 = 100;

async fn end(place: &Place, runtime: Runtime) {
    runtime.destroy_all(Duration::from_secs(60)).await;
    assert!(place.left().is_empty(), "{:?}", place.left());
    assert!(place.processes().is_empty(), "{:?}", place.processes());
}

/// A process that holds so much memory, each page changed, and answers with its pid when it does.
async fn dirty(runtime: &Runtime, number: u8) -> String {
    let hold = format!(
        "import time\nb = bytearray({DIRTY_MIB} << 20)\nfor i in range(0, len(b), 4096): b[i] = 1 + i % 251\n\
         open('/root/held', 'w').write('yes')\ntime.sleep(3600)"
    );
    let start = format!("cat > /root/hold.py <<'E'\n{hold}\nE\nnohup python3 /root/hold.py >/dev/null 2>&1 & echo $!");
    let pid = exec(runtime, number, &start).await;
    exec(runtime, number, "while [ ! -s /root/held ]; do sleep 0.1; done").await;
    pid
}

async fn act(runtime: &Runtime, number: u8, verb: Verb) -> f64 {
    let start = Instant::now();
    runtime.act(&id(number), ONE, verb).await.expect("done");
    ms(start)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_a_fork_stops_its_parent_for_a_moment_and_its_children_go_on() {
    let Some(place) = Place::new("fork") else { return };
    let runtime = place.filled(1).await;
    runtime.run(request(1)).await.expect("run");
    let pid = dirty(&runtime, 1).await;
    exec(&runtime, 1, "echo before > /root/note").await;
    for round in 0..3_u8 {
        let (one, two) = (2 + 2 * round, 3 + 2 * round);
        let start = Instant::now();
        let outcome = runtime.fork(&id(1), ONE, vec![child(one, 1), child(two, 1)]).await.expect("forked");
        let forked = ms(start);
        for made in outcome.children {
            assert_eq!(made.expect("a child").phase, Phase::Running);
        }
        let runtime = &runtime;
        let answers = [one, two].map(|number| async move {
            assert_eq!(exec(runtime, number, "cat /root/note").await.as_str(), "before");
        });
        futures::future::join_all(answers).await;
        println!(
            "fork: stop {} us, two children live after {forked:.1} ms, answered after {:.1} ms",
            outcome.stop_us,
            ms(start)
        );
    }
    exec(&runtime, 1, "echo after > /root/note").await;
    let mut own = Vec::new();
    for number in 1..=3 {
        assert_eq!(exec(&runtime, number, &format!("kill -0 {pid} && echo lives")).await, "lives");
        own.push(exec(&runtime, number, "cat /etc/machine-id; hostname; head -c 32 /dev/urandom | base64").await);
    }
    assert!(own[0] != own[1] && own[1] != own[2] && own[0] != own[2], "{own:?}");
    assert_eq!(exec(&runtime, 2, "cat /root/note").await, "before");
    assert_eq!(exec(&runtime, 2, "hostname").await, "Box-2");

    // A paused parent, and a child of a child.
    println!("pause {:.1} ms", act(&runtime, 2, Verb::Pause).await);
    let outcome = runtime.fork(&id(2), ONE, vec![child(20, 2)]).await.expect("forked");
    assert!(outcome.children[0].is_ok(), "{outcome:?}");
    assert_eq!(exec(&runtime, 20, &format!("kill -0 {pid} && echo lives")).await, "lives");
    assert_eq!(runtime.observed().borrow()[&id(2)].phase, Phase::Paused);
    end(&place, runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_a_paused_sandbox_keeps_its_memory_in_memory_and_on_disk() {
    let Some(place) = Place::new("pause and swap") else { return };
    let store = place.store().await;
    let runtime = place.start_with(1, store.clone()).await;
    runtime.run(request(1)).await.expect("run");
    let pid = dirty(&runtime, 1).await;
    for _ in 0..5 {
        let (paused, resumed) = (act(&runtime, 1, Verb::Pause).await, act(&runtime, 1, Verb::Resume).await);
        println!("pause {paused:.1} ms, resume {resumed:.1} ms");
    }
    act(&runtime, 1, Verb::Pause).await;
    drop(runtime);

    // The next process of the node finds it paused for longer than it may be.
    let mut config = place.config(PoolLimits::fixed(0));
    config.swap_after = Some(Duration::ZERO);
    let runtime = place.start_from(config, store.clone()).await;
    // One that couldn't be written is tried again after a minute.
    let deadline = Instant::now() + place::POOL_LIMIT;
    while !place.processes().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", place.processes());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(runtime.observed().borrow()[&id(1)].phase, Phase::Paused);
    // Answered when it is on disk: what its machine left goes after the machine.
    act(&runtime, 1, Verb::Pause).await;
    drop(runtime);

    let runtime = place.start_with(0, store).await;
    assert_eq!(runtime.observed().borrow()[&id(1)].phase, Phase::Paused);
    let start = Instant::now();
    act(&runtime, 1, Verb::Resume).await;
    let resumed = ms(start);
    assert_eq!(exec(&runtime, 1, &format!("kill -0 {pid} && echo lives")).await, "lives");
    println!("resume from disk {resumed:.1} ms, answered after {:.1} ms", ms(start));
    clock_is_right(&runtime, 1).await;
    end(&place, runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_a_stopped_sandbox_grows_goes_to_the_archive_and_comes_back_whole() {
    let Some(place) = Place::new("resize and archive") else { return };
    let runtime = place.filled(1).await;
    runtime.run(request(1)).await.expect("run");
    exec(&runtime, 1, "echo kept > /root/kept; sync").await;
    let size = "df -B1 --output=size / | tail -1";
    let before: u64 = exec(&runtime, 1, size).await.parse().expect("bytes");
    let resize = async |cpu: i64, gib: i64| {
        let shape = Shape::new(cpu, 1024, gib).expect("a shape");
        let start = Instant::now();
        runtime.update(SandboxSpec { shape, ..request(1).spec }, ONE).await.map(|_| ms(start))
    };
    println!("grow from 3 to 5 GiB {:.1} ms", resize(1, 5).await.expect("grown"));
    let grown: u64 = exec(&runtime, 1, size).await.parse().expect("bytes");
    assert!(grown > before + (1 << 30), "{before} {grown}");
    assert!(resize(1, 3).await.is_err() && resize(2, 5).await.is_err());

    println!("stop {:.1} ms", act(&runtime, 1, Verb::Stop { force: false }).await);
    println!("archive {:.1} ms", act(&runtime, 1, Verb::Archive).await);
    resize(2, 6).await.expect("resized");
    println!("start from the archive {:.1} ms", act(&runtime, 1, Verb::Start).await);
    assert_eq!(exec(&runtime, 1, "cat /root/kept; nproc").await, "kept\n2");
    let again: u64 = exec(&runtime, 1, size).await.parse().expect("bytes");
    assert!(again > grown + (1 << 29), "{grown} {again}");

    // One that was booted is forked, snapshotted and restored like one that was cloned.
    let shape = Shape::new(2, 1024, 6).expect("a shape");
    let mut forked = child(2, 1);
    forked.spec.shape = shape;
    let start = Instant::now();
    let outcome = runtime.fork(&id(1), ONE, vec![forked]).await.expect("forked");
    outcome.children.into_iter().next().expect("one").expect("a child");
    assert_eq!(exec(&runtime, 2, "cat /root/kept; hostname").await, "kept\nBox-2");
    println!("fork of one that was booted: stop {} us, answered after {:.1} ms", outcome.stop_us, ms(start));
    let snapshot = "snap-aaaaaaaaaaaaaaaa".parse().expect("a snapshot id");
    let taken = runtime.snapshot(&id(1), ONE, snapshot).await.expect("snapshot");
    let mut restored = request(3);
    restored.spec.source = Source::Snapshot { manifest: taken.manifest };
    restored.spec.shape = shape;
    runtime.run(restored).await.expect("restored");
    assert_eq!(exec(&runtime, 3, "cat /root/kept; hostname").await, "kept\nBox-3");
    end(&place, runtime).await;
}
