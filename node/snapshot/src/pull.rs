//! The taking side: a manifest, its parents and their chunks from peers into the store. What to ask of whom is
//! `plan`'s; here is the I/O. Each chunk is checked before it is written; what is here already is not asked for, so a
//! pull that was cut short goes on where it was.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fabric_quic::{Fabric, Peer};
use fabric_types::Digest;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::ask::{self, Answers, Fault, HolderFault};
use crate::error::StoreError;
use crate::folder::Staged;
use crate::ingest::COMMIT_CHUNKS_MAX;
use crate::manifest::{ChunkRef, Manifest};
use crate::materialize::PARENTS_MAX;
use crate::plan::{BatchId, Command, Event, HOLDERS_MAX, Plan, Wanted};
use crate::store::SnapshotStore;

/// A whole pull may take this, and for each MiB a second more.
const PULL_DEADLINE: Duration = Duration::from_secs(300);
/// Events of batches that wait to be taken in; each may hold a staged file.
const EVENTS_MAX: usize = 8;

/// How far a pull is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Chunks that the manifest and its parents have.
    pub chunks: u64,
    /// Of these, how many are here.
    pub chunks_here: u64,
    /// Bytes that all the chunks take.
    pub bytes: u64,
    /// Of these, how many are here.
    pub bytes_here: u64,
}

/// A finished pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullStats {
    /// Chunks that came from peers.
    pub chunks_fetched: u64,
    /// Bytes that they took.
    pub bytes_fetched: u64,
    /// Chunks that were here already.
    pub chunks_here: u64,
    /// Chunks that came from each holder, in the order of the holders given.
    pub by_holder: Vec<u64>,
    /// Milliseconds that it took.
    pub took_ms: u64,
}

/// Why a pull failed. What had come by then is kept, and the next pull goes on from there.
#[derive(Debug, Error)]
pub enum PullError {
    /// No holder could give it.
    #[error("no holder could give {what} {digest}: {}", list(faults))]
    Unavailable {
        /// `manifest` or `chunk`.
        what: &'static str,
        /// Which.
        digest: Digest,
        /// What each holder did wrong: the last of it, or the worst.
        faults: Vec<HolderFault>,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It took too long.
    #[error("the pull of {manifest} was not done in {waited_s} s")]
    Timeout {
        /// Which manifest.
        manifest: Digest,
        /// The limit that passed.
        waited_s: u64,
    },
}

fn list(faults: &[HolderFault]) -> String {
    if faults.is_empty() {
        return "there is none".to_owned();
    }
    faults.iter().map(HolderFault::to_string).collect::<Vec<_>>().join("; ")
}

/// Pulls into one store over one fabric.
#[derive(Clone)]
pub struct Puller {
    store: SnapshotStore,
    fabric: Arc<dyn Fabric>,
}

/// A manifest of the pull, and its bytes if they are not in the store yet.
struct Member {
    digest: Digest,
    manifest: Manifest,
    fetched: Option<Bytes>,
}

impl Puller {
    /// A puller.
    pub fn new(store: SnapshotStore, fabric: Arc<dyn Fabric>) -> Self {
        Self { store, fabric }
    }

    /// Brings a manifest, its parents and all their chunks into the store; what is here is not fetched. `holders` are
    /// asked in their order (nearest first; the first 16 count): one that lacks something, breaks off twice or sends
    /// wrong bytes is passed over. Returns when all is durable; chunks that were found damaged are fetched again.
    ///
    /// Bounded in memory (some 16 MiB) and in time: no chunk for 20 s is a fault of its holder, and all of it may take
    /// five minutes and a second for each MiB. Cancel safe: what is dropped here goes on in a later pull.
    pub async fn pull(
        &self,
        manifest: Digest,
        holders: &[Peer],
        progress: &watch::Sender<PullProgress>,
    ) -> Result<PullStats, PullError> {
        let began = Instant::now();
        let holders = &holders[..holders.len().min(HOLDERS_MAX)];
        let members = self.members(manifest, holders).await?;
        let mut pins = self.store.pins();
        let mut named = HashSet::new();
        let mut chunks: Vec<&ChunkRef> = Vec::new();
        for member in &members {
            pins.add(member.digest);
            chunks.extend(member.manifest.chunks().iter().filter(|chunk| named.insert(chunk.digest)));
        }
        let digests: Vec<Digest> = chunks.iter().map(|chunk| chunk.digest).collect();
        digests.iter().for_each(|digest| pins.add(*digest));
        let absent = self.store.absent(digests.clone()).await?;
        let missing: HashSet<Digest> = absent.iter().copied().collect();
        let wanted: Vec<Wanted> = chunks
            .iter()
            .filter(|chunk| missing.contains(&chunk.digest))
            .map(|chunk| Wanted::new(chunk.digest, chunk.stored_bytes))
            .collect();
        let bytes: u64 = chunks.iter().map(|chunk| u64::from(chunk.stored_bytes)).sum();
        let bytes_missing: u64 = wanted.iter().map(|chunk| u64::from(chunk.stored_bytes)).sum();
        let chunks_here = (chunks.len() - wanted.len()) as u64;
        progress.send_replace(PullProgress {
            chunks: chunks.len() as u64,
            chunks_here,
            bytes,
            bytes_here: bytes - bytes_missing,
        });
        let deadline = PULL_DEADLINE + Duration::from_secs(bytes_missing >> 20);
        let fetch = self.fetch_chunks(holders, wanted, progress);
        let fetched = timeout(deadline, fetch)
            .await
            .map_err(|_| PullError::Timeout { manifest, waited_s: deadline.as_secs() })??;
        let met = digests.into_iter().filter(|digest| !missing.contains(digest)).collect();
        self.store.commit(Vec::new(), met).await?;
        // Parents first: a manifest in the store has all that it needs there.
        for member in members.into_iter().rev() {
            if let Some(bytes) = member.fetched {
                self.store.put_manifest(member.digest, bytes).await?;
            }
        }
        drop(pins);
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        debug!(%manifest, chunks = fetched.chunks, bytes = fetched.bytes, took_ms, "snapshot pulled");
        Ok(PullStats {
            chunks_fetched: fetched.chunks,
            bytes_fetched: fetched.bytes,
            chunks_here,
            by_holder: fetched.by_holder,
            took_ms,
        })
    }

