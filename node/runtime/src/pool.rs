//! The warm pool: clones of the default template that have run each path once and are paused, with their session open.
//!
//! ```text
//!  sandboxes -- take --> Pool (handle) --> keeper task: owns the clones, decides when to fill, watches for deaths
//!                                              |  one job at a time
//!                                              v
//!                                          make a template, make a clone
//! ```
//! Nothing here is on the path of a create but `take`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use fabric_types::Shape;
use node_hypervisor::{MemorySource, Vm, VmFolder, VmState};
use node_network::Port;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::context::Context;
use crate::durable::blocking;
use crate::folder::{CloneRecord, Home, SCHEMA};
use crate::guest::{Link, OPEN_MAX};
use crate::machine::{self, Plan};
use crate::template::Template;
use crate::{PoolStatus, RuntimeError, identity, rehearsal};

/// Requests that wait for the keeper: one of each sandbox that a node may be creating at once.
const REQUESTS_MAX: usize = 256;
/// A create's first command should have the processors to itself: while clones are left, filling waits this long after
/// the last one was taken.
const QUIET: Duration = Duration::from_millis(300);
/// Wait after the first failure; it doubles up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A clone that is nobody's yet.
pub(crate) struct Warm {
    pub(crate) home: Home,
    pub(crate) folder: VmFolder,
    pub(crate) template: Template,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) link: Link,
    /// What its network card is plugged into; nothing passes yet.
    pub(crate) port: Option<Port>,
}

enum Request {
    Take { shape: Shape, reply: oneshot::Sender<Option<Warm>> },
    Destroy { reply: oneshot::Sender<()> },
}

/// The pool's handle.
pub(crate) struct Pool {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Arc<Vec<PoolStatus>>>,
}

/// The keeper's ends of the handle's channels, until it runs.
pub(crate) struct PoolSeat {
    requests: mpsc::Receiver<Request>,
    status: watch::Sender<Arc<Vec<PoolStatus>>>,
}

impl Pool {
    pub(crate) fn new() -> (Self, PoolSeat) {
        let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
        let (sender, status) = watch::channel(Arc::default());
        (Self { requests, status }, PoolSeat { requests: inbox, status: sender })
    }

    /// A warm clone of the shape, if there is one. Microseconds.
    pub(crate) async fn take(&self, shape: Shape) -> Option<Warm> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Take { shape, reply }).await.ok()?;
        answer.await.ok().flatten()
    }

    /// Ends every clone and removes what it left.
    pub(crate) async fn destroy(&self) {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Destroy { reply }).await.is_ok() {
            // An error means that the keeper has ended, and has left its clones to the next start.
            let _ = answer.await;
        }
    }

    pub(crate) fn status(&self) -> watch::Receiver<Arc<Vec<PoolStatus>>> {
        self.status.clone()
    }
}

/// When the next clone is to be made, if any is wanted.
fn fill_at(pool: &Level, now: Instant) -> Option<Instant> {
    if pool.warm >= pool.target {
        return None;
    }
    if let Some(failed_at) = pool.failed_at {
        return Some(failed_at + backoff(pool.failures));
    }
    match pool.taken_at {
        Some(taken_at) if pool.warm > 0 => Some(taken_at + QUIET),
        _ => Some(now),
    }
}

/// The wait after the `failures`-th failure in a row.
fn backoff(failures: u32) -> Duration {
    let (least, most) = BACKOFF;
    least.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(most)
}

/// What `fill_at` decides from.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    warm: u32,
    target: u32,
    failures: u32,
    failed_at: Option<Instant>,
    taken_at: Option<Instant>,
}

/// Ends when the clone it was made for ends, or is dropped with its slot.
struct Slot {
    warm: Warm,
    _watch: DropGuard,
}

enum Job {
    Template(JoinHandle<Result<Template, RuntimeError>>),
    Clone(JoinHandle<Result<Warm, RuntimeError>>),
}

enum Done {
    Template(Result<Template, RuntimeError>),
    Clone(Result<Warm, RuntimeError>),
}

impl Job {
    async fn done(&mut self) -> Done {
        // A job panics only on a broken invariant of ours; the pool says so and goes on.
        let broken = |error: tokio::task::JoinError| RuntimeError::Guest {
            id: "pool".to_owned(),
            action: "be made",
            cause: error.to_string(),
        };
        match self {
            Self::Template(job) => Done::Template(job.await.map_err(broken).and_then(|made| made)),
            Self::Clone(job) => Done::Clone(job.await.map_err(broken).and_then(|made| made)),
        }
    }
}

