//! Interpreters started ahead: each is used once, and another is started in its place when its program has ended.
//!
//! ```text
//! park      what is told to a parked interpreter: where, with which arguments, in which environment
//! pages     what a forked one will write to is its own before it is used
//! python    a fork server; its children wait just before they open their program
//! node      processes that wait for their program on standard input
//! zygote.py, node.js   the interpreters' side
//!
//! empty -> (started, exercised) -> parked -> taken -> (a program's process like any other)
//! ```
//!
//! A parked interpreter goes on as a fresh one would, so its program can't tell. Where it couldn't (variables that an
//! interpreter reads while it starts, none parked, one that died) a fresh one is started as for any command.

mod node;
mod pages;
mod park;
mod python;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::console::say;
use crate::exec::{Command, Reaper, importable, merged};
use crate::limits::Bounds;
pub(crate) use park::{Ends, Parked};

/// Python interpreters parked: one answers a caller who waits for each answer, the others callers who come at once. Each is
/// 3 MiB.
const PYTHON_PARKED: usize = 3;
/// Node processes parked: each is 40 MiB, most of which clones share with their template.
const NODE_PARKED: usize = 2;
/// How long an interpreter may take to park: under emulation, on a busy host, node takes seconds.
const PARK_MAX: Duration = Duration::from_secs(60);
/// How long a rehearsal waits for all to be parked: less than the 15 s that the host gives its identity. What isn't there by
/// then is parked later.
const ALL_PARKED_MAX: Duration = Duration::from_secs(12);
/// What is missing is started so long after a program's end: its answer goes first, and perhaps the next program. If none is
/// left the next one waits for it.
const REFILL_AFTER: Duration = Duration::from_millis(5);
const REFILL_EMPTY_AFTER: Duration = Duration::from_millis(1);
/// How long a program waits for an interpreter that is being started, before it gets a fresh one: some times what each takes
/// under emulation.
const PYTHON_COMING_MAX: Duration = Duration::from_secs(1);
const NODE_COMING_MAX: Duration = Duration::from_secs(5);
/// A node that has been starting for less isn't waited for: what it still does takes longer than a fresh start, which has
/// nothing to exercise.
const NODE_NEAR: Duration = Duration::from_millis(600);
/// Between two attempts at one that doesn't start.
const AGAIN: Duration = Duration::from_secs(5);
/// Attempts in a row before it is left: what is missing or broken stays so, and programs are started afresh then.
const ATTEMPTS_MAX: u32 = 5;

/// Which interpreter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `python3`.
    Python,
    /// `node`.
    Node,
}

/// Starts interpreters of one kind, and has them park.
trait Starter: Send + 'static {
    /// Starts one; ready when it is parked.
    fn start(&mut self) -> impl Future<Output = io::Result<Parked>> + Send;
}

/// Where interpreters are started from, and what they are started with.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The folder of their own scripts.
    pub(crate) scripts: PathBuf,
    /// The folder of the programs.
    pub(crate) scratch: PathBuf,
    /// Where commands start.
    pub(crate) home: PathBuf,
    /// What every command's environment starts with.
    pub(crate) environment: BTreeMap<String, String>,
}

impl Place {
    /// A place with the environment that every command starts with, in folders that are made.
    pub(crate) fn new(home: PathBuf, scratch: PathBuf, scripts: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&scratch)?;
        let environment =
            merged(&BTreeMap::new(), BTreeMap::new(), &home).map_err(|error| io::Error::other(error.message))?;
        Ok(Self { scripts, scratch, home, environment })
    }

    /// What an interpreter of one kind is started with, as far as it reads it: its programs' environments are compared
    /// with it.
    fn start(&self, kind: Kind) -> BTreeMap<String, String> {
        let mut environment = self.environment.clone();
        if kind == Kind::Python {
            importable(&mut environment, &self.home);
        }
        environment
    }

    /// Whether a parked interpreter runs a command as a fresh one would.
    fn parks(&self, kind: Kind, command: &Command) -> bool {
        park::parks(kind, &self.start(kind), command)
    }
}

