//! A method for each operation of `/v1`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;

use crate::exec::ExecStream;
use crate::settings::{ApiKey, Endpoint, Endpoints, Overrides, Settings};
use crate::transport::{Ask, BOOT_TIMEOUT, COMMAND_GRACE, Transport};
use crate::{ClientError, v1};

/// A client of one mesh. Cheap to clone; its `Debug` shows no key.
///
/// Any gateway serves any sandbox, so a request goes to the endpoint of the sandbox's region where that is known and
/// to another where no connection comes to stand.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) transport: Transport,
}

/// Which sandboxes a list shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListFilter {
    /// Of this region alone.
    pub region: Option<String>,
    /// With all these labels.
    pub labels: BTreeMap<String, String>,
    /// In this state alone.
    pub state: Option<String>,
}

impl Client {
    /// A client of the mesh behind an endpoint (`URL`, `REGION=URL`, or several of those with commas).
    pub fn new(endpoint: &str, key: &str) -> Result<Self, ClientError> {
        Self::with(Settings { endpoints: Endpoints::parse(endpoint)?, key: ApiKey::new(key)? })
    }

    /// A client from `ATOLL_ENDPOINTS` and `ATOLL_API_KEY`, or from the `.atoll/dev/env` of this folder or one above.
    pub fn from_env() -> Result<Self, ClientError> {
        Self::with(Settings::discover(Overrides::default())?)
    }

    /// A client from settings.
    pub fn with(settings: Settings) -> Result<Self, ClientError> {
        Ok(Self { transport: Transport::new(settings.endpoints, settings.key)? })
    }

    /// The same client with this limit on every answer (on its head, where it is streamed) instead of the own limits.
    #[must_use]
    pub fn with_timeout(mut self, limit: Duration) -> Self {
        self.transport.timeout = Some(limit);
        self
    }

    /// The same client with the endpoint of this sandbox's region first: the right one for what follows.
    pub fn following(&self, sandbox: &v1::Sandbox) -> Result<Self, ClientError> {
        let mut endpoint = Endpoint::parse(&sandbox.endpoint)?;
        endpoint.region = Some(sandbox.region.clone());
        let mut client = self.clone();
        client.transport.endpoints = Arc::new(self.transport.endpoints.preferring(endpoint));
        Ok(client)
    }

    /// The endpoints that it knows.
    pub fn endpoints(&self) -> &Endpoints {
        &self.transport.endpoints
    }

    /// Creates a sandbox and waits until it runs.
    pub async fn create(&self, ask: &v1::CreateSandbox) -> Result<v1::Sandbox, ClientError> {
        let mut request = Ask::new(Method::POST, &["sandboxes"]).json(ask).within(Some(BOOT_TIMEOUT));
        request.hint = ask.region.as_deref();
        self.transport.send(&request).await?.json().await
    }

    /// The sandboxes of the mesh.
    pub async fn sandboxes(&self, filter: &ListFilter) -> Result<v1::SandboxList, ClientError> {
        let mut ask = Ask::new(Method::GET, &["sandboxes"]);
        if let Some(region) = &filter.region {
            ask = ask.query("region", region);
        }
        if let Some(state) = &filter.state {
            ask = ask.query("state", state);
        }
        for (name, value) in &filter.labels {
            ask = ask.query("label", format!("{name}={value}"));
        }
        self.transport.send(&ask).await?.json().await
    }

    /// One sandbox, by id or name.
    pub async fn sandbox(&self, sandbox: &str) -> Result<v1::Sandbox, ClientError> {
        self.transport.send(&sandbox_ask(Method::GET, sandbox, &[])).await?.json().await
    }

    /// Deletes a sandbox and waits until nothing is left of it; answers what it last was.
    pub async fn delete(&self, sandbox: &str) -> Result<v1::Sandbox, ClientError> {
        self.transport.send(&sandbox_ask(Method::DELETE, sandbox, &[])).await?.json().await
    }

    /// Starts a stopped sandbox and waits until it runs.
    pub async fn start(&self, sandbox: &str) -> Result<v1::Sandbox, ClientError> {
        self.turn(sandbox, "start").await
    }

    /// Stops a sandbox, its disk stays; `force` does so without asking the guest.
    pub async fn stop(&self, sandbox: &str, force: bool) -> Result<v1::Sandbox, ClientError> {
        let ask = sandbox_ask(Method::POST, sandbox, &["stop"]).query("force", force.to_string());
        self.transport.send(&ask.within(Some(BOOT_TIMEOUT))).await?.json().await
    }

    /// Stops a sandbox's processors; its memory stays.
    pub async fn pause(&self, sandbox: &str) -> Result<v1::Sandbox, ClientError> {
        self.turn(sandbox, "pause").await
    }

    /// Lets a paused sandbox go on.
    pub async fn resume(&self, sandbox: &str) -> Result<v1::Sandbox, ClientError> {
        self.turn(sandbox, "resume").await
    }

