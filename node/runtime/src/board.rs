//! The sandboxes of this node: who drives each, what is seen of each, and what must not come back.
//!
//! The lock is held for map look-ups alone, never across an await; readers outside get watches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fabric_types::{Digest, Generation, Phase, SandboxId, UnixMillis};
use tokio::sync::{Notify, watch};

use crate::activity;
use crate::reconcile::{HeldBack, Seen};
use crate::sandbox::Handle;
use crate::{AutoAction, Observed, RuntimeError};

/// Sandboxes of one node: what a host of the smallest supported fleet can hold (a monitor takes 22 MiB before its guest).
pub(crate) const SANDBOXES_MAX: usize = 200;
/// Deleted sandboxes that are remembered, so that an older intent doesn't bring one back: as many as are deleted in the
/// time that intents take to follow, with room.
const BURIED_MAX: usize = 4096;
/// A sandbox that was used so short a time ago is thought to be used on, ms.
const BUSY_MS: u64 = 5_000;
/// How long a `run` that failed is left alone by reconciliation, ms: whoever asked for it withdraws it meanwhile.
const FAILED_RUN_WAIT_MS: u64 = 5_000;

/// See the module.
pub(crate) struct Board {
    inner: Mutex<Inner>,
    observed: watch::Sender<Arc<BTreeMap<SandboxId, Observed>>>,
    due: watch::Sender<Arc<Vec<AutoAction>>>,
    /// Told when a request has moved a sandbox: the next reconcile step needn't wait.
    pub(crate) moved: Notify,
    /// Counts sets of intents, so that each sandbox knows which came after what was asked of it directly.
    intents: AtomicU64,
}

#[derive(Default)]
struct Inner {
    handles: BTreeMap<SandboxId, Handle>,
    held_back: BTreeMap<SandboxId, (UnixMillis, HeldBack)>,
}

/// What a new sandbox's entry met.
pub(crate) enum Entry {
    /// It is new: its driver was made.
    New(Handle),
    /// It was here already.
    Known(Handle),
}

