//! What both drivers do around a keeper: explain a failed start, clear after it, find a machine for adoption, end one.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fabric_types::{Fit, HypervisorKind};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::durable::{read_json, remove_file};
use crate::keeper::{ASK_LIMIT, EndRecord, Here, Keeper, Request, SCHEMA, VmRecord, check_runs};
use crate::process::{ProcessRef, Usage, boot_id};
use crate::seal::release;
use crate::template::TemplateManifest;
use crate::{BoottimeMs, Counters, MemorySource, SnapshotFiles, VmError, VmFolder, VmSpec};

/// How long an ending keeper or monitor may take to be gone once it was killed: freeing a large guest's memory.
const GONE_LIMIT: Duration = Duration::from_secs(5);
/// Between SIGTERM and SIGKILL at a shutdown, ms: what QEMU takes to write out its disk's cache.
const GRACE_MS: u32 = 2000;
/// How long the end of a shutdown may be waited for: both signals and the memory freed.
const END_LIMIT: Duration = Duration::from_secs(7);
/// How long a monitor that closed its socket, and its keeper after it, may take to end: a crash takes longer than an
/// exit.
pub(crate) const EXIT_LIMIT: Duration = Duration::from_secs(1);
/// How long moving private pages may take: 64 GiB at 1 GiB/s.
pub(crate) const PAGES_LIMIT: Duration = Duration::from_secs(64);
/// Between two looks at a keeper that refuses to say more: it has too many connections.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Refuses a specification whose files aren't there: a monitor would say so late, or only when it boots.
pub(crate) fn check_files(spec: &VmSpec) -> Result<(), VmError> {
    let image = [&spec.image.root, &spec.disk];
    let booted = [&spec.image.kernel, &spec.image.initramfs];
    let boots = match spec.memory {
        MemorySource::Boot | MemorySource::BootTemplate { .. } | MemorySource::BootOver { .. } => true,
        MemorySource::Clone { .. } | MemorySource::Restore { .. } => false,
    };
    for path in image.into_iter().chain(booted.into_iter().filter(|_| boots)) {
        let failed = |source| VmError::File { action: "open", path: path.clone(), source };
        fs::File::open(path).map_err(failed)?;
    }
    Ok(())
}

/// The template that a machine starts from, which must fit it.
pub(crate) fn check_template(fit: &Fit, template: &Path, spec: &VmSpec) -> Result<TemplateManifest, VmError> {
    let manifest = TemplateManifest::read(template)?;
    manifest.check(template, fit, spec.shape, &spec.image)?;
    Ok(manifest)
}

/// Refuses a snapshot whose pages don't lie within its template's memory.
pub(crate) fn check_pages(snapshot: &SnapshotFiles, template: &TemplateManifest) -> Result<(), VmError> {
    check_runs(&snapshot.runs, template.memory_bytes).map_err(|source| VmError::File {
        action: "restore the pages of",
        path: snapshot.pages.clone(),
        source,
    })
}

/// Adds what the monitor said on its standard error, if the error comes from its end, which is awaited as `process`:
/// the keeper's end rather than the monitor's own, since all of the log is there by then.
pub(crate) async fn explained(error: VmError, folder: &VmFolder, process: ProcessRef) -> VmError {
    match error {
        VmError::Ended { label, how } if process.gone(GONE_LIMIT).await => {
            let said = last_line(&folder.vmm_log());
            let how = if said.is_empty() { how } else { format!("{how}; it said: {said}") };
            VmError::Ended { label, how }
        }
        error => error,
    }
}

/// After a failed creation, whose connection is closed: waits until the keeper has ended its machine and removes all
/// files.
pub(crate) async fn clear_after(folder: &VmFolder, here: Option<Here>) {
    if let Some(here) = here {
        for process in [here.keeper, here.vmm] {
            if !process.gone(GONE_LIMIT).await {
                process.kill();
            }
        }
    }
    released(folder).await;
    for path in folder.all_files().iter().chain([&folder.record()]) {
        // What can't be removed now is removed by the next start in this folder, or with it.
        let _ = remove_file(path);
    }
}

/// Removes the cgroups of a machine whose processes have ended.
async fn released(folder: &VmFolder) {
    let folder = folder.clone();
    // What stays is named in the log, and found again by the next start in the folder.
    let _ = spawn_blocking(move || release(&folder)).await;
}

