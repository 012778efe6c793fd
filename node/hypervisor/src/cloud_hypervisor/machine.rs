//! One Cloud Hypervisor machine: the verbs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cloud_hypervisor_client::models::VmState as ApiState;
use fabric_types::Fit;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::CloneMemory;
use super::api::Api;
use super::config::{channel_socket, kernel_link, monitor_folder};
use super::saved::{SavedState, empty_folder, memory_ranges, remove_folders};
use crate::disk::copy_sparse;
use crate::durable::remove_file;
use crate::keeper::{Here, Keeper, RESET, Request, read_runs};
use crate::launch::{Kept, PAGES_LIMIT};
use crate::memory;
use crate::template;
use crate::{
    BoottimeMs, Counters, DeviceCounters, MemorySource, SnapshotFiles, SnapshotTaken, Vm, VmError, VmSpec, VmState,
};

/// The agent's vsock port.
const AGENT_PORT: u32 = 1024;
/// How long the guest may take to accept a connection: a boot with hardware virtualization takes about a second.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Between two attempts while the guest has a vsock and its agent doesn't listen yet.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// Longest answer of the monitor to `CONNECT`, bytes: `OK 4294967295` and a line end.
const ANSWER_BYTES_MAX: usize = 16;
/// How long a machine whose memory still comes on demand may put off its snapshot: 64 GiB at 1 GiB/s.
const RESTORED_LIMIT: Duration = Duration::from_secs(64);
/// Between two attempts meanwhile.
const RESTORED_PAUSE: Duration = Duration::from_millis(100);
/// The monitor's word for that (VmRestoring in vmm/src/vm.rs).
const RESTORING: &str = "restor";

/// The keeper's sentence, or the one for a reset where the monitor ended before its event was told and the sentence repeats
/// how it misses the kernel (`forget_kernel_link`): whatever else it doesn't find, it answers a call with.
pub(super) fn told(how: String) -> String {
    let missed = how.starts_with("the monitor exited with status 1: ") && how.ends_with("(os error 2)");
    if missed { RESET.to_owned() } else { how }
}

/// A machine.
pub(super) struct CloudHypervisorMachine {
    kept: Kept,
    fit: Fit,
    mode: CloneMemory,
    api: Api,
    /// Verbs look and then act, in turns: a resume in the middle of a snapshot would tear it.
    turns: Semaphore,
    /// Whether it was ended and its files removed.
    gone: AtomicBool,
}

impl CloudHypervisorMachine {
    pub(super) fn new(spec: VmSpec, fit: Fit, mode: CloneMemory, keeper: Keeper, here: Here, api: Api) -> Self {
        Self {
            kept: Kept::new(spec, keeper, here),
            fit,
            mode,
            api,
            turns: Semaphore::new(1),
            gone: AtomicBool::new(false),
        }
    }

    /// Takes the kernel away from a machine that has booted, where the node that booted it didn't come to it.
    pub(super) async fn forget_kernel(&self) -> Result<(), VmError> {
        match self.api_state().await? {
            ApiState::Running | ApiState::Paused => self.forget_kernel_link(),
            ApiState::Created | ApiState::Shutdown => Ok(()),
        }
    }

    /// The monitor knows the kernel by a link, which is removed once the guest has booted. Cloud Hypervisor answers a
    /// guest's reset, panic or triple fault by booting it anew in the same process, which no one would see; without a
    /// kernel it ends instead, whether a node lives or not, and its keeper tells.
    fn forget_kernel_link(&self) -> Result<(), VmError> {
        remove_file(&kernel_link(&self.folder()))
    }

