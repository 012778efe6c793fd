//! Real machines against the model: random operations, one after the other, and no surprise. `ATOLL_MODEL_STEPS` and
//! `ATOLL_MODEL_SEED` make the walk longer or another one; a failure prints both.

// The package's own, which is public there; other tests use the rest of both.
#[path = "../src/model.rs"]
#[allow(dead_code, unreachable_pub)]
mod model;
#[allow(dead_code)]
mod place;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fabric_types::{Digest, Generation, SandboxSpec, Shape, Source};
use guest_proto::surface::{ExecReply, ExecRequest};
use http_body_util::{BodyExt, Full};
use model::{Expected, Model, Operation, Place as Where};
use node_runtime::{PoolLimits, RunRequest, Runtime, RuntimeError, Verb};
use node_snapshot::SnapshotStore;
use place::{Place, id, ms, request};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

const SANDBOXES: u8 = 3;
const DISK_GIB: u32 = 3;
/// Steps where nothing else is asked for: a minute on a busy host.
const STEPS: usize = 40;
/// Longest wait for the node to see that a machine has ended.
const SEEN_MAX: Duration = Duration::from_secs(60);

struct Walk {
    place: Place,
    store: Arc<SnapshotStore>,
    runtime: Option<Runtime>,
    model: Model,
    snapshots: BTreeMap<u8, Digest>,
    swaps: bool,
}

fn with_disk(number: u8, gib: u32) -> SandboxSpec {
    SandboxSpec { shape: Shape::new(1, 1024, gib.into()).expect("a shape"), ..request(number).spec }
}

impl Walk {
    async fn start(&mut self) {
        let mut config = self.place.config(PoolLimits::fixed(0));
        config.swap_after = self.swaps.then_some(Duration::ZERO);
        self.runtime = Some(self.place.start_from(config, self.store.clone()).await);
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("the node runs")
    }

    fn generation(&self, number: u8) -> Generation {
        Generation(self.model.get(number).map_or(1, |sandbox| sandbox.generation))
    }

    async fn step(&mut self, operation: Operation) {
        let before = self.model.clone();
        let expected = self.model.step(operation);
        if expected == Expected::Skip {
            return;
        }
        let start = Instant::now();
        let answer = self.carry_out(operation, &before).await;
        say(&format!("{operation:?}: {expected:?} in {:.1} ms", ms(start)));
        match (expected, &answer) {
            (Expected::Done, Ok(())) | (Expected::Refused, Err(_)) => {}
            (expected, answer) => panic!("{operation:?}: {expected:?}, and it was {answer:?}\n{before:?}"),
        }
        self.compare(operation).await;
    }

    async fn carry_out(&mut self, operation: Operation, before: &Model) -> Result<(), RuntimeError> {
        let gib = |number: u8| before.get(number).map_or(DISK_GIB, |sandbox| sandbox.disk_gib);
        match operation {
            Operation::Create(number) => {
                let request = RunRequest { spec: with_disk(number, gib(number)), generation: self.generation(number) };
                self.runtime().run(request).await.map(drop)
            }
            Operation::Write(number, value) => {
                let write = format!("echo {value} > /dev/shm/model; echo {value} > /root/model; sync");
                self.shell(number, &write).await;
                Ok(())
            }
            Operation::Pause(number) => {
                self.act(before, number, Verb::Pause).await?;
                // Answered when it is on disk, where it goes there.
                self.act(before, number, Verb::Pause).await
            }
            Operation::Resume(number) => self.act(before, number, Verb::Resume).await,
            Operation::Start(number) => self.act(before, number, Verb::Start).await,
            Operation::Stop { number, force } => self.act(before, number, Verb::Stop { force }).await,
            Operation::Archive(number) => self.act(before, number, Verb::Archive).await,
            Operation::Delete(number) => self.act(before, number, Verb::Delete).await,
            Operation::Fork { parent, child } => {
                let generation = self.generation(parent);
                let source = Source::Fork { parent: id(parent), generation };
                let spec = SandboxSpec { source, ..with_disk(child, gib(parent)) };
                let child = RunRequest { spec, generation: Generation(before.next_generation(child)) };
                let outcome = self.runtime().fork(&id(parent), generation, vec![child]).await?;
                say(&format!("stop {} us", outcome.stop_us));
                outcome.children.into_iter().next().expect("one was asked for").map(drop)
            }
            Operation::Snapshot(number) => {
                let snapshot = "snap-aaaaaaaaaaaaaaaa".parse().expect("a snapshot id");
                let taken = self.runtime().snapshot(&id(number), self.generation(number), snapshot).await?;
                self.snapshots.insert(number, taken.manifest);
                Ok(())
            }
            Operation::Restore { number, of } => {
                let source = Source::Snapshot { manifest: self.snapshots[&of] };
                let gib = self.model.get(number).map_or(DISK_GIB, |sandbox| sandbox.disk_gib);
                let spec = SandboxSpec { source, ..with_disk(number, gib) };
                self.runtime().run(RunRequest { spec, generation: self.generation(number) }).await.map(drop)
            }
            Operation::Resize { number, disk_gib } => {
                self.runtime().update(with_disk(number, disk_gib), self.generation(number)).await.map(drop)
            }
            Operation::Kill(number) => {
                kill(&self.place, number);
                let mut observed = self.runtime().observed();
                let failed = observed.wait_for(|all| all[&id(number)].phase.as_str() == "failed");
                tokio::time::timeout(SEEN_MAX, failed).await.expect("seen in time").expect("the runtime runs");
                Ok(())
            }
            Operation::Restart { killed } => {
                drop(self.runtime.take());
                let has_machine = |number: &u8| match before.get(*number).map(|sandbox| sandbox.place) {
                    Some(Where::Running) => true,
                    Some(Where::Paused) => !self.swaps,
                    Some(Where::Stopped | Where::Archived | Where::Failed) | None => false,
                };
                if let Some(number) = killed.filter(has_machine) {
                    kill(&self.place, number);
                }
                self.start().await;
                Ok(())
            }
        }
    }