    /// The manifest and its parents, from here or from the holders.
    async fn members(&self, manifest: Digest, holders: &[Peer]) -> Result<Vec<Member>, PullError> {
        let mut members = Vec::new();
        let mut next = Some(manifest);
        while let Some(digest) = next {
            if members.len() > PARENTS_MAX {
                return Err(StoreError::Depth(manifest, PARENTS_MAX).into());
            }
            let member = match self.store.manifest(digest).await {
                Ok(here) => Member { digest, manifest: Arc::unwrap_or_clone(here), fetched: None },
                Err(StoreError::NoManifest(_) | StoreError::Damaged { .. }) => {
                    self.fetch_manifest(digest, holders).await?
                }
                Err(error) => return Err(error.into()),
            };
            next = member.manifest.header().parent;
            members.push(member);
        }
        Ok(members)
    }

    async fn fetch_manifest(&self, digest: Digest, holders: &[Peer]) -> Result<Member, PullError> {
        let mut faults = Vec::new();
        for holder in holders {
            let fault = match ask::manifest(&*self.fabric, holder, digest).await {
                Ok((manifest, bytes)) => return Ok(Member { digest, manifest, fetched: Some(bytes) }),
                Err(fault) => fault,
            };
            debug!(%holder, %digest, %fault, "a holder gave no manifest");
            faults.push(HolderFault { holder: holder.clone(), fault });
        }
        Err(PullError::Unavailable { what: "manifest", digest, faults })
    }

    /// Carries out a plan. What was staged when it ends in an error is committed all the same.
    async fn fetch_chunks(
        &self,
        holders: &[Peer],
        wanted: Vec<Wanted>,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<Fetched, PullError> {
        let sizes = wanted.iter().map(|wanted| (wanted.digest, u64::from(wanted.stored_bytes))).collect();
        let (plan, commands) = Plan::new(holders.len(), wanted);
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let mut fetch = Fetch {
            puller: self,
            holders,
            progress,
            sizes,
            plan,
            events,
            inbox,
            batches: JoinSet::new(),
            holder_of: BTreeMap::new(),
            staged: Vec::new(),
            faults: BTreeMap::new(),
            fetched: Fetched { by_holder: vec![0; holders.len()], ..Fetched::default() },
        };
        let outcome = fetch.run(commands).await;
        fetch.batches.shutdown().await;
        let committed = self.store.commit(std::mem::take(&mut fetch.staged), Vec::new()).await;
        outcome?;
        committed?;
        Ok(fetch.fetched)
    }
}

#[derive(Debug, Default)]
struct Fetched {
    chunks: u64,
    bytes: u64,
    by_holder: Vec<u64>,
}

/// A plan being carried out.
struct Fetch<'a> {
    puller: &'a Puller,
    holders: &'a [Peer],
    progress: &'a watch::Sender<PullProgress>,
    sizes: BTreeMap<Digest, u64>,
    plan: Plan,
    events: mpsc::Sender<Report>,
    inbox: mpsc::Receiver<Report>,
    batches: JoinSet<()>,
    holder_of: BTreeMap<BatchId, usize>,
    staged: Vec<Staged>,
    /// By holder: what it did last, or what it was given up for.
    faults: BTreeMap<usize, Fault>,
    fetched: Fetched,
}

/// What a batch tells.
enum Report {
    Arrived { batch: BatchId, digest: Digest, staged: Staged },
    Absent { batch: BatchId, digest: Digest },
    Ended { batch: BatchId, outcome: Result<(), BatchError> },
}

/// Why a batch ended early: the holder's fault, or ours.
enum BatchError {
    Holder(Fault),
    Store(StoreError),
}

impl Fetch<'_> {
    async fn run(&mut self, mut commands: Vec<Command>) -> Result<(), PullError> {
        loop {
            for command in std::mem::take(&mut commands) {
                match command {
                    Command::Fetch { batch, holder, digests } => self.launch(batch, holder, digests),
                    Command::Finish => return Ok(()),
                    Command::GiveUp { digest } => {
                        let faults = std::mem::take(&mut self.faults).into_iter();
                        let named = |(holder, fault): (usize, Fault)| HolderFault {
                            holder: self.holders[holder].clone(),
                            fault,
                        };
                        let faults = faults.map(named).collect();
                        return Err(PullError::Unavailable { what: "chunk", digest, faults });
                    }
                }
            }
            // The plan is not over, so that a batch is in flight, and this side holds a sender.
            let Some(report) = self.inbox.recv().await else {
                return Err(StoreError::Worker("fetch chunks").into());
            };
            commands = self.take_in(report).await?;
        }
    }

