//! One sandbox: a handle for those who ask, and one driver task that alone changes it.
//!
//! ```text
//!                      +--------------------- driver task ---------------------+
//!  Handle -- queue --> | judge (pure) -> verb -> transition -> record, publish | -> state watch -> Handle
//!     |                |                   |                                   | -> board (observed)
//!     |                |          machine, guest link, home                    |
//!     +-- fast path: the link in the state watch, for a guest client           |
//!                      +-------------------------------------------------------+
//!
//!  Placed -> Starting -> Running <-> Paused        Running -> Snapshotting -> Running
//!               ^           |          |
//!               |           v          v
//!            Stopped <- Stopping <-----+           any -> Deleting -> (gone from the board)
//!             |  ^
//!             v  |
//!      Archiving -> Archived -> Starting           a Paused one may have its memory on disk and no machine (swap)
//!                                                  Starting, or a machine that ended by itself -> Failed
//! ```
//! The life itself is `fabric_types::transition`; nothing here goes around it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use fabric_types::{Digest, Generation, Phase, SandboxId, SandboxSpec, SnapshotId, UnixMillis};
use node_hypervisor::{Vm, VmError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::activity::Activity;
use crate::guest::{GuestClient, Link};
use crate::queue::{Ask, WAITING_MAX};
use crate::reconcile::Seen;
use crate::{Observed, RuntimeError, SnapshotOutcome, Usage, Verb};

mod adopt;
mod archive;
mod boot;
mod change;
mod create;
mod driver;
mod fork;
mod snapshot;
mod swap;
mod verbs;

pub(crate) use adopt::adopt;
pub(crate) use driver::{spawn, spawn_lost};
pub(crate) use fork::{Frozen, Way};

/// An answer's way back.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, RuntimeError>>;

/// What can be asked of a driver.
pub(crate) enum Request {
    /// Bring it to life for the first time.
    Run(Reply<Observed>),
    /// Change where it is in its life.
    Act(Verb, Reply<Observed>),
    /// Take a snapshot into the local store.
    Snapshot(SnapshotId, Reply<SnapshotOutcome>),
    /// Stand still for a moment, for children to be made of it.
    Freeze(Way, Reply<Frozen>),
    /// Bring it to life as a child of what was frozen; nothing was if its parent couldn't be.
    Fork(Option<Arc<Frozen>>, Reply<Observed>),
    /// Open a way to its agent.
    Connect(Reply<GuestClient>),
    /// Take a new spec.
    Update(Box<SandboxSpec>, Reply<Observed>),
}

impl Request {
    pub(crate) fn ask(&self) -> Ask {
        match self {
            Self::Run(_) | Self::Fork(..) => Ask::Run,
            Self::Act(verb, _) => (*verb).into(),
            Self::Snapshot(..) => Ask::Snapshot,
            Self::Freeze(..) => Ask::Fork,
            Self::Connect(_) => Ask::Connect,
            Self::Update(..) => Ask::Update,
        }
    }

    /// Answers with an error.
    pub(crate) fn refuse(self, error: RuntimeError) {
        // An error means that whoever asked has gone away.
        match self {
            Self::Run(reply) | Self::Act(_, reply) | Self::Fork(_, reply) | Self::Update(_, reply) => {
                drop(reply.send(Err(error)));
            }
            Self::Snapshot(_, reply) => drop(reply.send(Err(error))),
            Self::Freeze(_, reply) => drop(reply.send(Err(error))),
            Self::Connect(reply) => drop(reply.send(Err(error))),
        }
    }
}

/// A request with its place in the count of those that wait.
pub(crate) struct Envelope {
    pub(crate) request: Request,
    pub(crate) waiting: Waiting,
}

/// Counted until it is dropped.
pub(crate) struct Waiting(Arc<AtomicU32>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a driver shows to its own handle.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) spec: Arc<SandboxSpec>,
    pub(crate) phase: Phase,
    /// The way to the agent, while the sandbox runs.
    pub(crate) link: Option<Link>,
    /// Its machine, while it has one.
    pub(crate) vm: Option<Arc<dyn Vm>>,
    /// The manifest of its disk, while that lies in the snapshot store alone.
    pub(crate) archive: Option<Digest>,
    /// The newest spec that it was offered and that it can't take.
    pub(crate) refused: Option<Arc<SandboxSpec>>,
}

/// The way to a sandbox's driver.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) id: SandboxId,
    pub(crate) generation: Generation,
    pub(crate) begun_at: UnixMillis,
    queue: mpsc::Sender<Envelope>,
    state: watch::Receiver<State>,
    activity: Arc<Activity>,
    waiting: Arc<AtomicU32>,
    /// The newest set of intents when something was last asked directly.
    asked_after: Arc<AtomicU64>,
}

