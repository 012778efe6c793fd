//! Tests of what stands ready over a driver double: clones, spares, ports, and a host that is full.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use fabric_types::{Fit, Generation, Isolation, NetworkPolicy, Shape};
use node_hypervisor::{Hypervisor, Spare, Vm, VmError, VmFolder, VmSpec};
use node_network::{GuestAddress, NetworkFault, Port};
use node_snapshot::SnapshotStore;
use tokio::time::timeout;

use crate::double::{Double, is_current};
use crate::network::{Network, Plugs};
use crate::testing::{config, spec};
use crate::{CreateFrom, PoolLimits, RunRequest, Runtime, RuntimeConfig, RuntimeError, Verb};

/// Nothing here takes longer than a few mkfs.
const LIMIT: Duration = Duration::from_secs(60);
const ONE: Generation = Generation(1);

mod copies;

/// Ports that are numbers, and what each lets through.
#[derive(Default)]
struct Ports {
    next: AtomicUsize,
    open: Mutex<BTreeMap<u16, Option<NetworkPolicy>>>,
}

impl Ports {
    fn open(&self) -> BTreeMap<u16, Option<NetworkPolicy>> {
        self.open.lock().expect("no test panics in here").clone()
    }
}

fn number(port: &Port) -> u16 {
    match port {
        Port::Tap { number, .. } => *number,
        Port::Passt { .. } => panic!("the double makes taps"),
    }
}

#[async_trait]
impl Plugs for Ports {
    fn check(&self, policy: &NetworkPolicy) -> Result<(), NetworkFault> {
        if policy.allow_domains.is_empty() {
            return Ok(());
        }
        Err(NetworkFault::Unenforceable { what: "names", why: "a test".to_owned() })
    }

    async fn take(&self) -> Result<Option<Port>, NetworkFault> {
        let number = u16::try_from(self.next.fetch_add(1, Ordering::Relaxed)).expect("few");
        self.open.lock().expect("no test panics in here").insert(number, None);
        Ok(Some(Port::Tap {
            number,
            device: format!("t{number}"),
            netns: "/run/netns/test".into(),
            guest: GuestAddress {
                mac: format!("02:00:00:00:00:{number:02x}"),
                address: [10, 0, 0, 2].into(),
                prefix: 30,
                gateway: [10, 0, 0, 1].into(),
                dns: [10, 0, 0, 1].into(),
                mtu: 1500,
            },
        }))
    }

    async fn apply(&self, port: &Port, policy: &NetworkPolicy) -> Result<(), NetworkFault> {
        let known = self.open.lock().expect("no test panics in here").insert(number(port), Some(policy.clone()));
        assert!(known.is_some(), "a port that was never taken");
        Ok(())
    }

    async fn release(&self, port: Port) {
        self.open.lock().expect("no test panics in here").remove(&number(&port));
    }

    async fn retain(&self, ports: &[Port]) -> Result<(), NetworkFault> {
        let kept: Vec<_> = ports.iter().map(number).collect();
        self.open.lock().expect("no test panics in here").retain(|number, _| kept.contains(number));
        Ok(())
    }
}

/// The double, with monitors that can be started ahead, or are only asked for.
struct Ahead {
    double: Arc<Double>,
    waiting: Arc<AtomicUsize>,
    starts: bool,
}

struct Waiting {
    double: Arc<Double>,
    spec: VmSpec,
    waiting: Arc<AtomicUsize>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Spare for Waiting {
    fn spec(&self) -> &VmSpec {
        &self.spec
    }

    async fn load(self: Box<Self>) -> Result<Box<dyn Vm>, VmError> {
        self.double.create(self.spec.clone()).await
    }

    async fn discard(self: Box<Self>) {}
}

#[async_trait]
impl Hypervisor for Ahead {
    fn fit(&self) -> &Fit {
        self.double.fit()
    }

    fn isolation(&self) -> &Isolation {
        self.double.isolation()
    }

    fn makes_checkpoints(&self) -> bool {
        self.double.makes_checkpoints()
    }

    async fn create(&self, spec: VmSpec) -> Result<Box<dyn Vm>, VmError> {
        self.double.create(spec).await
    }

    async fn adopt(&self, folder: &VmFolder) -> Result<Box<dyn Vm>, VmError> {
        self.double.adopt(folder).await
    }

