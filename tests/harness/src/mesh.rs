//! A mesh that runs: started, killed in parts, started again, stopped.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use gateway_sdk::{Client, Endpoints};
use nix::sys::signal::Signal;

use crate::binary::{atoll_binary, repository};
use crate::ports::free_port_base;
use crate::process::{MARK_VARIABLE, Process, marked};
use crate::step::{eventually, say};

/// Until a mesh is ready: a guest image and templates made from nothing, on two slow cores that others use too.
const READY_LIMIT: Duration = Duration::from_secs(600);
/// Until a mesh has ended after it was told to: nodes have 30 s for their sandboxes and 10 s for themselves.
const STOP_LIMIT: Duration = Duration::from_secs(90);
/// After SIGKILL only the kernel is waited for.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a log's end that a failure shows.
const LOG_TAIL_BYTES: u64 = 6 << 10;
const POLL: Duration = Duration::from_millis(50);

/// What a mesh is to be.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// Its regions, the first one first.
    pub regions: Vec<String>,
    /// Nodes in each.
    pub nodes_per_region: u16,
    /// Warm clones on each node.
    pub pool: u32,
    /// Further words of `atoll dev`.
    pub more: Vec<String>,
}

impl Default for MeshOptions {
    /// As `atoll dev`, with fewer clones: a start waits for each of them.
    fn default() -> Self {
        let regions = ["fra", "iad", "sin"].map(str::to_owned).to_vec();
        Self { regions, nodes_per_region: 1, pool: 2, more: Vec::new() }
    }
}

/// A mesh that runs in a temporary folder. Dropped, it is ended by pid, and its logs' ends are shown if it was not
/// stopped before: then its test has failed.
#[derive(Debug)]
pub struct Mesh {
    options: MeshOptions,
    binary: PathBuf,
    /// Held so that it is removed at the end.
    _folder: tempfile::TempDir,
    /// Its path without symbolic links, as the processes' words have it.
    data: PathBuf,
    port_base: u16,
    mark: String,
    began: SystemTime,
    supervisor: Option<Child>,
    environment: Environment,
    runtime: tokio::runtime::Runtime,
    stopped: bool,
}

/// What `DIR/env` says.
#[derive(Debug, Clone, Default)]
struct Environment {
    endpoints: String,
    key: String,
    daytona_url: String,
}

