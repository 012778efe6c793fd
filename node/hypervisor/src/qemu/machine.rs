//! One QEMU machine: the verbs.

use std::net::Shutdown;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use fabric_types::Fit;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;

use super::command;
use super::disks::{self, Disk};
use super::driver::set_capabilities;
use super::qmp::{Qmp, create_for_qemu};
use crate::checkpoint::{self, base_file, checkpoint_disk, differs_file, manifest_file, own_memory_file, pages_file};
use crate::disk::copy_sparse;
use crate::keeper::{Based, Here, Keeper, Reply, Request, read_runs, unexpected};
use crate::launch::{Kept, PAGES_LIMIT};
use crate::template;
use crate::{
    BoottimeMs, CheckpointTaken, Copies, Counters, DeviceCounters, MemorySource, SnapshotFiles, SnapshotTaken, Vm,
    VmError, VmSpec, VmState,
};

/// How long writing a template's device state may take: some 300 KiB, plus what the guest's disk still flushes.
const SAVE_LIMIT: Duration = Duration::from_secs(15);

/// A machine.
#[derive(Debug)]
pub(super) struct QemuMachine {
    kept: Kept,
    fit: Fit,
    qmp: Qmp,
    /// Verbs that change the machine take turns: a resume in the middle of a snapshot would tear it.
    turns: Semaphore,
    /// Sets of descriptors that QEMU was lent and is to let go of once it runs.
    lent: Mutex<Vec<u64>>,
    /// The newest channel, to be closed when a newer one is asked for.
    channel: Mutex<Option<BlockingStream>>,
}

impl QemuMachine {
    pub(super) fn new(spec: VmSpec, fit: Fit, keeper: Keeper, here: Here, qmp: Qmp) -> Self {
        Self {
            kept: Kept::new(spec, keeper, here),
            fit,
            qmp,
            turns: Semaphore::new(1),
            lent: Mutex::default(),
            channel: Mutex::new(None),
        }
    }

    async fn turn(&self) -> SemaphorePermit<'_> {
        // It is never closed while `self` is borrowed.
        self.turns.acquire().await.expect("the semaphore is not closed")
    }

    /// Runs a command; when the monitor is gone, the error says how it ended.
    async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value, VmError> {
        match self.qmp.execute(command, arguments).await {
            Err(VmError::Ended { .. }) if !self.kept.lives() => {
                Err(VmError::Ended { label: self.kept.spec.label.clone(), how: self.kept.ended().await })
            }
            answer => answer,
        }
    }

    async fn runs(&self) -> Result<bool, VmError> {
        let status = self.execute("query-status", json!({})).await?;
        Ok(status.get("running").and_then(Value::as_bool).unwrap_or(false))
    }

    /// Writes the disk's cached pages out while the machine still runs: `stop` does the same, and then has little left to.
    async fn flush_disk(&self) -> Result<(), VmError> {
        let disk = self.kept.spec.disk.clone();
        let failed = |source| VmError::File { action: "sync", path: self.kept.spec.disk.clone(), source };
        let synced = spawn_blocking(move || std::fs::File::open(disk)?.sync_data());
        synced.await.map_err(|panicked| failed(panicked.into()))?.map_err(failed)
    }

    /// Writes the stopped machine's device state, private pages and disk, all at once: saving the devices of a stopped
    /// machine changes none of its memory, which a migration has sent before.
    async fn write_snapshot(&self, files: &SnapshotFiles, runs: PathBuf, template: &Path) -> Result<(), VmError> {
        let start = Instant::now();
        let us = || u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let state = async { self.save_devices(&files.device_state).await.map(|()| us()) };
        let memory = template::memory_file(template);
        let request = Request::SavePages { memory, pages: files.pages.clone(), runs };
        let pages = async { self.kept.keeper.ask(&request, "save_pages", PAGES_LIMIT).await.map(|_| us()) };
        let (own, copy) = (self.kept.spec.disk.clone(), files.disk.clone());
        let disk = async { spawn_blocking(move || copy_sparse(&own, &copy)).await.map(|copied| copied.map(|()| us())) };
        let (state, pages, disk) = tokio::join!(state, pages, disk);
        let disk = disk.map_err(|panicked| VmError::File {
            action: "copy",
            path: self.kept.spec.disk.clone(),
            source: panicked.into(),
        })?;
        let (state_us, pages_us, disk_us) = (state?, pages?, disk?);
        tracing::debug!(label = self.kept.spec.label, state_us, pages_us, disk_us, "snapshot written");
        Ok(())
    }

    /// Has QEMU write the stopped machine's device state into a file that it is lent: its own files are few.
    async fn save_devices(&self, into: &Path) -> Result<(), VmError> {
        let set = self.qmp.lend_descriptor(create_for_qemu(into)?).await?;
        self.lent.lock().unwrap_or_else(PoisonError::into_inner).push(set);
        let state = format!("/dev/fdset/{set}");
        self.execute("xen-save-devices-state", json!({ "filename": state, "live": false })).await.map(drop)
    }

    /// Lets the processors run, and has QEMU let go of what it was lent meanwhile.
    async fn go_on(&self) -> Result<(), VmError> {
        self.execute("cont", json!({})).await?;
        let lent = std::mem::take(&mut *self.lent.lock().unwrap_or_else(PoisonError::into_inner));
        for set in lent {
            self.qmp.take_back(set).await?;
        }
        Ok(())
    }
}

