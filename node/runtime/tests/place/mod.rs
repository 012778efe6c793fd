//! A node of one test: real QEMU, real image, folders that go away, and a loud word when something is missing.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fabric_types::{
    Accelerator, Generation, Intervals, NetworkPolicy, OrganizationId, RegionCode, SandboxId, SandboxSpec, Shape,
    Source, UnixMillis,
};
use guest_proto::surface::{CodeRunRequest, ExecReply, ExecRequest, GuestLimits, PROTOCOL};
use http_body_util::{BodyExt, Full};
use node_hypervisor::{ImagePaths, KeeperProgram, QemuConfig, QemuDriver};
use node_network::Networks;
use node_runtime::{MachineDefaults, PoolLimits, RunRequest, Runtime, RuntimeConfig};
use node_snapshot::SnapshotStore;
use serde::Serialize;

/// Longest wait for a pool: a template's boot and its rehearsal under TCG on a busy host.
pub(crate) const POOL_LIMIT: Duration = Duration::from_secs(180);
/// The generation of every sandbox of these tests.
pub(crate) const ONE: Generation = Generation(1);

/// Folders and configuration of one node. Dropping it removes the folders.
pub(crate) struct Place {
    root: tempfile::TempDir,
    image: ImagePaths,
    digest: String,
    templates: PathBuf,
}

impl Place {
    /// `None`, said loudly, where there is no image or no QEMU.
    pub(crate) fn new(what: &str) -> Option<Self> {
        let Some((image, digest)) = image() else {
            skip(what, "no guest image: make image, or name one in ATOLL_IMAGE");
            return None;
        };
        if std::process::Command::new(qemu()).arg("--version").output().is_err() {
            skip(what, "no qemu-system-x86_64");
            return None;
        }
        // What the runtime measures is printed when a test fails, or when it is asked for.
        let filter = tracing_subscriber::EnvFilter::new("node_runtime=debug,node_hypervisor=debug,node_snapshot=info");
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer();
        // Another test of this process may have set it.
        let _ = logs.try_init();
        let root = tempfile::Builder::new().prefix("atoll-rt-").tempdir().expect("a folder");
        // Kept between tests and runs: booting a template takes ten seconds of each.
        let templates = Path::new(env!("CARGO_TARGET_TMPDIR")).join("runtime-templates");
        Some(Self { root, image, digest, templates })
    }

    /// The same on a host that has never seen a template.
    pub(crate) fn without_templates(mut self) -> Self {
        self.templates = self.path("templates");
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn config(&self, pool: PoolLimits) -> RuntimeConfig {
        RuntimeConfig {
            node: "fra-1".parse().expect("a node id"),
            dir: self.path("node"),
            run: self.path("run"),
            templates: self.templates.clone(),
            image: self.image.clone(),
            image_digest: self.digest.clone(),
            agent_protocol: PROTOCOL,
            template: "default".parse().expect("a name"),
            pool,
            limits: MachineDefaults::default(),
            guest_limits: GuestLimits::default(),
            min_free_disk_bytes: 0,
            min_free_memory_bytes: 0,
            swap_after: None,
        }
    }

    pub(crate) async fn store(&self) -> Arc<SnapshotStore> {
        Arc::new(SnapshotStore::open(self.path("store")).await.expect("a store"))
    }

    pub(crate) async fn start_with(&self, pool_target: u32, store: Arc<SnapshotStore>) -> Runtime {
        self.start_limited(PoolLimits::fixed(pool_target), store).await
    }

    pub(crate) async fn start_limited(&self, pool: PoolLimits, store: Arc<SnapshotStore>) -> Runtime {
        self.start_from(self.config(pool), store).await
    }

    pub(crate) async fn start_from(&self, config: RuntimeConfig, store: Arc<SnapshotStore>) -> Runtime {
        self.start_networked(config, store, None).await
    }

    pub(crate) async fn start_networked(
        &self,
        config: RuntimeConfig,
        store: Arc<SnapshotStore>,
        networks: Option<Networks>,
    ) -> Runtime {
        let driver = QemuDriver::new(QemuConfig::new(keeper(), Accelerator::Tcg)).await.expect("a driver");
        Runtime::start(config, Arc::new(driver), store, networks).await.expect("started")
    }

    /// A node whose pool is full.
    pub(crate) async fn filled(&self, pool_target: u32) -> Runtime {
        let runtime = self.start_with(pool_target, self.store().await).await;
        full(&runtime, pool_target).await;
        runtime
    }

    /// Files of sandboxes, clones and snapshots, and run folders, that are there.
    pub(crate) fn left(&self) -> Vec<PathBuf> {
        let node = self.path("node");
        [node.join("sandboxes"), node.join("pool"), node.join("snapshots"), self.path("run")]
            .iter()
            .flat_map(|dir| fs::read_dir(dir).expect("listed").map(|entry| entry.expect("an entry").path()))
            .collect()
    }

    /// Processes whose command line names this place.
    pub(crate) fn processes(&self) -> Vec<String> {
        let place = self.root.path().to_str().expect("a plain path").to_owned();
        let entries = fs::read_dir("/proc").expect("listed").filter_map(Result::ok);
        let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(&place))
            .collect()
    }
}

pub(crate) async fn full(runtime: &Runtime, target: u32) {
    let mut pools = runtime.pools();
    let filled = pools.wait_for(|pools| pools.iter().any(|pool| pool.warm >= target));
    let pool = tokio::time::timeout(POOL_LIMIT, filled).await;
    assert!(pool.is_ok(), "filled in time: {:?}", runtime.pools().borrow());
}

