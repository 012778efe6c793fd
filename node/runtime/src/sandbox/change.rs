//! A new spec for a sandbox that is here: what can be changed while it runs, what waits for its next start, what can't.
//!
//! ```text
//!                      running, paused             stopped, archived           failed
//! labels, intervals    now                         now                         now
//! network policy       now                         at its next start           -
//! larger disk          now (a paused one: refused) at its next start           refused
//! smaller disk         refused                     refused                     refused
//! vCPU, memory         refused                     at its next start           refused
//! ```
//! Each step can be taken twice: a change that was cut off is asked for again, by reconciliation if by nobody else.

use std::fs::OpenOptions;
use std::sync::Arc;
use std::time::Duration;

use fabric_types::{DiskGib, Phase, SandboxSpec, Shape};
use guest_proto::surface::DiskSize;

use super::driver::Driver;
use crate::RuntimeError;
use crate::durable::{At, blocking};
use crate::folder::Home;
use crate::guest::Link;

/// Longest wait for a guest's file system to grow: ext4 writes group descriptors of some MiB for the largest disk.
const GROW_MAX: Duration = Duration::from_secs(60);

impl Driver {
    /// Takes a new spec. What a sandbox was made from and whose it is don't change.
    pub(super) async fn update(&mut self, spec: &SandboxSpec) -> Result<(), RuntimeError> {
        let old = self.record.spec.clone();
        let new = SandboxSpec {
            id: old.id.clone(),
            organization: old.organization.clone(),
            source: old.source.clone(),
            created_at: old.created_at,
            ..spec.clone()
        };
        if new == old {
            return Ok(());
        }
        self.check_shape(old.shape, new.shape)?;
        if new.network != old.network {
            self.context.network.check(&new.network)?;
        }
        if new.shape.disk() > old.shape.disk() {
            self.grow_disk(new.shape.disk()).await?;
        }
        if new.network != old.network {
            self.context.network.apply(self.record.port.as_ref(), &new.network).await?;
        }
        self.record.spec = new;
        if let Err(error) = self.write(self.record.life.clone()).await {
            self.record.spec = old;
            return Err(error);
        }
        let spec = Arc::new(self.record.spec.clone());
        self.seat.state.send_modify(|state| state.spec = spec);
        Ok(())
    }

    fn check_shape(&self, old: Shape, new: Shape) -> Result<(), RuntimeError> {
        let refused =
            |why: String| Err(RuntimeError::Refused { id: self.record.spec.id.clone(), verb: "be resized", why });
        if new == old {
            return Ok(());
        }
        if new.disk() < old.disk() {
            return refused(format!(
                "its disk has {} GiB and can't shrink to {}; create a smaller one and copy",
                old.disk().0,
                new.disk().0
            ));
        }
        let machine_changes = (new.vcpus(), new.memory()) != (old.vcpus(), old.memory());
        match self.phase {
            Phase::Running | Phase::Paused if machine_changes => {
                refused("vCPU and memory change at a start: stop it, resize it and start it".to_owned())
            }
            Phase::Paused => {
                refused("its guest can't grow its file system while it is paused: resume it first".to_owned())
            }
            Phase::Failed { .. } => refused("it has failed; delete it".to_owned()),
            Phase::Requested
            | Phase::Placed
            | Phase::Starting
            | Phase::Running
            | Phase::Snapshotting
            | Phase::Stopping
            | Phase::Stopped
            | Phase::Archiving
            | Phase::Archived
            | Phase::Deleting
            | Phase::Gone => Ok(()),
        }
    }

    async fn grow_disk(&mut self, size: DiskGib) -> Result<(), RuntimeError> {
        let Some(home) = self.home.clone() else { return Ok(()) };
        let bytes = disk_bytes(size);
        if self.phase == Phase::Archived {
            // There is no file; the one that comes back grows before it is booted.
            self.record.disk_grew = true;
            return Ok(());
        }
        blocking(move || grow_file(&home, bytes)).await?;
        if self.phase != Phase::Running {
            self.record.disk_grew = true;
            return Ok(());
        }
        let Some(vm) = self.live.as_ref().map(|live| live.vm.clone()) else {
            return Err(RuntimeError::Unknown(self.record.spec.id.clone()));
        };
        vm.resize_disk(bytes).await?;
        let link = self.living_link().await?;
        self.grow_file_system(&link).await
    }

    /// Makes the disk of a stopped sandbox as long as its shape says, where it has grown since its last start.
    pub(super) async fn grow_before_boot(&self, home: &Home) -> Result<(), RuntimeError> {
        if !self.record.disk_grew {
            return Ok(());
        }
        let (home, bytes) = (home.clone(), disk_bytes(self.record.spec.shape.disk()));
        blocking(move || grow_file(&home, bytes)).await
    }

    /// Lets the guest's file system take all of its disk.
    pub(super) async fn grow_file_system(&self, link: &Link) -> Result<(), RuntimeError> {
        let grown: Result<DiskSize, _> = link.post("/v1/disk/grow", &(), self.record.generation, GROW_MAX).await;
        match grown {
            Ok(size) => {
                tracing::info!(bytes = size.bytes, "the guest's file system has grown");
                Ok(())
            }
            Err(error) => Err(self.guest_failed("grow its file system", error.to_string())),
        }
    }
}

fn disk_bytes(size: DiskGib) -> u64 {
    u64::from(size.0) << 30
}

/// Makes a disk's file as long as this, sparse. Never shorter.
fn grow_file(home: &Home, bytes: u64) -> Result<(), RuntimeError> {
    let path = home.disk();
    let file = OpenOptions::new().write(true).open(&path).at("open", &path)?;
    if file.metadata().at("look at", &path)?.len() < bytes {
        file.set_len(bytes).and_then(|()| file.sync_all()).at("grow", &path)?;
    }
    Ok(())
}
