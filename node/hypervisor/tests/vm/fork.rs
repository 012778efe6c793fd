//! What a fork is made from, under QEMU with TCG: one snapshot restored several times at once, machines that were
//! booted among those that can be snapshotted, and disks that grow.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Instant;

use node_hypervisor::{
    Hypervisor, MemorySource, QemuDriver, SnapshotTaken, Vm, VmError, VmSpec, copy_sparse, make_blank_template,
};

use crate::guest::Guest;
use crate::support::{Place, files_in, image, ms, skip};
use crate::template::{DIRTY, SUM, clone, driver, save_template, sectors, snapshot};

/// Children of one fork.
const CHILDREN: usize = 3;

fn child_spec(place: &Place, template: &Path, taken: &SnapshotTaken) -> VmSpec {
    let memory = MemorySource::Restore { template: template.to_owned(), snapshot: taken.files.clone() };
    let spec = place.spec(memory);
    copy_sparse(&taken.files.disk, &spec.disk).expect("copied");
    spec
}

/// Restores a snapshot, has it run, and answers when its first command has; with the milliseconds of each part.
async fn child(driver: &QemuDriver, spec: VmSpec, generation: u64) -> (Box<dyn Vm>, Guest, [f64; 2]) {
    let start = Instant::now();
    let vm = driver.create(spec).await.expect("restored");
    let made = ms(start);
    vm.resume().await.expect("it runs");
    let mut guest = Guest::identify(vm.as_ref(), generation).await;
    assert_eq!(guest.sh("echo hi").await, "hi");
    (vm, guest, [made, ms(start)])
}

#[tokio::test]
async fn vm_fork_restores_one_snapshot_several_times_side_by_side() {
    let Some(image) = image() else { return skip("fork tests", "there is no guest image") };
    let (place, driver) = (Place::new(image), driver().await);
    save_template(&driver, &place).await;
    let vm = clone(&driver, &place).await;
    let mut guest = Guest::identify(vm.as_ref(), 2).await;
    guest.sh("echo parent > /root/who").await;
    guest.sh(DIRTY).await;
    let sum = guest.sh(SUM).await;
    let taken = snapshot(vm.as_ref(), &place.path("s")).await;

    let specs: Vec<VmSpec> = (0..CHILDREN).map(|_| child_spec(&place, &place.template(), &taken)).collect();
    let (alone, _guest, [made, answered]) = child(&driver, child_spec(&place, &place.template(), &taken), 3).await;
    println!("one child alone: made in {made:.0} ms, its first command answered after {answered:.0} ms");
    alone.shutdown().await.expect("it ends");
    spares_become_children(&driver, &place, &taken, &sum).await;
    let start = Instant::now();
    let children = futures::future::join_all(specs.into_iter().map(|spec| child(&driver, spec, 4))).await;
    println!("{CHILDREN} children at once: all answered after {:.0} ms", ms(start));
    let mut ids = Vec::new();
    for (number, (child, mut guest, [made, answered])) in children.into_iter().enumerate() {
        println!("child {number}: made in {made:.0} ms, answered after {answered:.0} ms");
        assert_eq!(guest.sh(SUM).await, sum, "memory came back changed");
        assert_eq!(guest.sh("cat /root/who").await, "parent", "a sibling's file is seen");
        guest.sh("echo child > /root/who && sync").await;
        ids.push(guest.sh("cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1").await);
        child.shutdown().await.expect("it ends");
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), CHILDREN, "two children are the same");
    assert_eq!(guest.sh("cat /root/who").await, "parent", "a child's file is the parent's");
    disks_grow(vm.as_ref(), &mut guest).await;
    vm.shutdown().await.expect("it ends");
}

