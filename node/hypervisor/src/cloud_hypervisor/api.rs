//! Calls of Cloud Hypervisor's API (vmm/src/api/openapi/cloud-hypervisor.yaml), each with a limit and a sentence.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloud_hypervisor_client::models::VmState as ApiState;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::CloneMemory;
use super::call::{Answer, call};
use super::config::{CARD, OWN_DISK, ROOT_DISK};
use crate::{DeviceCounters, NetworkCounters, VmError};

/// Oldest API version that this driver speaks: since 52 a restore resets vsock connections, on which the channel
/// relies.
const OLDEST: u32 = 52;
/// Newest API version that this driver was written against.
const NEWEST: u32 = 54;
/// How long the program may take from its start to its first answer (3-16 ms on an idle host).
const PING_LIMIT: Duration = Duration::from_secs(15);
/// How long any other call may take; booting a kernel with an initramfs takes 0.1 s.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// How long moving all of a guest's memory may take: 64 GiB at 1 GiB/s.
const MEMORY_LIMIT: Duration = Duration::from_secs(64);
/// Most of a monitor's words that an error repeats, characters: its chains of causes are about 200.
const WORDS_MAX: usize = 300;

/// One monitor's API.
pub(super) struct Api {
    socket: PathBuf,
    label: String,
}

/// The part of `vmm.ping`'s answer that matters.
#[derive(Deserialize)]
struct Ping {
    version: String,
}

/// The part of `vm.info`'s answer that matters: the rest is a copy of the configuration, in the words of the monitor's
/// version.
#[derive(Deserialize)]
struct Info {
    state: ApiState,
}

/// The answer of `vm.counters`: by device and by what it counts.
type Counted = BTreeMap<String, BTreeMap<String, u64>>;

impl Api {
    pub(super) fn new(socket: &Path, label: &str) -> Self {
        Self { socket: socket.to_owned(), label: label.to_owned() }
    }

    /// Waits until it answers and refuses a version that this driver doesn't speak.
    pub(super) async fn ping(&self) -> Result<(), VmError> {
        let answer = self.call("GET", "vmm.ping", PING_LIMIT, b"", &[]).await?;
        check_version(&self.parsed::<Ping>("vmm.ping", &answer)?.version)
    }

    pub(super) async fn create(&self, config: &Value) -> Result<(), VmError> {
        self.put("vm.create", CALL_LIMIT, config, &[]).await
    }

    /// Adds a card that is plugged into this tap, to a machine that hasn't booted as to one that runs.
    pub(super) async fn add_card(&self, card: &Value, tap: &OwnedFd) -> Result<(), VmError> {
        self.put("vm.add-net", CALL_LIMIT, card, &[tap.as_fd()]).await
    }

    /// Writes a stopped machine's configuration, state and, unless it lies in a shared file, memory into a folder.
    pub(super) async fn snapshot(&self, folder: &Path) -> Result<(), VmError> {
        self.put("vm.snapshot", MEMORY_LIMIT, &json!({ "destination_url": url(folder) }), &[]).await
    }

    /// Loads what lies in a folder: the machine is paused then. A card, if it has one, is plugged into this tap.
    pub(super) async fn restore(&self, folder: &Path, mode: CloneMemory, tap: Option<&OwnedFd>) -> Result<(), VmError> {
        let mode = match mode {
            CloneMemory::OnDemand => "OnDemand",
            // What is mapped isn't listed among the ranges, so there is nothing to copy.
            CloneMemory::Mapped | CloneMemory::Copy => "Copy",
        };
        let mut request = json!({ "source_url": url(folder), "memory_restore_mode": mode });
        if tap.is_some() {
            request["net_fds"] = json!([{ "id": CARD, "num_fds": 1 }]);
        }
        let descriptors: Vec<BorrowedFd<'_>> = tap.iter().map(|tap| tap.as_fd()).collect();
        self.put("vm.restore", MEMORY_LIMIT, &request, &descriptors).await
    }

    /// Grows the machine's own disk, its file too where that is shorter.
    pub(super) async fn resize_disk(&self, bytes: u64) -> Result<(), VmError> {
        self.put("vm.resize-disk", CALL_LIMIT, &json!({ "id": OWN_DISK, "desired_size": bytes }), &[]).await
    }

    pub(super) async fn boot(&self) -> Result<(), VmError> {
        self.call("PUT", "vm.boot", CALL_LIMIT, b"", &[]).await.map(drop)
    }

    pub(super) async fn pause(&self) -> Result<(), VmError> {
        self.call("PUT", "vm.pause", CALL_LIMIT, b"", &[]).await.map(drop)
    }

    pub(super) async fn resume(&self) -> Result<(), VmError> {
        self.call("PUT", "vm.resume", CALL_LIMIT, b"", &[]).await.map(drop)
    }

    pub(super) async fn state(&self) -> Result<ApiState, VmError> {
        let answer = self.call("GET", "vm.info", CALL_LIMIT, b"", &[]).await?;
        Ok(self.parsed::<Info>("vm.info", &answer)?.state)
    }

    /// What the guest has moved through its devices.
    pub(super) async fn counters(&self) -> Result<DeviceCounters, VmError> {
        let answer = self.call("GET", "vm.counters", CALL_LIMIT, b"", &[]).await?;
        Ok(sum(&self.parsed::<Counted>("vm.counters", &answer)?))
    }

