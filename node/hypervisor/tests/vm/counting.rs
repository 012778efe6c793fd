//! The counting guest on every driver that is present: templates, clones, snapshots, restores and spares keep memory and
//! registers.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric_types::{Accelerator, Shape};
use node_hypervisor::{
    CloneMemory, CloudHypervisorConfig, CloudHypervisorDriver, Hypervisor, MemorySource, QemuConfig, QemuDriver,
    SnapshotTaken, Vm, VmError, VmSpec, VmState, copy_sparse, make_blank_template, template_disk,
};

use crate::freestanding::{self, Then, counts};
use crate::shim::helped;
use crate::support::{Place, files_in, keeper, kvm, ms, skip, until};

/// The machines' shape: what is copied or compared as a whole is 256 MiB.
pub(crate) fn shape() -> Shape {
    Shape::new(1, 256, 1).expect("a shape")
}

/// How long such a guest may take to count on, on a busy host.
const COUNT_LIMIT: Duration = Duration::from_secs(30);

/// A driver, and what to call it.
struct Present {
    name: String,
    driver: Arc<dyn Hypervisor>,
}

/// The drivers that can run here, Cloud Hypervisor in each of its ways to come by memory. For what can't, the reason is
/// told.
async fn drivers(folder: &Path) -> Vec<Present> {
    let mut found = Vec::new();
    match QemuDriver::new(QemuConfig::new(keeper(), Accelerator::Tcg)).await {
        Ok(driver) => found.push(Present { name: "qemu".into(), driver: Arc::new(driver) }),
        Err(error) => skip("the counting guest under qemu", &error.to_string()),
    }
    let what = "the counting guest under cloud_hypervisor";
    if let Err(error) = kvm() {
        skip(what, &format!("/dev/kvm doesn't open: {error}"));
        return found;
    }
    match CloudHypervisorDriver::new(CloudHypervisorConfig::new(keeper())).await {
        Ok(_) => {
            let Some(config) = helped(what, folder).await else { return found };
            for clone_memory in [CloneMemory::Mapped, CloneMemory::OnDemand, CloneMemory::Copy] {
                let config = CloudHypervisorConfig { clone_memory, ..config.clone() };
                let driver = CloudHypervisorDriver::new(config).await.expect("it was taken before");
                let name = format!("cloud_hypervisor, {clone_memory:?}");
                found.push(Present { name, driver: Arc::new(driver) });
            }
        }
        Err(VmError::Program { .. }) => skip(what, "no cloud-hypervisor binary"),
        Err(error) => skip(what, &error.to_string()),
    }
    found
}

pub(crate) fn counted(spec: &VmSpec) -> Vec<u32> {
    counts(&String::from_utf8_lossy(&fs::read(spec.folder.console_log()).unwrap_or_default()))
}

/// Waits until it has counted `more` times anew; answers the first and the last count that it told since it was made.
pub(crate) async fn counts_on(spec: &VmSpec, more: usize) -> (u32, u32) {
    let before = counted(spec).len();
    until("counting", COUNT_LIMIT, || counted(spec).len() >= before + more).await;
    let counted = counted(spec);
    (counted[0], counted[counted.len() - 1])
}

/// Waits until all that a guest has said so far is in its log. A keeper lets a pipe rest for 50 ms, and reads what is due
/// before it takes a connection; the first that it takes here may have come before the pipe was due.
pub(crate) async fn all_said(vm: &dyn Vm) {
    tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0..2 {
        vm.set_deadline(None).await.expect("its keeper answers");
    }
}

/// Has it stop, and answers its last whole count; the next may be half told.
pub(crate) async fn stopped(vm: &dyn Vm) -> u32 {
    vm.pause().await.expect("it pauses");
    all_said(vm).await;
    *counted(vm.spec()).last().expect("it has counted")
}

pub(crate) fn goes_on(first: u32, after: u32, what: &str) {
    assert!((after + 1..=after + 2).contains(&first), "{what}: {first} follows {after}");
}