    async fn turn(&self) -> SemaphorePermit<'_> {
        // It is never closed while `self` is borrowed.
        self.turns.acquire().await.expect("the semaphore is not closed")
    }

    /// Stops the processors; whether they ran.
    async fn stop(&self, verb: &'static str) -> Result<bool, VmError> {
        match self.api_state().await? {
            ApiState::Running => self.api.pause().await.map(|()| true),
            ApiState::Paused => Ok(false),
            ApiState::Created | ApiState::Shutdown => {
                let why = "the machine has not run yet".to_owned();
                Err(VmError::Unsupported { verb, why })
            }
        }
    }

    fn folder(&self) -> PathBuf {
        monitor_folder(&self.kept.spec.folder)
    }

    /// What blocks, on a thread that may.
    async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        path: &Path,
        work: impl FnOnce() -> Result<T, VmError> + Send + 'static,
    ) -> Result<T, VmError> {
        let panicked =
            |error: tokio::task::JoinError| VmError::File { action, path: path.to_owned(), source: error.into() };
        spawn_blocking(work).await.map_err(panicked)?
    }

    /// Writes the disk's cached pages out while the machine still runs, so that its copy has little left to.
    async fn flush_disk(&self) -> Result<(), VmError> {
        let disk = self.kept.spec.disk.clone();
        let failed = |source| VmError::File { action: "sync", path: disk.clone(), source };
        let synced = self.blocking("sync", &disk, {
            let disk = disk.clone();
            move || Ok(File::open(disk).and_then(|file| file.sync_data()))
        });
        synced.await?.map_err(failed)
    }

    /// Writes the stopped machine's device state, private pages and disk, as much of it at once as can be.
    async fn write_snapshot(&self, files: &SnapshotFiles, template: &Path) -> Result<(), VmError> {
        let (own, copy) = (self.kept.spec.disk.clone(), files.disk.clone());
        let disk = self.blocking("copy", &self.kept.spec.disk, move || copy_sparse(&own, &copy));
        let (saved, copied) = tokio::join!(self.save_memory(files, template), disk);
        saved.and(copied)
    }

    /// Has the monitor write the device state, and what writes memory in this mode the memory.
    async fn save_memory(&self, files: &SnapshotFiles, template: &Path) -> Result<(), VmError> {
        let folder = self.folder();
        if self.mode != CloneMemory::Mapped {
            return self.api.snapshot(&folder).await;
        }
        self.save_devices(&folder).await?;
        let memory = template::memory_file(template);
        let request = Request::SavePages { memory, pages: files.pages.clone(), runs: self.kept.spec.folder.runs() };
        let reply = self.kept.keeper.ask(&request, "save_pages", PAGES_LIMIT).await?;
        tracing::debug!(label = self.kept.spec.label, ?reply, "private pages saved");
        Ok(())
    }

    /// Has the monitor write device state and not memory. It writes memory last, into a file that it makes: where there
    /// is one already, it stops there and says so, with all else written (vmm/src/vm.rs, `Transportable for Vm`;
    /// vmm/src/memory_manager.rs). Whether that is so is seen by what it wrote.
    async fn save_devices(&self, folder: &Path) -> Result<(), VmError> {
        let placeholder = memory_ranges(folder);
        let failed = |source| VmError::File { action: "make", path: placeholder.clone(), source };
        File::create_new(&placeholder).map_err(failed)?;
        match self.api.snapshot(folder).await {
            Err(error @ VmError::Refused { .. }) => SavedState::take(folder).map(drop).map_err(|_| error),
            answer => answer,
        }
    }

    /// Ends the machine and removes its files.
    /// The second time it does nothing: the folder may be another machine's by then.
    async fn end(&self) -> Result<(), VmError> {
        if self.gone.load(Ordering::Acquire) {
            return Ok(());
        }
        self.kept.shutdown().await?;
        // The keeper has removed them, unless it was killed.
        remove_folders(&self.kept.spec.folder)?;
        self.gone.store(true, Ordering::Release);
        Ok(())
    }

    /// Makes one snapshot's files of what was written, while the machine goes on.
    async fn finish_snapshot(&self, files: SnapshotFiles, template: &Path) -> Result<SnapshotFiles, VmError> {
        let (folder, mode, template) = (self.folder(), self.mode, template.to_owned());
        let path = self.kept.spec.folder.runs();
        self.blocking("finish", &self.kept.spec.folder.dir, move || {
            SavedState::take(&folder)?.write(&files.device_state)?;
            let runs = if mode == CloneMemory::Mapped {
                let runs = read_runs(&path);
                let runs = runs.map_err(|source| VmError::File { action: "read", path: path.clone(), source })?;
                remove_file(&path)?;
                runs
            } else {
                memory::compare(&template::memory_file(&template), &memory_ranges(&folder), &files.pages)?
            };
            empty_folder(&folder)?;
            Ok(SnapshotFiles { runs, ..files })
        })
        .await
    }

    async fn try_snapshot(&self, into: &Path, template: &Path) -> Result<SnapshotTaken, VmError> {
        let file = |name: &str| into.join(name);
        let files =
            SnapshotFiles { device_state: file("state"), pages: file("pages"), runs: Vec::new(), disk: file("disk") };
        empty_folder(&self.folder())?;
        self.flush_disk().await?;
        let stopped = Instant::now();
        let ran = self.stop("snapshot").await?;
        let written = self.write_snapshot(&files, template).await;
        // It goes on whatever became of the snapshot.
        let resumed = if ran { self.api.resume().await } else { Ok(()) };
        let stop_us = u64::try_from(stopped.elapsed().as_micros()).unwrap_or(u64::MAX);
        written?;
        resumed?;
        Ok(SnapshotTaken { files: self.finish_snapshot(files, template).await?, stop_us })
    }

    /// The monitor's own word for the state; when it is gone, the error says how it ended.
    async fn api_state(&self) -> Result<ApiState, VmError> {
        match self.api.state().await {
            Err(VmError::Ended { .. }) if !self.kept.lives() => {
                Err(VmError::Ended { label: self.kept.spec.label.clone(), how: self.ended().await })
            }
            answer => answer,
        }
    }
}

