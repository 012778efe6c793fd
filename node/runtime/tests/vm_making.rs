//! What stands ready, with real machines: that no two clones share what must be their own, and what a create costs when
//! the pool is empty.

// Other files of tests use the rest of it.
#[allow(dead_code)]
mod place;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use node_network::{NetworkChoice, NetworkConfig, Networks};
use node_runtime::{CreateFrom, PoolLimits, Runtime, Verb};
use place::{ONE, Place, code_run, exec, full, id, ms, request};

/// Clones of one template that are compared.
const CLONES: u8 = 100;
/// How many of them live at once: some 40 MiB each.
const AT_ONCE: u8 = 8;

/// What must be a machine's own, a line each. `random` is seeded when the interpreter starts, which is before the clone
/// was made where it waits ready.
const OWN: &str = "
import glob, os, random, socket, uuid
print('urandom', os.urandom(16).hex())
print('kernel uuid', open('/proc/sys/kernel/random/uuid').read().strip())
print('uuid4', uuid.uuid4())
print('random', random.getrandbits(64))
print('machine id', open('/etc/machine-id').read().strip())
print('host name', socket.gethostname())
for card in glob.glob('/sys/class/net/e*/address'):
    print('mac', open(card).read().strip())
";

/// A network namespace that guests' packets would leave through: nothing of this host's own network is touched.
struct Uplink(String);

