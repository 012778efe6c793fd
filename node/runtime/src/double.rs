//! A driver double for tests of scheduling: machines that are a task with the agent's surface, and no guest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use fabric_types::{Accelerator, Digest, Fit, GuestNetwork, HypervisorKind, Isolation};
use guest_proto::session::guest::Listener;
use guest_proto::surface::{DiskSize, ExecReply, ExecRequest, Health, Identity, IdentityAck, PROTOCOL};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use node_hypervisor::{
    CheckpointTaken, Copies, Counters, DeviceCounters, Hypervisor, MemorySource, SnapshotFiles, SnapshotTaken, Vm,
    VmError, VmFolder, VmSpec, VmState, checkpoint_disk, copy_sparse, template_disk, template_memory,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::cut;

/// The unit of a double's memory, bytes.
const PAGE: usize = 4096;

/// What the double's machines do wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// So many creations fail.
    pub(crate) creations: AtomicUsize,
    /// So many real identities are refused.
    pub(crate) identities: AtomicUsize,
    /// So many snapshots fail.
    pub(crate) snapshots: AtomicUsize,
    /// Whether machines can be written down as checkpoints at all.
    pub(crate) copies: AtomicBool,
    /// So many checkpoints fail half-way.
    pub(crate) checkpoints: AtomicUsize,
    /// So many copies of checkpoints are refused as unsupported.
    pub(crate) refused_copies: AtomicUsize,
    /// So many copies find that their checkpoint has just gone.
    pub(crate) vanished: AtomicUsize,
    /// So many copies have a guest that never answers.
    pub(crate) mute: AtomicUsize,
}

/// The double. Its machines outlive it as long as the `Arc` does, like real ones outlive a node.
pub(crate) struct Double {
    fit: Fit,
    isolation: Isolation,
    pub(crate) faults: Arc<Faults>,
    pub(crate) created: AtomicU64,
    /// Checkpoints that were taken.
    pub(crate) taken: Arc<AtomicU64>,
    machines: Mutex<BTreeMap<PathBuf, Arc<Machine>>>,
}

/// One machine.
pub(crate) struct Machine {
    spec: VmSpec,
    state: watch::Sender<VmState>,
    pub(crate) identity: Mutex<Option<Identity>>,
    /// What its guest has in memory beside its identity: a snapshot takes both, a restore brings both back.
    pub(crate) memory: Mutex<String>,
    /// Bytes that its disk has for the guest's kernel, and for the guest's file system.
    disk_bytes: [AtomicU64; 2],
    faults: Arc<Faults>,
    /// Whether its guest ever answers.
    mute: bool,
    taken: Arc<AtomicU64>,
}

/// A checkpoint as the double writes it.
#[derive(Serialize, Deserialize)]
struct Written {
    boot: u32,
    plug: String,
    identity: Option<Identity>,
    memory: String,
}

/// The boot of the host that the double's checkpoints are of.
const BOOT: u32 = 2;

