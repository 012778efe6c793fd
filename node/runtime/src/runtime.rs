//! The runtime's door: who is asked for what, and what goes on beside it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fabric_types::{Generation, Phase, SandboxId, SnapshotId};
use node_hypervisor::{Hypervisor, VmFolder, checkpoint_is_current};
use node_network::{Networks, Port};
use node_snapshot::SnapshotStore;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::board::{Board, Entry};
use crate::budget::Budgets;
use crate::checkpoint::Checkpoints;
use crate::context::{Context, HEAVY_MAX, claims_max};
use crate::durable::blocking;
use crate::folder::{Folders, Found};
use crate::network::{Network, Plugs};
use crate::pool::{self, Keeper, Pool, Warm};
use crate::reconcile::{self, Command};
use crate::room::Room;
use crate::sandbox::{self, Handle, Request};
use crate::template::Templates;
use crate::{
    AutoAction, CreateBudget, GuestClient, Intent, Observed, PoolStatus, RunRequest, RuntimeConfig, RuntimeError,
    SnapshotOutcome, Usage, Verb, clock, machine,
};

mod living;

/// How often intervals are looked at and last uses are brought up to date: intervals count minutes.
const TICK: Duration = Duration::from_secs(1);
/// How often intents are looked at again without new ones: retries, and graces that have passed.
const RECONCILE_EVERY: Duration = Duration::from_secs(2);
/// How often a drain looks whether all is done.
const DRAIN_EVERY: Duration = Duration::from_millis(10);
/// A `run` under a newer generation deletes the older sandbox first; twice would be two newer ones at once.
const RUN_TRIES: usize = 3;

/// All sandboxes of one node.
///
/// Cloning it is cheap. When the last clone is dropped its tasks end and the machines live on, for the next
/// [`start`](Self::start) in the same folders.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<Context>,
    intents: watch::Sender<Intents>,
    _tasks: DropGuard,
}

/// A set of intents with its number.
#[derive(Debug, Clone, Default)]
struct Intents {
    number: u64,
    /// `None` until the first set comes: nothing is known of what is wanted.
    all: Option<Arc<Vec<Intent>>>,
}

impl Runtime {
    /// Takes over what an earlier process of this node left: adopts what lives, removes what is half-made, starts the
    /// pool. Returns when every sandbox that was here is shown by [`observed`](Self::observed). Without `networks` guests
    /// have a card and no carrier.
    ///
    /// # Errors
    /// When a folder can't be made or read, or a record is newer than this version; nothing is touched then.
    pub async fn start(
        config: RuntimeConfig,
        driver: Arc<dyn Hypervisor>,
        snapshots: Arc<SnapshotStore>,
        networks: Option<Networks>,
    ) -> Result<Self, RuntimeError> {
        let network = Network::new(networks.map(|networks| Arc::new(networks) as Arc<dyn Plugs>));
        Self::start_over(config, driver, snapshots, network, checkpoint_is_current).await
    }

    /// [`start`](Self::start), over any network, with checkpoints that are current where this says so.
    pub(crate) async fn start_over(
        config: RuntimeConfig,
        driver: Arc<dyn Hypervisor>,
        snapshots: Arc<SnapshotStore>,
        network: Network,
        is_current: fn(&Path) -> bool,
    ) -> Result<Self, RuntimeError> {
        let begun = Instant::now();
        let made = config.clone();
        let (folders, found) = blocking(move || {
            let folders = Folders::make(&made)?;
            let found = folders.scan()?;
            Ok::<_, RuntimeError>((folders, found))
        })
        .await?;
        let (pool, seat) = Pool::new();
        let ended = CancellationToken::new();
        let context = Arc::new(Context {
            templates: Templates::new(config.clone(), driver.clone()),
            checkpoints: Checkpoints::new(config.templates.clone(), is_current),
            config,
            folders,
            driver,
            store: snapshots,
            network,
            room: Room::new(),
            budgets: Budgets::default(),
            board: Board::new(),
            pool,
            heavy: Semaphore::new(HEAVY_MAX),
            claims: Semaphore::new(claims_max()),
            draining: ended.child_token(),
            ended: ended.clone(),
        });
        let tasks = ended.drop_guard();
        let warm = take_over(&context, found).await?;
        let adopted_warm = warm.len();
        tokio::spawn(Keeper::new(context.clone(), seat, warm).run());
        let (intents, newest) = watch::channel(Intents::default());
        tokio::spawn(follow(context.clone(), newest));
        tracing::info!(
            node_id = %context.config.node, sandboxes = context.board.all().len(), adopted_warm,
            took_ms = begun.elapsed().as_millis(), "runtime started"
        );
        Ok(Self { inner: Arc::new(Inner { context, intents, _tasks: tasks }) })
    }