/// Gives what a machine was copied from a further name in the folder of its own checkpoint, as far as it is there: it may be
/// gone, or lie on another disk; then all is written.
fn based_on(own: &Path, into: &Path) -> Based {
    let link = |from: PathBuf, to: PathBuf| std::fs::hard_link(from, to).is_ok();
    let pages = link(base_file(own), base_file(into)) || link(pages_file(own), base_file(into));
    let memory = link(differs_file(own), differs_file(into)) && link(own_memory_file(own), own_memory_file(into));
    Based { pages, memory }
}

#[async_trait]
impl Vm for QemuMachine {
    fn spec(&self) -> &VmSpec {
        &self.kept.spec
    }

    async fn resume(&self) -> Result<(), VmError> {
        let _turn = self.turn().await;
        self.go_on().await
    }

    async fn pause(&self) -> Result<(), VmError> {
        let _turn = self.turn().await;
        self.execute("stop", json!({})).await.map(drop)
    }

    async fn state(&self) -> Result<VmState, VmError> {
        match self.runs().await {
            Ok(true) => Ok(VmState::Running),
            Ok(false) => Ok(VmState::Paused),
            Err(VmError::Ended { .. }) if !self.kept.lives() => Ok(VmState::Ended),
            Err(error) => Err(error),
        }
    }

    async fn save_template(&self) -> Result<(), VmError> {
        let spec = &self.kept.spec;
        let MemorySource::BootTemplate { template } = &spec.memory else {
            let why = "only a machine booted as a template becomes one".to_owned();
            return Err(VmError::Unsupported { verb: "save_template", why });
        };
        let _turn = self.turn().await;
        self.execute("stop", json!({})).await?;
        set_capabilities(&self.qmp, true).await?;
        self.qmp.give_descriptor("state", create_for_qemu(&template::state_file(template))?).await?;
        self.qmp.migrate("migrate", json!({ "uri": "fd:state" }), SAVE_LIMIT).await?;
        self.kept.shutdown().await?;
        let (folder, fit, spec) = (template.clone(), self.fit.clone(), spec.clone());
        let sealed = spawn_blocking(move || {
            let disk = template::disk_file(&folder);
            if disk != spec.disk {
                copy_sparse(&spec.disk, &disk)?;
            }
            template::seal(&folder, &fit, spec.shape, &spec.image)
        });
        sealed.await.map_err(|panicked| VmError::File {
            action: "seal",
            path: template.clone(),
            source: panicked.into(),
        })?
    }

    async fn snapshot(&self, into: &Path) -> Result<SnapshotTaken, VmError> {
        let template = match &self.kept.spec.memory {
            MemorySource::Clone { template }
            | MemorySource::Restore { template, .. }
            | MemorySource::BootOver { template } => template,
            MemorySource::Boot | MemorySource::BootTemplate { .. } => {
                let why = "only what differs from a template can be told apart; this machine has none".to_owned();
                return Err(VmError::Unsupported { verb: "snapshot", why });
            }
        };
        std::fs::create_dir_all(into).map_err(|source| VmError::File {
            action: "make",
            path: into.to_owned(),
            source,
        })?;
        let file = |name: &str| into.join(name);
        let (runs, mut files) = (
            file("runs"),
            SnapshotFiles { device_state: file("state"), pages: file("pages"), runs: Vec::new(), disk: file("disk") },
        );
        let _turn = self.turn().await;
        let ran = self.runs().await?;
        self.flush_disk().await?;
        let stopped = Instant::now();
        self.execute("stop", json!({})).await?;
        let written = self.write_snapshot(&files, runs.clone(), template).await;
        // It goes on whatever became of the snapshot.
        let resumed = if ran { self.go_on().await } else { Ok(()) };
        let stop_us = u64::try_from(stopped.elapsed().as_micros()).unwrap_or(u64::MAX);
        written?;
        resumed?;
        files.runs = read_runs(&runs).map_err(|source| VmError::File { action: "read", path: runs.clone(), source })?;
        crate::durable::remove_file(&runs)?;
        Ok(SnapshotTaken { files, stop_us })
    }

