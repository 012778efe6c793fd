//! The task that owns the warm clones and the spares: decides by each shelf's policy, and has others do the work.
//!
//! Where a template has a checkpoint its clones are copies of that, and spares are for restores and forks alone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use fabric_types::Shape;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::checkpoint::{self, Outcome};
use super::copies::Copies;
use super::demand::{QUIET, Step};
use super::make::{destroy, discard, make, make_spare};
use super::shelf::{Death, Shelf};
use super::{PoolSeat, Ready, Request, Started, Warm};
use crate::context::Context;
use crate::template::Template;
use crate::{PoolLimits, PoolStatus, RuntimeError, clock, identity};

/// Clones, templates and spares that are made at once, beside a checkpoint: each keeps one processor busy, and the smallest
/// host has two.
const JOBS_MAX: usize = 2;
/// The same while sandboxes are in use: the smallest host's other processor is theirs.
const JOBS_MAX_BUSY: usize = 1;
/// Clones that are made while a checkpoint is, for who comes meanwhile: more of them would be replaced by copies at once.
const CLONES_MEANWHILE: u32 = 2;
/// Spares where creates need none.
const SPARES_BESIDE_COPIES: usize = 1;
/// How often demand is looked at where nothing else happens: it is counted over seconds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Wait after a spare that couldn't be started.
const SPARE_RETRY: Duration = Duration::from_secs(10);

/// What a job made.
enum Made {
    Template(Shape, Result<Template, RuntimeError>),
    Checkpoint(Shape, Result<Outcome, RuntimeError>),
    Clone { shape: Shape, as_copy: bool, made: Result<(Warm, Duration), RuntimeError> },
    Spare(Result<Started, RuntimeError>),
}

/// See the module.
pub(crate) struct Keeper {
    context: Arc<Context>,
    inbox: mpsc::Receiver<Request>,
    status: watch::Sender<Arc<Vec<PoolStatus>>>,
    deaths: (mpsc::UnboundedSender<Death>, mpsc::UnboundedReceiver<Death>),
    /// By shape; the default's is always there.
    shelves: BTreeMap<Shape, Shelf>,
    spares: VecDeque<Started>,
    spares_making: u32,
    spares_wait: Option<Instant>,
    jobs: JoinSet<Made>,
    cancel_jobs: CancellationToken,
    burials: JoinSet<()>,
}

/// What the keeper does when nobody asks for anything.
enum Due {
    Checkpoint(Shape),
    Shelf(Shape, Step),
    Spare,
}

impl Keeper {
    pub(crate) fn new(context: Arc<Context>, seat: PoolSeat, adopted: Vec<Warm>) -> Self {
        let mut keeper = Self {
            cancel_jobs: context.draining.child_token(),
            context,
            inbox: seat.requests,
            status: seat.status,
            deaths: mpsc::unbounded_channel(),
            shelves: BTreeMap::from([(Shape::DEFAULT, Shelf::new(Shape::DEFAULT))]),
            spares: VecDeque::new(),
            spares_making: 0,
            spares_wait: None,
            jobs: JoinSet::new(),
            burials: JoinSet::new(),
        };
        for warm in adopted {
            keeper.keep(warm);
        }
        keeper.aim(Instant::now());
        // Known before anyone can ask: an empty list would read as a pool that wants nothing.
        keeper.publish();
        keeper
    }

    /// Runs until the runtime ends; the clones live on.
    pub(crate) async fn run(mut self) {
        let ended = self.context.ended.clone();
        loop {
            let now = Instant::now();
            self.aim(now);
            self.publish();
            let (wake, due) = self.due(now);
            tokio::select! {
                biased;
                () = ended.cancelled() => return self.let_go().await,
                request = self.inbox.recv() => match request {
                    Some(request) => self.handle(request).await,
                    None => return,
                },
                Some(death) = self.deaths.1.recv() => self.bury(&death),
                Some(made) = self.jobs.join_next() => self.finished(made),
                () = sleep_until(wake) => self.begin(due),
            }
        }
    }

    /// Leaves the clones to the next process of the node, which can't open a session while this one has one. Spares
    /// have nothing that is worth finding again.
    async fn let_go(mut self) {
        self.shelves.values().flat_map(Shelf::clones).for_each(|warm| warm.link.close());
        for spare in self.spares.drain(..) {
            discard(&self.context, spare).await;
        }
    }