impl Uplink {
    /// The node's network with taps, or `None`, said loudly, where this process may make none.
    async fn networks(&self) -> Option<Networks> {
        let config = NetworkConfig {
            tag: self.0.chars().filter(char::is_ascii_alphanumeric).take(8).collect(),
            choice: NetworkChoice::Tap,
            ports_ahead: 2,
            resolvers: vec![([127, 0, 0, 53], 53).into()],
            uplink: Some(format!("/run/netns/{}", self.0).into()),
            forbidden: Vec::new(),
            bits_per_second: 0,
            connections: 64,
        };
        if !ip(&["netns", "add", &self.0]) {
            place::skip("MACs of clones", "no network namespace can be made here");
            return None;
        }
        match Networks::start(config).await {
            Ok(networks) => Some(networks),
            Err(fault) => {
                place::skip("MACs of clones", &fault.to_string());
                None
            }
        }
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    let ran = std::process::Command::new("ip").args(arguments).stderr(std::process::Stdio::null()).status();
    ran.is_ok_and(|status| status.success())
}

/// Ends a test's node; nothing of it may be left.
async fn end(place: &Place, runtime: Runtime) {
    runtime.destroy_all(Duration::from_secs(60)).await;
    assert!(place.left().is_empty(), "{:?}", place.left());
    assert!(place.processes().is_empty(), "{:?}", place.processes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_a_hundred_clones_share_nothing_that_must_be_their_own() {
    let Some(place) = Place::new("a hundred clones") else { return };
    let uplink = Uplink(format!("ru{}", std::process::id()));
    let networks = uplink.networks().await;
    let (pool, least) = (PoolLimits::fixed(u32::from(AT_ONCE)), if networks.is_some() { 7 } else { 6 });
    let node = place.start_networked(place.config(pool), place.store().await, networks.clone()).await;
    full(&node, u32::from(AT_ONCE)).await;
    let (runtime, begun) = (&node, Instant::now());
    let mut seen: BTreeMap<(String, String), u8> = BTreeMap::new();
    for first in (1..=CLONES).step_by(usize::from(AT_ONCE)) {
        let numbers: Vec<_> = (first..first + AT_ONCE).filter(|number| *number <= CLONES).collect();
        let owned = numbers.iter().map(|&number| async move {
            let run = runtime.run(request(number));
            // Asked for while the clone is still becoming this sandbox: who gets a way in finds it done.
            let early = async {
                while runtime.guest(&id(number), ONE).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                exec(runtime, number, "hostname").await
            };
            let (_, early) = tokio::try_join!(run, async { Ok(early.await) }).expect("run");
            assert_eq!(early, format!("Box-{number}"), "a command before its identity was in force");
            code_run(runtime, number, "python", OWN).await
        });
        let owned = futures::future::join_all(owned).await;
        for (number, owned) in numbers.iter().zip(owned) {
            assert!(owned.lines().count() >= least, "{owned}");
            // Without a port every card has the MAC that the image gave it.
            for line in owned.lines().filter(|line| least > 6 || !line.starts_with("mac ")) {
                let (what, value) = line.rsplit_once(' ').expect("a name and a value");
                assert!(!value.is_empty(), "{owned}");
                let other = seen.insert((what.to_owned(), value.to_owned()), *number);
                assert!(other.is_none(), "{number} and {other:?} share {line}");
            }
        }
        let gone = numbers.iter().map(|&number| async move {
            runtime.act(&id(number), ONE, Verb::Delete).await.expect("deleted");
        });
        futures::future::join_all(gone).await;
    }
    let warm = runtime.creates().iter().filter(|budget| budget.from == CreateFrom::Warm).count();
    println!("{CLONES} clones in {:.1} s, {warm} of them from the pool", begun.elapsed().as_secs_f64());
    end(&place, node).await;
    if let Some(networks) = networks {
        networks.stop(true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_a_create_without_a_warm_clone_takes_a_spare_or_a_copy() {
    let Some(place) = Place::new("spares") else { return };
    // The template is booted by a create that finds nothing at all.
    let runtime = place.start_limited(PoolLimits { spares: 2, ..PoolLimits::fixed(0) }, place.store().await).await;
    for number in 1..=6 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        // A checkpoint that is being made keeps spares from being started.
        settled(&runtime).await;
        let start = Instant::now();
        runtime.run(request(number)).await.expect("run");
        let ran = ms(start);
        assert_eq!(exec(&runtime, number, "echo hi").await, "hi");
        let first = ms(start);
        println!("run {ran:.1} ms, first exec done at {first:.1} ms: {:?}", runtime.creates().last());
    }
    // Spares until the checkpoint is there that the first create had made, and where none can be made.
    let ready = [CreateFrom::Spare, CreateFrom::Copy];
    let ahead = runtime.creates().iter().filter(|budget| ready.contains(&budget.from)).count();
    assert!(ahead >= 3, "{:?}", runtime.creates());
    end(&place, runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_an_emptied_pool_fills_again_beside_a_sandbox_that_works() {
    let Some(place) = Place::new("a pool that fills again") else { return };
    const TAKEN: u8 = 8;
    let runtime = place.filled(u32::from(TAKEN) + 1).await;
    let worker = TAKEN + 1;
    runtime.run(request(worker)).await.expect("run");
    full(&runtime, u32::from(TAKEN) + 1).await;
    let quiet = latencies(&runtime, worker, 40).await;
    let start = Instant::now();
    let creates = (1..=TAKEN).map(|number| runtime.run(request(number)));
    for created in futures::future::join_all(creates).await {
        created.expect("run");
    }
    println!("{TAKEN} at once in {:.1} ms", ms(start));
    let filled = async {
        full(&runtime, u32::from(TAKEN) + 1).await;
        ms(start)
    };
    let (filled, busy) = tokio::join!(filled, latencies(&runtime, worker, 80));
    println!("full again after {filled:.0} ms; exec p50 and p99 {quiet:?} ms before, {busy:?} ms meanwhile");
    assert!(filled < 60_000.0, "{filled}");
    end(&place, runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_a_create_that_finds_an_empty_pool_copies_a_checkpoint_and_so_do_forks() {
    let Some(place) = Place::new("copies of checkpoints") else { return };
    // Makes the checkpoint, which stays.
    let store = place.store().await;
    let runtime = place.start_with(1, store.clone()).await;
    full(&runtime, 1).await;
    settled(&runtime).await;
    end(&place, runtime).await;
    let runtime = place.start_with(0, store).await;
    for number in 1..=6 {
        let start = Instant::now();
        runtime.run(request(number)).await.expect("run");
        let ran = ms(start);
        assert_eq!(exec(&runtime, number, "hostname").await, format!("Box-{number}"));
        let first = ms(start);
        assert_eq!(code_run(&runtime, number, "python", "print(6 * 7)").await, "42");
        println!("run {ran:.1}, exec {first:.1}, python {:.1} ms: {:?}", ms(start), runtime.creates().last());
    }
    let copies = runtime.creates().iter().filter(|budget| budget.from == CreateFrom::Copy).count();
    if copies == 0 {
        place::skip("copies of checkpoints", "no machine can be copied here");
    } else {
        assert!(copies >= 5, "{:?}", runtime.creates());
    }
    exec(&runtime, 1, "echo kept > /dev/shm/x").await;
    let start = Instant::now();
    let children = (11..=14).map(|number| place::child(number, 1)).collect();
    let outcome = runtime.fork(&id(1), ONE, children).await.expect("forked");
    println!("4 children in {:.1} ms, parent stopped {} us", ms(start), outcome.stop_us);
    for (number, made) in (11..).zip(outcome.children) {
        made.expect("a child");
        assert_eq!(exec(&runtime, number, "cat /dev/shm/x; hostname").await, format!("kept\nBox-{number}"));
    }
    println!("and their first commands after {:.1} ms", ms(start));
    assert_eq!(exec(&runtime, 1, "cat /dev/shm/x").await, "kept");
    // A copy is paused, snapshotted and stopped like any other.
    runtime.act(&id(11), ONE, Verb::Pause).await.expect("paused");
    runtime.act(&id(11), ONE, Verb::Resume).await.expect("resumed");
    let snapshot = "snap-aaaaaaaaaaaaaaaa".parse().expect("a snapshot id");
    runtime.snapshot(&id(11), ONE, snapshot).await.expect("snapshotted");
    runtime.act(&id(11), ONE, Verb::Stop { force: false }).await.expect("stopped");
    runtime.act(&id(11), ONE, Verb::Start).await.expect("started");
    assert_eq!(exec(&runtime, 11, "hostname").await, "Box-11");
    end(&place, runtime).await;
}

/// Waits until the pool has nothing to do any more.
async fn settled(runtime: &Runtime) {
    let mut pools = runtime.pools();
    let settled = pools.wait_for(|pools| pools.iter().any(|pool| pool.doing == "full"));
    tokio::time::timeout(place::POOL_LIMIT, settled).await.expect("in time").expect("the pool runs");
}

/// The median and the 99th hundredth of so many commands, one after the other, in milliseconds.
async fn latencies(runtime: &Runtime, number: u8, count: usize) -> (f64, f64) {
    let mut took = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        exec(runtime, number, "echo hi").await;
        took.push(ms(start));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    took.sort_by(f64::total_cmp);
    (took[count / 2], took[count * 99 / 100])
}