    async fn checkpoint(&self, into: &Path, copies: Copies) -> Result<CheckpointTaken, VmError> {
        let (MemorySource::Clone { template } | MemorySource::Restore { template, .. }) = &self.kept.spec.memory else {
            let why = "only a clone or a restored machine is copied".to_owned();
            return Err(VmError::Unsupported { verb: "checkpoint", why });
        };
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| VmError::File { action, path, source }
        };
        std::fs::create_dir_all(into).map_err(failed("make", into))?;
        let based = self.kept.spec.checkpoint.as_deref().map_or_else(Based::default, |own| based_on(own, into));
        let _turn = self.turn().await;
        let ran = self.runs().await?;
        self.flush_disk().await?;
        let stopped = Instant::now();
        self.execute("stop", json!({})).await?;
        let request = Request::TakeCheckpoint { folder: into.to_owned(), based };
        let taken = async {
            match self.kept.keeper.ask(&request, "take_checkpoint", PAGES_LIMIT).await {
                // The keeper's own word: this monitor isn't as those are that it knows to copy.
                Err(VmError::Refused { message: why, .. }) => Err(VmError::Unsupported { verb: "checkpoint", why }),
                other => other,
            }
        };
        let (own, copy) = (self.kept.spec.disk.clone(), checkpoint_disk(into));
        let disk = spawn_blocking(move || copy_sparse(&own, &copy));
        let (taken, disk) = tokio::join!(taken, disk);
        // It goes on whatever became of the checkpoint.
        let resumed = if ran { self.go_on().await } else { Ok(()) };
        let stop_us = u64::try_from(stopped.elapsed().as_micros()).unwrap_or(u64::MAX);
        let disk = disk.map_err(|panicked| failed("copy", &self.kept.spec.disk)(panicked.into())).and_then(|disk| disk);
        if disk.is_err() || taken.is_err() {
            // Half a checkpoint isn't one.
            crate::durable::remove_file(&manifest_file(into))?;
        }
        let (taken, ()) = (taken?, disk?);
        resumed?;
        let Reply::Pages { bytes, took_us } = taken else { return Err(unexpected("take_checkpoint", &taken)) };
        tracing::debug!(label = self.kept.spec.label, stop_us, took_us, bytes, "checkpoint taken");
        if copies == Copies::Many {
            let (folder, template) = (into.to_owned(), template.clone());
            let completed = spawn_blocking(move || checkpoint::complete(&folder, &template)).await;
            completed.map_err(|panicked| failed("complete", into)(panicked.into())).and_then(|completed| completed)?;
        }
        Ok(CheckpointTaken { stop_us, shared_bytes: bytes })
    }

    async fn channel(&self) -> Result<UnixStream, VmError> {
        let path = self.kept.spec.folder.channel_socket();
        let failed = |source| VmError::File { action: "connect to", path: path.clone(), source };
        let stream = BlockingStream::connect(&path).map_err(failed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        let newest = stream.try_clone().map_err(failed)?;
        // QEMU serves one connection; the next is accepted when this one is closed.
        let older = self.channel.lock().unwrap_or_else(PoisonError::into_inner).replace(newest);
        if let Some(older) = older {
            // It may be closed already.
            let _ = older.shutdown(Shutdown::Both);
        }
        UnixStream::from_std(stream).map_err(failed)
    }

    async fn resize_disk(&self, bytes: u64) -> Result<(), VmError> {
        let _turn = self.turn().await;
        let arguments = json!({ "node-name": command::OWN_DISK, "size": bytes });
        self.execute("block_resize", arguments).await.map(drop)
    }

    async fn counters(&self) -> Result<Counters, VmError> {
        self.kept.counters()
    }

    async fn device_counters(&self) -> Result<DeviceCounters, VmError> {
        let answer = self.execute("query-blockstats", json!({})).await?;
        let refused = |error: serde_json::Error| VmError::Refused {
            monitor: "qemu",
            command: "query-blockstats".to_owned(),
            message: format!("its answer isn't what version 7.2 says: {error}"),
        };
        Ok(disks::sum(&serde_json::from_value::<Vec<Disk>>(answer).map_err(refused)?))
    }

    async fn set_deadline(&self, deadline: Option<BoottimeMs>) -> Result<(), VmError> {
        self.kept.set_deadline(deadline).await
    }

    async fn ended(&self) -> String {
        self.kept.ended().await
    }

    async fn shutdown(&self) -> Result<(), VmError> {
        self.kept.shutdown().await
    }
}