fn written(folder: &Path) -> std::io::Result<Written> {
    let bytes = std::fs::read(folder.join("double.json"))?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Whether the checkpoint in a folder can be taken up: as the drivers' own question, of the double's.
pub(crate) fn is_current(folder: &Path) -> bool {
    written(folder).is_ok_and(|written| written.boot == BOOT)
}

/// What an earlier boot of the host left.
pub(crate) fn leave_stale(folder: &Path) {
    leave(folder, BOOT - 1);
}

/// A checkpoint of a machine without a network that was nobody's, as another node of the host would have made it.
pub(crate) fn leave_current(template: &Path, folder: &Path) {
    // Whole or absent, as a node's own: one may be making it.
    let new = folder.with_extension("checkpoint.left");
    leave(&new, BOOT);
    copy_sparse(&template_disk(template), &checkpoint_disk(&new)).expect("copied");
    if std::fs::rename(&new, folder).is_err() {
        assert!(is_current(folder), "it is there, or put there");
        std::fs::remove_dir_all(&new).expect("removed");
    }
}

fn leave(folder: &Path, boot: u32) {
    std::fs::create_dir_all(folder).expect("made");
    let left = Written { boot, plug: "none".to_owned(), identity: None, memory: String::new() };
    std::fs::write(folder.join("double.json"), serde_json::to_vec(&left).expect("JSON")).expect("written");
}

fn kind(spec: &VmSpec) -> String {
    let network = serde_json::to_value(&spec.network).expect("JSON");
    network["kind"].as_str().expect("it is tagged").to_owned()
}

impl Double {
    pub(crate) fn new() -> Arc<Self> {
        let fit = Fit {
            hypervisor: HypervisorKind::Qemu,
            version: "double".to_owned(),
            machine: "double".to_owned(),
            accelerator: Accelerator::Tcg,
            cpu_model: "double".to_owned(),
            cpu_features: Vec::new(),
        };
        let isolation = Isolation {
            hypervisor: HypervisorKind::Qemu,
            accelerator: Accelerator::Tcg,
            reason: "a test".to_owned(),
            guest_address_randomization: false,
            network: GuestNetwork::None,
            seal: fabric_types::Seal::default(),
        };
        let (faults, created, taken, machines) = Default::default();
        Arc::new(Self { fit, isolation, faults, created, taken, machines })
    }

    /// Machines that haven't ended.
    pub(crate) fn living(&self) -> Vec<Arc<Machine>> {
        let machines = self.machines.lock().expect("no test panics in here");
        machines.values().filter(|machine| machine.lives()).cloned().collect()
    }

    /// The living machine of a sandbox, by the identity that it was given.
    pub(crate) fn of(&self, id: &str) -> Option<Arc<Machine>> {
        self.living().into_iter().find(|machine| {
            let identity = machine.identity.lock().expect("no test panics in here");
            identity.as_ref().is_some_and(|identity| identity.sandbox_id == id)
        })
    }
}

impl Machine {
    /// Ends by itself.
    pub(crate) fn die(&self) {
        self.state.send_replace(VmState::Ended);
    }

    pub(crate) fn state(&self) -> VmState {
        *self.state.borrow()
    }

    /// Whether it hasn't ended. Where a machine is ended without its driver, it goes with its folder.
    fn lives(&self) -> bool {
        self.state() != VmState::Ended && self.spec.folder.dir.exists()
    }

    /// What it was made from.
    pub(crate) fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// Bytes of the guest's file system.
    pub(crate) fn file_system_bytes(&self) -> u64 {
        self.disk_bytes[1].load(Ordering::Relaxed)
    }
}

/// What a snapshot has of a guest: its identity and the rest of its memory.
fn thaw(files: &SnapshotFiles) -> (Option<Identity>, String) {
    let state = std::fs::read(&files.device_state).expect("a snapshot's device state");
    let pages = std::fs::read(&files.pages).expect("a snapshot's pages");
    let text = String::from_utf8(pages).expect("a double's memory is text");
    (serde_json::from_slice(&state).expect("an identity"), text.trim_end_matches('\0').to_owned())
}

#[async_trait]
impl Hypervisor for Double {
    fn fit(&self) -> &Fit {
        &self.fit
    }

    fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    fn makes_checkpoints(&self) -> bool {
        self.faults.copies.load(Ordering::Relaxed)
    }

    async fn create(&self, spec: VmSpec) -> Result<Box<dyn Vm>, VmError> {
        cut::point().await;
        if take(&self.faults.creations) {
            return Err(refused("create", "a fault of the test"));
        }
        assert!(spec.disk.is_file(), "a machine's disk is made before it");
        let copied = spec.checkpoint.as_deref().map(|folder| self.take_up(folder, &spec)).transpose()?;
        self.created.fetch_add(1, Ordering::Relaxed);
        let mute = copied.is_some() && take(&self.faults.mute);
        let dir = spec.folder.dir.clone();
        let state = watch::Sender::new(VmState::Paused);
        let (identity, memory) = match &spec.memory {
            MemorySource::Restore { snapshot, .. } => thaw(snapshot),
            MemorySource::Boot
            | MemorySource::BootTemplate { .. }
            | MemorySource::BootOver { .. }
            | MemorySource::Clone { .. } => Default::default(),
        };
        let (identity, memory) = copied.map_or((identity, memory), |written| (written.identity, written.memory));
        let bytes = std::fs::metadata(&spec.disk).expect("it is there").len();
        let machine = Arc::new(Machine {
            spec,
            state,
            identity: Mutex::new(identity),
            memory: Mutex::new(memory),
            disk_bytes: [AtomicU64::new(bytes), AtomicU64::new(bytes)],
            faults: self.faults.clone(),
            mute,
            taken: self.taken.clone(),
        });
        self.machines.lock().expect("no test panics in here").insert(dir, machine.clone());
        Ok(Box::new(Handle(machine, self.fit.clone())))
    }

    async fn adopt(&self, folder: &VmFolder) -> Result<Box<dyn Vm>, VmError> {
        let machine = self.machines.lock().expect("no test panics in here").get(&folder.dir).cloned();
        match machine {
            Some(machine) if machine.lives() => Ok(Box::new(Handle(machine, self.fit.clone()))),
            _ => Err(VmError::Ended { label: "double".to_owned(), how: "a test ended it".to_owned() }),
        }
    }
}

impl Double {
    fn take_up(&self, folder: &Path, spec: &VmSpec) -> Result<Written, VmError> {
        assert!(matches!(spec.memory, MemorySource::Clone { .. }), "a copy's memory is a clone's");
        let unsupported = |why: &str| VmError::Unsupported { verb: "create", why: why.to_owned() };
        if take(&self.faults.refused_copies) {
            return Err(unsupported("a fault of the test"));
        }
        if take(&self.faults.vanished) {
            std::fs::remove_dir_all(folder).expect("removed");
        }
        let written =
            written(folder).map_err(|source| VmError::File { action: "read", path: folder.to_owned(), source })?;
        if written.boot != BOOT || written.plug != kind(spec) {
            return Err(unsupported("it is of another boot or another plug"));
        }
        Ok(written)
    }
}

struct Handle(Arc<Machine>, Fit);

#[async_trait]
impl Vm for Handle {
    fn spec(&self) -> &VmSpec {
        &self.0.spec
    }

    async fn resume(&self) -> Result<(), VmError> {
        cut::point().await;
        self.set(VmState::Running)
    }

    async fn pause(&self) -> Result<(), VmError> {
        cut::point().await;
        self.set(VmState::Paused)
    }

    async fn state(&self) -> Result<VmState, VmError> {
        Ok(self.0.state())
    }

    async fn save_template(&self) -> Result<(), VmError> {
        let MemorySource::BootTemplate { template } = &self.0.spec.memory else {
            return Err(refused("save_template", "not a template"));
        };
        seal(template, &self.0.spec, &self.1);
        self.0.die();
        Ok(())
    }

    async fn snapshot(&self, into: &Path) -> Result<SnapshotTaken, VmError> {
        cut::point().await;
        if matches!(self.0.spec.memory, MemorySource::Boot | MemorySource::BootTemplate { .. }) {
            return Err(VmError::Unsupported { verb: "snapshot", why: "the double was booted".to_owned() });
        }
        if take(&self.0.faults.snapshots) {
            return Err(refused("snapshot", "a fault of the test"));
        }
        let file = |name: &str| into.join(name);
        let files = SnapshotFiles {
            device_state: file("state"),
            pages: file("pages"),
            runs: vec![(0, PAGE as u64)],
            disk: file("disk"),
        };
        let identity = self.0.identity.lock().expect("no test panics in here").clone();
        std::fs::write(&files.device_state, serde_json::to_vec(&identity).expect("JSON")).expect("written");
        let mut pages = self.0.memory.lock().expect("no test panics in here").clone().into_bytes();
        pages.resize(PAGE, 0);
        std::fs::write(&files.pages, pages).expect("written");
        copy_sparse(&self.0.spec.disk, &files.disk)?;
        Ok(SnapshotTaken { files, stop_us: 1 })
    }

    async fn checkpoint(&self, into: &Path, _: Copies) -> Result<CheckpointTaken, VmError> {
        cut::point().await;
        let unsupported = |why: &str| VmError::Unsupported { verb: "checkpoint", why: why.to_owned() };
        if !self.0.faults.copies.load(Ordering::Relaxed) {
            return Err(unsupported("the double's machines can't be copied"));
        }
        if !matches!(self.0.spec.memory, MemorySource::Clone { .. } | MemorySource::Restore { .. }) {
            return Err(unsupported("the double was booted"));
        }
        copy_sparse(&self.0.spec.disk, &checkpoint_disk(into))?;
        cut::point().await;
        if take(&self.0.faults.checkpoints) {
            return Err(refused("checkpoint", "a fault of the test"));
        }
        let written = Written {
            boot: BOOT,
            plug: kind(&self.0.spec),
            identity: self.0.identity.lock().expect("no test panics in here").clone(),
            memory: self.0.memory.lock().expect("no test panics in here").clone(),
        };
        std::fs::write(into.join("double.json"), serde_json::to_vec(&written).expect("JSON")).expect("written");
        self.0.taken.fetch_add(1, Ordering::Relaxed);
        Ok(CheckpointTaken { stop_us: 1, shared_bytes: 1 })
    }

    async fn resize_disk(&self, bytes: u64) -> Result<(), VmError> {
        cut::point().await;
        let there = std::fs::metadata(&self.0.spec.disk).expect("it is there").len();
        assert_eq!(there, bytes, "the file grows first");
        self.0.disk_bytes[0].store(bytes, Ordering::Relaxed);
        Ok(())
    }

    async fn channel(&self) -> Result<UnixStream, VmError> {
        if self.0.mute {
            return Err(refused("channel", "its guest doesn't answer"));
        }
        let (host, guest) = UnixStream::pair().expect("a pair of sockets");
        tokio::spawn(serve(self.0.clone(), guest));
        Ok(host)
    }

    async fn counters(&self) -> Result<Counters, VmError> {
        Ok(Counters::default())
    }

    async fn device_counters(&self) -> Result<DeviceCounters, VmError> {
        Ok(DeviceCounters::default())
    }

    async fn ended(&self) -> String {
        let mut state = self.0.state.subscribe();
        state.wait_for(|state| *state == VmState::Ended).await.expect("the machine is borrowed");
        "it ended".to_owned()
    }

    async fn shutdown(&self) -> Result<(), VmError> {
        cut::point().await;
        self.0.die();
        Ok(())
    }
}

impl Handle {
    fn set(&self, state: VmState) -> Result<(), VmError> {
        if self.0.state() == VmState::Ended {
            return Err(VmError::Ended { label: "double".to_owned(), how: "it ended".to_owned() });
        }
        self.0.state.send_replace(state);
        Ok(())
    }
}

/// A template as the drivers seal it, without memory.
fn seal(template: &Path, spec: &VmSpec, fit: &Fit) {
    let digest = Digest::from_bytes([0; 32]);
    let manifest = json!({
        "schema": 1, "fit": fit, "shape": spec.shape, "memory": digest, "state": digest, "kernel": digest,
        "rootBytes": std::fs::metadata(&spec.image.root).expect("a root").len(), "memoryBytes": 6,
    });
    assert!(template_disk(template).is_file());
    std::fs::write(template_memory(template), "memory").expect("written");
    std::fs::write(template.join("template.json"), manifest.to_string()).expect("written");
}

/// The agent: answers while its machine runs, says nothing while it is paused.
async fn serve(machine: Arc<Machine>, channel: UnixStream) {
    let mut listener = Listener::new(channel);
    let mut state = machine.state.subscribe();
    while let Ok(stream) = listener.accept().await {
        let machine = machine.clone();
        let service = service_fn(move |request| answer(machine.clone(), request));
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            _ = connection => {}
            _ = state.wait_for(|state| *state == VmState::Ended) => return,
        }
    }
}