pub(crate) async fn save_template(driver: &dyn Hypervisor, place: &Place) -> u32 {
    save_template_of(driver, place, shape()).await
}

/// Boots a guest of this shape and saves it; answers what it last counted.
pub(crate) async fn save_template_of(driver: &dyn Hypervisor, place: &Place, shape: Shape) -> u32 {
    let mut spec = VmSpec { shape, ..place.booting() };
    spec.memory = MemorySource::BootTemplate { template: place.template() };
    let vm = driver.create(spec.clone()).await.expect("created");
    vm.resume().await.expect("it runs");
    counts_on(&spec, 3).await;
    let last = stopped(vm.as_ref()).await;
    vm.save_template().await.expect("saved");
    assert!(!spec.folder.dir.join("monitor").exists(), "the template's machine has left its files");
    last
}

pub(crate) fn clone_spec(place: &Place) -> VmSpec {
    let spec = VmSpec { shape: shape(), ..place.spec(MemorySource::Clone { template: place.template() }) };
    copy_sparse(&template_disk(&place.template()), &spec.disk).expect("copied");
    spec
}

pub(crate) fn restore_spec(place: &Place, taken: &SnapshotTaken) -> VmSpec {
    let memory = MemorySource::Restore { template: place.template(), snapshot: taken.files.clone() };
    let spec = VmSpec { shape: shape(), ..place.spec(memory) };
    copy_sparse(&taken.files.disk, &spec.disk).expect("copied");
    spec
}

pub(crate) async fn snapshot(vm: &dyn Vm, into: &Path, what: &str) -> SnapshotTaken {
    let start = Instant::now();
    let taken = vm.snapshot(into).await.expect("a snapshot");
    let kib: u64 = taken.files.runs.iter().map(|&(_, length)| length >> 10).sum();
    let stop_us = taken.stop_us;
    println!(
        "{what}: snapshot stopped {stop_us} us of {:.1} ms, {kib} KiB in {} runs",
        ms(start),
        taken.files.runs.len()
    );
    assert_eq!(files_in(into), ["disk", "pages", "state"]);
    taken
}

async fn made(present: &Present, spec: VmSpec, what: &str) -> Box<dyn Vm> {
    let start = Instant::now();
    let vm = present.driver.create(spec).await.expect(what);
    println!("{}: {what} in {:.1} ms", present.name, ms(start));
    assert_eq!(vm.state().await.expect("a state"), VmState::Paused);
    vm
}

