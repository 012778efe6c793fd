//! What every driver does with a machine that it boots, run against each driver that is present.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric_types::Accelerator;
use node_hypervisor::{
    AccelChoice, CloudHypervisorConfig, CloudHypervisorDriver, Hypervisor, HypervisorChoice, MemorySource, QemuConfig,
    QemuDriver, VmError, VmState, make_disk, probe,
};

use crate::guest::Guest;
use crate::probe::config as probe_config;
use crate::support::{Place, files_in, image, keeper, ms, runs, skip};

/// A driver that is present.
struct Present {
    name: &'static str,
    driver: Arc<dyn Hypervisor>,
    /// Whether its guests boot on this host, so that the agent can be asked.
    boots: bool,
}

/// The drivers that can run here. For one that can't, the reason is told.
async fn drivers(place: &Place) -> Vec<Present> {
    let mut found = Vec::new();
    match QemuDriver::new(QemuConfig::new(keeper(), Accelerator::Tcg)).await {
        Ok(driver) => found.push(Present { name: "qemu", driver: Arc::new(driver), boots: true }),
        Err(error) => skip("qemu suite", &error.to_string()),
    }
    match CloudHypervisorDriver::new(CloudHypervisorConfig::new(keeper())).await {
        Ok(driver) => {
            let asked = probe(probe_config(place, HypervisorChoice::CloudHypervisor, AccelChoice::Kvm)).await;
            if let Err(error) = &asked {
                skip("cloud_hypervisor suite, its guest", &error.to_string());
            }
            found.push(Present { name: "cloud_hypervisor", driver: Arc::new(driver), boots: asked.is_ok() });
        }
        Err(VmError::Program { .. }) => skip("cloud_hypervisor suite", "no cloud-hypervisor binary"),
        Err(error) => skip("cloud_hypervisor suite", &error.to_string()),
    }
    found
}

#[tokio::test]
async fn vm_lifecycle_of_every_driver() {
    let Some(image) = image() else { return skip("driver suites", "there is no guest image") };
    let place = Place::new(image);
    for present in drivers(&place).await {
        println!("driver {}: {:?}", present.name, present.driver.fit());
        boots_pauses_and_ends(&present, &place).await;
        refuses_what_is_missing(present.driver.as_ref(), &place).await;
        is_adopted_by_a_second_driver(&present, &place).await;
    }
}

async fn boots_pauses_and_ends(present: &Present, place: &Place) {
    let driver = present.driver.as_ref();
    let spec = place.booting();
    let start = Instant::now();
    let vm = driver.create(spec.clone()).await.expect("created");
    let created = ms(start);
    assert_eq!(vm.state().await.expect("a state"), VmState::Paused);
    vm.resume().await.expect("it runs");
    assert_eq!(vm.state().await.expect("a state"), VmState::Running);
    println!("created in {created:.0} ms");
    if present.boots {
        let health = Guest::reach(vm.as_ref(), 0).await.health().await;
        println!("booted in {:.0} ms: {health:?}", ms(start));
        assert!(!health.ready, "a guest without identity takes commands");
        let second = Guest::reach(vm.as_ref(), 0).await.health().await;
        assert!(second.uptime_ms >= health.uptime_ms, "the newer channel reaches the same guest");
        let counts = vm.device_counters().await.expect("counts");
        println!("after its boot: {counts:?}");
        assert!(counts.disk_read_bytes > 64 << 10 && counts.disk_reads > 10, "it read its root: {counts:?}");
    }

    for _ in 0..2 {
        vm.pause().await.expect("it pauses");
        assert_eq!(vm.state().await.expect("a state"), VmState::Paused);
    }
    let before = vm.counters().await.expect("counters");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after = vm.counters().await.expect("counters");
    assert!(after.cpu_ms - before.cpu_ms <= 50, "a paused machine used {} ms", after.cpu_ms - before.cpu_ms);
    assert!(
        runs(after.vmm_pid) && runs(after.keeper_pid) && after.rss_kib > after.private_kib && after.private_kib > 0
    );
    for _ in 0..2 {
        vm.resume().await.expect("it goes on");
    }
    assert_eq!(vm.state().await.expect("a state"), VmState::Running);

    let start = Instant::now();
    vm.shutdown().await.expect("it ends");
    println!("shut down in {:.0} ms", ms(start));
    assert!(!runs(after.vmm_pid) && !runs(after.keeper_pid), "processes are left");
    assert_eq!(files_in(&spec.folder.dir), ["disk"]);
    assert_eq!(files_in(&spec.folder.run), [""; 0]);
    vm.shutdown().await.expect("ending is idempotent");
    assert_eq!(vm.state().await.expect("a state"), VmState::Ended);
    assert!(matches!(vm.resume().await, Err(VmError::Ended { .. })));
    assert_eq!(vm.ended().await, "it was shut down");
}

async fn refuses_what_is_missing(driver: &dyn Hypervisor, place: &Place) {
    let mut spec = place.booting();
    spec.disk = place.path("no-such-disk");
    let error = driver.create(spec.clone()).await.err().expect("there is no disk").to_string();
    assert!(error.contains("no-such-disk"), "{error}");
    assert_eq!(files_in(&spec.folder.dir), ["disk"]);

    // A disk that only the monitor finds wanting: a folder instead of a file.
    spec.disk = place.path(&format!("{}-folder-as-disk", spec.label));
    std::fs::create_dir(&spec.disk).expect("made");
    if let Ok(vm) = driver.create(spec.clone()).await {
        assert!(vm.resume().await.is_err(), "a machine runs from a folder as its disk");
        vm.shutdown().await.expect("it ends");
    }
    assert_eq!(files_in(&spec.folder.dir), ["disk"]);
    assert_eq!(files_in(&spec.folder.run), [""; 0]);

    let mut deep = place.booting();
    deep.folder.run = place.path(&"long".repeat(30));
    let error = driver.create(deep).await.err().expect("the path is too long").to_string();
    assert!(error.contains("a socket's path ends at 107 bytes"), "{error}");

    let missing = place.spec(MemorySource::Clone { template: place.path("no-such-template") });
    assert!(driver.create(missing).await.is_err());
}

async fn is_adopted_by_a_second_driver(present: &Present, place: &Place) {
    let driver = present.driver.as_ref();
    let spec = place.booting();
    let vm = driver.create(spec.clone()).await.expect("created");
    let before = vm.counters().await.expect("counters");
    vm.resume().await.expect("it runs");
    let taken = driver.create(spec.clone()).await.err().expect("the folder is taken").to_string();
    assert!(taken.contains("another machine's keeper lives in this folder"), "{taken}");
    drop(vm);

    let start = Instant::now();
    let vm = driver.adopt(&spec.folder).await.expect("adopted");
    println!("adopted in {:.0} ms", ms(start));
    assert_eq!(vm.spec(), &spec);
    assert_eq!(vm.state().await.expect("a state"), VmState::Running);
    let after = vm.counters().await.expect("counters");
    assert_eq!((after.vmm_pid, after.keeper_pid), (before.vmm_pid, before.keeper_pid));
    if present.boots {
        Guest::reach(vm.as_ref(), 0).await.health().await;
    }
    vm.shutdown().await.expect("it ends");
    assert!(driver.adopt(&spec.folder).await.is_err(), "what was shut down isn't adopted");
    make_disk(&spec.disk, spec.shape.disk()).expect("made");
    driver.create(spec).await.expect("the folder can be used again").shutdown().await.expect("it ends");
}