/// Monitors that were started ahead for clones take a snapshot instead.
async fn spares_become_children(driver: &QemuDriver, place: &Place, taken: &SnapshotTaken, sum: &str) {
    let mut spares = Vec::new();
    for _ in 0..CHILDREN {
        spares.push(driver.spare(crate::template::clone_spec(place)).await.expect("a spare"));
    }
    let start = Instant::now();
    let children = futures::future::join_all(spares.into_iter().map(|spare| async {
        let vm = spare.restore(taken.files.clone()).await.expect("restored");
        let made = ms(start);
        vm.resume().await.expect("it runs");
        let mut guest = Guest::identify(vm.as_ref(), 5).await;
        assert_eq!(guest.sh("echo hi").await, "hi");
        (vm, guest, [made, ms(start)])
    }))
    .await;
    for (number, (vm, mut guest, [made, answered])) in children.into_iter().enumerate() {
        println!("spare {number} as a child: made in {made:.0} ms, answered after {answered:.0} ms");
        assert_eq!(guest.sh(SUM).await, sum, "memory came back changed");
        assert_eq!(guest.sh("cat /root/who").await, "parent", "the disk is the template's");
        let again = snapshot(vm.as_ref(), &place.path(&format!("again{number}"))).await;
        assert!(again.files.runs.iter().map(|&(_, length)| length).sum::<u64>() > 100 << 20);
        vm.shutdown().await.expect("it ends");
    }
    let mut bad = taken.files.clone();
    bad.runs.push((u64::MAX - 4095, 4096));
    let spare = driver.spare(crate::template::clone_spec(place)).await.expect("a spare");
    let folder = spare.spec().folder.clone();
    assert!(spare.restore(bad).await.is_err(), "misplaced pages were taken");
    assert_eq!(files_in(&folder.dir), ["disk"]);
}

/// The guest sees its disk grow while it runs, and when it goes on where it was paused.
async fn disks_grow(vm: &dyn Vm, guest: &mut Guest) {
    const GIB: u64 = 1 << 30;
    assert_eq!(sectors(guest, 3 * GIB).await, (3 * GIB / 512).to_string());
    let grow = |bytes: u64| {
        let file = OpenOptions::new().write(true).open(&vm.spec().disk).expect("the disk");
        file.set_len(bytes).expect("grown");
    };
    grow(4 * GIB);
    vm.resize_disk(4 * GIB).await.expect("resized while it runs");
    assert_eq!(sectors(guest, 4 * GIB).await, (4 * GIB / 512).to_string());
    vm.pause().await.expect("it pauses");
    grow(5 * GIB);
    vm.resize_disk(5 * GIB).await.expect("resized while it is paused");
    vm.resume().await.expect("it goes on");
    assert_eq!(sectors(guest, 5 * GIB).await, (5 * GIB / 512).to_string());
    assert_eq!(guest.sh("echo more > /root/more && sync && cat /root/more").await, "more");
}

#[tokio::test]
async fn vm_booted_over_a_template_is_snapshotted_like_a_clone() {
    let Some(image) = image() else { return skip("fork tests", "there is no guest image") };
    let (place, driver) = (Place::new(image), driver().await);
    let blank = place.path("blank");
    let mut booting = place.booting();
    make_blank_template(&blank, driver.fit(), booting.shape, &booting.image).expect("made");
    let refused = driver.create(VmSpec { memory: MemorySource::Clone { template: blank.clone() }, ..booting.clone() });
    assert!(matches!(refused.await, Err(VmError::Unsupported { verb: "clone", .. })));
    booting.memory = MemorySource::BootOver { template: blank.clone() };
    boots_is_snapshotted_and_restored(&driver, &place, booting, &blank).await;

    // Over the memory of another guest: what a boot finds there it reads as nothing.
    save_template(&driver, &place).await;
    let mut booting = place.booting();
    booting.memory = MemorySource::BootOver { template: place.template() };
    boots_is_snapshotted_and_restored(&driver, &place, booting, &place.template()).await;
}

async fn boots_is_snapshotted_and_restored(driver: &QemuDriver, place: &Place, booting: VmSpec, template: &Path) {
    let start = Instant::now();
    let vm = driver.create(booting).await.expect("created");
    vm.resume().await.expect("it runs");
    let mut guest = Guest::identify(vm.as_ref(), 1).await;
    println!("booted over a template in {:.0} ms", ms(start));
    guest.sh("echo here > /dev/shm/memory; echo there > /root/disk").await;
    let into = place.path(&format!("{}-s", vm.spec().label));
    let taken = snapshot(vm.as_ref(), &into).await;
    assert_eq!(guest.sh("cat /dev/shm/memory").await, "here", "it goes on after a snapshot");
    vm.shutdown().await.expect("it ends");
    let (child, mut guest, [made, answered]) = child(driver, child_spec(place, template, &taken), 2).await;
    println!("restored: made in {made:.0} ms, answered after {answered:.0} ms");
    assert_eq!(guest.sh("cat /dev/shm/memory /root/disk").await, "here\nthere");
    child.shutdown().await.expect("it ends");
}