/// Waits until something holds that comes about beside the test.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(POOL_LIMIT, wait).await.is_ok(), "in time: {what}");
}

/// Asserts that a guest's clock is the host's, to a second. The answer may have been long on its way.
pub(crate) async fn clock_is_right(runtime: &Runtime, number: u8) {
    let host = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs_f64();
    let before = host();
    let guest: f64 = exec(runtime, number, "date +%s.%N").await.parse().expect("seconds");
    let after = host();
    let (earliest, latest) = (before - 1.0, after + 1.0);
    assert!(guest > earliest && guest < latest, "the guest's clock is {guest}, the host's {before} to {after}");
}

pub(crate) fn id(number: u8) -> SandboxId {
    // A letter stands for a byte modulo 36: the first one tells larger numbers apart.
    let mut chance = [number % 36; 16];
    chance[0] = number / 36;
    SandboxId::new(&"fra".parse::<RegionCode>().expect("a region"), chance)
}

pub(crate) fn request(number: u8) -> RunRequest {
    let spec = SandboxSpec {
        id: id(number),
        name: format!("Box.{number}"),
        organization: OrganizationId("org".to_owned()),
        source: Source::Template { template: "default".parse().expect("a name") },
        shape: Shape::DEFAULT,
        labels: BTreeMap::new(),
        env: [("COLOUR".to_owned(), "blue".to_owned())].into(),
        user: "root".to_owned(),
        public: false,
        network: NetworkPolicy::default(),
        intervals: Intervals::default(),
        created_at: UnixMillis(0),
    };
    RunRequest { spec, generation: ONE }
}

/// A child of a fork.
pub(crate) fn child(number: u8, parent: u8) -> RunRequest {
    let source = Source::Fork { parent: id(parent), generation: ONE };
    let request = request(number);
    RunRequest { spec: SandboxSpec { source, ..request.spec }, ..request }
}

/// Runs a shell command in a sandbox and gives its trimmed output; it must succeed.
pub(crate) async fn exec(runtime: &Runtime, number: u8, command: &str) -> String {
    let request = ExecRequest { command: command.to_owned(), merge: true, ..ExecRequest::default() };
    let reply = post(runtime, number, "/v1/exec", &request).await;
    let output = text(&reply);
    assert_eq!(reply.exit_code, 0, "{command}: {output}");
    output
}

pub(crate) async fn code_run(runtime: &Runtime, number: u8, language: &str, code: &str) -> String {
    let (language, code) = (language.to_owned(), code.to_owned());
    let request = CodeRunRequest { code, language, merge: true, ..CodeRunRequest::default() };
    let reply = post(runtime, number, "/v1/code-run", &request).await;
    assert_eq!(reply.exit_code, 0, "{}", text(&reply));
    text(&reply)
}

async fn post(runtime: &Runtime, number: u8, path: &str, body: &impl Serialize) -> ExecReply {
    let client = runtime.guest(&id(number), ONE).await.expect("a client");
    let body = Full::new(Bytes::from(serde_json::to_vec(body).expect("JSON")));
    let request = http::Request::post(path).header("content-type", "application/json").body(body);
    let answer = client.send(request.expect("a request")).await.expect("an answer");
    let status = answer.status();
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    assert!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).expect("a reply")
}

fn text(reply: &ExecReply) -> String {
    let bytes = STANDARD.decode(&reply.stdout).expect("base64");
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// Milliseconds since `start`, for the figures that a test prints.
pub(crate) fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

/// Says that a test can't run here, and leaves the reason where the whole run's summary is made.
pub(crate) fn skip(what: &str, why: &str) {
    let line = format!("SKIPPED: {what}: {why}");
    writeln!(std::io::stdout(), "{line}").expect("standard output takes a line");
    if let Some(path) = std::env::var_os("ATOLL_SKIPS") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let noted = file.and_then(|mut file| writeln!(file, "{line}"));
        noted.expect("ATOLL_SKIPS names a file that can be written");
    }
}

fn qemu() -> PathBuf {
    std::env::var_os("ATOLL_QEMU").map_or_else(|| "qemu-system-x86_64".into(), PathBuf::from)
}

/// The guest image and a digest of it: `ATOLL_IMAGE`, else the newest complete one of this repository.
fn image() -> Option<(ImagePaths, String)> {
    let complete = |folder: PathBuf| {
        let image = ImagePaths {
            kernel: folder.join("kernel"),
            initramfs: folder.join("initramfs"),
            root: folder.join("root.erofs"),
        };
        let all = [&image.kernel, &image.initramfs, &image.root].iter().all(|path| path.is_file());
        // The folder's name is a digest of the image's inputs; one that was named by hand may be built over.
        let agent = blake3::hash(&fs::read(&image.initramfs).ok()?).to_hex();
        all.then(|| (image, format!("{}-{agent}", folder.display())))
    };
    if let Some(folder) = std::env::var_os("ATOLL_IMAGE") {
        return complete(folder.into());
    }
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.atoll/image");
    let folders = fs::read_dir(images).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<_> = folders.filter_map(complete).collect();
    found.sort_by_key(|(image, _)| fs::metadata(&image.initramfs).and_then(|about| about.modified()).ok());
    found.pop()
}

/// This crate's example that is a keeper and nothing else; cargo builds it along with the tests.
fn keeper() -> KeeperProgram {
    let test = std::env::current_exe().expect("this test's path");
    let target = test.parent().and_then(Path::parent).expect("deps lies in the profile's folder");
    let program = target.join("examples/runtime_keeper");
    assert!(program.is_file(), "{} is missing: cargo build -p node-runtime --examples", program.display());
    KeeperProgram { program, args: vec![] }
}