    /// Brings a sandbox to life and answers when its guest has its identity. From a template that is a warm clone's
    /// resume, a clone made on demand where none is warm, or a boot where the shape is new; from a snapshot, whose
    /// chunks must be in the store, its memory and processes go on.
    ///
    /// Idempotent for the same id and generation; a higher generation replaces what is here.
    ///
    /// # Errors
    /// Nothing is left of the sandbox then. [`RuntimeError::Phase`] with `Gone` for one that was deleted here.
    ///
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub async fn run(&self, request: RunRequest) -> Result<Observed, RuntimeError> {
        let context = &self.inner.context;
        for _ in 0..RUN_TRIES {
            match run(context, request.clone())? {
                Entered::At(handle) => {
                    return handle.ask_directly(context.board.intents_seen(), Request::Run).await;
                }
                Entered::Older(handle) => {
                    handle.ask(|reply| Request::Act(Verb::Delete, reply)).await?;
                }
            }
        }
        Err(RuntimeError::Busy(request.spec.id))
    }

    /// Changes where a sandbox is in its life, and answers when it is there.
    ///
    /// # Errors
    /// [`RuntimeError::Stale`] for a lower generation than the sandbox's, [`RuntimeError::Unknown`] for a higher one or
    /// an unknown sandbox; deleting an unknown one is a success.
    ///
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub async fn act(&self, id: &SandboxId, generation: Generation, verb: Verb) -> Result<Observed, RuntimeError> {
        let context = &self.inner.context;
        let Some(handle) = context.board.find(id) else {
            if verb != Verb::Delete {
                return Err(RuntimeError::Unknown(id.clone()));
            }
            // Whatever run of it is on its way here comes too late.
            context.board.bury(id, generation, clock::now());
            return Ok(Observed { id: id.clone(), generation, phase: Phase::Gone, last_activity: clock::now() });
        };
        match (verb, generation > handle.generation) {
            // What is here belongs to an earlier placement than the one that is to go: both go.
            (Verb::Delete, true) => {}
            _ => handle.check(generation)?,
        }
        handle.ask_directly(context.board.intents_seen(), |reply| Request::Act(verb, reply)).await
    }

    /// Takes a snapshot of a running sandbox into the local store. The sandbox stands still for milliseconds; the
    /// answer comes when all is durable in the store. The first snapshot of a template's clone stores the template too.
    ///
    /// # Cancel safety
    /// The work goes on if the future is dropped.
    pub async fn snapshot(
        &self,
        id: &SandboxId,
        generation: Generation,
        snapshot: SnapshotId,
    ) -> Result<SnapshotOutcome, RuntimeError> {
        let handle = self.find(id, generation)?;
        handle.ask(|reply| Request::Snapshot(snapshot, reply)).await
    }

    /// A client of a running sandbox's agent. Microseconds, unless the session has to be opened anew.
    pub async fn guest(&self, id: &SandboxId, generation: Generation) -> Result<GuestClient, RuntimeError> {
        let handle = self.find(id, generation)?;
        match handle.open_client() {
            Some(client) => Ok(client),
            None => handle.ask(Request::Connect).await,
        }
    }

    /// What a sandbox's machine uses; none while it has no machine. Below a millisecond.
    ///
    /// # Errors
    /// As of [`act`](Self::act), and whatever its monitor answers.
    pub async fn usage(&self, id: &SandboxId, generation: Generation) -> Result<Option<Usage>, RuntimeError> {
        self.find(id, generation)?.usage().await
    }

    /// Takes everything that consensus wants of this node, at once, and works towards it from now on.
    ///
    /// Sandboxes that aren't in it are deleted (see [`Intent`]), so it must not be called with less than all: not
    /// before the node's own copy of the placement state has caught up.
    pub fn reconcile(&self, intents: Vec<Intent>) {
        let number = self.inner.context.board.intents_came();
        self.inner.intents.send_replace(Intents { number, all: Some(Arc::new(intents)) });
    }

    /// What is seen of every sandbox on this node.
    pub fn observed(&self) -> watch::Receiver<Arc<BTreeMap<SandboxId, Observed>>> {
        self.inner.context.board.observed()
    }