/// The task that owns the warm clones.
pub(crate) struct Keeper {
    context: Arc<Context>,
    inbox: mpsc::Receiver<Request>,
    status: watch::Sender<Arc<Vec<PoolStatus>>>,
    deaths: (mpsc::UnboundedSender<Home>, mpsc::UnboundedReceiver<Home>),
    slots: VecDeque<Slot>,
    burials: JoinSet<()>,
    template: Option<Template>,
    job: Option<Job>,
    cancel_job: CancellationToken,
    level: Level,
    last_error: Option<String>,
}

impl Keeper {
    pub(crate) fn new(context: Arc<Context>, seat: PoolSeat, adopted: Vec<Warm>) -> Self {
        let level = Level { target: context.config.pool.min, ..Level::default() };
        let mut keeper = Self {
            cancel_job: context.draining.child_token(),
            context,
            inbox: seat.requests,
            status: seat.status,
            deaths: mpsc::unbounded_channel(),
            slots: VecDeque::new(),
            burials: JoinSet::new(),
            template: None,
            job: None,
            level,
            last_error: None,
        };
        for warm in adopted {
            keeper.keep(warm);
        }
        // Known before anyone can ask: an empty list would read as a pool that wants nothing.
        keeper.publish();
        keeper
    }

    /// Runs until the runtime ends; the clones live on.
    pub(crate) async fn run(mut self) {
        let ended = self.context.ended.clone();
        loop {
            self.publish();
            let now = Instant::now();
            let idle = self.job.is_none() && !self.context.draining.is_cancelled();
            let wake = if idle { fill_at(&self.level, now) } else { None };
            let (job, deaths) = (self.job.as_mut(), &mut self.deaths.1);
            tokio::select! {
                biased;
                () = ended.cancelled() => return self.let_go(),
                request = self.inbox.recv() => match request {
                    Some(request) => self.handle(request).await,
                    None => return,
                },
                Some(home) = deaths.recv() => self.bury(&home),
                done = finish(job) => self.finished(done),
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => self.begin(),
            }
        }
    }

    /// Leaves the clones to the next process of the node, which can't open a session while this one has one.
    fn let_go(self) {
        self.slots.iter().for_each(|slot| slot.warm.link.close());
    }

    async fn handle(&mut self, request: Request) {
        match request {
            Request::Take { shape, reply } => {
                let fits = self.template.as_ref().is_some_and(|template| template.shape == shape)
                    || self.slots.front().is_some_and(|slot| slot.warm.template.shape == shape);
                let slot = if fits { self.slots.pop_front() } else { None };
                self.count();
                self.level.taken_at = Some(Instant::now());
                if let Err(Some(warm)) = reply.send(slot.map(|slot| slot.warm)) {
                    // Whoever asked has gone away.
                    self.keep(warm);
                }
            }
            Request::Destroy { reply } => {
                self.cancel_job.cancel();
                if let Some(mut job) = self.job.take()
                    && let Done::Clone(Ok(warm)) = job.done().await
                {
                    self.keep(warm);
                }
                // Their watches end here: these deaths are no news.
                let clones: Vec<_> = self.slots.drain(..).map(|slot| slot.warm).collect();
                futures::future::join_all(clones.iter().map(|warm| destroy(&self.context, warm))).await;
                while self.burials.join_next().await.is_some() {}
                self.level.target = 0;
                self.count();
                // Whoever asked may have passed its deadline.
                let _ = reply.send(());
            }
        }
    }

    fn begin(&mut self) {
        let (context, cancel) = (self.context.clone(), self.cancel_job.clone());
        self.job = Some(match self.template.clone() {
            None => Job::Template(tokio::spawn(async move {
                let run = context.folders.run(identity::chance()?);
                context.templates.ensure(Shape::DEFAULT, run, &cancel).await
            })),
            Some(template) => Job::Clone(tokio::spawn(async move { make(&context, template, &cancel).await })),
        });
    }

