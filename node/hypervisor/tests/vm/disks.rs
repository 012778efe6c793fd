//! What a guest's disk lets through, and what is counted of it, under QEMU.

use std::time::{Duration, Instant};

use node_hypervisor::{Copies, Hypervisor, MachineLimits, MemorySource, Vm, VmSpec, checkpoint_disk, copy_sparse};

use crate::guest::Guest;
use crate::support::{Place, image, skip};
use crate::template::{clone_spec, driver, restore_spec, save_template, snapshot};

/// The limit in force, bytes a second.
const RATE: u64 = 2 << 20;
/// What the guest writes, bytes.
const WRITTEN: u64 = 6 << 20;
/// How long a busy host may take until it lets one write through as fast as it comes.
const FAST_LIMIT: Duration = Duration::from_secs(60);
/// Writes that much past the guest's own cache.
const WRITE: &str = "dd if=/dev/zero of=/root/x bs=1M count=6 oflag=direct conv=notrunc 2>/dev/null";

fn limited(spec: VmSpec) -> VmSpec {
    VmSpec { limits: MachineLimits { io_bytes_per_second: Some(RATE), ..spec.limits.clone() }, ..spec }
}

/// How long such a write takes. The first one makes the file.
async fn writes(vm: &dyn Vm, guest: &mut Guest, what: &str) -> Duration {
    guest.sh(WRITE).await;
    // What the first one overdrew, the second one pays with the time that passes from here.
    let start = Instant::now();
    let before = vm.device_counters().await.expect("counts");
    guest.sh(WRITE).await;
    let took = start.elapsed();
    let after = vm.device_counters().await.expect("counts");
    println!("{what}: {WRITTEN} bytes in {took:?}; {after:?}");
    assert!(after.disk_written_bytes >= before.disk_written_bytes + WRITTEN, "{what}: {before:?} {after:?}");
    assert!(after.disk_writes > before.disk_writes && after.disk_read_bytes >= before.disk_read_bytes);
    took
}

#[tokio::test]
async fn vm_disk_is_held_to_its_machines_rate_and_counted() {
    let Some(image) = image() else { return skip("disk tests", "there is no guest image") };
    let (place, driver) = (Place::new(image), driver().await);
    save_template(&driver, &place).await;
    let vm = driver.create(limited(clone_spec(&place))).await.expect("cloned");
    vm.resume().await.expect("it runs");
    let mut guest = Guest::identify(vm.as_ref(), 2).await;
    // What was saved up is a tenth of a second's worth.
    let least = Duration::from_millis(WRITTEN * 1000 / RATE - 200);
    let held = writes(vm.as_ref(), &mut guest, "limited").await;
    assert!(held >= least, "{held:?}");

    // Neither a snapshot's restore nor a checkpoint's copy has another's rate.
    let taken = snapshot(vm.as_ref(), &place.path("s")).await;
    let checkpoint = place.path("checkpoint");
    vm.checkpoint(&checkpoint, Copies::Few).await.expect("taken");
    vm.shutdown().await.expect("it ends");
    for (what, keeps) in [("restore", false), ("restore", true), ("copy", false), ("copy", true)] {
        let mut spec = restore_spec(&place, &taken);
        if what == "copy" {
            spec = place.spec(MemorySource::Clone { template: place.template() });
            copy_sparse(&checkpoint_disk(&checkpoint), &spec.disk).expect("a disk");
            spec.checkpoint = Some(checkpoint.clone());
        }
        let vm = driver.create(if keeps { limited(spec) } else { spec }).await.expect("made");
        vm.resume().await.expect("it runs");
        let mut guest = Guest::identify(vm.as_ref(), 3).await;
        let start = Instant::now();
        let mut took = writes(vm.as_ref(), &mut guest, what).await;
        // A rate holds back every write, a busy host only some.
        while !keeps && took >= least && start.elapsed() < FAST_LIMIT {
            took = writes(vm.as_ref(), &mut guest, what).await;
        }
        assert!(if keeps { took >= least } else { took < least }, "{what}, limited: {keeps}, {took:?}");
        vm.shutdown().await.expect("it ends");
    }
}
