//! A driver double for tests of scheduling: machines that are a task with the agent's surface, and no guest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use fabric_types::{Accelerator, Digest, Fit, GuestNetwork, HypervisorKind, Isolation};
use guest_proto::session::guest::Listener;
use guest_proto::surface::{ExecReply, Health, Identity, IdentityAck, PROTOCOL};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use node_hypervisor::{
    Counters, Hypervisor, MemorySource, SnapshotTaken, Vm, VmError, VmFolder, VmSpec, VmState, template_disk,
    template_memory,
};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// What the double's machines do wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// So many creations fail.
    pub(crate) creations: AtomicUsize,
    /// So many real identities are refused.
    pub(crate) identities: AtomicUsize,
}

/// The double. Its machines outlive it as long as the `Arc` does, like real ones outlive a node.
pub(crate) struct Double {
    fit: Fit,
    isolation: Isolation,
    pub(crate) faults: Arc<Faults>,
    pub(crate) created: AtomicU64,
    machines: Mutex<BTreeMap<PathBuf, Arc<Machine>>>,
}

/// One machine.
pub(crate) struct Machine {
    spec: VmSpec,
    state: watch::Sender<VmState>,
    pub(crate) identity: Mutex<Option<Identity>>,
    faults: Arc<Faults>,
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
        };
        let (faults, created, machines) = (Arc::default(), AtomicU64::new(0), Mutex::default());
        Arc::new(Self { fit, isolation, faults, created, machines })
    }

    /// Machines that haven't ended.
    pub(crate) fn living(&self) -> Vec<Arc<Machine>> {
        let machines = self.machines.lock().expect("no test panics in here");
        machines.values().filter(|machine| *machine.state.borrow() != VmState::Ended).cloned().collect()
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
}

#[async_trait]
impl Hypervisor for Double {
    fn fit(&self) -> &Fit {
        &self.fit
    }

    fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    async fn create(&self, spec: VmSpec) -> Result<Box<dyn Vm>, VmError> {
        if take(&self.faults.creations) {
            return Err(refused("create", "a fault of the test"));
        }
        assert!(spec.disk.is_file(), "a machine's disk is made before it");
        self.created.fetch_add(1, Ordering::Relaxed);
        let dir = spec.folder.dir.clone();
        let state = watch::Sender::new(VmState::Paused);
        let machine = Arc::new(Machine { spec, state, identity: Mutex::default(), faults: self.faults.clone() });
        self.machines.lock().expect("no test panics in here").insert(dir, machine.clone());
        Ok(Box::new(Handle(machine, self.fit.clone())))
    }

    async fn adopt(&self, folder: &VmFolder) -> Result<Box<dyn Vm>, VmError> {
        let machine = self.machines.lock().expect("no test panics in here").get(&folder.dir).cloned();
        match machine {
            Some(machine) if machine.state() != VmState::Ended => Ok(Box::new(Handle(machine, self.fit.clone()))),
            _ => Err(VmError::Ended { label: "double".to_owned(), how: "a test ended it".to_owned() }),
        }
    }
}

struct Handle(Arc<Machine>, Fit);

#[async_trait]
impl Vm for Handle {
    fn spec(&self) -> &VmSpec {
        &self.0.spec
    }

    async fn resume(&self) -> Result<(), VmError> {
        self.set(VmState::Running)
    }

    async fn pause(&self) -> Result<(), VmError> {
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

    async fn snapshot(&self, _into: &Path) -> Result<SnapshotTaken, VmError> {
        Err(refused("snapshot", "the double has no memory"))
    }

    async fn channel(&self) -> Result<UnixStream, VmError> {
        let (host, guest) = UnixStream::pair().expect("a pair of sockets");
        tokio::spawn(serve(self.0.clone(), guest));
        Ok(host)
    }

    async fn counters(&self) -> Result<Counters, VmError> {
        Ok(Counters::default())
    }

    async fn ended(&self) -> String {
        let mut state = self.0.state.subscribe();
        state.wait_for(|state| *state == VmState::Ended).await.expect("the machine is borrowed");
        "it ended".to_owned()
    }

    async fn shutdown(&self) -> Result<(), VmError> {
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
            let generation = identity.generation;
            *machine.identity.lock().expect("no test panics in here") = Some(identity);
            serde_json::to_value(IdentityAck { generation, took_us: 1 })
        }
        "/v1/shutdown" => {
            machine.die();
            return Ok(status(204));
        }
        // A command that never ends.
        "/v1/exec/stream" => std::future::pending().await,
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
