//! The driver task: takes one request at a time, judges it, carries it out, publishes where the sandbox is.

use std::sync::Arc;

use fabric_types::{FailReason, Phase, PhaseEvent, Source, transition};
use node_hypervisor::Vm;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::{Envelope, Frozen, Handle, Reply, Request, Seat, State, Waiting, handle};
use crate::context::Context;
use crate::durable::blocking;
use crate::folder::{Home, Life, SCHEMA, SandboxRecord};
use crate::guest::{GuestClient, Link};
use crate::queue::{Verdict, judge};
use crate::{Observed, RunRequest, RuntimeError, Verb, clock};

/// A machine and the way to its agent.
pub(super) struct Live {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) link: Option<Link>,
}

/// Owns one sandbox.
pub(super) struct Driver {
    pub(super) context: Arc<Context>,
    pub(super) seat: Seat,
    pub(super) phase: Phase,
    /// Where its files lie: known once it has any.
    pub(super) home: Option<Home>,
    pub(super) record: SandboxRecord,
    pub(super) live: Option<Live>,
    /// Its guest runs, and this process hasn't told it yet who it is: an earlier one may not have come to it.
    pub(super) untold: bool,
    /// When the memory of this sandbox goes to disk, if it is paused until then.
    pub(super) swap_at: Option<Instant>,
}

/// What the loop does after a request.
pub(super) enum Next {
    /// Takes the next one.
    Go,
    /// Ends: nothing is left of the sandbox.
    Gone,
}

/// Starts the driver of a sandbox that was never here.
pub(crate) fn spawn(context: &Arc<Context>, request: RunRequest) -> Handle {
    let (handle, driver) = assemble(context, fresh(request), None, Phase::Placed, None);
    driver.launch();
    handle
}

/// Starts the driver of a sandbox that should be here and isn't: it failed, and can be deleted.
pub(crate) fn spawn_lost(context: &Arc<Context>, request: RunRequest) -> Handle {
    let lost = match request.spec.source {
        Source::Fork { .. } => "its fork was cut short, and its parent's memory of that moment is gone",
        Source::Template { .. } | Source::Snapshot { .. } => "its disk is not on this node",
    };
    let reason = FailReason::Storage(lost.to_owned());
    let (handle, driver) = assemble(context, fresh(request), None, Phase::Failed { reason }, None);
    driver.launch();
    handle
}

fn fresh(RunRequest { spec, generation }: RunRequest) -> SandboxRecord {
    let now = clock::now();
    SandboxRecord {
        schema: SCHEMA,
        spec,
        generation,
        life: Life::Making,
        machine: None,
        port: None,
        template: String::new(),
        machine_id: String::new(),
        disk_grew: false,
        begun_at: now,
        last_activity: now,
    }
}

/// A driver of a sandbox as it is, and its handle.
pub(super) fn assemble(
    context: &Arc<Context>,
    record: SandboxRecord,
    home: Option<Home>,
    phase: Phase,
    live: Option<Live>,
) -> (Handle, Driver) {
    let link = live.as_ref().and_then(|live| live.link.clone());
    let archive = record.life.archive();
    let vm = live.as_ref().map(|live| live.vm.clone());
    let state = State { spec: Arc::new(record.spec.clone()), phase: phase.clone(), link, vm, archive, refused: None };
    let (handle, seat) = handle(state, record.generation, record.begun_at, record.last_activity);
    let mut driver = Driver { context: context.clone(), seat, phase, home, record, live, untold: false, swap_at: None };
    driver.plan_swap();
    (handle, driver)
}

impl Driver {
    /// Runs the driver as a task of its own.
    pub(super) fn launch(self) {
        let span = tracing::info_span!(
            "sandbox",
            sandbox_id = %self.record.spec.id,
            generation = self.record.generation.0,
            node_id = %self.context.config.node,
        );
        // Shown before whoever made the driver goes on.
        self.publish();
        tokio::spawn(self.run().instrument(span));
    }

    async fn run(mut self) {
        let ended = self.context.ended.clone();
        loop {
            let (live, queue) = (self.live.as_ref(), &mut self.seat.queue);
            tokio::select! {
                biased;
                () = ended.cancelled() => return self.let_go(),
                how = machine_ended(live) => self.lost(how).await,
                () = at(self.swap_at) => self.swap_out().await,
                envelope = queue.recv() => match envelope {
                    Some(envelope) => {
                        let before = self.phase.clone();
                        let next = self.take(envelope).await;
                        // Not after a request that changed nothing: a step that fails would be repeated at once.
                        if self.phase != before {
                            self.context.board.moved.notify_one();
                        }
                        match next {
                            Next::Go => {}
                            Next::Gone => return self.refuse_rest(),
                        }
                    }
                    None => return,
                },
            }
        }
    }

    /// Leaves the machine to the next process of the node, which can't open a session, nor speak with the monitor, while this
    /// one does.
    fn let_go(self) {
        self.seat.state.send_modify(|state| state.vm = None);
        if let Some(link) = self.live.and_then(|live| live.link) {
            link.close();
        }
    }

