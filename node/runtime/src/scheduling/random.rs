//! A node with the driver double against the model: random operations, one after the other, and no surprise.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};

use fabric_types::{Digest, SandboxSpec, Source};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::*;
use crate::model::{Expected, Model, Modelled, Operation, Place};

/// Sandboxes that the operations are about: enough to fork and restore among, few enough to meet each in every phase.
const SANDBOXES: u8 = 5;
const DISK_GIB: u32 = 3;
/// Steps of one walk.
const STEPS: usize = 400;

struct Walk {
    node: Node,
    runtime: Option<Runtime>,
    model: Model,
    /// Manifests of snapshots, by whose they are.
    snapshots: BTreeMap<u8, Digest>,
}

impl Walk {
    /// A node whose forks are copies, or whose paused sandboxes go to disk.
    async fn new(swaps: bool) -> Self {
        let mut node = Node::new().await;
        if !swaps {
            node.copies();
        }
        node.swap_after = swaps.then_some(Duration::ZERO);
        let runtime = node.start(1).await;
        Self { node, runtime: Some(runtime), model: Model::new(DISK_GIB, swaps), snapshots: BTreeMap::new() }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("the node runs")
    }

    fn generation(&self, number: u8) -> Generation {
        Generation(self.model.get(number).map_or(1, |sandbox| sandbox.generation))
    }

    /// The spec of a sandbox as the model has it, or would begin it.
    fn spec(&self, number: u8) -> SandboxSpec {
        let gib = self.model.get(number).map_or(DISK_GIB, |sandbox| sandbox.disk_gib);
        with_disk(spec(number), gib)
    }

    async fn step(&mut self, operation: Operation) {
        let before = self.model.clone();
        let expected = self.model.step(operation);
        if expected == Expected::Skip {
            return;
        }
        let answer = self.carry_out(operation, &before).await;
        match (expected, &answer) {
            (Expected::Done, Ok(())) | (Expected::Refused, Err(_)) => {}
            (expected, answer) => panic!("{operation:?}: {expected:?}, and it was {answer:?}\n{before:?}"),
        }
        self.compare(operation).await;
    }

    async fn carry_out(&mut self, operation: Operation, before: &Model) -> Result<(), RuntimeError> {
        let act = async |number: u8, verb| {
            let generation = before.get(number).map_or(1, |sandbox| sandbox.generation);
            self.runtime().act(&spec(number).id, Generation(generation), verb).await
        };
        match operation {
            Operation::Create(number) => {
                let request = RunRequest { spec: self.spec(number), generation: self.generation(number) };
                self.runtime().run(request).await.map(drop)
            }
            Operation::Write(number, value) => {
                self.write(number, value);
                Ok(())
            }
            Operation::Pause(number) => {
                act(number, Verb::Pause).await?;
                // Answered when it is on disk, where it goes there.
                act(number, Verb::Pause).await.map(drop)
            }
            Operation::Resume(number) => act(number, Verb::Resume).await.map(drop),
            Operation::Start(number) => act(number, Verb::Start).await.map(drop),
            Operation::Stop { number, force } => act(number, Verb::Stop { force }).await.map(drop),
            Operation::Archive(number) => act(number, Verb::Archive).await.map(drop),
            Operation::Delete(number) => act(number, Verb::Delete).await.map(drop),
            Operation::Fork { parent, child } => {
                let generation = self.generation(parent);
                let source = Source::Fork { parent: spec(parent).id, generation };
                let gib = before.get(parent).map_or(DISK_GIB, |sandbox| sandbox.disk_gib);
                let child = RunRequest {
                    spec: SandboxSpec { source, ..with_disk(spec(child), gib) },
                    generation: Generation(before.next_generation(child)),
                };
                let outcome = self.runtime().fork(&spec(parent).id, generation, vec![child]).await?;
                outcome.children.into_iter().next().expect("one was asked for").map(drop)
            }
            Operation::Snapshot(number) => {
                let id = "snap-aaaaaaaaaaaaaaaa".parse().expect("a snapshot id");
                let taken = self.runtime().snapshot(&spec(number).id, self.generation(number), id).await?;
                self.snapshots.insert(number, taken.manifest);
                Ok(())
            }
            Operation::Restore { number, of } => {
                let source = Source::Snapshot { manifest: self.snapshots[&of] };
                let spec = SandboxSpec { source, ..self.spec(number) };
                self.runtime().run(RunRequest { spec, generation: self.generation(number) }).await.map(drop)
            }
            Operation::Resize { number, disk_gib } => {
                let generation = self.generation(number);
                self.runtime().update(with_disk(self.spec(number), disk_gib), generation).await.map(drop)
            }
            Operation::Kill(number) => {
                self.machine(number).die();
                in_phase(self.runtime(), number, "failed").await;
                Ok(())
            }
            Operation::Restart { killed } => {
                full(self.runtime(), 1).await;
                drop(self.runtime.take());
                if let Some(number) = killed
                    && let Some(machine) = self.node.driver.of(spec(number).id.as_str())
                {
                    machine.die();
                }
                self.runtime = Some(self.node.start(1).await);
                Ok(())
            }
        }
    }