    fn finished(&mut self, done: Done) {
        self.job = None;
        let outcome = match done {
            Done::Template(made) => made.map(|template| self.template = Some(template)),
            Done::Clone(made) => made.map(|warm| self.keep(warm)),
        };
        match outcome {
            Ok(()) => {
                self.level.failures = 0;
                self.level.failed_at = None;
                self.last_error = None;
            }
            Err(RuntimeError::Stopping) => {}
            Err(error) => {
                // The template itself may be what is wrong: look at it again.
                self.template = None;
                self.level.failures += 1;
                self.level.failed_at = Some(Instant::now());
                tracing::warn!(%error, failures = self.level.failures, "the warm pool couldn't be filled; trying again");
                self.last_error = Some(error.to_string());
            }
        }
    }

    fn keep(&mut self, warm: Warm) {
        let watch = CancellationToken::new();
        let (vm, home, died, gone) = (warm.vm.clone(), warm.home.clone(), self.deaths.0.clone(), watch.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = gone.cancelled() => {}
                how = vm.ended() => {
                    tracing::warn!(%how, home = %home.dir().display(), "a warm clone has ended");
                    // An error means that the pool has ended too.
                    let _ = died.send(home);
                }
            }
        });
        self.slots.push_back(Slot { warm, _watch: watch.drop_guard() });
        self.count();
    }

    /// Removes what a dead clone left, beside the requests: that may take seconds.
    fn bury(&mut self, home: &Home) {
        while self.burials.try_join_next().is_some() {}
        if let Some(at) = self.slots.iter().position(|slot| slot.warm.home == *home)
            && let Some(slot) = self.slots.remove(at)
        {
            let context = self.context.clone();
            self.burials.spawn(async move { destroy(&context, &slot.warm).await });
        }
        self.count();
    }

    fn count(&mut self) {
        self.level.warm = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
    }

    fn publish(&self) {
        let doing = match (&self.last_error, &self.job) {
            (Some(error), _) => error.clone(),
            (None, Some(Job::Template(_))) => "booting template".to_owned(),
            (None, _) if self.level.warm >= self.level.target => "full".to_owned(),
            (None, _) => "filling".to_owned(),
        };
        let pool = PoolStatus {
            template: self.context.config.template.clone(),
            shape: Shape::DEFAULT,
            warm: self.level.warm,
            target: self.level.target,
            doing,
        };
        let pools = Arc::new(vec![pool]);
        self.status.send_if_modified(|old| {
            let changed = *old != pools;
            *old = pools;
            changed
        });
    }
}

async fn finish(job: Option<&mut Job>) -> Done {
    match job {
        Some(job) => job.done().await,
        None => std::future::pending().await,
    }
}

/// Makes a clone, lets it rehearse and pauses it; on an error or when cancelled nothing is left of it.
async fn make(context: &Context, template: Template, cancel: &CancellationToken) -> Result<Warm, RuntimeError> {
    let home = context.folders.clone_home(identity::chance()?);
    let folder = home.machine(context.folders.run(identity::chance()?));
    let port = context.network.plug().await?;
    let made = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(RuntimeError::Stopping),
        made = exercise(context, &template, &home, &folder, port.as_ref()) => made,
    };
    match made {
        Ok((vm, link)) => Ok(Warm { home, folder, template, vm, link, port }),
        Err(error) => {
            machine::end(None, &folder).await;
            context.network.unplug(port).await;
            blocking(move || home.remove(Some(&folder))).await?;
            Err(error)
        }
    }
}

async fn exercise(
    context: &Context,
    template: &Template,
    home: &Home,
    folder: &VmFolder,
    port: Option<&Port>,
) -> Result<(Arc<dyn Vm>, Link), RuntimeError> {
    let begun = Instant::now();
    let mut record = CloneRecord {
        schema: SCHEMA,
        machine: folder.clone(),
        port: port.cloned(),
        template: template.name.clone(),
        ready: false,
    };
    let (first, at) = (record.clone(), home.clone());
    blocking(move || at.make().and_then(|()| at.write_clone(&first))).await?;
    let label = home.dir().file_name().map_or_else(String::new, |name| format!("pool-{}", name.display()));
    let plan = Plan {
        label: label.clone(),
        folder: folder.clone(),
        shape: template.shape,
        image: context.config.image.clone(),
        disk: home.disk(),
        memory: MemorySource::Boot,
        port: port.cloned(),
        limits: context.config.limits.of(template.shape),
    };
    let vm = machine::make_clone(context.driver.as_ref(), template, plan).await?;
    vm.resume().await?;
    let link = open(&label, vm.as_ref()).await?;
    let running_ms = begun.elapsed().as_millis();
    rehearsal::rehearse(&label, &link, rehearsal::CLONE).await?;
    vm.pause().await?;
    record.ready = true;
    let at = home.clone();
    blocking(move || at.write_clone(&record)).await?;
    tracing::debug!(%label, running_ms, took_ms = begun.elapsed().as_millis(), "warm clone made");
    Ok((vm, link))
}