    async fn act(&self, before: &Model, number: u8, verb: Verb) -> Result<(), RuntimeError> {
        let generation = before.get(number).map_or(1, |sandbox| sandbox.generation);
        self.runtime().act(&id(number), Generation(generation), verb).await.map(drop)
    }

    async fn shell(&self, number: u8, command: &str) -> String {
        let client = self.runtime().guest(&id(number), self.generation(number)).await.expect("a client");
        let ask = ExecRequest { command: command.to_owned(), merge: true, ..ExecRequest::default() };
        let body = Full::new(Bytes::from(serde_json::to_vec(&ask).expect("JSON")));
        let ask = http::Request::post("/v1/exec").header("content-type", "application/json").body(body);
        let answer = client.send(ask.expect("a request")).await.expect("an answer");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        let reply: ExecReply = serde_json::from_slice(&body).expect("a reply");
        let output = STANDARD.decode(&reply.stdout).expect("base64");
        let output = String::from_utf8_lossy(&output).trim().to_owned();
        assert_eq!(reply.exit_code, 0, "{command}: {output}");
        output
    }

    /// Everything that is seen is what the model says.
    async fn compare(&self, operation: Operation) {
        let observed = self.runtime().observed().borrow().clone();
        assert_eq!(observed.len(), self.model.sandboxes().len(), "{operation:?}: {observed:?}");
        for (number, modelled) in self.model.sandboxes() {
            let seen = &observed[&id(*number)];
            assert_eq!(seen.phase.as_str(), modelled.place.as_str(), "{operation:?}: {number}");
            assert_eq!(seen.generation, Generation(modelled.generation), "{operation:?}: {number}");
            if modelled.place != Where::Running {
                continue;
            }
            let look = "cat /dev/shm/model 2>/dev/null || echo 0; cat /root/model 2>/dev/null || echo 0; hostname";
            let found = self.shell(*number, look).await;
            let wanted = format!("{}\n{}\nBox-{number}", modelled.memory, modelled.disk);
            assert_eq!(found, wanted, "{operation:?}: {number} {modelled:?}");
        }
    }
}

/// Kills the monitor of a sandbox, found by its command line.
fn kill(place: &Place, number: u8) {
    let home = place.path("node").join("sandboxes").join(id(number).as_str());
    let home = home.to_str().expect("a plain path");
    let entries = std::fs::read_dir("/proc").expect("listed").filter_map(Result::ok);
    let monitors = entries.filter(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.contains("qemu-system") && line.contains(home)
    });
    let pids: Vec<i32> =
        monitors.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).collect();
    assert_eq!(pids.len(), 1, "one monitor of {home}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pids[0]), nix::sys::signal::Signal::SIGKILL).expect("killed");
}

async fn walk(swaps: bool, seed: u64) {
    let Some(place) = Place::new("random operations against the model") else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let steps = number("ATOLL_MODEL_STEPS").map_or(STEPS, |steps| usize::try_from(steps).expect("small"));
    let seed = number("ATOLL_MODEL_SEED").unwrap_or(seed);
    say(&format!("ATOLL_MODEL_SEED={seed} ATOLL_MODEL_STEPS={steps}"));
    let store = place.store().await;
    let model = Model::new(DISK_GIB, swaps);
    let mut walk = Walk { place, store, runtime: None, model, snapshots: BTreeMap::new(), swaps };
    walk.start().await;
    let mut chance = StdRng::seed_from_u64(seed);
    for _ in 0..steps {
        walk.step(Operation::from_chance(chance.next_u64(), SANDBOXES, DISK_GIB)).await;
    }
    walk.runtime().destroy_all(Duration::from_secs(60)).await;
    assert!(walk.place.left().is_empty(), "{:?}", walk.place.left());
    assert!(walk.place.processes().is_empty(), "{:?}", walk.place.processes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_random_operations_meet_the_model() {
    walk(false, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_random_operations_meet_the_model_where_what_is_paused_goes_to_disk() {
    walk(true, 2).await;
}

/// A line for whoever reads the test's output. Standard error may be closed; then nobody reads it.
fn say(line: &str) {
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{line}\n"));
}
