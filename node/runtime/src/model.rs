//! What anyone may expect of sandboxes on one node: a pure model, to hold a real node against.
//!
//! A test draws operations, steps the model, carries each out on its node, and compares: the answer with
//! [`Expected`], and what is seen of each sandbox with [`Model::sandboxes`]. It knows nothing of time, of machines or of
//! where memory lies: that a sandbox went to disk and came back must not show.
//!
//! Memory and disk are a number each: what [`Operation::Write`] last wrote there. Under a real guest that is a process that
//! holds it and a file that has it; a stop ends the process and keeps the file.

use std::collections::BTreeMap;

/// Where a sandbox is, as far as the model can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It answers.
    Running,
    /// Its memory is kept.
    Paused,
    /// Its disk is kept.
    Stopped,
    /// Its disk is kept, in the snapshot store.
    Archived,
    /// It can be deleted.
    Failed,
}

impl Place {
    /// The phase's name, as `Phase::as_str` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Archived => "archived",
            Self::Failed => "failed",
        }
    }
}

/// A sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modelled {
    /// Where it is.
    pub place: Place,
    /// What was last written into its memory, while it has one; 0 before anything was.
    pub memory: u32,
    /// What was last written to its disk.
    pub disk: u32,
    /// GiB of its disk.
    pub disk_gib: u32,
    /// Its placement: above every one that its number has had.
    pub generation: u64,
}

/// What was taken of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Its memory.
    pub memory: u32,
    /// Its disk.
    pub disk: u32,
    /// GiB of its disk.
    pub disk_gib: u32,
}

/// Something that is done to a node or a sandbox, which is known by a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Bring a sandbox to life from the template.
    Create(u8),
    /// Write a number into its memory and to its disk.
    Write(u8, u32),
    /// Stop its processors.
    Pause(u8),
    /// Let them run.
    Resume(u8),
    /// Boot it.
    Start(u8),
    /// End its machine, by asking its guest or without.
    Stop {
        /// Which.
        number: u8,
        /// Without asking.
        force: bool,
    },
    /// Move its disk into the snapshot store.
    Archive(u8),
    /// Make a child of it.
    Fork {
        /// Of which.
        parent: u8,
        /// Which child.
        child: u8,
    },
    /// Take a snapshot of it, which replaces an earlier one.
    Snapshot(u8),
    /// Bring a sandbox to life from the snapshot of another.
    Restore {
        /// Which.
        number: u8,
        /// Whose snapshot.
        of: u8,
    },
    /// Give it a disk of so many GiB.
    Resize {
        /// Which.
        number: u8,
        /// GiB.
        disk_gib: u32,
    },
    /// Remove it.
    Delete(u8),
    /// End its machine from outside, as a crash would, and wait until the node has seen it.
    Kill(u8),
    /// End the node's process and start another, with a machine killed meanwhile, if its number is of one that has one.
    Restart {
        /// Whose.
        killed: Option<u8>,
    },
}

impl Operation {
    /// An operation out of chance, among so many sandboxes and disks of `least_gib` and up to two more.
    pub fn from_chance(chance: u64, sandboxes: u8, least_gib: u32) -> Self {
        let byte = |at: u32| (chance >> (8 * at)).to_le_bytes()[0];
        let (number, other) = (byte(1) % sandboxes, byte(2) % sandboxes);
        match byte(0) % 32 {
            0..=2 => Self::Create(number),
            3..=7 => Self::Write(number, u32::from(byte(3)) << 8 | u32::from(byte(4)) | 1),
            8..=11 => Self::Pause(number),
            12..=15 => Self::Resume(number),
            16..=18 => Self::Start(number),
            19..=20 => Self::Stop { number, force: byte(3) & 1 == 1 },
            21..=22 => Self::Archive(number),
            23..=25 => Self::Fork { parent: number, child: other },
            26 => Self::Snapshot(number),
            27 => Self::Restore { number, of: other },
            28 => Self::Resize { number, disk_gib: least_gib + u32::from(byte(3) % 3) },
            29 => Self::Delete(number),
            30 => Self::Kill(number),
            _ => Self::Restart { killed: (byte(3) & 1 == 1).then_some(number) },
        }
    }
}