#[tokio::test]
async fn vm_counting_guest_keeps_memory_and_registers_on_every_driver() {
    let folder = tempfile::tempdir().expect("a folder");
    for present in drivers(folder.path()).await {
        let place = Place::new(freestanding::image(&folder.path().join("image"), Then::Count));
        let name = &present.name;
        let last = save_template(present.driver.as_ref(), &place).await;

        let (one, other) = (clone_spec(&place), clone_spec(&place));
        let first = made(&present, one.clone(), "clone").await;
        let spare = present.driver.spare(other.clone()).await.expect("started ahead");
        assert_eq!(spare.spec(), &other);
        let start = Instant::now();
        let second = spare.load().await.expect("loaded");
        println!("{name}: spare loaded in {:.1} ms", ms(start));
        assert_eq!(counted(&one), [0; 0], "{name}: a clone runs before it is resumed");
        for vm in [&first, &second] {
            vm.resume().await.expect("it runs");
            let (from, _) = counts_on(vm.spec(), 2).await;
            goes_on(from, last, name);
        }
        let used = first.counters().await.expect("counters");
        println!("{name}: a clone has {} KiB resident, {} KiB private", used.rss_kib, used.private_kib);

        // One stopped, one running: what is loaded again goes on where each was.
        let paused_at = stopped(first.as_ref()).await;
        let taken = snapshot(first.as_ref(), &place.path("s1"), name).await;
        assert_eq!(first.state().await.expect("a state"), VmState::Paused, "{name}: it goes on by itself");
        let before = counts_on(&other, 1).await.1;
        let running = snapshot(second.as_ref(), &place.path("s2"), name).await;
        all_said(second.as_ref()).await;
        let after = counted(&other).last().copied().expect("counted");
        assert_eq!(second.state().await.expect("a state"), VmState::Running, "{name}: it was left stopped");
        for (what, taken, from, to) in [("paused", &taken, paused_at, paused_at), ("running", &running, before, after)]
        {
            let spec = restore_spec(&place, taken);
            let vm = made(&present, spec.clone(), "restore").await;
            vm.resume().await.expect("it runs");
            let (first, _) = counts_on(&spec, 2).await;
            assert!((from + 1..=to + 2).contains(&first), "{name}, {what}: {first} follows {from} to {to}");
            if what == "paused" {
                again(&present, &place, vm.as_ref()).await;
            }
            vm.shutdown().await.expect("it ends");
            assert_eq!(files_in(&spec.folder.dir), ["disk"], "{name}");
        }
        let spec = clone_spec(&place);
        let spare = present.driver.spare(spec.clone()).await.expect("started ahead");
        match spare.restore(taken.files.clone()).await {
            Ok(vm) => {
                vm.resume().await.expect("it runs");
                goes_on(counts_on(&spec, 2).await.0, paused_at, name);
                vm.shutdown().await.expect("it ends");
            }
            Err(VmError::Unsupported { why, .. }) => {
                assert!(name.ends_with("OnDemand") || name.ends_with("Copy"), "{name}: {why}");
            }
            Err(error) => panic!("{name}: a spare isn't restored: {error}"),
        }
        assert_eq!(files_in(&spec.folder.dir), ["disk"], "{name}");
        // The clones never noticed.
        first.resume().await.expect("it goes on");
        for vm in [first, second] {
            counts_on(vm.spec(), 2).await;
            vm.shutdown().await.expect("it ends");
            assert_eq!(files_in(&vm.spec().folder.dir), ["disk"], "{name}");
            assert_eq!(files_in(&vm.spec().folder.run), [""; 0], "{name}");
        }
    }
}

/// A snapshot of what came from a snapshot.
async fn again(present: &Present, place: &Place, vm: &dyn Vm) {
    let at = stopped(vm).await;
    let taken = snapshot(vm, &place.path("s3"), &present.name).await;
    let spec = restore_spec(place, &taken);
    let vm = made(present, spec.clone(), "second restore").await;
    vm.resume().await.expect("it runs");
    let (first, _) = counts_on(&spec, 2).await;
    goes_on(first, at, &present.name);
    vm.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn vm_counting_guest_that_boots_over_a_blank_template_is_restored() {
    let folder = tempfile::tempdir().expect("a folder");
    for present in drivers(folder.path()).await {
        if present.name.ends_with("OnDemand") || present.name.ends_with("Copy") {
            continue;
        }
        let place = Place::new(freestanding::image(&folder.path().join("image"), Then::Count));
        let mut spec = VmSpec { shape: shape(), ..place.booting() };
        make_blank_template(&place.template(), present.driver.fit(), spec.shape, &spec.image).expect("made");
        spec.memory = MemorySource::BootOver { template: place.template() };
        let vm = made(&present, spec.clone(), "boot over a blank template").await;
        vm.resume().await.expect("it runs");
        counts_on(&spec, 2).await;
        let at = stopped(vm.as_ref()).await;
        let taken = snapshot(vm.as_ref(), &place.path("s"), &present.name).await;
        vm.shutdown().await.expect("it ends");
        let spec = restore_spec(&place, &taken);
        let vm = made(&present, spec.clone(), "restore").await;
        vm.resume().await.expect("it runs");
        goes_on(counts_on(&spec, 2).await.0, at, &present.name);
        vm.shutdown().await.expect("it ends");
    }
}