    /// Judges a request and carries it out.
    async fn take(&mut self, envelope: Envelope) -> Next {
        let Envelope { request, waiting } = envelope;
        let ask = request.ask();
        let verdict = judge(&self.phase, ask);
        if verdict == Verdict::Denied {
            let (id, phase) = (self.record.spec.id.clone(), self.phase.clone());
            request.refuse(RuntimeError::Phase { id, phase, verb: ask.as_str() });
            return Next::Go;
        }
        let already = verdict == Verdict::Already;
        // A reply that can't be sent means that whoever asked has gone away; what was done stays done.
        match request {
            Request::Run(reply) | Request::Act(_, reply) | Request::Fork(_, reply) if already => {
                let _ = reply.send(Ok(self.observed()));
            }
            Request::Run(reply) => return self.brought_to_life(None, reply, waiting).await,
            Request::Fork(frozen, reply) => return self.brought_to_life(frozen, reply, waiting).await,
            Request::Act(Verb::Delete, reply) => {
                let outcome = self.delete().await;
                let gone = outcome.is_ok();
                if gone {
                    self.context.board.leave(&self.record.spec.id);
                }
                drop(waiting);
                let _ = reply.send(outcome.map(|()| self.observed()));
                return if gone { Next::Gone } else { Next::Go };
            }
            Request::Act(verb, reply) => {
                let outcome = self.act(verb).await;
                drop(waiting);
                let _ = reply.send(outcome.map(|()| self.observed()));
            }
            Request::Snapshot(id, reply) => self.snapshot(id, reply, waiting).await,
            Request::Connect(reply) => {
                let outcome = self.connect().await;
                let _ = reply.send(outcome);
            }
            Request::Freeze(way, reply) => {
                let outcome = self.freeze(way).await;
                drop(waiting);
                let _ = reply.send(outcome);
            }
            Request::Update(spec, reply) => {
                let outcome = self.update(&spec).await;
                let refused = matches!(outcome, Err(RuntimeError::Refused { .. })).then(|| Arc::from(spec));
                self.seat.state.send_modify(|state| state.refused = refused);
                drop(waiting);
                let _ = reply.send(outcome.map(|()| self.observed()));
            }
        }
        Next::Go
    }

    async fn brought_to_life(&mut self, frozen: Option<Arc<Frozen>>, reply: Reply<Observed>, waiting: Waiting) -> Next {
        let outcome = self.begin(frozen).await;
        let failed = outcome.is_err();
        if failed {
            self.context.board.leave(&self.record.spec.id);
        }
        drop(waiting);
        // Whoever asked may have gone away; what was done stays done.
        let _ = reply.send(outcome.map(|()| self.observed()));
        if failed { Next::Gone } else { Next::Go }
    }

    async fn act(&mut self, verb: Verb) -> Result<(), RuntimeError> {
        match verb {
            Verb::Start => self.start().await,
            Verb::Stop { force } => self.stop(force).await,
            Verb::Pause => self.pause().await,
            Verb::Resume => self.resume().await,
            Verb::Archive => self.archive().await,
            Verb::Delete => self.delete().await,
        }
    }

    /// Moves the sandbox's life on and shows it.
    pub(super) fn step(&mut self, event: PhaseEvent) {
        match transition(self.phase.clone(), event) {
            Ok(next) => {
                // On its way into the archive a stopped sandbox stays what it was for its intervals.
                let rests = matches!(next, Phase::Archiving | Phase::Archived) || self.phase == Phase::Archiving;
                self.phase = next;
                if !rests {
                    self.seat.activity.touch(clock::now());
                }
                tracing::debug!(phase = self.phase.as_str(), "sandbox moved");
            }
            // The queue's table allows only legal steps; a test holds the two together.
            Err(illegal) => tracing::error!(%illegal, "a sandbox was asked for an impossible step"),
        }
        self.publish();
    }

    /// The machine can't go on.
    pub(super) fn fail(&mut self, reason: FailReason) {
        tracing::warn!(?reason, "a sandbox failed");
        self.step(PhaseEvent::Fail(reason));
    }

    pub(super) fn publish(&self) {
        let link = self.live.as_ref().and_then(|live| live.link.clone());
        let vm = self.live.as_ref().map(|live| live.vm.clone());
        self.seat.state.send_modify(|state| {
            state.phase = self.phase.clone();
            state.link = link;
            state.vm = vm;
            state.archive = self.record.life.archive();
        });
        if self.phase != Phase::Gone {
            self.context.board.show(self.observed());
        }
    }

    pub(super) fn observed(&self) -> Observed {
        Observed {
            id: self.record.spec.id.clone(),
            generation: self.record.generation,
            phase: self.phase.clone(),
            last_activity: self.seat.activity.last(clock::now()),
        }
    }

    /// Makes the record say `life`, durably.
    pub(super) async fn write(&mut self, life: Life) -> Result<(), RuntimeError> {
        self.record.life = life;
        self.record.last_activity = self.seat.activity.last(clock::now());
        let (record, home) = (self.record.clone(), self.home.clone());
        match home {
            Some(home) => blocking(move || home.write_sandbox(&record)).await,
            None => Ok(()),
        }
    }

    /// Like [`write`](Self::write), where the step has been taken already: a record that lags behind is mended by the
    /// next start, which looks at the machine itself.
    pub(super) async fn note(&mut self, life: Life) {
        if let Err(error) = self.write(life).await {
            tracing::warn!(%error, "a sandbox's record couldn't be written");
        }
    }

    pub(super) fn client(&self, link: Link) -> GuestClient {
        let id = self.record.spec.id.clone();
        GuestClient::new(id, self.record.generation, link, self.seat.activity.clone())
    }

    fn refuse_rest(&mut self) {
        self.seat.queue.close();
        while let Ok(envelope) = self.seat.queue.try_recv() {
            let id = self.record.spec.id.clone();
            match envelope.request {
                // A second delete finds what it asks for.
                Request::Act(Verb::Delete, reply) => drop(reply.send(Ok(self.observed()))),
                request => request.refuse(RuntimeError::Unknown(id)),
            }
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        // What is due is due before the next request; a timer would come a millisecond later.
        Some(instant) if instant <= Instant::now() => {}
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

async fn machine_ended(live: Option<&Live>) -> String {
    match live {
        Some(live) => live.vm.ended().await,
        None => std::future::pending().await,
    }
}
