//! Cloud Hypervisor's devices, and its clones beyond keeping memory: the card by descriptors, limits, disks that grow, the
//! balloon, spares that aren't used, machines whose keeper is killed.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use node_hypervisor::{
    CloneMemory, CloudHypervisorConfig, CloudHypervisorDriver, Hypervisor, MachineLimits, MemorySource, NetworkDevice,
    VmError, VmSpec, VmState,
};
use serde_json::{Value, json};

use crate::card::{Namespace, lab};
use crate::cloud_hypervisor::{ask, driver, nothing_is_left};
use crate::counting::{clone_spec, counts_on, goes_on, restore_spec, save_template, shape, snapshot, stopped};
use crate::freestanding::{self, Then};
use crate::shim::helped;
use crate::support::{Place, files_in, processes_naming, runs, skip, until};

/// How long the end of a process, or a link's change, may take to be seen.
const SEEN_LIMIT: Duration = Duration::from_secs(30);

/// The configuration of a driver that can clone here, or a loud word why there is none.
async fn config(what: &str, folder: &Path) -> Option<CloudHypervisorConfig> {
    driver(what).await?;
    helped(what, folder).await
}

async fn with(config: &CloudHypervisorConfig) -> CloudHypervisorDriver {
    CloudHypervisorDriver::new(config.clone()).await.expect("it was taken before")
}

/// What the monitor says its machine is.
async fn info(spec: &VmSpec) -> Value {
    let (status, info) = ask(spec, "GET", "vm.info", String::new()).await;
    assert_eq!(status, 200, "{info}");
    info["config"].clone()
}

/// Whether somebody holds the lab's tap.
fn is_plugged(lab: &Namespace) -> bool {
    let shown = Command::new("ip").args(["-n", &lab.name, "link", "show", "tap0"]).output().expect("ip runs");
    String::from_utf8_lossy(&shown.stdout).contains("LOWER_UP")
}

#[tokio::test]
async fn vm_cloud_hypervisor_card_is_plugged_in_by_descriptor() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(config) = config("cloud_hypervisor, network card", folder.path()).await else { return };
    let lab = match lab() {
        Ok(lab) => lab,
        Err(why) => return skip("cloud_hypervisor, network card", &why),
    };
    let driver = with(&CloudHypervisorConfig { network_bytes_per_second: Some(1 << 20), ..config }).await;
    let place = Place::new(freestanding::image(&folder.path().join("image"), Then::Count));
    let last = save_template(&driver, &place).await;

    let tap = NetworkDevice::Tap { name: "tap0".into(), netns: Some(lab.path()) };
    assert!(!is_plugged(&lab));
    let spec = VmSpec { network: tap.clone(), ..clone_spec(&place) };
    let vm = driver.create(spec.clone()).await.expect("cloned");
    vm.resume().await.expect("it runs");
    goes_on(counts_on(&spec, 2).await.0, last, "a clone with a network");
    until("the tap's carrier", SEEN_LIMIT, || is_plugged(&lab)).await;
    let card = info(&spec).await["net"][0].clone();
    assert_eq!(card["rate_limiter_config"]["bandwidth"]["size"], 1 << 20, "{card}");
    assert!(card["tap"].is_null() && card["fds"].as_array().is_some_and(|fds| fds.len() == 1), "{card}");

    // One tap has one machine; a clone of the same template without network has the same card, which leads nowhere.
    let second = VmSpec { network: tap.clone(), ..clone_spec(&place) };
    let error = driver.create(second.clone()).await.err().expect("the tap is taken").to_string();
    assert!(error.starts_with("can't attach to the tap tap0: "), "{error}");
    assert_eq!(files_in(&second.folder.dir), ["disk"]);
    let alone = clone_spec(&place);
    let other = driver.create(alone.clone()).await.expect("cloned");
    assert_eq!(info(&alone).await["net"][0]["id"], "net");
    other.shutdown().await.expect("it ends");

    // A snapshot is restored into another plug.
    let at = stopped(vm.as_ref()).await;
    let taken = snapshot(vm.as_ref(), &place.path("s"), "with a card").await;
    vm.shutdown().await.expect("it ends");
    nothing_is_left_of(&spec);
    until("the loss of the carrier", SEEN_LIMIT, || !is_plugged(&lab)).await;
    let spec = VmSpec { network: tap, ..restore_spec(&place, &taken) };
    let vm = driver.create(spec.clone()).await.expect("restored");
    vm.resume().await.expect("it runs");
    goes_on(counts_on(&spec, 2).await.0, at, "a restore with a network");
    until("the tap's carrier", SEEN_LIMIT, || is_plugged(&lab)).await;
    vm.shutdown().await.expect("it ends");

    let missing = NetworkDevice::Tap { name: "tap9".into(), netns: Some(lab.path()) };
    let spec = VmSpec { network: missing, ..clone_spec(&place) };
    let error = driver.create(spec.clone()).await.err().expect("there is no such tap").to_string();
    assert!(error.starts_with("can't attach to the tap tap9: "), "{error}");
    assert_eq!(processes_naming(&place), [0; 0]);
}

