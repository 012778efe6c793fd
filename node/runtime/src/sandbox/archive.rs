//! Archive: a stopped sandbox's disk goes into the snapshot store, and back for its next start.
//!
//! ```text
//!  record    Stopped                    Archived{manifest}                          Stopped
//!               |  disk into the store      |  disk and folders go    |  disk back     |  manifest given up
//!               +-------------------------> + ... Archived ... start  +--------------> +-----------------> boot
//!  counts:   the disk                   the manifest              the manifest      the disk
//! ```
//! A manifest that no record names is nobody's, and whoever sweeps the store removes it: see `Runtime::archives`.

use fabric_types::{Digest, PhaseEvent, SandboxId};
use node_snapshot::{DiskInput, FileName};
use serde::Serialize;
use tokio::time::Instant;

use super::driver::Driver;
use super::snapshot::failed;
use super::verbs::micros;
use crate::durable::{self, At, blocking};
use crate::folder::{Home, Life};
use crate::{RuntimeError, clock};

/// Newest schema of [`ArchiveMeta`], and the one that is written. It is for people; nothing reads it back.
const SCHEMA: u32 = 1;

/// The runtime's own part of an archive's manifest. With the sandbox in it no two have the same name, and each is given up
/// without a look at the others.
#[derive(Serialize)]
struct ArchiveMeta<'a> {
    schema: u32,
    sandbox: &'a SandboxId,
}

impl ArchiveMeta<'_> {
    fn of(sandbox: &SandboxId) -> Result<serde_json::Value, RuntimeError> {
        serde_json::to_value(ArchiveMeta { schema: SCHEMA, sandbox })
            .map_err(|error| failed("describe the disk", &error))
    }
}

impl Driver {
    /// Moves the disk into the snapshot store. On an error the sandbox is stopped as it was.
    pub(super) async fn archive(&mut self) -> Result<(), RuntimeError> {
        self.context.admit()?;
        let begun = Instant::now();
        self.step(PhaseEvent::Archive);
        match self.store_disk().await {
            Ok((home, stored_bytes)) => {
                self.step(PhaseEvent::Archived);
                clear(home).await;
                tracing::info!(stored_bytes, took_us = micros(begun), "sandbox archived");
                Ok(())
            }
            Err(error) => {
                self.step(PhaseEvent::NotArchived);
                Err(error)
            }
        }
    }

    async fn store_disk(&mut self) -> Result<(Home, u64), RuntimeError> {
        let Some(home) = self.home.clone() else { return Err(RuntimeError::Unknown(self.record.spec.id.clone())) };
        let context = self.context.clone();
        let input = DiskInput {
            fit: context.driver.fit().clone(),
            shape: self.record.spec.shape,
            generation: self.record.generation,
            meta: ArchiveMeta::of(&self.record.spec.id)?,
            disk: home.disk(),
        };
        let stored = context.store.ingest_disk(input).await.map_err(|error| failed("store the disk", &error))?;
        if let Err(error) = self.write(Life::Archived { manifest: stored.manifest }).await {
            self.record.life = Life::Stopped;
            return Err(error);
        }
        Ok((home, stored.stored_bytes))
    }

    /// Puts the disk back where it was; from then on the store's copy is nobody's.
    pub(super) async fn bring_disk_back(&mut self, manifest: Digest) -> Result<(), RuntimeError> {
        let Some(home) = self.home.clone() else { return Err(RuntimeError::Unknown(self.record.spec.id.clone())) };
        let begun = Instant::now();
        let context = self.context.clone();
        let _turn = context.turn().await;
        context.open()?;
        let back = context.store.materialize_file(manifest, FileName::DISK, home.disk()).await;
        back.map_err(|error| failed("put the disk back", &error))?;
        if let Err(error) = self.write(Life::Stopped).await {
            self.record.life = Life::Archived { manifest };
            return Err(error);
        }
        self.give_up_archive(manifest).await;
        tracing::debug!(took_us = micros(begun), "a disk came back from the archive");
        Ok(())
    }

    /// Lets the store collect an archive that no record names any more.
    pub(super) async fn give_up_archive(&self, manifest: Digest) {
        if let Err(error) = self.context.store.remove(manifest, clock::now()).await {
            tracing::warn!(%manifest, %error, "an archive that nobody needs couldn't be removed; a sweep does it");
        }
    }
}

/// Reduces the home of an archived sandbox to its record. What can't be removed goes with the next start of the node.
pub(super) async fn clear(home: Home) {
    let cleared = blocking(move || {
        durable::remove_file(&home.disk())?;
        for folder in [home.restore(), home.swap(), home.dir().join("vm")] {
            durable::remove_folder(&folder)?;
        }
        let partial = home.dir().join("disk.partial");
        durable::remove_file(&partial)?;
        std::fs::File::open(home.dir()).and_then(|folder| folder.sync_all()).at("sync", home.dir())
    });
    if let Err(error) = cleared.await {
        tracing::warn!(%error, "files of an archived sandbox couldn't be removed; the next start does it");
    }
}
