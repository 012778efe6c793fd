//! One Cloud Hypervisor machine: the verbs.

use std::io;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use cloud_hypervisor_client::models::VmState as ApiState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{sleep, timeout};

use super::api::Api;
use crate::durable::remove_file;
use crate::keeper::{Here, Keeper};
use crate::launch::Kept;
use crate::{BoottimeMs, Counters, SnapshotTaken, Vm, VmError, VmSpec, VmState};

/// The agent's vsock port.
const AGENT_PORT: u32 = 1024;
/// How long the guest may take to accept a connection: a boot with hardware virtualization takes about a second.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Between two attempts while the guest has a vsock and its agent doesn't listen yet.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// Longest answer of the monitor to `CONNECT`, bytes: `OK 4294967295` and a line end.
const ANSWER_BYTES_MAX: usize = 16;
/// Why what needs a template is refused.
const NO_TEMPLATES: &str = "this version's Cloud Hypervisor driver has no templates and snapshots";

/// The keeper's sentence, or a plainer one where it repeats how the monitor misses the kernel (`forget_kernel_link`):
/// whatever else it doesn't find, it answers a call with.
pub(super) fn told(how: String) -> String {
    let missed = how.starts_with("the monitor exited with status 1: ") && how.ends_with("(os error 2)");
    if missed { "the guest reset, and a machine boots once".to_owned() } else { how }
}

/// A machine.
pub(super) struct CloudHypervisorMachine {
    kept: Kept,
    api: Api,
    /// `resume` and `pause` look and then act: in turns.
    turns: Semaphore,
}

impl CloudHypervisorMachine {
    pub(super) fn new(spec: VmSpec, keeper: Keeper, here: Here, api: Api) -> Self {
        Self { kept: Kept::new(spec, keeper, here), api, turns: Semaphore::new(1) }
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
        remove_file(&self.kept.spec.folder.kernel_link())
    }

    async fn turn(&self) -> SemaphorePermit<'_> {
        // It is never closed while `self` is borrowed.
        self.turns.acquire().await.expect("the semaphore is not closed")
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
        Err(VmError::Unsupported { verb: "save_template", why: NO_TEMPLATES.to_owned() })
    }

    async fn snapshot(&self, _into: &Path) -> Result<SnapshotTaken, VmError> {
        Err(VmError::Unsupported { verb: "snapshot", why: NO_TEMPLATES.to_owned() })
    }

    async fn channel(&self) -> Result<UnixStream, VmError> {
        let path = self.kept.spec.folder.channel_socket();
        match timeout(CONNECT_LIMIT, reach_agent(&path)).await {
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

    async fn set_deadline(&self, deadline: Option<BoottimeMs>) -> Result<(), VmError> {
        self.kept.set_deadline(deadline).await
    }

    async fn ended(&self) -> String {
        told(self.kept.ended().await)
    }

    async fn shutdown(&self) -> Result<(), VmError> {
        self.kept.shutdown().await
    }
}

/// A connection to the agent, as soon as it listens.
async fn reach_agent(socket: &Path) -> io::Result<UnixStream> {
    loop {
        let mut stream = UnixStream::connect(socket).await?;
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
        let reached = tokio::spawn(async move { reach_agent(&path).await });
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
        assert_eq!(reach_agent(Path::new("/nonexistent/c")).await.expect_err("gone").kind(), io::ErrorKind::NotFound);
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