impl Handle {
    /// Refuses a caller whose generation isn't the sandbox's.
    pub(crate) fn check(&self, asked: Generation) -> Result<(), RuntimeError> {
        match asked.cmp(&self.generation) {
            std::cmp::Ordering::Less => Err(RuntimeError::Stale { id: self.id.clone(), have: self.generation, asked }),
            std::cmp::Ordering::Equal => Ok(()),
            // Of that placement nothing is here.
            std::cmp::Ordering::Greater => Err(RuntimeError::Unknown(self.id.clone())),
        }
    }

    /// Asks and waits for the answer. The work goes on if the future is dropped.
    pub(crate) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, RuntimeError> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply))?;
        // The driver ends without an answer when the sandbox is deleted before its turn, or the runtime ends.
        answer.await.unwrap_or_else(|_| Err(RuntimeError::Unknown(self.id.clone())))
    }

    /// Puts a request into the queue.
    pub(crate) fn send(&self, request: Request) -> Result<(), RuntimeError> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let envelope = Envelope { request, waiting: Waiting(self.waiting.clone()) };
        self.queue.try_send(envelope).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => RuntimeError::Busy(self.id.clone()),
            mpsc::error::TrySendError::Closed(_) => RuntimeError::Unknown(self.id.clone()),
        })
    }

    /// Asks something that intents up to set `newest` are older than; if it fails they count again.
    pub(crate) async fn ask_directly<T>(
        &self,
        newest: u64,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, RuntimeError> {
        self.asked_after.fetch_max(newest, Ordering::Relaxed);
        let answer = self.ask(request).await;
        if answer.is_err() {
            self.asked_after.store(0, Ordering::Relaxed);
        }
        answer
    }

    /// A client over the open link, without a round through the queue.
    pub(crate) fn open_client(&self) -> Option<GuestClient> {
        let state = self.state.borrow();
        let link = state.link.clone().filter(|link| state.phase == Phase::Running && !link.is_closed())?;
        Some(GuestClient::new(self.id.clone(), self.generation, link, self.activity.clone()))
    }

    /// The spec and phase.
    pub(crate) fn look(&self) -> (Arc<SandboxSpec>, Phase) {
        let state = self.state.borrow();
        (state.spec.clone(), state.phase.clone())
    }

    /// What its machine uses and has moved; none while it has no machine. It waits for no request that is under way.
    pub(crate) async fn usage(&self) -> Result<Option<Usage>, RuntimeError> {
        let Some(vm) = self.state.borrow().vm.clone() else { return Ok(None) };
        match tokio::try_join!(vm.counters(), vm.device_counters()) {
            Ok((machine, devices)) => Ok(Some(Usage { machine, devices })),
            Err(VmError::Ended { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The manifest of its disk, while that lies in the snapshot store alone.
    pub(crate) fn archive(&self) -> Option<Digest> {
        self.state.borrow().archive
    }

    /// The last use: a request, a change, or something that came from the guest.
    pub(crate) fn last_activity(&self, now: UnixMillis) -> UnixMillis {
        if let Some(link) = &self.state.borrow().link {
            self.activity.touch(link.last_traffic());
        }
        self.activity.last(now)
    }

    /// Whether nothing is under way or waiting.
    pub(crate) fn idle(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// What a reconcile step with the given set of intents knows of it.
    pub(crate) fn seen(&self, intents: u64) -> Seen {
        let (spec, phase) = self.look();
        let refused = self.state.borrow().refused.as_deref().cloned();
        let outdated = self.asked_after.load(Ordering::Relaxed) >= intents;
        Seen {
            spec: (*spec).clone(),
            generation: self.generation,
            phase,
            begun_at: self.begun_at,
            idle: self.idle(),
            outdated,
            refused,
        }
    }
}

/// The driver's ends of a handle's channels.
pub(crate) struct Seat {
    pub(crate) queue: mpsc::Receiver<Envelope>,
    pub(crate) state: watch::Sender<State>,
    pub(crate) activity: Arc<Activity>,
}

/// A handle and its driver's ends.
pub(crate) fn handle(state: State, generation: Generation, begun_at: UnixMillis, used: UnixMillis) -> (Handle, Seat) {
    let (queue, inbox) = mpsc::channel(WAITING_MAX);
    let activity = Arc::new(Activity::new(used));
    let id = state.spec.id.clone();
    let (sender, receiver) = watch::channel(state);
    let handle = Handle {
        id,
        generation,
        begun_at,
        queue,
        state: receiver,
        activity: activity.clone(),
        waiting: Arc::default(),
        asked_after: Arc::default(),
    };
    (handle, Seat { queue: inbox, state: sender, activity })
}