    fn machine(&self, number: u8) -> Arc<crate::double::Machine> {
        self.node.driver.of(spec(number).id.as_str()).expect("it has a machine")
    }

    /// Writes into memory and, where no file system looks, to the disk.
    fn write(&self, number: u8, value: u32) {
        let machine = self.machine(number);
        *machine.memory.lock().expect("no test panics in here") = value.to_string();
        let mut disk = std::fs::OpenOptions::new().write(true).open(&machine.spec().disk).expect("a disk");
        disk.seek(SeekFrom::Start(0)).and_then(|_| disk.write_all(&value.to_le_bytes())).expect("written");
    }

    /// Everything that is seen is what the model says, and nothing else is there.
    async fn compare(&self, operation: Operation) {
        for (number, modelled) in self.model.sandboxes() {
            in_phase(self.runtime(), *number, modelled.place.as_str()).await;
            self.compare_one(*number, modelled, operation);
            let client = self.runtime().guest(&spec(*number).id, Generation(modelled.generation)).await;
            assert_eq!(client.is_ok(), modelled.place == Place::Running, "{operation:?}: {number}");
        }
        assert_eq!(self.runtime().observed().borrow().len(), self.model.sandboxes().len(), "{operation:?}");
        let archived = self.model.sandboxes().values().filter(|sandbox| sandbox.place == Place::Archived).count();
        assert!(self.runtime().archives().len() <= archived, "{operation:?}");
    }

    fn compare_one(&self, number: u8, modelled: &Modelled, operation: Operation) {
        let seen = self.runtime().observed().borrow()[&spec(number).id].clone();
        assert_eq!(seen.generation, Generation(modelled.generation), "{operation:?}: {number}");
        let machine = self.node.driver.of(spec(number).id.as_str());
        let lives = match modelled.place {
            Place::Running => true,
            Place::Paused => self.node.swap_after.is_none(),
            Place::Stopped | Place::Archived | Place::Failed => false,
        };
        assert_eq!(machine.is_some(), lives, "{operation:?}: {number} {modelled:?}");
        let Some(machine) = machine else { return };
        let memory = machine.memory.lock().expect("no test panics in here").parse().unwrap_or(0);
        let mut disk = std::fs::File::open(&machine.spec().disk).expect("a disk");
        let mut bytes = [0; 4];
        disk.read_exact(&mut bytes).expect("read");
        let found = (memory, u32::from_le_bytes(bytes), disk.metadata().expect("there").len());
        let wanted = (modelled.memory, modelled.disk, u64::from(modelled.disk_gib) << 30);
        assert_eq!(found, wanted, "{operation:?}: {number} {modelled:?}");
        if modelled.place == Place::Running {
            assert_eq!(machine.file_system_bytes(), wanted.2, "{operation:?}: {number}");
        }
    }

    async fn end(self) {
        self.runtime().destroy_all(LIMIT).await;
        assert!(self.node.left().is_empty(), "{:?}", self.node.left());
        assert!(self.node.driver.living().is_empty());
    }
}

fn with_disk(spec: SandboxSpec, gib: u32) -> SandboxSpec {
    let shape = Shape::new(1, 1024, gib.into()).expect("a shape");
    SandboxSpec { shape, ..spec }
}

async fn walk(seed: u64, swaps: bool) {
    println!("seed {seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let mut walk = Walk::new(swaps).await;
    for _ in 0..STEPS {
        let operation = Operation::from_chance(chance.next_u64(), SANDBOXES, DISK_GIB);
        walk.step(operation).await;
    }
    walk.end().await;
}

#[tokio::test]
async fn random_operations_meet_the_model() {
    for seed in 1..=4 {
        walk(seed, false).await;
    }
}

#[tokio::test]
async fn random_operations_meet_the_model_where_what_is_paused_goes_to_disk() {
    for seed in 5..=8 {
        walk(seed, true).await;
    }
}