    /// Sets every shelf's target. What the default shape doesn't take is left for others that were asked for.
    fn aim(&mut self, now: Instant) {
        if self.cancel_jobs.is_cancelled() {
            return self.shelves.values_mut().for_each(Shelf::close);
        }
        let (limits, room) = (self.context.config.pool, &self.context.room);
        let mut left = limits.max;
        if let Some(shelf) = self.shelves.get_mut(&Shape::DEFAULT) {
            shelf.aim(limits, room.private_kib(shelf.kind()), now);
            left = left.saturating_sub(shelf.target());
        }
        for shelf in self.shelves.values_mut().filter(|shelf| shelf.shape != Shape::DEFAULT) {
            let max = if shelf.demand.recent(now) { left } else { 0 };
            let private_kib = room.private_kib(shelf.kind());
            shelf.aim(PoolLimits { min: 1.min(max), max, ..limits }, private_kib, now);
            left = left.saturating_sub(shelf.target());
        }
        let kept = |shelf: &Shelf| {
            let holds = shelf.warm() + shelf.making > 0 || shelf.copies == Copies::Making;
            shelf.shape == Shape::DEFAULT || shelf.demand.recent(now) || holds
        };
        self.shelves.retain(|_, shelf| kept(shelf));
    }

    /// What is due first, and when; at the latest demand is looked at again.
    fn due(&self, now: Instant) -> (Instant, Option<Due>) {
        let idle = (now + LOOK_EVERY, None);
        if self.context.draining.is_cancelled() {
            return idle;
        }
        let writing = self.shelves.values().filter(|shelf| shelf.copies == Copies::Making).count();
        let working = self.jobs.len().saturating_sub(writing);
        let busy = self.context.board.is_busy(clock::now());
        let free = working < if busy { JOBS_MAX_BUSY } else { JOBS_MAX };
        // One at a time: each keeps a processor busy for seconds.
        let checkpoints = self.shelves.values().filter(|_| writing == 0).filter_map(|shelf| {
            let at = shelf.checkpoint_due(now)?;
            Some((at, Some(Due::Checkpoint(shelf.shape))))
        });
        let shelves = self.shelves.values().filter_map(|shelf| {
            let (at, step) = shelf.next(now)?;
            // The default's template is booted once, whatever else could be made meanwhile; another shape's, by the
            // create that asked for it first.
            let waits = shelf.template.is_none() && (shelf.making > 0 || shelf.shape != Shape::DEFAULT);
            let enough = shelf.copies == Copies::Making && shelf.warm() + shelf.making >= CLONES_MEANWHILE;
            let may = step == Step::Retire || (free && !waits && !enough);
            may.then_some((at, Some(Due::Shelf(shelf.shape, step))))
        });
        let spare = self.spare_at(now).filter(|_| free).map(|at| (at, Some(Due::Spare)));
        checkpoints
            .chain(shelves)
            .chain(spare)
            .chain([idle])
            .min_by_key(|(at, _)| *at)
            .unwrap_or((now + LOOK_EVERY, None))
    }

    /// When the next spare is to be started: once the template is there, and some clones are (all of them, where creates
    /// need none), and creates are quiet.
    fn spare_at(&self, now: Instant) -> Option<Instant> {
        let shelf = self.shelves.get(&Shape::DEFAULT)?;
        let have = self.spares.len() + self.spares_making as usize;
        if have >= self.spares_wanted() || shelf.copies == Copies::Making {
            return None;
        }
        if shelf.template.is_none() && shelf.target() > 0 {
            return None;
        }
        let enough = if shelf.makes_copies() { shelf.target() } else { shelf.target().div_ceil(2) };
        let filling = shelf.warm() < enough;
        let quiet_at = shelf.demand.last().map_or(now, |at| at + QUIET);
        (!filling).then(|| self.spares_wait.map_or(quiet_at, |wait| wait.max(quiet_at)))
    }

    fn spares_wanted(&self) -> usize {
        let asked = self.context.config.pool.spares as usize;
        let copies = self.shelves.get(&Shape::DEFAULT).is_some_and(Shelf::makes_copies);
        if copies { asked.min(SPARES_BESIDE_COPIES) } else { asked }
    }

    /// Ends spares that nobody needs any more.
    fn trim_spares(&mut self) {
        for spare in self.spares.split_off(self.spares.len().min(self.spares_wanted())) {
            let context = self.context.clone();
            self.burials.spawn(async move { discard(&context, spare).await });
        }
    }