    /// Moves a stopped sandbox's disk into the snapshot store: it reserves nothing until it is started again.
    pub async fn archive(&self, sandbox: &str) -> Result<v1::Sandbox, ClientError> {
        self.turn(sandbox, "archive").await
    }

    /// Forks a running sandbox into children of their own, all from one moment; all run, or none is made.
    pub async fn fork(&self, sandbox: &str, ask: &v1::Fork) -> Result<v1::Forked, ClientError> {
        let ask = sandbox_ask(Method::POST, sandbox, &["fork"]).json(ask).within(Some(BOOT_TIMEOUT));
        self.transport.send(&ask).await?.json().await
    }

    /// Gives a sandbox another shape: the disk grows live, processors and memory change while it is stopped.
    pub async fn resize(&self, sandbox: &str, ask: &v1::Resize) -> Result<v1::Sandbox, ClientError> {
        let ask = sandbox_ask(Method::POST, sandbox, &["resize"]).json(ask).within(Some(BOOT_TIMEOUT));
        self.transport.send(&ask).await?.json().await
    }

    /// Replaces what a sandbox's guest may reach; it is in force when this answers.
    pub async fn set_network(&self, sandbox: &str, network: &v1::Network) -> Result<v1::Sandbox, ClientError> {
        self.transport.send(&sandbox_ask(Method::PUT, sandbox, &["network"]).json(network)).await?.json().await
    }

    /// Changes what is done to a sandbox by itself; what isn't given stays.
    pub async fn set_intervals(&self, sandbox: &str, intervals: &v1::Intervals) -> Result<v1::Sandbox, ClientError> {
        self.transport.send(&sandbox_ask(Method::PUT, sandbox, &["intervals"]).json(intervals)).await?.json().await
    }

    /// Sets whether a sandbox's ports may be reached without a key.
    pub async fn set_public(&self, sandbox: &str, public: bool) -> Result<v1::Sandbox, ClientError> {
        self.transport.send(&sandbox_ask(Method::PUT, sandbox, &["public"]).json(&public)).await?.json().await
    }