#[tokio::test]
async fn vm_cloud_hypervisor_card_is_plugged_into_clones_of_a_template_without_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let what = "cloud_hypervisor, late network card";
    if !Uid::effective().is_root() {
        return skip(what, "only root hides a device");
    }
    // A node that may make no tap: for this thread and those that it starts from now on, the device isn't there.
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("kept apart");
    mount(none, "/dev/net", Some("tmpfs"), MsFlags::empty(), none).expect("hidden");
    let Some(config) = config(what, folder.path()).await else { return };
    let driver = with(&config).await;
    let place = Place::new(freestanding::image(&folder.path().join("image"), Then::Count));
    let last = save_template(&driver, &place).await;
    let spec = clone_spec(&place);
    let vm = driver.create(spec.clone()).await.expect("cloned");
    assert!(info(&spec).await["net"].is_null(), "a card without a tap");
    vm.shutdown().await.expect("it ends");
    umount("/dev/net").expect("shown again");

    let lab = match lab() {
        Ok(lab) => lab,
        Err(why) => return skip(what, &why),
    };
    let tap = NetworkDevice::Tap { name: "tap0".into(), netns: Some(lab.path()) };
    let spec = VmSpec { network: tap, ..clone_spec(&place) };
    let vm = driver.create(spec.clone()).await.expect("cloned");
    vm.resume().await.expect("it runs");
    goes_on(counts_on(&spec, 2).await.0, last, "a clone with a late card");
    until("the tap's carrier", SEEN_LIMIT, || is_plugged(&lab)).await;
    let at = stopped(vm.as_ref()).await;
    let taken = snapshot(vm.as_ref(), &place.path("s"), "with a late card").await;
    vm.shutdown().await.expect("it ends");
    // The restored machine has the card; without a network it leads nowhere.
    let spec = restore_spec(&place, &taken);
    let vm = driver.create(spec.clone()).await.expect("restored");
    vm.resume().await.expect("it runs");
    goes_on(counts_on(&spec, 1).await.0, at, "a restore with a late card");
    assert_eq!(info(&spec).await["net"][0]["id"], "net");
    until("the loss of the carrier", SEEN_LIMIT, || !is_plugged(&lab)).await;
    vm.shutdown().await.expect("it ends");
    // A node that may make no tap says so.
    mount(none, "/dev/net", Some("tmpfs"), MsFlags::empty(), none).expect("hidden");
    let error = driver.create(restore_spec(&place, &taken)).await.err().expect("refused").to_string();
    assert!(error.contains("may not make a tap"), "{error}");
}

fn nothing_is_left_of(spec: &VmSpec) {
    assert_eq!(files_in(&spec.folder.dir), ["disk"]);
    assert_eq!(files_in(&spec.folder.run), [""; 0]);
}

#[tokio::test]
async fn vm_cloud_hypervisor_disk_is_limited_and_grows() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(driver) = driver("cloud_hypervisor, disks").await else { return };
    let place = Place::new(freestanding::image(&folder.path().join("image"), Then::Tick));
    let limits = MachineLimits { io_bytes_per_second: Some(1 << 20), ..MachineLimits::default() };
    let spec = VmSpec { limits, ..place.booting() };
    let vm = driver.create(spec.clone()).await.expect("created");
    let early = vm.resize_disk(4 << 30).await.expect_err("nothing runs yet");
    assert!(matches!(early, VmError::Refused { .. }), "{early}");
    vm.resume().await.expect("it runs");
    for disk in info(&spec).await["disks"].as_array().expect("disks") {
        assert_eq!(disk["rate_limiter_config"]["bandwidth"]["size"], 1 << 20, "{disk}");
    }
    for (paused, bytes) in [(false, 4_u64 << 30), (true, 5 << 30)] {
        if paused {
            vm.pause().await.expect("it pauses");
        }
        let file = OpenOptions::new().write(true).open(&spec.disk).expect("opened");
        file.set_len(bytes).expect("grown");
        vm.resize_disk(bytes).await.expect("told");
        assert_eq!(fs::metadata(&spec.disk).expect("there").len(), bytes);
    }
    assert_eq!(vm.state().await.expect("a state"), VmState::Paused);
    vm.shutdown().await.expect("it ends");
    nothing_is_left(&place, &spec);
}