    async fn handle(&mut self, request: Request) {
        let now = Instant::now();
        match request {
            Request::Take { shape, reply } => {
                let shelf = self.shelves.entry(shape).or_insert_with(|| Shelf::new(shape));
                shelf.demand.took(now);
                let warm = shelf.take(now).map(|warm| Ready::Warm(Box::new(warm)));
                let copies = shelf.makes_copies();
                let spare = || {
                    // A copy is made sooner than a spare's guest is.
                    let fits = |spare: &Started| spare.template.shape == shape && !copies;
                    let spare = self.spares.iter().position(fits)?;
                    self.spares.remove(spare).map(|spare| Ready::Started(Box::new(spare)))
                };
                match reply.send(warm.or_else(spare)) {
                    Ok(()) | Err(None) => {}
                    // Whoever asked has gone away.
                    Err(Some(Ready::Warm(warm))) => self.keep(*warm),
                    Err(Some(Ready::Started(spare))) => self.spares.push_front(*spare),
                }
            }
            Request::TakeSpare { template, reply } => {
                let fits = |spare: &Started| spare.template.name == template && spare.monitor.is_some();
                let spare = self.spares.iter().position(fits).and_then(|at| self.spares.remove(at));
                if let Err(Some(spare)) = reply.send(spare.map(Box::new)) {
                    // Whoever asked has gone away.
                    self.spares.push_front(*spare);
                }
            }
            Request::Learn { template } => {
                if let Some(shelf) = self.shelves.get_mut(&template.shape) {
                    shelf.template = Some(template);
                }
            }
            Request::Destroy { reply } => {
                self.destroy_all().await;
                // Whoever asked may have passed its deadline.
                let _ = reply.send(());
            }
        }
    }

    async fn destroy_all(&mut self) {
        self.cancel_jobs.cancel();
        while let Some(made) = self.jobs.join_next().await {
            self.finished(made);
        }
        let clones: Vec<_> = self.shelves.values_mut().flat_map(Shelf::clear).collect();
        let spares: Vec<_> = self.spares.drain(..).collect();
        let context = &self.context;
        tokio::join!(
            futures::future::join_all(clones.iter().map(|warm| destroy(context, warm))),
            futures::future::join_all(spares.into_iter().map(|spare| discard(context, spare))),
        );
        while self.burials.join_next().await.is_some() {}
    }

    fn begin(&mut self, due: Option<Due>) {
        let (context, cancel) = (self.context.clone(), self.cancel_jobs.clone());
        match due {
            None => {}
            Some(Due::Spare) => {
                self.spares_making += 1;
                let job = whole(async move { make_spare(&context, Shape::DEFAULT, &cancel).await });
                self.jobs.spawn(async move { Made::Spare(job.await) });
            }
            Some(Due::Checkpoint(shape)) => {
                let Some(shelf) = self.shelves.get_mut(&shape) else { return };
                let Some(template) = shelf.template.clone() else { return };
                if !context.driver.makes_checkpoints() {
                    shelf.copies = Copies::Never;
                    return;
                }
                shelf.copies = Copies::Making;
                let job = whole(async move { checkpoint::ensure(&context, &template, &cancel).await });
                self.jobs.spawn(async move { Made::Checkpoint(shape, job.await) });
            }
            Some(Due::Shelf(shape, Step::Retire)) => {
                let warm = self.shelves.get_mut(&shape).and_then(Shelf::take_worst);
                if let Some(warm) = warm {
                    tracing::debug!(%shape, "a warm clone is retired");
                    self.burials.spawn(async move { destroy(&context, &warm).await });
                }
            }
            Some(Due::Shelf(shape, Step::Make)) => {
                let Some(shelf) = self.shelves.get_mut(&shape) else { return };
                shelf.making += 1;
                match shelf.template.clone() {
                    None => {
                        let job = whole(async move {
                            context.admit()?;
                            let run = context.folders.run(identity::chance()?);
                            context.templates.ensure(shape, run, &cancel).await
                        });
                        self.jobs.spawn(async move { Made::Template(shape, job.await) });
                    }
                    Some(template) => {
                        let (begun, as_copy) = (Instant::now(), shelf.makes_copies());
                        let job = whole(async move { make(&context, template, &cancel).await });
                        self.jobs.spawn(async move {
                            let made = job.await.map(|warm| (warm, begun.elapsed()));
                            Made::Clone { shape, as_copy, made }
                        });
                    }
                }
            }
        }
        while self.burials.try_join_next().is_some() {}
    }

