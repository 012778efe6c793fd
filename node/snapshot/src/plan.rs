//! What to fetch next, from whom: policy, without I/O, clock or chance.
//!
//! Holders are in the order in which they are preferred. Chunks go out in the order in which they are wanted, in
//! batches, a few at a time, all to the first holder that is still trusted and that has not said it lacks them. A
//! holder that sends bytes that don't hash to their name is not asked again; one whose batches break twice in a row
//! neither. A chunk that nobody is left to be asked for ends the pull.

use std::collections::{BTreeMap, VecDeque};

use fabric_types::Digest;

use crate::wire::REQUEST_CHUNKS_MAX;

/// Batches in flight: enough to hide a round trip of 300 ms at 200 Mbit/s, each with one chunk in memory.
pub(crate) const BATCHES_MAX: usize = 4;
/// Bytes of a batch: a few seconds on a slow line.
const BATCH_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Batches that may break in a row, with no chunk between them, before a holder is given up.
const BREAKS_MAX: u32 = 2;
/// Holders of one pull: replicas are 2 to 5, and the bit set below holds 32.
pub(crate) const HOLDERS_MAX: usize = 16;

/// A chunk that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) digest: Digest,
    pub(crate) stored_bytes: u32,
    /// Bit h: holder h doesn't have it.
    lacking: u32,
}

impl Wanted {
    pub(crate) fn new(digest: Digest, stored_bytes: u32) -> Self {
        Self { digest, stored_bytes, lacking: 0 }
    }
}

/// A batch's number, never used twice.
pub(crate) type BatchId = u64;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A chunk came, its hash is right, and it is staged.
    Arrived { batch: BatchId, digest: Digest },
    /// The holder doesn't have it.
    Absent { batch: BatchId, digest: Digest },
    /// The holder sent other bytes under its name.
    Forged { batch: BatchId },
    /// The batch is over: nothing more will come of it.
    Ended { batch: BatchId, broken: bool },
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Ask a holder for these.
    Fetch { batch: BatchId, holder: usize, digests: Vec<Digest> },
    /// Everything has arrived.
    Finish,
    /// Nobody is left to be asked for this one.
    GiveUp { digest: Digest },
}

/// The state of a pull.
#[derive(Debug)]
pub(crate) struct Plan {
    holders: Vec<Holder>,
    waiting: VecDeque<Wanted>,
    flying: BTreeMap<BatchId, Batch>,
    next: BatchId,
    over: bool,
}

#[derive(Debug, Default)]
struct Holder {
    breaks: u32,
    out: bool,
}

#[derive(Debug)]
struct Batch {
    holder: usize,
    /// What has not arrived, in order.
    open: Vec<Wanted>,
}

impl Plan {
    /// A plan and its first commands. At most [`HOLDERS_MAX`] holders are looked at.
    pub(crate) fn new(holders: usize, wanted: impl IntoIterator<Item = Wanted>) -> (Self, Vec<Command>) {
        let holders = (0..holders.min(HOLDERS_MAX)).map(|_| Holder::default()).collect();
        let waiting = wanted.into_iter().collect();
        let mut plan = Self { holders, waiting, flying: BTreeMap::new(), next: 0, over: false };
        let commands = plan.schedule();
        (plan, commands)
    }

    /// Takes in what happened and says what follows. Events of batches that are over are ignored, and so is
    /// everything after `Finish` or `GiveUp`.
    pub(crate) fn step(&mut self, event: Event) -> Vec<Command> {
        match event {
            Event::Arrived { batch, digest } => {
                if let Some(flying) = self.flying.get_mut(&batch) {
                    flying.open.retain(|wanted| wanted.digest != digest);
                    self.holders[flying.holder].breaks = 0;
                }
            }
            Event::Absent { batch, digest } => {
                if let Some(flying) = self.flying.get_mut(&batch) {
                    let bit = 1 << flying.holder;
                    flying.open.iter_mut().filter(|wanted| wanted.digest == digest).for_each(|w| w.lacking |= bit);
                }
            }
            Event::Forged { batch } => {
                if let Some(flying) = self.flying.get(&batch) {
                    self.holders[flying.holder].out = true;
                }
            }
            Event::Ended { batch, broken } => {
                if let Some(ended) = self.flying.remove(&batch) {
                    self.end(ended, broken);
                }
            }
        }
        self.schedule()
    }