/// What must come of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It is carried out, or there was nothing left to do.
    Done,
    /// It is refused, and changes nothing.
    Refused,
    /// It makes no sense here, and isn't to be asked: there is no such sandbox or snapshot, or there is one already.
    Skip,
}

/// What is expected of one node.
#[derive(Debug, Clone, Default)]
pub struct Model {
    sandboxes: BTreeMap<u8, Modelled>,
    snapshots: BTreeMap<u8, Taken>,
    /// The newest placement of each number.
    generations: BTreeMap<u8, u64>,
    /// GiB of a new sandbox's disk.
    disk_gib: u32,
    /// Whether a paused sandbox goes to disk before anything else happens to it: then it has no machine to lose.
    swaps_at_once: bool,
}

impl Model {
    /// A node without sandboxes.
    pub fn new(disk_gib: u32, swaps_at_once: bool) -> Self {
        Self { disk_gib, swaps_at_once, ..Self::default() }
    }

    /// What is there.
    pub fn sandboxes(&self) -> &BTreeMap<u8, Modelled> {
        &self.sandboxes
    }

    /// A sandbox that is there.
    pub fn get(&self, number: u8) -> Option<&Modelled> {
        self.sandboxes.get(&number)
    }

    /// The snapshot of a sandbox, which may be gone itself.
    pub fn snapshot(&self, of: u8) -> Option<&Taken> {
        self.snapshots.get(&of)
    }

    /// The placement under which a sandbox of this number would begin now.
    pub fn next_generation(&self, number: u8) -> u64 {
        self.generations.get(&number).map_or(1, |generation| generation + 1)
    }

    /// Carries an operation out.
    pub fn step(&mut self, operation: Operation) -> Expected {
        match operation {
            Operation::Create(number) => match self.place(number) {
                None => self.begin(number, Taken { memory: 0, disk: 0, disk_gib: self.disk_gib }),
                Some(Place::Failed) => Expected::Refused,
                Some(_) => Expected::Done,
            },
            Operation::Write(number, value) => match self.sandboxes.get_mut(&number) {
                Some(sandbox) if sandbox.place == Place::Running => {
                    (sandbox.memory, sandbox.disk) = (value, value);
                    Expected::Done
                }
                _ => Expected::Skip,
            },
            Operation::Pause(number) => self.go(number, &[Place::Running, Place::Paused], Place::Paused),
            Operation::Resume(number) => self.go(number, &[Place::Running, Place::Paused], Place::Running),
            Operation::Start(number) => {
                self.go(number, &[Place::Running, Place::Stopped, Place::Archived], Place::Running)
            }
            Operation::Stop { number, .. } => match self.place(number) {
                Some(Place::Archived) => Expected::Done,
                _ => self.go(number, &[Place::Running, Place::Paused, Place::Stopped], Place::Stopped),
            },
            Operation::Archive(number) => self.go(number, &[Place::Stopped, Place::Archived], Place::Archived),
            Operation::Fork { parent, child } => self.fork(parent, child),
            Operation::Snapshot(number) => match self.sandboxes.get(&number) {
                None => Expected::Skip,
                Some(sandbox) if sandbox.place == Place::Running => {
                    self.snapshots.insert(number, taken(sandbox));
                    Expected::Done
                }
                Some(_) => Expected::Refused,
            },
            Operation::Restore { number, of } => match (self.place(number), self.snapshots.get(&of).copied()) {
                (None, Some(taken)) => self.begin(number, taken),
                _ => Expected::Skip,
            },
            Operation::Resize { number, disk_gib } => self.resize(number, disk_gib),
            Operation::Delete(number) => match self.sandboxes.remove(&number) {
                Some(_) => Expected::Done,
                None => Expected::Skip,
            },
            Operation::Kill(number) => match self.sandboxes.get_mut(&number) {
                Some(sandbox) if has_machine(sandbox.place, self.swaps_at_once) => {
                    (sandbox.place, sandbox.memory) = (Place::Failed, 0);
                    Expected::Done
                }
                _ => Expected::Skip,
            },
            Operation::Restart { killed } => {
                if let Some(sandbox) = killed.and_then(|number| self.sandboxes.get_mut(&number))
                    && has_machine(sandbox.place, self.swaps_at_once)
                {
                    // Nobody was there to see it: what is left is a disk.
                    (sandbox.place, sandbox.memory) = (Place::Stopped, 0);
                }
                Expected::Done
            }
        }
    }