    fn finished(&mut self, made: Result<Made, tokio::task::JoinError>) {
        let now = Instant::now();
        let (shape, outcome) = match made {
            Ok(Made::Template(shape, made)) => {
                let shelf = self.shelves.entry(shape).or_insert_with(|| Shelf::new(shape));
                (shape, made.map(|template| shelf.template = Some(template)))
            }
            Ok(Made::Clone { shape, as_copy, made }) => {
                let lost = as_copy && !made.as_ref().is_ok_and(|(warm, _)| warm.is_copy());
                let kept = made.map(|(warm, took)| {
                    self.keep(warm);
                    self.shelves.entry(shape).or_insert_with(|| Shelf::new(shape)).demand.made(took);
                });
                if lost && let Some(shelf) = self.shelves.get_mut(&shape).filter(|shelf| shelf.makes_copies()) {
                    shelf.copies = Copies::lost(now);
                }
                (shape, kept)
            }
            Ok(Made::Checkpoint(shape, made)) => return self.checkpoint_finished(shape, made, now),
            Ok(Made::Spare(made)) => return self.spare_finished(made, now),
            Err(error) => return tracing::error!(%error, "a job of the warm pool broke off"),
        };
        let shelf = self.shelves.entry(shape).or_insert_with(|| Shelf::new(shape));
        shelf.making = shelf.making.saturating_sub(1);
        match outcome {
            Ok(()) => shelf.succeeded(),
            // The pool is ending.
            Err(RuntimeError::Stopping) => {}
            Err(error) => shelf.failed(&error, now),
        }
    }

    fn checkpoint_finished(&mut self, shape: Shape, made: Result<Outcome, RuntimeError>, now: Instant) {
        // A shelf that is gone is asked for again, if it is wanted.
        let Some(shelf) = self.shelves.get_mut(&shape) else { return };
        shelf.copies = match made {
            Ok(Outcome::Ready) => Copies::Ready,
            Ok(Outcome::Unsupported(why)) => {
                tracing::info!(%shape, why, "clones are made one by one: no checkpoint can be made here");
                Copies::Never
            }
            // The pool is ending.
            Err(RuntimeError::Stopping) => Copies::Unknown,
            Err(error) => {
                tracing::warn!(%error, %shape, "no checkpoint could be made; trying again in some minutes");
                Copies::failed(now)
            }
        };
        self.trim_spares();
    }

    fn spare_finished(&mut self, made: Result<Started, RuntimeError>, now: Instant) {
        self.spares_making = self.spares_making.saturating_sub(1);
        match made {
            Ok(spare) => {
                self.spares_wait = None;
                if let Some(shelf) = self.shelves.get_mut(&spare.template.shape) {
                    shelf.template.get_or_insert_with(|| spare.template.clone());
                }
                self.spares.push_back(spare);
            }
            Err(RuntimeError::Stopping) => {}
            Err(error) => {
                self.spares_wait = Some(now + SPARE_RETRY);
                tracing::warn!(%error, "a spare couldn't be started; trying again");
            }
        }
    }

    fn keep(&mut self, warm: Warm) {
        let shape = warm.template.shape;
        let shelf = self.shelves.entry(shape).or_insert_with(|| Shelf::new(shape));
        shelf.keep(warm, &self.deaths.0);
    }

    /// Removes what a dead clone left, beside the requests: that may take seconds.
    fn bury(&mut self, death: &Death) {
        let warm = self.shelves.get_mut(&death.shape).and_then(|shelf| shelf.take_from(&death.home));
        if let Some(warm) = warm {
            let context = self.context.clone();
            self.burials.spawn(async move { destroy(&context, &warm).await });
        }
    }

    fn publish(&self) {
        let name = &self.context.config.template;
        // The default shape's first: it is the one that readiness is about.
        let default = self.shelves.get(&Shape::DEFAULT);
        let others = self.shelves.values().filter(|shelf| shelf.shape != Shape::DEFAULT && !shelf.is_bare());
        let pools: Vec<_> = default.into_iter().chain(others).map(|shelf| shelf.status(name)).collect();
        let pools = Arc::new(pools);
        self.status.send_if_modified(|old| {
            let changed = *old != pools;
            *old = pools;
            changed
        });
    }
}

/// Does the work as a task of its own, which ends what it began even when the keeper is gone. A panic, which only a
/// broken invariant of ours makes, is an error of this job alone.
fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
) -> impl Future<Output = Result<T, RuntimeError>> + Send {
    let task = tokio::spawn(work);
    async move {
        let broken = |error: tokio::task::JoinError| RuntimeError::Guest {
            id: "pool".to_owned(),
            action: "be made",
            cause: error.to_string(),
        };
        task.await.map_err(broken).and_then(|made| made)
    }
}
