//! The store as its users see it: asynchronous, cheap to clone, one per process and folder.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fabric_types::{Digest, UnixMillis};
use tokio::sync::Semaphore;

use crate::chunk::{CHUNK_STORED_BYTES_MAX, digest_of};
use crate::error::StoreError;
use crate::folder::{Folder, Staged, digests_in};
use crate::input::{Collected, DiskInput, Ingested, MaterializedSandbox, Missing, SandboxInput, TemplateInput};
use crate::manifest::{FileName, Manifest};
use crate::materialize::Held;
use crate::pins::{PinSet, Pins};
use crate::{collect, ingest, materialize};

/// Ingests at a time: each takes two threads, and a sandbox doesn't wait for it.
const INGESTS_MAX: usize = 1;
/// Materializations at a time: each takes two threads, and somebody waits for each.
const MATERIALIZATIONS_MAX: usize = 2;

/// Snapshots and templates on this node: a folder that one process has at a time.
///
/// A manifest is in the store only once all its chunks are durable there. Whatever an operation was doing when its
/// future was dropped or its process ended, the store stays whole; what the operation left over is collected.
#[derive(Clone)]
pub struct SnapshotStore {
    inner: Arc<Inner>,
}

struct Inner {
    folder: Folder,
    pins: Pins,
    ingests: Arc<Semaphore>,
    materializations: Arc<Semaphore>,
    collections: Arc<Semaphore>,
}