/// The record of a complete machine and its living keeper.
pub(crate) async fn adoptable(folder: &VmFolder, driver: HypervisorKind) -> Result<(VmRecord, Keeper, Here), VmError> {
    let record: VmRecord = read_json(&folder.record(), SCHEMA)?;
    let label = record.spec.label.clone();
    let ended = |how: String| VmError::Ended { label: label.clone(), how };
    if record.driver != driver {
        let why = format!("its machine is {}'s, not {}'s", record.driver.as_str(), driver.as_str());
        return Err(VmError::Unsupported { verb: "adopt", why });
    }
    if let Ok(end) = read_json::<EndRecord>(&folder.end_record(), SCHEMA) {
        return Err(ended(end.how));
    }
    if boot_id().is_ok_and(|boot| boot != record.boot_id) {
        return Err(ended("the host was restarted".to_owned()));
    }
    if !record.keeper.lives() {
        return Err(ended("its keeper was killed, and its monitor with it".to_owned()));
    }
    let keeper = Keeper::new(folder.keeper_socket(), label.clone());
    let here = keeper.greet().await?;
    if !here.confirmed || (here.keeper, here.vmm) != (record.keeper, record.vmm) {
        return Err(ended("its creation was never finished".to_owned()));
    }
    Ok((record, keeper, here))
}

/// A machine's processes, as its `Vm` holds them.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) spec: VmSpec,
    pub(crate) keeper: Keeper,
    here: Here,
    cleared: AtomicBool,
}

impl Kept {
    pub(crate) fn new(spec: VmSpec, keeper: Keeper, here: Here) -> Self {
        Self { spec, keeper, here, cleared: AtomicBool::new(false) }
    }

    /// The monitor's process.
    pub(crate) fn vmm_pid(&self) -> u32 {
        self.here.vmm.pid
    }

    /// Whether the monitor still runs.
    pub(crate) fn lives(&self) -> bool {
        self.here.vmm.lives()
    }

    pub(crate) fn counters(&self) -> Result<Counters, VmError> {
        let usage = Usage::of(self.here.vmm).map_err(|source| VmError::Ended {
            label: self.spec.label.clone(),
            how: format!("no process: {source}"),
        })?;
        Ok(Counters {
            vmm_pid: self.here.vmm.pid,
            keeper_pid: self.here.keeper.pid,
            rss_kib: usage.rss_kib,
            private_kib: usage.private_kib,
            cpu_ms: usage.cpu_ms,
        })
    }

    /// Has the keeper kill the monitor at that time, whether this node lives or not; none takes it back.
    pub(crate) async fn set_deadline(&self, deadline: Option<BoottimeMs>) -> Result<(), VmError> {
        let request = Request::Deadline { boottime_ms: deadline.map(|deadline| deadline.0) };
        self.keeper.ask(&request, "deadline", ASK_LIMIT).await.map(drop)
    }

    /// How the machine ended, once it has.
    pub(crate) async fn ended(&self) -> String {
        loop {
            if let Some(how) = self.keeper.ended().await {
                return how;
            }
            if !self.here.keeper.lives() {
                break;
            }
            sleep(BUSY_PAUSE).await;
        }
        self.here.vmm.gone(GONE_LIMIT).await;
        match read_json::<EndRecord>(&self.spec.folder.end_record(), SCHEMA) {
            Ok(end) => end.how,
            Err(_) if self.cleared.load(Ordering::Acquire) => "it was shut down".to_owned(),
            Err(_) => "its keeper was killed, and its monitor with it".to_owned(),
        }
    }

    /// Ends both processes and removes their files. The second time it does nothing: the folder may be another
    /// machine's by then.
    pub(crate) async fn shutdown(&self) -> Result<(), VmError> {
        if self.cleared.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.here.keeper.lives() {
            let end = self.keeper.ask(&Request::End { grace_ms: GRACE_MS }, "end", END_LIMIT);
            if let Err(error) = timeout(END_LIMIT, end).await.unwrap_or(Ok(crate::keeper::Reply::Done)) {
                tracing::debug!(label = self.spec.label, %error, "a keeper didn't confirm its end");
            }
        }
        for process in [self.here.keeper, self.here.vmm] {
            if !process.gone(EXIT_LIMIT).await {
                process.kill();
            }
            if !process.gone(GONE_LIMIT).await {
                let waited_ms = u64::try_from(GONE_LIMIT.as_millis()).unwrap_or(u64::MAX);
                return Err(VmError::Timeout { command: format!("end of process {}", process.pid), waited_ms });
            }
        }
        let folder = &self.spec.folder;
        released(folder).await;
        for path in folder.all_files().iter().chain([&folder.record()]) {
            remove_file(path)?;
        }
        self.cleared.store(true, Ordering::Release);
        Ok(())
    }
}

/// The last line of a log, without control characters, at most 300 of it; empty if there is none.
pub(crate) fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().last().unwrap_or_default().chars().filter(|character| !character.is_control()).take(300).collect()
}