/// Takes over a clone that an earlier process of the node made, if it is of today's template and still nobody's.
pub(crate) async fn adopt(context: &Context, home: Home, record: CloneRecord) -> Option<Warm> {
    let CloneRecord { machine: folder, port, template, ready, .. } = record;
    let adopted = async {
        let shape = Shape::DEFAULT;
        let template = (ready && template == context.templates.name_of(shape)).then_some(template)?;
        let template = context.templates.by_name(&template, shape).await?;
        let vm: Arc<dyn Vm> = Arc::from(context.driver.adopt(&folder).await.ok()?);
        if vm.state().await.ok()? == VmState::Ended {
            return None;
        }
        vm.resume().await.ok()?;
        let link = open("adopted clone", vm.as_ref()).await.ok()?;
        // One that was given an identity, though no sandbox's record tells of it, may have run its owner's commands.
        let health = rehearsal::health("adopted clone", &link).await.ok()?;
        if health.generation != 0 {
            return None;
        }
        vm.pause().await.ok()?;
        Some(Warm { home: home.clone(), folder: folder.clone(), template, vm, link, port: port.clone() })
    };
    let adopted = adopted.await;
    if adopted.is_none() {
        machine::end(None, &folder).await;
        context.network.unplug(port).await;
        let removed = blocking(move || home.remove(Some(&folder))).await;
        if let Err(error) = removed {
            tracing::warn!(%error, "an old warm clone couldn't be removed");
        }
    }
    adopted
}

/// Ends a clone and removes what it left.
pub(crate) async fn destroy(context: &Context, warm: &Warm) {
    warm.link.close();
    machine::end(Some(warm.vm.as_ref()), &warm.folder).await;
    context.network.unplug(warm.port.clone()).await;
    let (home, folder) = (warm.home.clone(), warm.folder.clone());
    if let Err(error) = blocking(move || home.remove(Some(&folder))).await {
        tracing::warn!(%error, "a warm clone couldn't be removed; the next start tries again");
    }
}

async fn open(label: &str, vm: &dyn Vm) -> Result<Link, RuntimeError> {
    Link::open(vm, OPEN_MAX).await.map_err(|error| RuntimeError::Guest {
        id: label.to_owned(),
        action: "open a session",
        cause: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn level(warm: u32, target: u32) -> Level {
        Level { warm, target, ..Level::default() }
    }

    #[test]
    fn a_full_pool_makes_nothing_and_an_empty_one_at_once() {
        let now = Instant::now();
        assert_eq!(fill_at(&level(4, 4), now), None);
        assert_eq!(fill_at(&level(0, 0), now), None);
        assert_eq!(fill_at(&Level { taken_at: Some(now), ..level(0, 4) }, now), Some(now));
    }

    #[test]
    fn filling_waits_for_quiet_while_clones_are_left() {
        let now = Instant::now();
        assert_eq!(fill_at(&Level { taken_at: Some(now), ..level(3, 4) }, now), Some(now + QUIET));
        assert_eq!(fill_at(&level(3, 4), now), Some(now));
    }

    #[test]
    fn failures_wait_twice_as_long_each_up_to_a_minute() {
        let now = Instant::now();
        let waits: Vec<_> = (1..=8)
            .map(|failures| fill_at(&Level { failures, failed_at: Some(now), ..level(0, 4) }, now))
            .map(|at| at.expect("tried again").duration_since(now).as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    proptest! {
        #[test]
        fn the_wait_never_shrinks_and_never_passes_its_limit(failures in 1_u32..) {
            prop_assert!(backoff(failures) <= backoff(failures.saturating_add(1)));
            prop_assert!(backoff(failures) <= BACKOFF.1);
        }
    }
}