#[tokio::test]
async fn vm_cloud_hypervisor_memory_that_is_copied_may_have_a_balloon() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(config) = config("cloud_hypervisor, balloon", folder.path()).await else { return };
    let asked = CloudHypervisorConfig { balloon: true, hugepages: true, ..config.clone() };
    let error = CloudHypervisorDriver::new(asked).await.expect_err("refused").to_string();
    assert!(error.contains("on demand"), "{error}");
    let driver =
        with(&CloudHypervisorConfig { balloon: true, clone_memory: CloneMemory::Copy, ..config.clone() }).await;
    let place = Place::new(freestanding::image(&folder.path().join("image"), Then::Count));
    let last = save_template(&driver, &place).await;
    let spec = clone_spec(&place);
    let vm = driver.create(spec.clone()).await.expect("cloned");
    vm.resume().await.expect("it runs");
    goes_on(counts_on(&spec, 1).await.0, last, "a clone with a balloon");
    assert_eq!(info(&spec).await["balloon"]["free_page_reporting"], true);
    vm.shutdown().await.expect("it ends");

    let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap_or_default();
    if free.trim().parse::<u32>().unwrap_or(0) < 128 {
        return skip("cloud_hypervisor, huge pages", "the host has none set aside");
    }
    let driver = with(&CloudHypervisorConfig { hugepages: true, clone_memory: CloneMemory::Copy, ..config }).await;
    let spec = VmSpec { shape: shape(), ..place.booting() };
    let vm = driver.create(spec.clone()).await.expect("created");
    vm.resume().await.expect("it runs");
    counts_on(&spec, 1).await;
    assert_eq!(info(&spec).await["memory"]["zones"][0]["hugepages"], json!(true));
    vm.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn vm_cloud_hypervisor_clone_survives_its_node_and_not_its_keeper() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(config) = config("cloud_hypervisor, kept clones", folder.path()).await else { return };
    let driver = with(&config).await;
    let place = Place::new(freestanding::image(&folder.path().join("image"), Then::Count));
    let last = save_template(&driver, &place).await;
    let other_shape = VmSpec { shape: fabric_types::Shape::new(1, 512, 1).expect("a shape"), ..clone_spec(&place) };
    let error = driver.create(other_shape).await.err().expect("refused").to_string();
    assert!(error.contains("has shape"), "{error}");

    // Spares that nobody uses.
    for discards in [true, false] {
        let spec = clone_spec(&place);
        let spare = driver.spare(spec.clone()).await.expect("started ahead");
        assert_eq!(processes_naming(&place).len(), 1, "a spare's keeper");
        if discards {
            spare.discard().await;
        } else {
            drop(spare);
        }
        until("the end of a spare", SEEN_LIMIT, || processes_naming(&place).is_empty()).await;
        until("the end of its files", SEEN_LIMIT, || {
            files_in(&spec.folder.dir) == ["disk"] && files_in(&spec.folder.run).is_empty()
        })
        .await;
    }
    let boot = place.booting();
    assert!(matches!(driver.spare(boot).await.err(), Some(VmError::Unsupported { .. })), "a boot is started ahead");

    // Adopted, it is snapshotted as by the node that made it; where that can't be, it goes on.
    let spec = clone_spec(&place);
    let vm = driver.create(spec.clone()).await.expect("cloned");
    vm.resume().await.expect("it runs");
    goes_on(counts_on(&spec, 1).await.0, last, "a clone");
    drop(vm);
    let vm = driver.adopt(&spec.folder).await.expect("adopted");
    let nowhere = place.path("nowhere");
    fs::create_dir_all(nowhere.join("pages")).expect("a folder in the way");
    vm.snapshot(&nowhere).await.expect_err("it can't be written");
    assert_eq!(vm.state().await.expect("a state"), VmState::Running);
    counts_on(&spec, 1).await;
    let at = stopped(vm.as_ref()).await;
    let taken = snapshot(vm.as_ref(), &place.path("s"), "adopted").await;
    let restored = restore_spec(&place, &taken);
    let again = driver.create(restored.clone()).await.expect("restored");
    again.resume().await.expect("it runs");
    goes_on(counts_on(&restored, 1).await.0, at, "a restore");
    again.shutdown().await.expect("it ends");
    nothing_is_left_of(&restored);

    // Its keeper's death is its own, and its files are removed all the same.
    let used = vm.counters().await.expect("counters");
    kill(Pid::from_raw(i32::try_from(used.keeper_pid).expect("a pid")), Signal::SIGKILL).expect("killed");
    until("the monitor's end", SEEN_LIMIT, || !runs(used.vmm_pid)).await;
    assert!(matches!(driver.adopt(&spec.folder).await.err(), Some(VmError::Ended { .. })));
    vm.shutdown().await.expect("what is left is removed");
    nothing_is_left(&place, &spec);
    assert!(matches!(vm.resume().await, Err(VmError::Ended { .. })));

    let broken = VmSpec { memory: MemorySource::Clone { template: place.path("none") }, ..clone_spec(&place) };
    assert!(matches!(driver.create(broken).await.err(), Some(VmError::File { .. })));
}