    async fn spare(&self, spec: VmSpec) -> Result<Box<dyn Spare>, VmError> {
        assert!(
            spec.disk.is_file() && spec.folder.dir.is_dir() && spec.folder.run.is_dir(),
            "all is there but a guest"
        );
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if !self.starts {
            return self.double.spare(spec).await;
        }
        Ok(Box::new(Waiting { double: self.double.clone(), spec, waiting: self.waiting.clone() }))
    }
}

struct Place {
    root: tempfile::TempDir,
    double: Arc<Double>,
    ports: Arc<Ports>,
    waiting: Arc<AtomicUsize>,
    store: Arc<SnapshotStore>,
}

impl Place {
    async fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::write(config(root.path()).image.root, "root").expect("written");
        let store = Arc::new(SnapshotStore::open(root.path().join("store")).await.expect("opened"));
        Self { root, double: Double::new(), ports: Arc::default(), waiting: Arc::default(), store }
    }

    fn config(&self, pool: PoolLimits) -> RuntimeConfig {
        RuntimeConfig { pool, ..config(self.root.path()) }
    }

    async fn start(&self, config: RuntimeConfig, driver: Arc<dyn Hypervisor>) -> Runtime {
        let network = Network::new(Some(self.ports.clone() as Arc<dyn Plugs>));
        let started = Runtime::start_over(config, driver, self.store.clone(), network, is_current).await;
        started.expect("started")
    }

    fn ahead(&self) -> Arc<dyn Hypervisor> {
        Arc::new(Ahead { double: self.double.clone(), waiting: self.waiting.clone(), starts: true })
    }

    fn homes(&self, room: &str) -> usize {
        std::fs::read_dir(self.root.path().join("node").join(room)).expect("listed").count()
    }
}

fn request(number: u8) -> RunRequest {
    RunRequest { spec: spec(number), generation: ONE }
}

/// The number of the only port there is.
fn the_only(place: &Place) -> u16 {
    let open = place.ports.open();
    assert_eq!(open.len(), 1, "{open:?}");
    *open.keys().next().expect("one")
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(LIMIT, wait).await.is_ok(), "in time: {what}");
}

async fn full(runtime: &Runtime, warm: u32) {
    let mut pools = runtime.pools();
    let filled = pools.wait_for(|pools| pools[0].warm == warm && pools[0].doing == "full");
    timeout(LIMIT, filled).await.expect("filled in time").expect("the pool runs");
}

#[tokio::test]
async fn a_port_lets_nothing_through_until_its_clone_is_a_sandbox_and_goes_with_it() {
    let place = Place::new().await;
    let runtime = place.start(place.config(PoolLimits::fixed(1)), place.double.clone()).await;
    full(&runtime, 1).await;
    let port = the_only(&place);
    assert_eq!(place.ports.open(), BTreeMap::from([(port, None)]));
    let mut asked = request(1);
    asked.spec.network.block_all = true;
    runtime.run(asked.clone()).await.expect("run");
    assert_eq!(place.ports.open()[&port], Some(asked.spec.network), "in force before the answer");
    let machine = place.double.of(asked.spec.id.as_str()).expect("it lives");
    let identity = machine.identity.lock().expect("no test panics in here").clone().expect("identified");
    assert_eq!(identity.mac, Some(format!("02:00:00:00:00:{port:02x}")));
    assert_eq!(identity.network.expect("a network").prefix, 30);
    full(&runtime, 1).await;
    runtime.act(&spec(1).id, ONE, Verb::Delete).await.expect("deleted");
    assert_ne!(the_only(&place), port, "the clone's own alone");
    runtime.destroy_all(LIMIT).await;
    assert!(place.ports.open().is_empty());
}

#[tokio::test]
async fn a_policy_that_cannot_be_enforced_is_refused_before_anything_is_begun() {
    let place = Place::new().await;
    let runtime = place.start(place.config(PoolLimits::fixed(1)), place.double.clone()).await;
    full(&runtime, 1).await;
    let mut asked = request(1);
    asked.spec.network.allow_domains = vec!["example.com".parse().expect("a name")];
    let refused = runtime.run(asked).await;
    assert!(matches!(refused, Err(RuntimeError::Network(NetworkFault::Unenforceable { .. }))), "{refused:?}");
    assert_eq!((runtime.pools().borrow()[0].warm, runtime.observed().borrow().len()), (1, 0));
}