#[async_trait]
impl Vm for CloudHypervisorMachine {
    fn spec(&self) -> &VmSpec {
        &self.kept.spec
    }

    async fn resume(&self) -> Result<(), VmError> {
        let _turn = self.turn().await;
        match self.api_state().await? {
            ApiState::Running => Ok(()),
            ApiState::Paused => self.api.resume().await,
            ApiState::Created | ApiState::Shutdown => {
                self.api.boot().await?;
                self.forget_kernel_link()
            }
        }
    }

    async fn pause(&self) -> Result<(), VmError> {
        let _turn = self.turn().await;
        match self.api_state().await? {
            ApiState::Running => self.api.pause().await,
            ApiState::Paused | ApiState::Created | ApiState::Shutdown => Ok(()),
        }
    }

    async fn state(&self) -> Result<VmState, VmError> {
        match self.api_state().await {
            Ok(ApiState::Running) => Ok(VmState::Running),
            Ok(ApiState::Paused | ApiState::Created | ApiState::Shutdown) => Ok(VmState::Paused),
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
        let folder = self.folder();
        empty_folder(&folder)?;
        self.stop("save_template").await?;
        self.api.snapshot(&folder).await?;
        if memory_ranges(&folder).exists() {
            let message = "it wrote memory that it should have kept in the template's file".to_owned();
            let command = "vm.snapshot".to_owned();
            return Err(VmError::Refused { monitor: "cloud-hypervisor", command, message });
        }
        let state = template::state_file(template);
        self.blocking("write", &state, {
            let state = state.clone();
            move || SavedState::take(&folder)?.write(&state)
        })
        .await?;
        self.end().await?;
        let (own, fit, spec) = (template.clone(), self.fit.clone(), spec.clone());
        self.blocking("seal", template, move || {
            let disk = template::disk_file(&own);
            if disk != spec.disk {
                copy_sparse(&spec.disk, &disk)?;
            }
            template::seal(&own, &fit, spec.shape, &spec.image)
        })
        .await
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
        let _turn = self.turn().await;
        let start = Instant::now();
        loop {
            match self.try_snapshot(into, template).await {
                Err(VmError::Refused { message, .. })
                    if self.mode == CloneMemory::OnDemand
                        && message.to_lowercase().contains(RESTORING)
                        && start.elapsed() < RESTORED_LIMIT =>
                {
                    sleep(RESTORED_PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    async fn resize_disk(&self, bytes: u64) -> Result<(), VmError> {
        let _turn = self.turn().await;
        self.api.resize_disk(bytes).await
    }

    async fn channel(&self) -> Result<UnixStream, VmError> {
        let path = channel_socket(&self.kept.spec.folder);
        match timeout(CONNECT_LIMIT, reach_agent(&path, self.kept.vmm_pid())).await {
            Ok(stream) => stream.map_err(|source| VmError::File { action: "connect to", path, source }),
            Err(_) => {
                let waited_ms = u64::try_from(CONNECT_LIMIT.as_millis()).unwrap_or(u64::MAX);
                Err(VmError::Timeout { command: format!("CONNECT {AGENT_PORT}"), waited_ms })
            }
        }
    }

    async fn counters(&self) -> Result<Counters, VmError> {
        self.kept.counters()
    }

    async fn device_counters(&self) -> Result<DeviceCounters, VmError> {
        self.api.counters().await
    }

    async fn set_deadline(&self, deadline: Option<BoottimeMs>) -> Result<(), VmError> {
        self.kept.set_deadline(deadline).await
    }

    async fn ended(&self) -> String {
        told(self.kept.ended().await)
    }

    async fn shutdown(&self) -> Result<(), VmError> {
        self.end().await
    }
}

/// A connection to the agent, as soon as it listens. `monitor` is the process that must serve it: one that its guest has
/// taken over could have put a link to another machine's socket there.
async fn reach_agent(socket: &Path, monitor: u32) -> io::Result<UnixStream> {
    loop {
        let mut stream = UnixStream::connect(socket).await?;
        if stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok()) != Some(monitor) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another process than its monitor listens"));
        }
        match ask_for_port(&mut stream).await {
            Ok(()) => return Ok(stream),
            // How the monitor passes on that the guest refused.
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                sleep(CONNECT_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The handshake of the monitor's vsock (docs/vsock.md): a line with the port, answered by a line with `OK` and the
/// host's port.
async fn ask_for_port(stream: &mut UnixStream) -> io::Result<()> {
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES_MAX);
    // One byte at a time: what follows the line is the agent's.
    loop {
        match stream.read_u8().await? {
            b'\n' if answer.starts_with(b"OK ") => return Ok(()),
            byte if byte != b'\n' && answer.len() < ANSWER_BYTES_MAX => answer.push(byte),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "its monitor answers no 'OK'")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[test]
    fn a_reset_is_told_apart_from_other_ends() {
        let missed = "the monitor exited with status 1: 3: No such file or directory (os error 2)".to_owned();
        assert_eq!(told(missed), "the guest reset, and a machine boots once");
        for how in ["it was shut down", "the monitor exited with status 1: 2: Out of memory (os error 12)"] {
            assert_eq!(told(how.to_owned()), how);
        }
    }

    #[tokio::test]
    async fn the_channel_starts_after_the_monitors_line() {
        let (mut near, mut far) = UnixStream::pair().expect("a pair");
        far.write_all(b"OK 1073741824\nrest").await.expect("written");
        ask_for_port(&mut near).await.expect("accepted");
        let mut rest = [0; 4];
        near.read_exact(&mut rest).await.expect("read");
        assert_eq!(&rest, b"rest");
        let mut asked = [0; 13];
        far.read_exact(&mut asked).await.expect("read");
        assert_eq!(&asked, b"CONNECT 1024\n");
    }

    #[tokio::test]
    async fn an_agent_that_listens_late_is_reached() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("c");
        let listener = UnixListener::bind(&path).expect("it listens");
        let reached = tokio::spawn(async move { reach_agent(&path, std::process::id()).await });
        for _ in 0..3 {
            let (mut refused, _) = listener.accept().await.expect("asked");
            refused.read_exact(&mut [0; 13]).await.expect("read");
        }
        let (mut taken, _) = listener.accept().await.expect("asked again");
        taken.write_all(b"OK 1\nhello").await.expect("written");
        let mut stream = reached.await.expect("no panic").expect("reached");
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await.expect("read");
        assert_eq!(&hello, b"hello");
        assert_eq!(
            reach_agent(Path::new("/nonexistent/c"), 1).await.expect_err("gone").kind(),
            io::ErrorKind::NotFound
        );
    }

    #[tokio::test]
    async fn another_processes_socket_is_not_the_channel() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("c");
        let _listener = UnixListener::bind(&path).expect("it listens");
        let error = reach_agent(&path, std::process::id() + 1).await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[tokio::test]
    async fn another_answer_is_a_refusal() {
        for answer in ["NO\n", "OK 123456789012345678\n", "\n"] {
            let (mut near, mut far) = UnixStream::pair().expect("a pair");
            far.write_all(answer.as_bytes()).await.expect("written");
            assert!(ask_for_port(&mut near).await.is_err(), "{answer}");
        }
    }
}
