//! Calls of Cloud Hypervisor's API (vmm/src/api/openapi/cloud-hypervisor.yaml), each with a limit, since the client has none.

use std::path::Path;
use std::time::Duration;

use cloud_hypervisor_client::apis::{DefaultApi, Error};
use cloud_hypervisor_client::models::{VmConfig, VmState as ApiState};
use cloud_hypervisor_client::{SocketBasedApiClient, socket_based_api_client};
use tokio::time::timeout;

use crate::VmError;

/// Oldest API version that this driver speaks: since 52 a restore resets vsock connections, on which the channel relies.
const OLDEST: u32 = 52;
/// Newest API version that this driver was written against.
const NEWEST: u32 = 54;
/// How long the program may take from its start to its first answer (3-16 ms on an idle host).
const PING_LIMIT: Duration = Duration::from_secs(15);
/// How long any other call may take; booting a kernel with an initramfs takes 0.1 s.
const CALL_LIMIT: Duration = Duration::from_secs(15);

/// One monitor's API.
pub(super) struct Api {
    client: SocketBasedApiClient,
    label: String,
}

impl Api {
    pub(super) fn new(socket: &Path, label: &str) -> Self {
        Self { client: socket_based_api_client(socket), label: label.to_owned() }
    }

    /// Waits until it answers and refuses a version that this driver doesn't speak.
    pub(super) async fn ping(&self) -> Result<(), VmError> {
        let answer = self.call("vmm.ping", PING_LIMIT, self.client.vmm_ping_get()).await?;
        check_version(&answer.version)
    }

    pub(super) async fn create(&self, config: VmConfig) -> Result<(), VmError> {
        self.call("vm.create", CALL_LIMIT, self.client.create_vm(config)).await
    }

    pub(super) async fn boot(&self) -> Result<(), VmError> {
        self.call("vm.boot", CALL_LIMIT, self.client.boot_vm()).await
    }

    pub(super) async fn pause(&self) -> Result<(), VmError> {
        self.call("vm.pause", CALL_LIMIT, self.client.pause_vm()).await
    }

    pub(super) async fn resume(&self) -> Result<(), VmError> {
        self.call("vm.resume", CALL_LIMIT, self.client.resume_vm()).await
    }

    pub(super) async fn state(&self) -> Result<ApiState, VmError> {
        self.call("vm.info", CALL_LIMIT, self.client.vm_info_get()).await.map(|info| info.state)
    }

    async fn call<T>(
        &self,
        name: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, VmError> {
        match timeout(limit, call).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Error::HyperClient(error))) => Err(VmError::Ended {
                label: self.label.clone(),
                how: format!("its monitor doesn't answer '{name}': {error}"),
            }),
            Ok(Err(error)) => {
                let message = match error {
                    Error::Api(refusal) => format!("{}: {}", refusal.code, causes(&refusal.body)),
                    other => other.to_string(),
                };
                Err(VmError::Refused { monitor: "cloud-hypervisor", command: name.to_owned(), message })
            }
            Err(_) => {
                let waited_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                Err(VmError::Timeout { command: name.to_owned(), waited_ms })
            }
        }
    }
}

/// An error's body is a JSON array of causes, the outermost first.
fn causes(body: &str) -> String {
    match serde_json::from_str::<Vec<String>>(body) {
        Ok(causes) => causes.join(": "),
        Err(_) => body.chars().take(300).collect(),
    }
}

/// Refuses a version, as in `v54.0` or `v54.0-12-gabcdef`, outside the ones that this driver speaks.
pub(super) fn check_version(version: &str) -> Result<(), VmError> {
    let major = version.trim_start_matches('v').split(['.', '-']).next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| (OLDEST..=NEWEST).contains(&major)) {
        return Ok(());
    }
    let why = format!("cloud-hypervisor {version} is installed; versions {OLDEST} to {NEWEST} are supported");
    Err(VmError::Unsupported { verb: "cloud-hypervisor", why })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(causes(r#"["Error from API", "The VM is not created"]"#), "Error from API: The VM is not created");
        assert_eq!(causes("plain"), "plain");
    }

    #[tokio::test]
    async fn no_monitor_is_an_end_and_not_a_hang() {
        let folder = tempfile::tempdir().expect("a folder");
        let api = Api::new(&folder.path().join("q"), "vm");
        assert!(matches!(api.state().await, Err(VmError::Ended { .. })));
    }
}