async fn answer(
    machine: Arc<Machine>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let mut state = machine.state.subscribe();
    let _ = state.wait_for(|state| *state != VmState::Paused).await;
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let answer = match path.as_str() {
        "/v1/health" => {
            let identity = machine.identity.lock().expect("no test panics in here");
            let generation = identity.as_ref().map_or(0, |identity| identity.generation);
            serde_json::to_value(Health {
                protocol: PROTOCOL,
                agent: "double".to_owned(),
                ready: identity.is_some(),
                generation,
                kernel: "none".to_owned(),
                uptime_ms: 0,
                address_randomization: false,
                processes: 1,
            })
        }
        "/v1/identity" => {
            let identity: Identity = serde_json::from_slice(&body).expect("an identity");
            if !identity.rehearsal && take(&machine.faults.identities) {
                return Ok(status(500));
            }
            cut::point().await;
            let generation = identity.generation;
            *machine.identity.lock().expect("no test panics in here") = Some(identity);
            serde_json::to_value(IdentityAck { generation, took_us: 1 })
        }
        "/v1/disk/grow" => {
            let [device, file_system] = &machine.disk_bytes;
            let bytes = device.load(Ordering::Relaxed);
            file_system.store(bytes, Ordering::Relaxed);
            serde_json::to_value(DiskSize { bytes })
        }
        "/v1/shutdown" => {
            machine.die();
            return Ok(status(204));
        }
        // One without a command never ends.
        "/v1/exec/stream" if !serde_json::from_slice::<ExecRequest>(&body).is_ok_and(|ask| !ask.command.is_empty()) => {
            std::future::pending().await
        }
        _ => serde_json::to_value(ExecReply::default()),
    };
    Ok(Response::new(Full::new(answer.expect("JSON").to_string().into())))
}

fn status(code: u16) -> Response<Full<Bytes>> {
    Response::builder().status(code).body(Full::default()).expect("a response")
}

fn refused(command: &str, message: &str) -> VmError {
    VmError::Refused { monitor: "double", command: command.to_owned(), message: message.to_owned() }
}

/// Whether one more of so many faults is due.
fn take(faults: &AtomicUsize) -> bool {
    faults.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}