impl Board {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::default(),
            observed: watch::Sender::new(Arc::default()),
            due: watch::Sender::new(Arc::default()),
            moved: Notify::new(),
            intents: AtomicU64::new(0),
        }
    }

    pub(crate) fn observed(&self) -> watch::Receiver<Arc<BTreeMap<SandboxId, Observed>>> {
        self.observed.subscribe()
    }

    pub(crate) fn due(&self) -> watch::Receiver<Arc<Vec<AutoAction>>> {
        self.due.subscribe()
    }

    /// The sandbox's driver.
    pub(crate) fn find(&self, id: &SandboxId) -> Option<Handle> {
        self.lock().handles.get(id).cloned()
    }

    /// All drivers.
    pub(crate) fn all(&self) -> Vec<Handle> {
        self.lock().handles.values().cloned().collect()
    }

    /// Manifests in the snapshot store that archived sandboxes of this node stand on.
    pub(crate) fn archives(&self) -> BTreeSet<Digest> {
        self.lock().handles.values().filter_map(Handle::archive).collect()
    }

    /// Whether a running sandbox was used a moment ago: what is made ahead gives way to it.
    pub(crate) fn is_busy(&self, now: UnixMillis) -> bool {
        self.all().iter().any(|handle| {
            let used = || now.0.saturating_sub(handle.last_activity(now).0) <= BUSY_MS;
            handle.look().1 == Phase::Running && used()
        })
    }

    /// Enters a sandbox that isn't here, with the driver that `make` starts.
    pub(crate) fn enter(
        &self,
        id: &SandboxId,
        generation: Generation,
        make: impl FnOnce() -> Handle,
    ) -> Result<Entry, RuntimeError> {
        let mut inner = self.lock();
        if let Some(handle) = inner.handles.get(id) {
            return Ok(Entry::Known(handle.clone()));
        }
        if let Some((_, HeldBack::Buried(buried))) = inner.held_back.get(id)
            && generation <= *buried
        {
            return Err(RuntimeError::Phase { id: id.clone(), phase: Phase::Gone, verb: "be created" });
        }
        if inner.handles.len() >= SANDBOXES_MAX {
            return Err(RuntimeError::Full { limit: SANDBOXES_MAX });
        }
        let handle = make();
        inner.handles.insert(id.clone(), handle.clone());
        Ok(Entry::New(handle))
    }

    /// Shows what a driver sees of its sandbox.
    pub(crate) fn show(&self, observed: Observed) {
        self.observed.send_if_modified(|all| {
            let changed = all.get(&observed.id) != Some(&observed);
            if changed {
                Arc::make_mut(all).insert(observed.id.clone(), observed);
            }
            changed
        });
    }

    /// Forgets a sandbox of which nothing is left.
    pub(crate) fn leave(&self, id: &SandboxId) {
        self.lock().handles.remove(id);
        self.observed.send_modify(|all| {
            Arc::make_mut(all).remove(id);
        });
    }

    /// Remembers that a sandbox was deleted under a generation.
    pub(crate) fn bury(&self, id: &SandboxId, generation: Generation, now: UnixMillis) {
        self.hold_back(id, HeldBack::Buried(generation), now);
    }

    /// Remembers that a `run` failed.
    pub(crate) fn run_failed(&self, id: &SandboxId, now: UnixMillis) {
        self.hold_back(id, HeldBack::Until(UnixMillis(now.0 + FAILED_RUN_WAIT_MS)), now);
    }

    fn hold_back(&self, id: &SandboxId, held: HeldBack, now: UnixMillis) {
        let mut inner = self.lock();
        inner.held_back.insert(id.clone(), (now, held));
        if inner.held_back.len() > BURIED_MAX {
            let oldest = inner.held_back.iter().min_by_key(|(_, (at, _))| *at).map(|(id, _)| id.clone());
            if let Some(oldest) = oldest {
                inner.held_back.remove(&oldest);
            }
        }
    }

    /// Notes that a new set of intents came.
    pub(crate) fn intents_came(&self) -> u64 {
        self.intents.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The newest set of intents, for a direct request to be newer than.
    pub(crate) fn intents_seen(&self) -> u64 {
        self.intents.load(Ordering::Relaxed)
    }

    /// What a reconcile step starts from.
    pub(crate) fn world(&self, intents: u64) -> (BTreeMap<SandboxId, Seen>, BTreeMap<SandboxId, HeldBack>) {
        let inner = self.lock();
        let seen = inner.handles.iter().map(|(id, handle)| (id.clone(), handle.seen(intents))).collect();
        let held = inner.held_back.iter().map(|(id, (_, held))| (id.clone(), *held)).collect();
        (seen, held)
    }

    /// Brings the last uses up to date and says what intervals ask for at `now`.
    pub(crate) fn tick(&self, now: UnixMillis) {
        let handles = self.all();
        let due: Vec<_> = handles
            .iter()
            .filter_map(|handle| {
                let (spec, phase) = handle.look();
                let verb = activity::due(&phase, spec.intervals, spec.created_at, handle.last_activity(now), now)?;
                Some(AutoAction { id: spec.id.clone(), generation: handle.generation, verb })
            })
            .collect();
        let due = Arc::new(due);
        self.due.send_if_modified(|old| {
            let changed = *old != due;
            *old = due;
            changed
        });
        let used: Vec<_> = handles.iter().map(|handle| (&handle.id, handle.last_activity(now))).collect();
        let stale = |all: &BTreeMap<SandboxId, Observed>| {
            used.iter().any(|(id, last)| all.get(*id).is_some_and(|observed| observed.last_activity < *last))
        };
        self.observed.send_if_modified(|all| {
            let changed = stale(all);
            if changed {
                let all = Arc::make_mut(all);
                for (id, last) in &used {
                    if let Some(observed) = all.get_mut(*id) {
                        observed.last_activity = observed.last_activity.max(*last);
                    }
                }
            }
            changed
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under this lock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fabric_types::{RegionCode, SandboxId};

    use super::*;
    use crate::sandbox::{State, handle};
    use crate::testing::spec;

    fn enter(board: &Board, number: u8, generation: u64) -> Result<Entry, RuntimeError> {
        let mut spec = spec(number);
        let region: RegionCode = "fra".parse().expect("a region");
        // Sixteen bytes modulo 36 make fewer ids than 256: the number in two of them.
        let mut chance = [0; 16];
        (chance[0], chance[1]) = (number / 36, number % 36);
        spec.id = SandboxId::new(&region, chance);
        let (id, generation) = (spec.id.clone(), Generation(generation));
        let (spec, phase) = (Arc::new(spec), Phase::Placed);
        let state = State { spec, phase, link: None, vm: None, archive: None, refused: None };
        board.enter(&id, generation, || handle(state, generation, UnixMillis(0), UnixMillis(0)).0)
    }

    #[test]
    fn a_node_holds_as_many_sandboxes_as_it_may_and_no_more() {
        let board = Board::new();
        for number in 0..200 {
            assert!(matches!(enter(&board, number, 1), Ok(Entry::New(_))), "{number}");
        }
        assert!(matches!(enter(&board, 200, 1), Err(RuntimeError::Full { limit: SANDBOXES_MAX })));
        assert!(matches!(enter(&board, 7, 1), Ok(Entry::Known(_))), "one that is here is found all the same");
        board.leave(&board.all()[0].id.clone());
        assert!(matches!(enter(&board, 200, 1), Ok(Entry::New(_))));
    }

    #[test]
    fn a_node_is_busy_while_a_running_sandbox_was_used_a_moment_ago() {
        let board = Board::new();
        for (number, phase) in [(1, Phase::Running), (2, Phase::Paused)] {
            let spec = spec(number);
            let (id, used) = (spec.id.clone(), UnixMillis(u64::from(number) * 10_000));
            let state = State { spec: Arc::new(spec), phase, link: None, vm: None, archive: None, refused: None };
            board.enter(&id, Generation(1), || handle(state, Generation(1), used, used).0).expect("entered");
        }
        assert!(board.is_busy(UnixMillis(10_000 + BUSY_MS)));
        assert!(!board.is_busy(UnixMillis(20_000)), "the paused one needs no processor");
    }

    #[test]
    fn what_was_buried_is_entered_again_under_a_higher_generation_alone() {
        let board = Board::new();
        let Ok(Entry::New(made)) = enter(&board, 1, 2) else { panic!("it is new") };
        board.leave(&made.id);
        board.bury(&made.id, Generation(2), UnixMillis(1));
        assert!(matches!(enter(&board, 1, 2), Err(RuntimeError::Phase { phase: Phase::Gone, .. })));
        assert!(matches!(enter(&board, 1, 3), Ok(Entry::New(_))));
    }

    #[test]
    fn the_graveyard_forgets_its_oldest() {
        let board = Board::new();
        for at in 0..=BURIED_MAX {
            let mut chance = [0; 16];
            (chance[0], chance[1], chance[2]) = ((at % 36) as u8, (at / 36 % 36) as u8, (at / 1296) as u8);
            let id = SandboxId::new(&"fra".parse().expect("a region"), chance);
            board.bury(&id, Generation(1), UnixMillis(at as u64));
        }
        let (_, held_back) = board.world(0);
        assert_eq!(held_back.len(), BURIED_MAX);
        let oldest = SandboxId::new(&"fra".parse().expect("a region"), [0; 16]);
        assert!(!held_back.contains_key(&oldest));
    }
}