#[tokio::test]
async fn a_restart_keeps_the_ports_in_use_and_takes_the_others_back() {
    let place = Place::new().await;
    let runtime = place.start(place.config(PoolLimits::fixed(1)), place.double.clone()).await;
    full(&runtime, 1).await;
    runtime.run(request(1)).await.expect("run");
    full(&runtime, 1).await;
    let used = place.ports.open();
    runtime.drain(LIMIT).await;
    drop(runtime);
    Plugs::take(place.ports.as_ref()).await.expect("one that nobody knows of");
    assert_eq!(place.ports.open().len(), 3);
    let runtime = place.start(place.config(PoolLimits::fixed(1)), place.double.clone()).await;
    assert_eq!(place.ports.open(), used);
    assert_eq!(runtime.pools().borrow()[0].warm, 1);
    runtime.destroy_all(LIMIT).await;
    assert!(place.ports.open().is_empty());
}

#[tokio::test]
async fn a_create_without_a_pool_takes_a_spare_and_another_is_started() {
    let place = Place::new().await;
    let limits = PoolLimits { spares: 2, ..PoolLimits::fixed(0) };
    let runtime = place.start(place.config(limits), place.ahead()).await;
    until("two spares", || place.waiting.load(Ordering::Relaxed) == 2).await;
    let ports = place.ports.open();
    runtime.run(request(1)).await.expect("run");
    assert_eq!(runtime.creates().last().map(|budget| budget.from), Some(CreateFrom::Spare));
    until("two spares again", || place.waiting.load(Ordering::Relaxed) == 2).await;
    let open = place.ports.open();
    assert!(ports.keys().any(|port| open[port].is_some()) && open.len() == 3, "{open:?}");
    runtime.destroy_all(LIMIT).await;
    assert_eq!(place.waiting.load(Ordering::Relaxed), 0);
    assert!(place.ports.open().is_empty() && place.homes("pool") == 0);
}

#[tokio::test]
async fn a_driver_that_starts_nothing_ahead_finds_folders_and_disk_made() {
    let place = Place::new().await;
    let limits = PoolLimits { spares: 1, ..PoolLimits::fixed(0) };
    let driver = Ahead { double: place.double.clone(), waiting: place.waiting.clone(), starts: false };
    let runtime = place.start(place.config(limits), Arc::new(driver)).await;
    // The driver is asked last of all, and the keeper hears of its answer at once.
    until("a spare", || place.waiting.load(Ordering::Relaxed) == 1).await;
    assert_eq!((place.homes("pool"), place.ports.open().len()), (1, 1));
    runtime.run(request(1)).await.expect("run");
    assert_eq!(runtime.creates().last().map(|budget| budget.from), Some(CreateFrom::Spare));
    runtime.destroy_all(LIMIT).await;
    assert_eq!((place.homes("pool"), place.double.living().len()), (0, 0));
}

#[tokio::test]
async fn spares_of_a_node_that_is_gone_are_removed_by_the_next() {
    let place = Place::new().await;
    let limits = PoolLimits { spares: 1, ..PoolLimits::fixed(0) };
    let runtime = place.start(place.config(limits), place.ahead()).await;
    until("a spare", || place.waiting.load(Ordering::Relaxed) == 1).await;
    drop(runtime);
    let runtime = place.start(place.config(PoolLimits::fixed(0)), place.ahead()).await;
    assert_eq!(place.homes("pool"), 0);
    assert!(place.ports.open().is_empty());
    drop(runtime);
}

#[tokio::test]
async fn a_shape_that_was_asked_for_is_kept_warm_as_well() {
    let place = Place::new().await;
    let limits = PoolLimits { min: 1, max: 4, memory_mib: 4096, spares: 0 };
    let runtime = place.start(place.config(limits), place.double.clone()).await;
    full(&runtime, 1).await;
    let shape = Shape::new(2, 512, 1).expect("a shape");
    let ask = |number| {
        let mut asked = request(number);
        asked.spec.shape = shape;
        asked
    };
    runtime.run(ask(1)).await.expect("run");
    assert_eq!(runtime.creates().last().map(|budget| budget.from), Some(CreateFrom::Clone));
    let mut pools = runtime.pools();
    let warm = pools.wait_for(|pools| pools.iter().any(|pool| pool.shape == shape && pool.warm > 0));
    timeout(LIMIT, warm).await.expect("in time").expect("the pool runs");
    runtime.run(ask(2)).await.expect("run");
    assert_eq!(runtime.creates().last().map(|budget| budget.from), Some(CreateFrom::Warm));
    runtime.destroy_all(LIMIT).await;
    assert_eq!(place.double.living().len(), 0);
}