impl Mesh {
    /// Starts a mesh and waits until it is ready.
    pub fn start(options: MeshOptions) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mesh-").tempdir().context("can't make a folder")?;
        let data = folder.path().canonicalize().context("can't find the folder just made")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
        let nodes = options.regions.len() as u16 * options.nodes_per_region;
        let mark = folder.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut mesh = Self {
            binary: atoll_binary()?,
            port_base: free_port_base(nodes)?,
            mark,
            began: SystemTime::now(),
            supervisor: None,
            environment: Environment::default(),
            runtime,
            stopped: false,
            _folder: folder,
            data,
            options,
        };
        mesh.start_supervisor()?;
        Ok(mesh)
    }

    /// Starts `atoll dev` on the folder, again or for the first time, and waits until it is ready.
    pub fn start_supervisor(&mut self) -> anyhow::Result<()> {
        ensure!(self.supervisor.is_none(), "this mesh runs already");
        let log = File::options().create(true).append(true).open(self.log_file()).context("can't write a log")?;
        // The env file of an earlier start is not this one's.
        let _ = fs::remove_file(self.data().join("env"));
        let mut command = Command::new(&self.binary);
        command
            .arg("dev")
            .arg("--data")
            .arg(self.data())
            .args(["--regions", &self.options.regions.join(",")])
            .args(["--nodes-per-region", &self.options.nodes_per_region.to_string()])
            .args(["--port-base", &self.port_base.to_string()])
            .args(["--pool", &self.options.pool.to_string()])
            .args(&self.options.more)
            // Where the guest image is found, and shared by all meshes of this checkout.
            .current_dir(repository())
            .env(MARK_VARIABLE, &self.mark)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("can't share a log")?)
            .stderr(log);
        let began = Instant::now();
        self.supervisor = Some(command.spawn().context("can't start atoll dev")?);
        self.wait_ready()?;
        say(&format!("mesh ready after {:.1} s in {}", began.elapsed().as_secs_f64(), self.data().display()));
        Ok(())
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + READY_LIMIT;
        while !self.data().join("env").is_file() {
            let ended = match &mut self.supervisor {
                Some(child) => child.try_wait().context("can't wait for atoll dev")?,
                None => None,
            };
            if let Some(status) = ended {
                bail!("atoll dev ended before its mesh was ready ({status})");
            }
            if Instant::now() >= until {
                bail!("the mesh was not ready within {} s", READY_LIMIT.as_secs());
            }
            std::thread::sleep(POLL);
        }
        self.environment = Environment::load(&self.data().join("env"))?;
        Ok(())
    }

    /// The folder given as `--data`.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The binary that it runs.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The regions, in order.
    pub fn regions(&self) -> &[String] {
        &self.options.regions
    }

    /// `fra=http://...,iad=...`, as the env file has it.
    pub fn endpoints_text(&self) -> &str {
        &self.environment.endpoints
    }

    /// The API key.
    pub fn key(&self) -> &str {
        &self.environment.key
    }

    /// The base URL for the Daytona client, as the env file has it.
    pub fn daytona_url(&self) -> &str {
        &self.environment.daytona_url
    }

    /// The first node's HTTP port.
    pub fn port_base(&self) -> u16 {
        self.port_base
    }

    /// A region's endpoint.
    pub fn endpoint(&self, region: &str) -> anyhow::Result<String> {
        let endpoints = Endpoints::parse(&self.environment.endpoints)?;
        Ok(endpoints.of_region(region)?.as_str().to_owned())
    }

    /// A client that knows every region's endpoint.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(&self.environment.endpoints, &self.environment.key)?)
    }

    /// A client that knows the endpoint of one region alone.
    pub fn client_of(&self, region: &str) -> anyhow::Result<Client> {
        Ok(Client::new(&self.endpoint(region)?, &self.environment.key)?)
    }

    /// Waits for a future.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// The mark that all its processes carry.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// When it was begun.
    pub(crate) fn began(&self) -> SystemTime {
        self.began
    }

    /// The names of its nodes: the folders with a pid.
    pub fn node_names(&self) -> anyhow::Result<Vec<String>> {
        let entries = fs::read_dir(self.data()).context("can't list the mesh's folder")?;
        let with_pid = entries.flatten().filter(|entry| entry.path().join("pid").is_file());
        let mut names: Vec<String> = with_pid.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// A node's process, by its pid file; its argv is checked, since numbers are used again.
    pub fn node(&self, name: &str) -> anyhow::Result<Process> {
        let path = self.data().join(name).join("pid");
        let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
        let pid = text.trim().parse().with_context(|| format!("{} holds no pid: {text:?}", path.display()))?;
        let process = Process::of(pid).with_context(|| format!("{name} (process {pid}) doesn't live"))?;
        let folder = self.data().join(name);
        let is_own = process.command.contains("atoll node") && process.command.contains(&*folder.to_string_lossy());
        ensure!(is_own, "process {pid} is not {name}: {}", process.command);
        Ok(process)
    }

    /// Kills a node with SIGKILL and answers what it was.
    pub fn kill_node(&self, name: &str) -> anyhow::Result<Process> {
        let process = self.node(name)?;
        process.signal(Signal::SIGKILL);
        ensure!(process.ends_within(KILL_LIMIT), "{name} lives on after SIGKILL");
        Ok(process)
    }

    /// Waits until a killed node runs again as another process and answers its health check.
    pub fn wait_node_again(&self, name: &str, killed: &Process, limit: Duration) -> anyhow::Result<Process> {
        eventually(&format!("{name} comes back"), limit, || {
            let process = self.node(name)?;
            ensure!(process != *killed, "{name} is still the killed process");
            Ok(process)
        })
    }

    /// Kills `atoll dev` and every node at once, keepers and virtual machines aside.
    pub fn kill_everything_but_keepers(&mut self) -> anyhow::Result<()> {
        let nodes = self.node_names()?.iter().map(|name| self.node(name)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut supervisor = self.supervisor.take().context("this mesh doesn't run")?;
        supervisor.kill().context("can't kill atoll dev")?;
        nodes.iter().for_each(|node| node.signal(Signal::SIGKILL));
        supervisor.wait().context("can't wait for atoll dev")?;
        ensure!(nodes.iter().all(|node| node.ends_within(KILL_LIMIT)), "a node lives on after SIGKILL");
        Ok(())
    }

    /// Its processes that are no nodes and not `atoll dev`: keepers and virtual machines.
    pub fn keepers_and_machines(&self) -> Vec<Process> {
        let is_other =
            |process: &Process| !process.command.contains("atoll node") && !process.command.contains("atoll dev");
        marked(&self.mark).into_iter().filter(is_other).collect()
    }

    /// Sends Ctrl-C's signal to `atoll dev` and waits for its end.
    pub fn interrupt(&mut self) -> anyhow::Result<ExitStatus> {
        self.end_supervisor(Signal::SIGINT)
    }

    /// Stops the mesh; a test that came here has not failed on its mesh.
    pub fn stop(mut self) -> anyhow::Result<()> {
        if self.supervisor.is_some() {
            let status = self.end_supervisor(Signal::SIGTERM)?;
            ensure!(status.success(), "atoll dev ended with {status}");
        }
        self.stopped = true;
        Ok(())
    }

    fn end_supervisor(&mut self, signal: Signal) -> anyhow::Result<ExitStatus> {
        let mut child = self.supervisor.take().context("this mesh doesn't run")?;
        let process = Process::of(child.id() as i32);
        if let Some(process) = &process {
            process.signal(signal);
        }
        let until = Instant::now() + STOP_LIMIT;
        loop {
            if let Some(status) = child.try_wait().context("can't wait for atoll dev")? {
                return Ok(status);
            }
            if Instant::now() >= until {
                self.supervisor = Some(child);
                bail!("atoll dev has not ended {} s after {signal}", STOP_LIMIT.as_secs());
            }
            std::thread::sleep(POLL);
        }
    }

    fn log_file(&self) -> PathBuf {
        self.data().join("dev-output.log")
    }

    /// The ends of all logs, for whoever looks into a failure.
    fn show_logs(&self) {
        let nodes = fs::read_dir(self.data()).into_iter().flatten().flatten().map(|entry| entry.path().join("log"));
        for path in std::iter::once(self.log_file()).chain(nodes.filter(|path| path.is_file())) {
            say(&format!("---- the end of {}\n{}", path.display(), tail(&path).unwrap_or_default()));
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if !self.stopped {
            self.show_logs();
        }
        if self.supervisor.is_some()
            && let Err(error) = self.end_supervisor(Signal::SIGTERM)
        {
            say(&format!("{error:#}: killing it"));
        }
        let left = marked(&self.mark);
        left.iter().for_each(|process| process.signal(Signal::SIGKILL));
        if let Some(mut child) = self.supervisor.take() {
            // It was killed with the others.
            let _ = child.wait();
        }
        for process in left.iter().filter(|process| !process.ends_within(KILL_LIMIT)) {
            say(&format!("process {} lives on after SIGKILL: {}", process.pid, process.command));
        }
    }
}

impl Environment {
    fn load(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not as promised: {text}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let value = |name: &str| {
            let prefix = format!("export {name}=");
            let found = text.lines().find_map(|line| line.strip_prefix(&prefix));
            found.map(str::to_owned).with_context(|| format!("no line `{prefix}...`"))
        };
        let (key, daytona_key) = (value("ATOLL_API_KEY")?, value("DAYTONA_API_KEY")?);
        ensure!(key == daytona_key, "the two keys differ");
        let digits = key.strip_prefix("e2b_").context("the key doesn't begin with e2b_")?;
        let is_hex = digits.len() == 40 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(is_hex, "the key isn't e2b_ and 40 hexadecimal digits");
        Ok(Self { endpoints: value("ATOLL_ENDPOINTS")?, key, daytona_url: value("DAYTONA_API_URL")? })
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_env_file_is_read_and_checked() {
        let key = format!("e2b_{}", "0123456789".repeat(4));
        let text = format!(
            "export DAYTONA_API_URL=http://127.0.0.1:7080/api\nexport DAYTONA_API_KEY={key}\n\
             export ATOLL_ENDPOINTS=fra=http://127.0.0.1:7080\nexport ATOLL_API_KEY={key}\n"
        );
        let read = Environment::parse(&text).expect("an environment");
        assert_eq!((read.endpoints.as_str(), &read.key), ("fra=http://127.0.0.1:7080", &key));
        assert!(Environment::parse(&text.replace("export ATOLL_E", "ATOLL_E")).is_err());
        assert!(Environment::parse(&text.replace("e2b_0", "e2b_x")).is_err());
        assert!(Environment::parse(&text.replacen(&key, "e2b_other", 1)).is_err());
    }
}