    /// The warm pools.
    pub fn pools(&self) -> watch::Receiver<Arc<Vec<PoolStatus>>> {
        self.inner.context.pool.status()
    }

    /// Where the time of the last creates went, the newest last.
    pub fn creates(&self) -> Vec<CreateBudget> {
        self.inner.context.budgets.last()
    }

    /// What intervals ask for now: the whole list, which changes when something becomes due or no longer is.
    pub fn due(&self) -> watch::Receiver<Arc<Vec<AutoAction>>> {
        self.inner.context.board.due()
    }

    /// Takes no new work, waits until what is under way is done or `deadline` has passed, and lets go of the machines:
    /// they run on with their keepers, for the next start. Requests to guests aren't waited for, they end here: whoever
    /// relays them drains first.
    pub async fn drain(&self, deadline: Duration) {
        let context = &self.inner.context;
        let until = Instant::now() + deadline;
        context.draining.cancel();
        let idle = async {
            while !context.board.all().iter().all(Handle::idle) {
                sleep(DRAIN_EVERY).await;
            }
        };
        if timeout_at(until, idle).await.is_err() {
            tracing::warn!("the drain's deadline has passed; what was under way is cut off");
        }
        context.ended.cancel();
    }

    /// Takes no new work, deletes every sandbox and the pool, and ends: nothing of this node's machines is left when
    /// it returns, unless `deadline` passes.
    pub async fn destroy_all(&self, deadline: Duration) {
        let context = &self.inner.context;
        let until = Instant::now() + deadline;
        context.draining.cancel();
        let sandboxes = context.board.all().into_iter().map(|handle| async move {
            let deleted = handle.ask(|reply| Request::Act(Verb::Delete, reply)).await;
            if let Err(error) = deleted {
                tracing::warn!(sandbox_id = %handle.id, %error, "a sandbox couldn't be deleted");
            }
        });
        let all = async { tokio::join!(futures::future::join_all(sandboxes), context.pool.destroy()) };
        if timeout_at(until, all).await.is_err() {
            tracing::warn!("the deadline has passed; the next start removes what is left");
        }
        context.ended.cancel();
    }

    fn find(&self, id: &SandboxId, generation: Generation) -> Result<Handle, RuntimeError> {
        let handle = self.inner.context.board.find(id).ok_or_else(|| RuntimeError::Unknown(id.clone()))?;
        handle.check(generation)?;
        Ok(handle)
    }
}

enum Entered {
    /// The sandbox under this very generation.
    At(Handle),
    /// An older placement of it, which has to go first.
    Older(Handle),
}

fn run(context: &Arc<Context>, request: RunRequest) -> Result<Entered, RuntimeError> {
    context.open()?;
    let (id, generation) = (request.spec.id.clone(), request.generation);
    if context.board.find(&id).is_none() {
        // Before anything of it is begun: what can't be enforced, and what there is no room for.
        context.admit()?;
        context.network.check(&request.spec.network)?;
    }
    match context.board.enter(&id, generation, || sandbox::spawn(context, request))? {
        Entry::New(handle) => Ok(Entered::At(handle)),
        Entry::Known(handle) if handle.generation < generation => Ok(Entered::Older(handle)),
        Entry::Known(handle) => {
            handle.check(generation)?;
            Ok(Entered::At(handle))
        }
    }
}

/// Adopts what lives, removes what doesn't; the warm clones that live are for the pool.
async fn take_over(context: &Arc<Context>, found: Vec<Found>) -> Result<Vec<Warm>, RuntimeError> {
    // Before anything is adopted: what is adopted and found to be dead gives its port back itself.
    let ports: Vec<Port> = found.iter().filter_map(Found::port).cloned().collect();
    context.network.retain(&ports).await?;
    let jobs = found.into_iter().map(|found| take_over_one(context, found));
    let taken = futures::future::join_all(jobs).await;
    let mut warm = Vec::new();
    let mut in_use: Vec<VmFolder> = Vec::new();
    for taken in taken {
        match taken? {
            Taken::Sandbox(machine) => in_use.extend(machine),
            Taken::Warm(clone) => {
                in_use.push(clone.folder.clone());
                warm.push(*clone);
            }
            Taken::Nothing => {}
        }
    }
    for clone in warm.split_off(warm.len().min(context.config.pool.max as usize)) {
        pool::destroy(context, &clone).await;
    }
    let folders = context.folders.clone();
    blocking(move || {
        let in_use: Vec<&Path> = in_use.iter().map(|folder| folder.run.as_path()).collect();
        folders.clear_leftovers(&in_use)
    })
    .await?;
    Ok(warm)
}