    fn end(&mut self, ended: Batch, broken: bool) {
        let holder = &mut self.holders[ended.holder];
        // A batch that ends in peace owes each chunk an answer: one that doesn't give it counts as broken.
        let bit = 1 << ended.holder;
        let owes = ended.open.iter().any(|wanted| wanted.lacking & bit == 0);
        if broken || owes {
            holder.breaks += 1;
            holder.out |= holder.breaks >= BREAKS_MAX;
        }
        // To the front, in order: they have waited longest.
        ended.open.into_iter().rev().for_each(|wanted| self.waiting.push_front(wanted));
    }

    fn schedule(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        while !self.over && self.flying.len() < BATCHES_MAX {
            let Some(first) = self.waiting.front() else {
                if self.flying.is_empty() {
                    self.over = true;
                    commands.push(Command::Finish);
                }
                break;
            };
            let Some(holder) = self.holder_for(first) else {
                self.over = true;
                commands.push(Command::GiveUp { digest: first.digest });
                break;
            };
            commands.push(self.launch(holder));
        }
        commands
    }

    fn holder_for(&self, wanted: &Wanted) -> Option<usize> {
        let may = |(index, holder): &(usize, &Holder)| !holder.out && wanted.lacking & (1 << index) == 0;
        self.holders.iter().enumerate().find(may).map(|(index, _)| index)
    }