    /// Replaces a sandbox's labels.
    pub async fn set_labels(
        &self,
        sandbox: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<v1::Sandbox, ClientError> {
        self.transport.send(&sandbox_ask(Method::PUT, sandbox, &["labels"]).json(labels)).await?.json().await
    }

    /// What a sandbox's machine uses.
    pub async fn usage(&self, sandbox: &str) -> Result<v1::Usage, ClientError> {
        self.transport.send(&sandbox_ask(Method::GET, sandbox, &["usage"])).await?.json().await
    }

    /// Runs a command and answers when it has ended. A command past its timeout is an error: see
    /// [`ClientError::is_timeout`].
    pub async fn exec(&self, sandbox: &str, command: &v1::Exec) -> Result<v1::ExecResult, ClientError> {
        let limit = command_limit(command.timeout_seconds);
        let ask = sandbox_ask(Method::POST, sandbox, &["exec"]).json(command).within(limit);
        self.transport.send(&ask).await?.json().await
    }

    /// Runs a command and gives its output as it comes. A command past its timeout ends with an exit that says so.
    pub async fn exec_stream(&self, sandbox: &str, command: &v1::Exec) -> Result<ExecStream, ClientError> {
        let limit = command_limit(command.timeout_seconds);
        let mut ask = sandbox_ask(Method::POST, sandbox, &["exec"]).json(command).within(limit);
        ask.accept = "application/x-ndjson";
        Ok(ExecStream::new(self.transport.send(&ask).await?))
    }

    /// Runs a program text and answers when it has ended. Timeouts as with [`Client::exec`].
    pub async fn code_run(&self, sandbox: &str, code: &v1::CodeRun) -> Result<v1::ExecResult, ClientError> {
        let limit = command_limit(code.timeout_seconds);
        let ask = sandbox_ask(Method::POST, sandbox, &["code-run"]).json(code).within(limit);
        self.transport.send(&ask).await?.json().await
    }

    /// Makes a stateful interpreter.
    pub async fn new_context(&self, sandbox: &str, new: &v1::NewContext) -> Result<v1::Context, ClientError> {
        self.transport.send(&sandbox_ask(Method::POST, sandbox, &["contexts"]).json(new)).await?.json().await
    }

    /// The stateful interpreters of a sandbox, by age.
    pub async fn contexts(&self, sandbox: &str) -> Result<v1::ContextList, ClientError> {
        self.transport.send(&sandbox_ask(Method::GET, sandbox, &["contexts"])).await?.json().await
    }

    /// Ends a stateful interpreter; what runs in it is killed.
    pub async fn delete_context(&self, sandbox: &str, context: &str) -> Result<(), ClientError> {
        self.transport.send(&sandbox_ask(Method::DELETE, sandbox, &["contexts", context])).await?;
        Ok(())
    }

    /// Interrupts what runs in a stateful interpreter.
    pub async fn interrupt(&self, sandbox: &str, context: &str) -> Result<(), ClientError> {
        self.transport.send(&sandbox_ask(Method::POST, sandbox, &["contexts", context, "interrupt"])).await?;
        Ok(())
    }

    /// Runs a text in a stateful interpreter and answers when it has ended. Past its timeout it is interrupted, and the
    /// outcome says so.
    pub async fn interpret(&self, sandbox: &str, code: &v1::Interpret) -> Result<v1::Interpreted, ClientError> {
        let limit = command_limit(code.timeout_seconds);
        let ask = sandbox_ask(Method::POST, sandbox, &["interpret"]).json(code).within(limit);
        self.transport.send(&ask).await?.json().await
    }

    /// The last lines of a sandbox's kernel and agent.
    pub async fn logs(&self, sandbox: &str, tail: Option<u32>) -> Result<String, ClientError> {
        let mut ask = sandbox_ask(Method::GET, sandbox, &["logs"]);
        ask.accept = "text/plain";
        if let Some(lines) = tail {
            ask = ask.query("tail", lines.to_string());
        }
        self.transport.send(&ask).await?.text().await
    }

    /// Takes a snapshot of a running sandbox.
    pub async fn snapshot(&self, sandbox: &str, ask: &v1::CreateSnapshot) -> Result<v1::Snapshot, ClientError> {
        let request = sandbox_ask(Method::POST, sandbox, &["snapshots"]).json(ask).within(Some(BOOT_TIMEOUT));
        self.transport.send(&request).await?.json().await
    }

    /// The snapshots of the mesh.
    pub async fn snapshots(&self) -> Result<v1::SnapshotList, ClientError> {
        self.transport.send(&Ask::new(Method::GET, &["snapshots"])).await?.json().await
    }

    /// One snapshot, by id or name.
    pub async fn snapshot_info(&self, snapshot: &str) -> Result<v1::Snapshot, ClientError> {
        self.transport.send(&Ask::new(Method::GET, &["snapshots", snapshot])).await?.json().await
    }

    /// Deletes a snapshot, by id or name; answers what it was.
    pub async fn delete_snapshot(&self, snapshot: &str) -> Result<v1::Snapshot, ClientError> {
        self.transport.send(&Ask::new(Method::DELETE, &["snapshots", snapshot])).await?.json().await
    }

    /// Makes a new sandbox from a snapshot and waits until it runs.
    pub async fn restore(&self, snapshot: &str, ask: &v1::RestoreSnapshot) -> Result<v1::Restored, ClientError> {
        let mut request = Ask::new(Method::POST, &["snapshots", snapshot, "restore"]).json(ask);
        request.hint = ask.region.as_deref();
        self.transport.send(&request.within(Some(BOOT_TIMEOUT))).await?.json().await
    }

    /// Makes an API key; the answer is the only time that it is shown.
    pub async fn create_key(&self, name: &str) -> Result<v1::NewKey, ClientError> {
        let body = v1::CreateKey { name: name.to_owned() };
        self.transport.send(&Ask::new(Method::POST, &["keys"]).json(&body)).await?.json().await
    }

    /// The API keys, without themselves.
    pub async fn keys(&self) -> Result<v1::KeyList, ClientError> {
        self.transport.send(&Ask::new(Method::GET, &["keys"])).await?.json().await
    }

    /// Revokes an API key, by id or name.
    pub async fn remove_key(&self, key: &str) -> Result<(), ClientError> {
        self.transport.send(&Ask::new(Method::DELETE, &["keys", key])).await?;
        Ok(())
    }

    /// The regions.
    pub async fn regions(&self) -> Result<v1::RegionList, ClientError> {
        self.transport.send(&Ask::new(Method::GET, &["regions"])).await?.json().await
    }

    /// The mesh as the answering node sees it.
    pub async fn mesh(&self) -> Result<v1::Mesh, ClientError> {
        self.transport.send(&Ask::new(Method::GET, &["mesh"])).await?.json().await
    }

    async fn turn(&self, sandbox: &str, verb: &str) -> Result<v1::Sandbox, ClientError> {
        let ask = sandbox_ask(Method::POST, sandbox, &[verb]).within(Some(BOOT_TIMEOUT));
        self.transport.send(&ask).await?.json().await
    }
}

/// An ask about one sandbox, for the endpoint of its region.
pub(crate) fn sandbox_ask<'a>(method: Method, sandbox: &'a str, rest: &[&'a str]) -> Ask<'a> {
    let mut path = vec!["sandboxes", sandbox];
    path.extend_from_slice(rest);
    Ask::new(method, &path).near(sandbox)
}

/// How long to wait for a command: its own timeout and some grace; forever where it has none.
fn command_limit(timeout_seconds: Option<u32>) -> Option<Duration> {
    timeout_seconds.map(|seconds| Duration::from_secs(seconds.into()) + COMMAND_GRACE)
}