/// Starts interpreters; where that fails none is parked, and programs are started afresh.
pub(crate) fn start(place: &Place, reaper: Reaper, bounds: Arc<Bounds>) -> Warm {
    Warm::start(place.clone(), reaper, bounds).unwrap_or_else(|error| {
        say(&format!("can't park interpreters: {error}"));
        Warm::none()
    })
}

/// How nice an interpreter is while it is started, and while it is taken apart: what is asked goes first.
pub(crate) const NICE: i32 = 19;

/// Interpreters started ahead; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Warm(Arc<Shelves>);

#[derive(Debug)]
struct Shelves {
    python: Shelf,
    node: Shelf,
}

/// The parked ones of one kind.
#[derive(Debug)]
struct Shelf {
    parked: Mutex<VecDeque<Parked>>,
    wanted: usize,
    /// One is missing, and now is a time to start it.
    refill: Notify,
    /// One is there.
    arrived: Notify,
    /// Since when one is being started.
    coming: Mutex<Option<Instant>>,
    /// Whether as many are there as are wanted, or will never be.
    full: watch::Sender<bool>,
    /// It was tried too often: none is started any more.
    given_up: AtomicBool,
    /// Counts renewals: what was begun under an earlier number isn't parked.
    era: AtomicU64,
}

impl Shelf {
    fn new(wanted: usize) -> Self {
        Self {
            parked: Mutex::default(),
            wanted,
            refill: Notify::new(),
            arrived: Notify::new(),
            coming: Mutex::default(),
            full: watch::Sender::new(wanted == 0),
            given_up: AtomicBool::new(false),
            era: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Parked>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One was taken: until another is there, whoever waits for all waits.
    fn taken(&self) {
        if !self.given_up.load(Ordering::Relaxed) {
            self.full.send_replace(false);
        }
    }

    fn coming(&self) -> MutexGuard<'_, Option<Instant>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing will ever be parked.
    fn is_closed(&self) -> bool {
        self.wanted == 0 || self.given_up.load(Ordering::Relaxed)
    }

    fn missing(&self) -> bool {
        let missing = self.lock().len() < self.wanted;
        if !missing {
            self.full.send_replace(true);
        }
        missing
    }
}

impl Warm {
    /// None at all: every program starts a fresh interpreter.
    pub(crate) fn none() -> Self {
        Self(Arc::new(Shelves { python: Shelf::new(0), node: Shelf::new(0) }))
    }

    /// Starts interpreters and keeps them in number. Must be called on the runtime.
    pub(crate) fn start(place: Place, reaper: Reaper, bounds: Arc<Bounds>) -> io::Result<Self> {
        write_scripts(&place.scripts)?;
        let warm = Self(Arc::new(Shelves { python: Shelf::new(PYTHON_PARKED), node: Shelf::new(NODE_PARKED) }));
        let python = python::Starter::new(place.clone(), reaper.clone(), Arc::clone(&bounds));
        tokio::spawn(warm.clone().keep(Kind::Python, python));
        tokio::spawn(warm.clone().keep(Kind::Node, node::Starter { place, reaper, bounds }));
        Ok(warm)
    }

    /// Takes one that runs a command as a fresh one would. If none is there but one will be sooner than a fresh one would,
    /// that is waited for.
    pub(crate) async fn take_for(&self, place: &Place, kind: Kind, command: &Command) -> Option<Parked> {
        if !place.parks(kind, command) {
            return None;
        }
        if let Some(parked) = self.take(kind) {
            return Some(parked);
        }
        let shelf = self.shelf(kind);
        let limit = match kind {
            // Another is forked at once.
            Kind::Python => {
                self.refill(kind);
                PYTHON_COMING_MAX
            }
            Kind::Node => {
                let is_near = shelf.coming().is_some_and(|since| since.elapsed() > NODE_NEAR);
                if !is_near {
                    return None;
                }
                NODE_COMING_MAX
            }
        };
        let comes = async {
            while !shelf.is_closed() {
                shelf.arrived.notified().await;
                if let Some(parked) = self.take(kind) {
                    return Some(parked);
                }
            }
            None
        };
        tokio::time::timeout(limit, comes).await.ok().flatten()
    }

    /// Takes one that is parked and alive.
    fn take(&self, kind: Kind) -> Option<Parked> {
        let mut parked = self.shelf(kind).lock();
        loop {
            let mut one = parked.pop_front()?;
            self.shelf(kind).taken();
            if one.is_alive() {
                return Some(one);
            }
        }
    }

    /// A program has ended: what is missing is started now.
    pub(crate) fn refill(&self, kind: Kind) {
        self.shelf(kind).refill.notify_one();
    }

    /// Ends the parked ones that hold random numbers which another clone of this machine may hold too. Others are started
    /// when the next program of their kind has ended: a fork's children and a restored sandbox that run none pay neither
    /// the seconds of processor time that node takes to start under emulation, nor its memory.
    ///
    /// Node's generators were seeded when it started. OpenSSL's are seeded anew on their next use once the clock has gone
    /// an hour further, which holds for what was parked before the first identity (see `Machine::set_clock`). Of python
    /// nothing is seeded before its program runs.
    pub(crate) fn renew(&self) {
        self.0.node.era.fetch_add(1, Ordering::Relaxed);
        let old: Vec<Parked> = self.0.node.lock().drain(..).collect();
        old.into_iter().for_each(Parked::end);
    }

    /// Waits until all are parked, or can't be, or it takes too long.
    pub(crate) async fn parked(&self) {
        let all = async {
            for shelf in [&self.0.python, &self.0.node] {
                // The sender is ours and lives.
                let _ = shelf.full.subscribe().wait_for(|full| *full).await;
            }
        };
        let _ = tokio::time::timeout(ALL_PARKED_MAX, all).await;
    }

    fn shelf(&self, kind: Kind) -> &Shelf {
        match kind {
            Kind::Python => &self.0.python,
            Kind::Node => &self.0.node,
        }
    }

    fn put(&self, kind: Kind, parked: Parked) {
        self.shelf(kind).lock().push_back(parked);
        self.shelf(kind).arrived.notify_one();
    }

    /// Keeps one shelf full with what `starter` gives, until that has failed too often.
    async fn keep(self, kind: Kind, mut starter: impl Starter) {
        let mut failed = 0;
        loop {
            if !self.shelf(kind).missing() {
                self.shelf(kind).refill.notified().await;
                let is_empty = self.shelf(kind).lock().is_empty();
                tokio::time::sleep(if is_empty { REFILL_EMPTY_AFTER } else { REFILL_AFTER }).await;
                continue;
            }
            let era = self.shelf(kind).era.load(Ordering::Relaxed);
            *self.shelf(kind).coming() = Some(Instant::now());
            let started = match tokio::time::timeout(PARK_MAX, starter.start()).await {
                Ok(started) => started,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            *self.shelf(kind).coming() = None;
            match started {
                Ok(parked) if era != self.shelf(kind).era.load(Ordering::Relaxed) => parked.end(),
                Ok(parked) => {
                    failed = 0;
                    self.put(kind, parked);
                }
                Err(error) => {
                    failed += 1;
                    say(&format!("can't park an interpreter ({kind:?}, attempt {failed}): {error}"));
                    if failed == ATTEMPTS_MAX {
                        self.shelf(kind).given_up.store(true, Ordering::Relaxed);
                        self.shelf(kind).full.send_replace(true);
                        self.shelf(kind).arrived.notify_waiters();
                        return;
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

/// Writes the interpreters' side where they find it.
fn write_scripts(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join(python::SCRIPT_FILE), python::SCRIPT)?;
    fs::write(folder.join(node::SCRIPT_FILE), node::SCRIPT)
}