#[tokio::test]
async fn a_rush_has_the_pool_hold_more_than_its_least() {
    let place = Place::new().await;
    let limits = PoolLimits { min: 1, max: 6, memory_mib: 4096, spares: 0 };
    let runtime = place.start(place.config(limits), place.double.clone()).await;
    full(&runtime, 1).await;
    // So many that more than the least is wanted for as long as the longest window sees them.
    for number in 1..=35 {
        runtime.run(request(number)).await.expect("run");
    }
    let mut pools = runtime.pools();
    let more = pools.wait_for(|pools| pools[0].target > 1 && pools[0].warm >= pools[0].target);
    timeout(LIMIT, more).await.expect("in time").expect("the pool runs");
    runtime.destroy_all(LIMIT).await;
}

#[tokio::test]
async fn a_full_disk_refuses_new_work_and_the_pool_says_why_it_does_not_fill() {
    let place = Place::new().await;
    let config = RuntimeConfig { min_free_disk_bytes: u64::MAX, ..place.config(PoolLimits::fixed(1)) };
    let runtime = place.start(config, place.double.clone()).await;
    let refused = runtime.run(request(1)).await;
    assert!(matches!(refused, Err(RuntimeError::HostDisk { needed: u64::MAX, .. })), "{refused:?}");
    let mut pools = runtime.pools();
    let told = pools.wait_for(|pools| pools[0].doing.contains("bytes free"));
    timeout(LIMIT, told).await.expect("in time").expect("the pool runs");
    assert_eq!((place.homes("pool"), place.homes("sandboxes")), (0, 0));
}

#[tokio::test]
async fn the_first_clone_that_memory_has_no_room_for_is_refused() {
    let place = Place::new().await;
    let config = RuntimeConfig { min_free_memory_bytes: u64::MAX, ..place.config(PoolLimits::fixed(0)) };
    let runtime = place.start(config, place.double.clone()).await;
    let refused = runtime.run(request(1)).await;
    assert!(matches!(refused, Err(RuntimeError::HostMemory { .. })), "{refused:?}");
    assert_eq!((place.homes("sandboxes"), runtime.observed().borrow().len()), (0, 0));
}

/// A small disk at `at`, for as long as it lives.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// None where this process may mount nothing.
    fn mount(at: &'a Path) -> Option<Self> {
        use nix::mount::{MsFlags, mount};
        std::fs::create_dir_all(at).expect("made");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=64m")).ok()?;
        Some(Self(at))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_undoes_what_cannot_be_recorded_and_corrupts_nothing() {
    let place = Place::new().await;
    let node = place.root.path().join("node");
    let Some(_disk) = SmallDisk::mount(&node) else {
        crate::testing::skip("a full disk", "this process may mount no tmpfs");
        return;
    };
    let runtime = place.start(place.config(PoolLimits::fixed(1)), place.double.clone()).await;
    full(&runtime, 1).await;
    runtime.run(request(1)).await.expect("run");
    full(&runtime, 1).await;
    let filler = node.join("filler");
    let mut file = std::fs::File::create(&filler).expect("created");
    // Page by page, up to the very last one.
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    let refused = runtime.run(request(2)).await;
    let full_disk = |error: &RuntimeError| match error {
        RuntimeError::File { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
        RuntimeError::Machine(VmError::File { source, .. }) => source.kind() == std::io::ErrorKind::StorageFull,
        _ => false,
    };
    assert!(refused.as_ref().is_err_and(full_disk), "{refused:?}");
    assert!(!runtime.observed().borrow().contains_key(&spec(2).id), "nothing is left of it");
    drop(file);
    std::fs::remove_file(&filler).expect("removed");
    runtime.run(request(3)).await.expect("there is room again");
    runtime.drain(LIMIT).await;
    drop(runtime);
    let runtime = place.start(place.config(PoolLimits::fixed(1)), place.double.clone()).await;
    let here: Vec<_> = runtime.observed().borrow().keys().cloned().collect();
    let mut expected = vec![spec(1).id, spec(3).id];
    expected.sort();
    assert_eq!(here, expected, "every record reads");
    runtime.destroy_all(LIMIT).await;
}