    async fn put(
        &self,
        name: &'static str,
        limit: Duration,
        body: &Value,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), VmError> {
        self.call("PUT", name, limit, body.to_string().as_bytes(), descriptors).await.map(drop)
    }

    async fn call(
        &self,
        method: &str,
        name: &'static str,
        limit: Duration,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<u8>, VmError> {
        match timeout(limit, call(&self.socket, method, name, body, descriptors)).await {
            Ok(Ok(Answer { status: 200..300, body })) => Ok(body),
            Ok(Ok(Answer { status, body })) => Err(self.refused(name, format!("{status}: {}", causes(&body)))),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(self.refused(name, error.to_string())),
            Ok(Err(error)) => Err(VmError::Ended {
                label: self.label.clone(),
                how: format!("its monitor doesn't answer '{name}': {error}"),
            }),
            Err(_) => {
                let waited_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                Err(VmError::Timeout { command: name.to_owned(), waited_ms })
            }
        }
    }

    fn parsed<'a, T: Deserialize<'a>>(&self, name: &'static str, answer: &'a [u8]) -> Result<T, VmError> {
        serde_json::from_slice(answer)
            .map_err(|error| self.refused(name, format!("its answer isn't what version {NEWEST} says: {error}")))
    }

    fn refused(&self, name: &str, message: String) -> VmError {
        let message = words(&message);
        VmError::Refused { monitor: "cloud-hypervisor", command: name.to_owned(), message }
    }
}

/// The disks' counts together, and the card's. The monitor counts a disk from its first request on, a card from its plug.
fn sum(counted: &Counted) -> DeviceCounters {
    let of = |device: &str, what: &str| counted.get(device).and_then(|counts| counts.get(what)).copied().unwrap_or(0);
    let both = |what| of(ROOT_DISK, what).saturating_add(of(OWN_DISK, what));
    DeviceCounters {
        disk_read_bytes: both("read_bytes"),
        disk_written_bytes: both("write_bytes"),
        disk_reads: both("read_ops"),
        disk_writes: both("write_ops"),
        network: counted.contains_key(CARD).then(|| NetworkCounters {
            // As the guest's card sees it: what its driver receives is written into its queue.
            received_bytes: of(CARD, "rx_bytes"),
            sent_bytes: of(CARD, "tx_bytes"),
        }),
    }
}

/// A folder as the monitor's calls name it. It reads a path as it stands, without escapes.
fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

/// An error's body is a JSON array of causes, the outermost first; each repeats nothing of the next.
fn causes(body: &[u8]) -> String {
    match serde_json::from_slice::<Vec<String>>(body) {
        Ok(causes) => causes.join(": "),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    }
}

/// At most so many characters, on one line.
pub(super) fn words(text: &str) -> String {
    let plain = text.chars().map(|character| if character.is_control() { ' ' } else { character });
    plain.take(WORDS_MAX).collect()
}

/// Refuses a version, as in `v54.0` or `v54.0-12-gabcdef`, outside the ones that this driver speaks.
pub(super) fn check_version(version: &str) -> Result<(), VmError> {
    let major = version.trim_start_matches('v').split(['.', '-']).next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| (OLDEST..=NEWEST).contains(&major)) {
        return Ok(());
    }
    let why = format!("cloud-hypervisor {} is installed; versions {OLDEST} to {NEWEST} are supported", words(version));
    Err(VmError::Unsupported { verb: "cloud-hypervisor", why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_those_of_our_devices() {
        let counted = |text: &str| sum(&serde_json::from_str(text).expect("counters"));
        let all = counted(
            r#"{"root": {"read_bytes": 7, "read_ops": 2, "read_latency_avg": 5},
                "own": {"read_bytes": 3, "read_ops": 1, "write_bytes": 9, "write_ops": 4},
                "net": {"rx_bytes": 11, "tx_bytes": 12, "rx_frames": 1}, "x": {"read_bytes": 99}}"#,
        );
        let network = Some(NetworkCounters { received_bytes: 11, sent_bytes: 12 });
        let disks =
            DeviceCounters { disk_read_bytes: 10, disk_written_bytes: 9, disk_reads: 3, disk_writes: 4, network };
        assert_eq!(all, disks);
        assert_eq!(counted("{}"), DeviceCounters::default());
    }

    #[test]
    fn versions_outside_the_known_ones_are_refused() {
        for good in ["v52.0", "53.1", "v54.0-12-gabcdef", "v54"] {
            assert!(check_version(good).is_ok(), "{good}");
        }
        for bad in ["v51.9", "v55.0", "", "v", "fifty-four"] {
            let error = check_version(bad).expect_err("refused").to_string();
            assert!(error.contains("versions 52 to 54 are supported"), "{error}");
        }
    }

    #[test]
    fn causes_become_one_sentence() {
        let body = br#"["Error from API", "The VM is not created"]"#;
        assert_eq!(causes(body), "Error from API: The VM is not created");
        assert_eq!(causes(b"plain"), "plain");
        assert_eq!(words("two\nlines"), "two lines");
        assert_eq!(words(&"long".repeat(1000)).len(), WORDS_MAX);
    }

    #[tokio::test]
    async fn no_monitor_is_an_end_and_not_a_hang() {
        let folder = tempfile::tempdir().expect("a folder");
        let api = Api::new(&folder.path().join("q"), "vm");
        assert!(matches!(api.state().await, Err(VmError::Ended { .. })));
    }
}