    /// Makes a batch of what lies at the front for this holder.
    fn launch(&mut self, holder: usize) -> Command {
        let mut open: Vec<Wanted> = Vec::new();
        let mut bytes = 0;
        while let Some(wanted) = self.waiting.front() {
            bytes += u64::from(wanted.stored_bytes);
            let full = open.len() >= REQUEST_CHUNKS_MAX || (bytes > BATCH_BYTES_MAX && !open.is_empty());
            if full || self.holder_for(wanted) != Some(holder) {
                break;
            }
            open.extend(self.waiting.pop_front());
        }
        let batch = self.next;
        self.next += 1;
        let digests = open.iter().map(|wanted| wanted.digest).collect();
        self.flying.insert(batch, Batch { holder, open });
        Command::Fetch { batch, holder, digests }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(count: u32) -> Vec<Wanted> {
        (0..count).map(|number| Wanted::new(digest(number), 600_000)).collect()
    }

    fn digest(number: u32) -> Digest {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        Digest::from_bytes(bytes)
    }

    fn fetched(commands: &[Command]) -> Vec<(BatchId, usize, Vec<Digest>)> {
        let fetch = |command: &Command| match command {
            Command::Fetch { batch, holder, digests } => Some((*batch, *holder, digests.clone())),
            Command::Finish | Command::GiveUp { .. } => None,
        };
        commands.iter().filter_map(fetch).collect()
    }

    #[test]
    fn nothing_wanted_is_finished_at_once_even_with_nobody_to_ask() {
        assert_eq!(Plan::new(0, wanted(0)).1, vec![Command::Finish]);
        assert_eq!(Plan::new(0, wanted(1)).1, vec![Command::GiveUp { digest: digest(0) }]);
    }

    #[test]
    fn the_first_holder_gets_a_few_bounded_batches_in_order() {
        let (mut plan, commands) = Plan::new(2, wanted(100));
        let first = fetched(&commands);
        assert_eq!(first.len(), BATCHES_MAX);
        assert!(first.iter().all(|(_, holder, digests)| *holder == 0 && digests.len() == 13), "8 MiB of 600 kB each");
        let asked: Vec<Digest> = first.iter().flat_map(|(_, _, digests)| digests.clone()).collect();
        assert_eq!(asked, (0..52).map(digest).collect::<Vec<_>>());
        for one in 0..13 {
            assert_eq!(plan.step(Event::Arrived { batch: 0, digest: digest(one) }), vec![]);
        }
        let next = fetched(&plan.step(Event::Ended { batch: 0, broken: false }));
        assert_eq!(next.len(), 1);
        assert_eq!(next[0].2[0], digest(52));
    }

    #[test]
    fn a_broken_batch_is_asked_again_and_then_of_the_next_holder() {
        let (mut plan, _) = Plan::new(2, wanted(3));
        plan.step(Event::Arrived { batch: 0, digest: digest(0) });
        let again = fetched(&plan.step(Event::Ended { batch: 0, broken: true }));
        assert_eq!(again, vec![(1, 0, vec![digest(1), digest(2)])]);
        let other = fetched(&plan.step(Event::Ended { batch: 1, broken: true }));
        assert_eq!(other, vec![(2, 1, vec![digest(1), digest(2)])]);
        plan.step(Event::Ended { batch: 2, broken: true });
        let end = plan.step(Event::Ended { batch: 3, broken: true });
        assert_eq!(end, vec![Command::GiveUp { digest: digest(1) }]);
        assert_eq!(plan.step(Event::Ended { batch: 3, broken: true }), vec![]);
    }

    #[test]
    fn a_forger_is_not_asked_again() {
        let (mut plan, _) = Plan::new(2, wanted(20));
        plan.step(Event::Forged { batch: 0 });
        let next = fetched(&plan.step(Event::Ended { batch: 0, broken: true }));
        assert_eq!(next.iter().map(|(_, holder, _)| *holder).collect::<Vec<_>>(), vec![1]);
        let next = fetched(&plan.step(Event::Ended { batch: 1, broken: true }));
        assert_eq!(next.iter().map(|(_, holder, _)| *holder).collect::<Vec<_>>(), vec![1]);
    }

    #[test]
    fn what_a_holder_lacks_is_asked_of_the_next_and_the_rest_still_of_the_first() {
        let (mut plan, _) = Plan::new(2, wanted(3));
        plan.step(Event::Absent { batch: 0, digest: digest(1) });
        plan.step(Event::Arrived { batch: 0, digest: digest(0) });
        plan.step(Event::Arrived { batch: 0, digest: digest(2) });
        let next = fetched(&plan.step(Event::Ended { batch: 0, broken: false }));
        assert_eq!(next, vec![(1, 1, vec![digest(1)])]);
        plan.step(Event::Absent { batch: 1, digest: digest(1) });
        let end = plan.step(Event::Ended { batch: 1, broken: false });
        assert_eq!(end, vec![Command::GiveUp { digest: digest(1) }]);
    }

    #[test]
    fn a_holder_that_ends_in_peace_and_owes_answers_is_given_up() {
        let (mut plan, _) = Plan::new(1, wanted(1));
        assert_eq!(fetched(&plan.step(Event::Ended { batch: 0, broken: false })).len(), 1);
        let end = plan.step(Event::Ended { batch: 1, broken: false });
        assert_eq!(end, vec![Command::GiveUp { digest: digest(0) }]);
    }

    proptest! {
        /// Whatever holders do, the pull ends, asks for nothing that has arrived, keeps its limits, and finishes only
        /// when everything has arrived.
        #[test]
        fn every_pull_ends(
            holders in 1usize..5,
            count in 0u32..200,
            chances in prop::collection::vec(any::<u8>(), 1..400),
        ) {
            let mut chances = chances.into_iter().cycle();
            let (mut plan, commands) = Plan::new(holders, wanted(count));
            let mut queue: VecDeque<Command> = commands.into();
            let mut arrived = std::collections::BTreeSet::new();
            let mut flying = 0_usize;
            let mut steps = 0;
            let mut over = false;
            while let Some(command) = queue.pop_front() {
                steps += 1;
                prop_assert!(steps < 10_000 && !over);
                match command {
                    Command::Finish => {
                        prop_assert_eq!(arrived.len() as u32, count);
                        over = true;
                    }
                    Command::GiveUp { digest } => {
                        prop_assert!(!arrived.contains(&digest));
                        over = true;
                        queue.clear();
                    }
                    Command::Fetch { batch, holder, digests } => {
                        flying += 1;
                        prop_assert!(flying <= BATCHES_MAX && holder < holders);
                        prop_assert!(!digests.is_empty() && digests.len() <= REQUEST_CHUNKS_MAX);
                        let mut broken = false;
                        for digest in digests {
                            prop_assert!(!arrived.contains(&digest));
                            let event = match chances.next().expect("a cycle") % 16 {
                                0 => { broken = true; break }
                                1 => Event::Absent { batch, digest },
                                2 => { queue.extend(plan.step(Event::Forged { batch })); broken = true; break }
                                _ => { arrived.insert(digest); Event::Arrived { batch, digest } }
                            };
                            queue.extend(plan.step(event));
                        }
                        flying -= 1;
                        queue.extend(plan.step(Event::Ended { batch, broken }));
                    }
                }
            }
            prop_assert!(over);
        }
    }
}