    fn place(&self, number: u8) -> Option<Place> {
        self.sandboxes.get(&number).map(|sandbox| sandbox.place)
    }

    fn begin(&mut self, number: u8, from: Taken) -> Expected {
        let generation = self.next_generation(number);
        self.generations.insert(number, generation);
        let Taken { memory, disk, disk_gib } = from;
        self.sandboxes.insert(number, Modelled { place: Place::Running, memory, disk, disk_gib, generation });
        Expected::Done
    }

    /// Goes to a place from some of them. Memory lasts between running and paused alone.
    fn go(&mut self, number: u8, from: &[Place], to: Place) -> Expected {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else { return Expected::Skip };
        if !from.contains(&sandbox.place) {
            return Expected::Refused;
        }
        let kept = matches!((sandbox.place, to), (Place::Running | Place::Paused, Place::Running | Place::Paused));
        if !kept {
            sandbox.memory = 0;
        }
        sandbox.place = to;
        Expected::Done
    }

    fn fork(&mut self, parent: u8, child: u8) -> Expected {
        let Some(sandbox) = self.sandboxes.get(&parent) else { return Expected::Skip };
        if self.sandboxes.contains_key(&child) {
            return Expected::Skip;
        }
        match sandbox.place {
            Place::Running | Place::Paused => {
                let from = taken(sandbox);
                self.begin(child, from)
            }
            Place::Stopped | Place::Archived | Place::Failed => Expected::Refused,
        }
    }

    fn resize(&mut self, number: u8, disk_gib: u32) -> Expected {
        let Some(sandbox) = self.sandboxes.get_mut(&number) else { return Expected::Skip };
        if disk_gib == sandbox.disk_gib {
            return Expected::Done;
        }
        let grows = matches!(sandbox.place, Place::Running | Place::Stopped | Place::Archived);
        if disk_gib < sandbox.disk_gib || !grows {
            return Expected::Refused;
        }
        sandbox.disk_gib = disk_gib;
        Expected::Done
    }
}

fn taken(sandbox: &Modelled) -> Taken {
    Taken { memory: sandbox.memory, disk: sandbox.disk, disk_gib: sandbox.disk_gib }
}

fn has_machine(place: Place, swaps_at_once: bool) -> bool {
    match place {
        Place::Running => true,
        Place::Paused => !swaps_at_once,
        Place::Stopped | Place::Archived | Place::Failed => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn memory_lasts_through_a_pause_and_a_fork_and_ends_with_a_stop() {
        let mut model = Model::new(3, false);
        for operation in [
            Operation::Create(1),
            Operation::Write(1, 7),
            Operation::Pause(1),
            Operation::Fork { parent: 1, child: 2 },
            Operation::Stop { number: 1, force: false },
        ] {
            assert_eq!(model.step(operation), Expected::Done, "{operation:?}");
        }
        let of = |number| model.get(number).map(|sandbox| (sandbox.place, sandbox.memory, sandbox.disk));
        assert_eq!(of(1), Some((Place::Stopped, 0, 7)));
        assert_eq!(of(2), Some((Place::Running, 7, 7)));
    }

    proptest! {
        #[test]
        fn what_is_refused_or_skipped_changes_nothing(chances in proptest::collection::vec(any::<u64>(), 0..200)) {
            let mut model = Model::new(3, false);
            for chance in chances {
                let before = model.clone();
                let operation = Operation::from_chance(chance, 4, 3);
                let expected = model.step(operation);
                let same = model.sandboxes == before.sandboxes && model.snapshots == before.snapshots;
                prop_assert!(same || expected == Expected::Done, "{:?}", operation);
            }
        }
    }
}