impl SnapshotStore {
    /// Opens the store at `dir`, making it if it isn't there. Refuses a folder that another process has
    /// ([`StoreError::Locked`]) or that a newer version wrote ([`StoreError::Schema`]).
    pub async fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let dir = dir.into();
        let opened = tokio::task::spawn_blocking(move || Folder::open(dir)).await;
        let folder = opened.map_err(|_| StoreError::Worker("open the store"))??;
        let inner = Inner {
            folder,
            pins: Pins::default(),
            ingests: Arc::new(Semaphore::new(INGESTS_MAX)),
            materializations: Arc::new(Semaphore::new(MATERIALIZATIONS_MAX)),
            collections: Arc::new(Semaphore::new(1)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Stores a stopped sandbox: private pages and disk as differences from its template, zero pages left out. The
    /// template's manifest must be in this store, if only in its grace. Returns when all is durable. The files can go then.
    ///
    /// If the future is dropped the work goes on to its end and is collected later.
    pub async fn ingest_sandbox(&self, input: SandboxInput) -> Result<Ingested, StoreError> {
        let job = ingest::Job::sandbox(input)?;
        self.limited(&self.inner.ingests, "store a sandbox", |inner| ingest::run(&inner.folder, &inner.pins, job)).await
    }

    /// Stores a template's folder. The digest is the template's identity: the same files, fit, shape and meta give the
    /// same one on any host (with the same version of zstd). Storing it again is cheap in space, not in time.
    pub async fn ingest_template(&self, input: TemplateInput) -> Result<Ingested, StoreError> {
        let job = ingest::Job::template(input);
        self.limited(&self.inner.ingests, "store a template", |inner| ingest::run(&inner.folder, &inner.pins, job))
            .await
    }

    /// Stores a stopped sandbox's disk, its zero pages left out. Returns when all is durable; the file can go then.
    ///
    /// If the future is dropped the work goes on to its end and is collected later.
    pub async fn ingest_disk(&self, input: DiskInput) -> Result<Ingested, StoreError> {
        let job = ingest::Job::disk(input);
        self.limited(&self.inner.ingests, "store a disk", |inner| ingest::run(&inner.folder, &inner.pins, job)).await
    }

    /// Puts a sandbox's snapshot together under `into` (made if it isn't there): `device_state`, `pages`, `disk`.
    /// `template_disk` is the disk in a folder of exactly the template that the snapshot names; without it the
    /// template's manifest in this store gives the disk. On an error nothing is left under `into`.
    ///
    /// # Errors
    /// [`StoreError::NoChunk`], [`StoreError::Damaged`] and [`StoreError::NoManifest`] mean that a pull will help.
    pub async fn materialize_sandbox(
        &self,
        manifest: Digest,
        template_disk: Option<PathBuf>,
        into: PathBuf,
    ) -> Result<MaterializedSandbox, StoreError> {
        self.limited(&self.inner.materializations, "put a sandbox together", move |inner| {
            let (held, _pins) = inner.hold(manifest)?;
            materialize::sandbox(&held, template_disk.as_deref(), &into)
        })
        .await
    }

    /// Puts all files of a manifest together as the new folder `into`: it appears at once, complete and durable, or
    /// not at all. An unfinished one lies beside it as `<into>.partial` and is replaced by the next attempt, so that
    /// two attempts at one folder at a time are the caller's to prevent.
    pub async fn materialize_folder(&self, manifest: Digest, into: PathBuf) -> Result<Arc<Manifest>, StoreError> {
        self.limited(&self.inner.materializations, "put a folder together", move |inner| {
            let (held, _pins) = inner.hold(manifest)?;
            materialize::folder(&held, &into)?;
            Ok(held.manifest)
        })
        .await
    }

    /// Puts one file of a manifest together as the new file `into`: it appears at once, complete and durable, or not at
    /// all. An unfinished one lies beside it as `<into>.partial` and is replaced by the next attempt.
    pub async fn materialize_file(&self, manifest: Digest, name: FileName, into: PathBuf) -> Result<(), StoreError> {
        self.limited(&self.inner.materializations, "put a file together", move |inner| {
            let (held, _pins) = inner.hold(manifest)?;
            materialize::file(&held, &name, &into)
        })
        .await
    }

    /// A manifest in this store.
    pub async fn manifest(&self, digest: Digest) -> Result<Arc<Manifest>, StoreError> {
        self.blocking("read a manifest", move |inner| {
            Ok(Arc::new(Manifest::parse(&inner.folder.read_manifest(&digest)?)?))
        })
        .await
    }

    /// The manifests in this store, ascending.
    pub async fn manifests(&self) -> Result<Vec<Digest>, StoreError> {
        self.blocking("list manifests", |inner| digests_in(&inner.folder.manifests())).await
    }

    /// What of a manifest in this store is lacking: nothing, unless chunks were found damaged. It may be a removed one
    /// in its grace: that is as good as any as the template of what is to be stored.
    pub async fn missing(&self, digest: Digest) -> Result<Missing, StoreError> {
        self.blocking("look for chunks", move |inner| {
            let manifest = Manifest::parse(&inner.folder.read_manifest_or_removed(&digest)?)?;
            let mut missing = Missing::default();
            for chunk in manifest.chunks() {
                if !inner.folder.has_chunk(&chunk.digest)? {
                    missing.chunks += 1;
                    missing.bytes += u64::from(chunk.stored_bytes);
                }
            }
            Ok(missing)
        })
        .await
    }

    /// Removes a manifest; what it refers to goes with a later [`collect`](Self::collect), when the grace has passed
    /// since `now`. Idempotent. Storing or pulling it again before then brings it back at little cost.
    pub async fn remove(&self, manifest: Digest, now: UnixMillis) -> Result<(), StoreError> {
        self.blocking("remove a manifest", move |inner| {
            collect::remove_manifest(&inner.folder, &manifest, system_time(now))
        })
        .await
    }

    /// Removes what no manifest refers to and what was removed, where `grace` has passed at `now`. What an operation
    /// in progress needs is left alone. One collection runs at a time.
    pub async fn collect(&self, now: UnixMillis, grace: Duration) -> Result<Collected, StoreError> {
        self.limited(&self.inner.collections, "collect chunks", move |inner| {
            collect::run(&inner.folder, &inner.pins, system_time(now), grace)
        })
        .await
    }

    /// Stores a chunk's bytes, durably. Until a manifest refers to it, it is kept for a collection's grace.
    pub async fn put_chunk(&self, bytes: Bytes) -> Result<Digest, StoreError> {
        if bytes.is_empty() || bytes.len() > CHUNK_STORED_BYTES_MAX {
            return Err(StoreError::ChunkSize { bytes: bytes.len(), limit: CHUNK_STORED_BYTES_MAX });
        }
        self.blocking("store a chunk", move |inner| {
            let digest = digest_of(&bytes);
            let mut pins = inner.pins.set();
            pins.add(digest);
            let staged = inner.folder.stage_chunk(&digest, &bytes)?;
            inner.folder.commit(vec![staged], &Default::default())?;
            Ok(digest)
        })
        .await
    }

    /// A chunk's bytes, which hash to its name. One whose bytes don't is set aside and never given out.
    pub async fn get_chunk(&self, digest: Digest) -> Result<Bytes, StoreError> {
        self.blocking("read a chunk", move |inner| inner.folder.read_chunk(&digest).map(Bytes::from)).await
    }

    /// Whether there is a chunk of that name. Its bytes are checked when they are read.
    pub async fn has_chunk(&self, digest: Digest) -> Result<bool, StoreError> {
        self.blocking("look for a chunk", move |inner| inner.folder.has_chunk(&digest)).await
    }

    /// A manifest's bytes, for a peer: also of one in its grace, since a snapshot elsewhere may need it.
    pub(crate) async fn manifest_bytes(&self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        self.blocking("read a manifest", move |inner| inner.folder.read_manifest_or_removed(&digest)).await
    }

    /// No pins yet, to be added to.
    pub(crate) fn pins(&self) -> PinSet {
        self.inner.pins.set()
    }

    /// Which of these are not in the store, in the same order.
    pub(crate) async fn absent(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, StoreError> {
        self.blocking("look for chunks", move |inner| {
            let mut absent = Vec::new();
            for digest in digests {
                if !inner.folder.has_chunk(&digest)? {
                    absent.push(digest);
                }
            }
            Ok(absent)
        })
        .await
    }

    /// Writes bytes that came from outside, if they hash to `digest`, to be committed later.
    pub(crate) async fn stage(&self, digest: Digest, bytes: Bytes) -> Result<Staged, StoreError> {
        self.blocking("write a chunk", move |inner| {
            let found = digest_of(&bytes);
            if found != digest {
                return Err(StoreError::WrongDigest { found, expected: digest });
            }
            inner.folder.stage_chunk(&digest, &bytes)
        })
        .await
    }

    /// Gives staged chunks their names, durably, and makes names durable that were there already.
    pub(crate) async fn commit(&self, staged: Vec<Staged>, met: Vec<Digest>) -> Result<(), StoreError> {
        let firsts = met.iter().map(|digest| digest.as_bytes()[0]).collect();
        self.blocking("name chunks", move |inner| inner.folder.commit(staged, &firsts)).await
    }

    /// Stores a manifest whose chunks are durable here.
    pub(crate) async fn put_manifest(&self, digest: Digest, bytes: Bytes) -> Result<(), StoreError> {
        self.blocking("store a manifest", move |inner| inner.folder.put_manifest(&digest, &bytes)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        job: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || job(&inner)).await.map_err(|_| StoreError::Worker(what))?
    }

    /// The same for what takes long: at most as many at a time as the semaphore says, the others wait.
    async fn limited<T: Send + 'static>(
        &self,
        limit: &Arc<Semaphore>,
        what: &'static str,
        job: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turn = Arc::clone(limit).acquire_owned().await.map_err(|_| StoreError::Worker(what))?;
        // The turn goes with the job, which runs to its end even if nobody waits for it any more.
        self.blocking(what, move |inner| {
            let result = job(inner);
            drop(turn);
            result
        })
        .await
    }
}

impl Inner {
    /// A manifest of the store, with its chunks and parent pinned.
    fn hold(&self, digest: Digest) -> Result<(Held<'_>, PinSet), StoreError> {
        let manifest = Manifest::parse(&self.folder.read_manifest(&digest)?)?;
        let mut pins = self.pins.set();
        pins.add(digest);
        manifest.header().parent.into_iter().for_each(|parent| pins.add(parent));
        manifest.chunks().iter().for_each(|chunk| pins.add(chunk.digest));
        Ok((Held { folder: &self.folder, digest, manifest: Arc::new(manifest) }, pins))
    }
}

fn system_time(now: UnixMillis) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(now.0)
}