    fn launch(&mut self, batch: BatchId, holder: usize, digests: Vec<Digest>) {
        self.holder_of.insert(batch, holder);
        let (fabric, store) = (Arc::clone(&self.puller.fabric), self.puller.store.clone());
        let (peer, events) = (self.holders[holder].clone(), self.events.clone());
        self.batches.spawn(async move {
            let outcome = fetch_batch(&*fabric, &store, &peer, batch, digests, &events).await;
            // The receiver is gone only when the pull is over.
            let _ = events.send(Report::Ended { batch, outcome }).await;
        });
    }

    async fn take_in(&mut self, report: Report) -> Result<Vec<Command>, PullError> {
        match report {
            Report::Arrived { batch, digest, staged } => {
                self.staged.push(staged);
                self.count(batch, &digest);
                if self.staged.len() >= COMMIT_CHUNKS_MAX {
                    self.puller.store.commit(std::mem::take(&mut self.staged), Vec::new()).await?;
                }
                Ok(self.plan.step(Event::Arrived { batch, digest }))
            }
            Report::Absent { batch, digest } => {
                self.blame(batch, Fault::Absent(digest));
                Ok(self.plan.step(Event::Absent { batch, digest }))
            }
            Report::Ended { batch, outcome } => {
                // Finished batches are let go of.
                while self.batches.try_join_next().is_some() {}
                let mut commands = Vec::new();
                let broken = match outcome {
                    Ok(()) => false,
                    Err(BatchError::Store(error)) => return Err(error.into()),
                    Err(BatchError::Holder(fault)) => {
                        if matches!(fault, Fault::Forged(_)) {
                            commands.extend(self.plan.step(Event::Forged { batch }));
                        }
                        self.blame(batch, fault);
                        true
                    }
                };
                self.holder_of.remove(&batch);
                commands.extend(self.plan.step(Event::Ended { batch, broken }));
                Ok(commands)
            }
        }
    }

    fn count(&mut self, batch: BatchId, digest: &Digest) {
        let bytes = self.sizes.get(digest).copied().unwrap_or_default();
        self.fetched.chunks += 1;
        self.fetched.bytes += bytes;
        if let Some(holder) = self.holder_of.get(&batch) {
            self.fetched.by_holder[*holder] += 1;
        }
        self.progress.send_modify(|progress| {
            progress.chunks_here += 1;
            progress.bytes_here += bytes;
        });
    }

    fn blame(&mut self, batch: BatchId, fault: Fault) {
        let Some(index) = self.holder_of.get(&batch) else { return };
        let holder = &self.holders[*index];
        if matches!(fault, Fault::Forged(_)) {
            warn!(%holder, %fault, "a holder is not asked again");
        } else {
            debug!(%holder, %fault, "a holder failed to give chunks");
        }
        if !matches!(self.faults.get(index), Some(Fault::Forged(_))) {
            self.faults.insert(*index, fault);
        }
    }
}

/// Asks one holder for some chunks and reports each.
async fn fetch_batch(
    fabric: &dyn Fabric,
    store: &SnapshotStore,
    peer: &Peer,
    batch: BatchId,
    digests: Vec<Digest>,
    events: &mpsc::Sender<Report>,
) -> Result<(), BatchError> {
    let mut answers = Answers::to(fabric, peer, digests.clone()).await.map_err(BatchError::Holder)?;
    for digest in digests {
        let report = match answers.next().await.map_err(BatchError::Holder)? {
            None => Report::Absent { batch, digest },
            Some(bytes) => match store.stage(digest, bytes).await {
                Ok(staged) => Report::Arrived { batch, digest, staged },
                Err(StoreError::WrongDigest { .. }) => return Err(BatchError::Holder(Fault::Forged(digest))),
                Err(error) => return Err(BatchError::Store(error)),
            },
        };
        if events.send(report).await.is_err() {
            // The pull is over.
            return Ok(());
        }
    }
    Ok(())
}