enum Taken {
    Sandbox(Option<VmFolder>),
    Warm(Box<Warm>),
    Nothing,
}

async fn take_over_one(context: &Arc<Context>, found: Found) -> Result<Taken, RuntimeError> {
    match found {
        Found::Sandbox(home, record) => {
            let machine = record.machine.clone();
            let (id, generation) = (record.spec.id.clone(), record.generation);
            let Some(handle) = sandbox::adopt(context, home, *record).await else { return Ok(Taken::Nothing) };
            // Two homes can't be one sandbox's: a record is written into one that is new, or was a clone's.
            if let Entry::Known(_) = context.board.enter(&id, generation, || handle)? {
                tracing::error!(sandbox_id = %id, "two folders claim to be this sandbox");
            }
            Ok(Taken::Sandbox(machine))
        }
        Found::Clone(home, record) => {
            let warm = pool::adopt(context, home, record).await;
            Ok(warm.map_or(Taken::Nothing, |warm| Taken::Warm(Box::new(warm))))
        }
        Found::HalfMade(home) => {
            // Without a record there is no run folder to ask; whatever ran in it was never told of its name.
            machine::end(None, &home.machine(home.dir().join("run"))).await;
            blocking(move || home.remove(None)).await?;
            Ok(Taken::Nothing)
        }
        Found::Damaged(path, error) => {
            tracing::error!(path = %path.display(), %error, "a sandbox's record is damaged; it was set aside");
            Ok(Taken::Nothing)
        }
    }
}

/// Follows intents and the clock until the runtime ends.
async fn follow(context: Arc<Context>, mut newest: watch::Receiver<Intents>) {
    let mut tick = interval(TICK);
    let mut again = interval(RECONCILE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    again.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            () = context.ended.cancelled() => return,
            changed = newest.changed() => match changed {
                Ok(()) => step(&context, &newest.borrow_and_update().clone()),
                Err(_) => return,
            },
            () = context.board.moved.notified() => step(&context, &newest.borrow().clone()),
            _ = again.tick() => step(&context, &newest.borrow().clone()),
            _ = tick.tick() => context.board.tick(clock::now()),
        }
    }
}

/// One reconcile step: decides, and hands each command to its sandbox's driver. Waits for none.
fn step(context: &Arc<Context>, Intents { number, all }: &Intents) {
    let Some(intents) = all else { return };
    if context.open().is_err() {
        return;
    }
    let (seen, held_back) = context.board.world(*number);
    for command in reconcile::step(intents, &seen, &held_back, clock::now()) {
        if let Err(error) = carry_out(context, command) {
            tracing::warn!(%error, "a reconcile step couldn't be begun; the next one tries again");
        }
    }
}

fn carry_out(context: &Arc<Context>, command: Command) -> Result<(), RuntimeError> {
    match command {
        Command::Run(request) => {
            let id = request.spec.id.clone();
            tracing::info!(sandbox_id = %id, "reconcile: run");
            if let Entered::At(handle) = run(context, *request)? {
                send(&handle, Request::Run)?;
            }
        }
        Command::Lost(request) => {
            let (id, generation) = (request.spec.id.clone(), request.generation);
            tracing::warn!(sandbox_id = %id, "a stopped sandbox's disk is not on this node");
            context.board.enter(&id, generation, || sandbox::spawn_lost(context, *request))?;
        }
        Command::Act(id, generation, verb) => {
            tracing::info!(sandbox_id = %id, ?verb, "reconcile: act");
            if let Some(handle) = context.board.find(&id).filter(|handle| handle.generation == generation) {
                send(&handle, |reply| Request::Act(verb, reply))?;
            }
        }
        Command::Update(spec) => {
            if let Some(handle) = context.board.find(&spec.id) {
                send(&handle, |reply| Request::Update(spec, reply))?;
            }
        }
    }
    Ok(())
}

/// Sends a request whose failure is logged, for nobody waits for its answer.
fn send(handle: &Handle, request: impl FnOnce(sandbox::Reply<Observed>) -> Request) -> Result<(), RuntimeError> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    handle.send(request(reply))?;
    let id = handle.id.clone();
    tokio::spawn(async move {
        if let Ok(Err(error)) = answer.await {
            tracing::warn!(sandbox_id = %id, %error, "a reconcile step failed");
        }
    });
    Ok(())
}
