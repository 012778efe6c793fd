//! The clones of one shape, and what demand says of them.

use std::collections::VecDeque;

use fabric_types::{Name, Shape};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Warm;
use super::copies::Copies;
use super::demand::{Demand, Level, Step, next};
use crate::folder::Home;
use crate::room::Making;
use crate::template::Template;
use crate::{PoolLimits, PoolStatus, RuntimeError};

/// Ends when the clone it was made for ends, or is dropped with its slot.
struct Slot {
    warm: Warm,
    _watch: DropGuard,
}

/// A clone of this shape has ended by itself.
pub(super) struct Death {
    pub(super) shape: Shape,
    pub(super) home: Home,
}

/// See the module.
pub(super) struct Shelf {
    pub(super) shape: Shape,
    pub(super) demand: Demand,
    /// The template, once it is known to be there.
    pub(super) template: Option<Template>,
    /// Clones and templates that are being made.
    pub(super) making: u32,
    /// What is known of the template's checkpoint.
    pub(super) copies: Copies,
    slots: VecDeque<Slot>,
    target: u32,
    missing_since: Option<Instant>,
    failures: u32,
    failed_at: Option<Instant>,
    last_error: Option<String>,
}

impl Shelf {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            demand: Demand::default(),
            template: None,
            making: 0,
            copies: Copies::default(),
            slots: VecDeque::new(),
            target: 0,
            missing_since: None,
            failures: 0,
            failed_at: None,
            last_error: None,
        }
    }

    pub(super) fn warm(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    /// Sets what is wanted by what demand, limits and memory say now.
    pub(super) fn aim(&mut self, limits: PoolLimits, private_kib: u64, now: Instant) {
        self.target = self.demand.wanted(limits, private_kib, now);
        self.note_missing(now);
    }

    /// Wants nothing any more.
    pub(super) fn close(&mut self) {
        self.target = 0;
    }

    pub(super) fn target(&self) -> u32 {
        self.target
    }

    /// What is due next, and when.
    pub(super) fn next(&self, now: Instant) -> Option<(Instant, Step)> {
        let level = Level {
            warm: self.warm(),
            making: self.making,
            target: self.target,
            oldest: self.slots.iter().map(|slot| slot.warm.made_at).min(),
            outdated: self.outdated().is_some(),
            taken_at: self.demand.last(),
            missing_since: self.missing_since,
            failures: self.failures,
            failed_at: self.failed_at,
        };
        next(&level, now)
    }

    /// Whether clones are made as copies of a checkpoint.
    pub(super) fn makes_copies(&self) -> bool {
        self.copies == Copies::Ready
    }

    /// How what is made for it is made.
    pub(super) fn kind(&self) -> Making {
        if self.makes_copies() { Making::Copy } else { Making::Anew }
    }

    /// When its checkpoint is to be looked for or made.
    pub(super) fn checkpoint_due(&self, now: Instant) -> Option<Instant> {
        self.template.as_ref()?;
        self.copies.due(self.shape == Shape::DEFAULT, self.target, self.demand.asked(now), now)
    }

    /// One that isn't a copy, though it could be one.
    fn outdated(&self) -> Option<usize> {
        self.slots.iter().position(|slot| !slot.warm.is_copy()).filter(|_| self.makes_copies())
    }

    /// Puts a clone on the shelf and watches whether it lives.
    pub(super) fn keep(&mut self, warm: Warm, deaths: &mpsc::UnboundedSender<Death>) {
        let watch = CancellationToken::new();
        let (vm, home, gone) = (warm.vm.clone(), warm.home.clone(), watch.clone());
        let (shape, deaths) = (self.shape, deaths.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = gone.cancelled() => {}
                how = vm.ended() => {
                    tracing::warn!(%how, home = %home.dir().display(), "a warm clone has ended");
                    // An error means that the pool has ended too.
                    let _ = deaths.send(Death { shape, home });
                }
            }
        });
        // One that was adopted tells of it first.
        self.template.get_or_insert_with(|| warm.template.clone());
        self.slots.push_back(Slot { warm, _watch: watch.drop_guard() });
        self.note_missing(Instant::now());
    }

    /// The oldest clone.
    pub(super) fn take(&mut self, now: Instant) -> Option<Warm> {
        let warm = self.slots.pop_front().map(|slot| slot.warm);
        self.note_missing(now);
        warm
    }

    /// The one that is to go: what could be a copy and isn't, else the oldest.
    pub(super) fn take_worst(&mut self) -> Option<Warm> {
        let warm = self.slots.remove(self.outdated().unwrap_or(0)).map(|slot| slot.warm);
        self.note_missing(Instant::now());
        warm
    }

    /// The clone in this home.
    pub(super) fn take_from(&mut self, home: &Home) -> Option<Warm> {
        let at = self.slots.iter().position(|slot| slot.warm.home == *home)?;
        let warm = self.slots.remove(at).map(|slot| slot.warm);
        self.note_missing(Instant::now());
        warm
    }

    /// All clones. Their watches end here: these deaths are no news.
    pub(super) fn clear(&mut self) -> Vec<Warm> {
        self.slots.drain(..).map(|slot| slot.warm).collect()
    }

    pub(super) fn clones(&self) -> impl Iterator<Item = &Warm> {
        self.slots.iter().map(|slot| &slot.warm)
    }

    /// Something was made as it should be.
    pub(super) fn succeeded(&mut self) {
        (self.failures, self.failed_at, self.last_error) = (0, None, None);
    }

    /// Something couldn't be made.
    pub(super) fn failed(&mut self, error: &RuntimeError, now: Instant) {
        // The template itself may be what is wrong: look at it again.
        self.template = None;
        self.failures += 1;
        self.failed_at = Some(now);
        self.last_error = Some(error.to_string());
        let (failures, shape) = (self.failures, self.shape);
        tracing::warn!(%error, failures, %shape, "the warm pool couldn't be filled; trying again");
    }

    /// Whether there is nothing on it, and nothing is meant to be.
    pub(super) fn is_bare(&self) -> bool {
        self.slots.is_empty() && self.making == 0 && self.target == 0
    }

    pub(super) fn status(&self, template: &Name) -> PoolStatus {
        let doing = match &self.last_error {
            Some(error) => error.clone(),
            None if self.copies == Copies::Making => "making checkpoint".to_owned(),
            None if self.warm() >= self.target => "full".to_owned(),
            None if self.template.is_none() && self.making > 0 => "booting template".to_owned(),
            None => "filling".to_owned(),
        };
        PoolStatus { template: template.clone(), shape: self.shape, warm: self.warm(), target: self.target, doing }
    }

    fn note_missing(&mut self, now: Instant) {
        let missing = self.warm() < self.target;
        self.missing_since = missing.then(|| self.missing_since.unwrap_or(now));
    }
}
