//! Copies of a whole monitor, under QEMU with TCG.

use std::time::Instant;

use node_hypervisor::{
    Hypervisor, MemorySource, NetworkDevice, SnapshotFiles, Vm, VmError, VmSpec, VmState, checkpoint_disk,
    checkpoint_is_current, copy_sparse,
};

use crate::guest::Guest;
use crate::support::{Place, image, ms, processes_naming, skip};
use crate::template::{clone_spec, driver, save_template};

/// Copies that live beside each other.
const COPIES: usize = 4;

/// A copy's specification, its disk made.
fn copy_spec(place: &Place, checkpoint: &std::path::Path) -> VmSpec {
    let mut spec = place.spec(MemorySource::Clone { template: place.template() });
    copy_sparse(&checkpoint_disk(checkpoint), &spec.disk).expect("a disk");
    spec.checkpoint = Some(checkpoint.to_owned());
    spec
}

#[tokio::test]
async fn vm_copies_of_a_monitor_are_machines_of_their_own() {
    let Some(image) = image() else { return skip("checkpoint tests", "there is no guest image") };
    let (place, driver) = (Place::new(image), driver().await);
    save_template(&driver, &place).await;
    let vm = driver.create(clone_spec(&place)).await.expect("cloned");
    vm.resume().await.expect("it runs");
    let mut guest = Guest::identify(vm.as_ref(), 2).await;
    for round in 0..3 {
        assert_eq!(guest.sh(&format!("echo {round} > /root/kept; cat /root/kept")).await, round.to_string());
    }
    let checkpoint = place.path("checkpoint");
    let taken = vm.checkpoint(&checkpoint).await.expect("taken");
    println!("stop {} us, shared {} KiB", taken.stop_us, taken.shared_bytes >> 10);
    assert!(checkpoint_is_current(&checkpoint));
    // The one that was taken goes on, in the same session.
    assert_eq!(guest.sh("echo on").await, "on");

    let mut machines = Vec::new();
    for number in 0..COPIES {
        let start = Instant::now();
        let copy = driver.create(copy_spec(&place, &checkpoint)).await.expect("copied");
        let created = ms(start);
        assert_eq!(copy.state().await.expect("a state"), VmState::Paused);
        copy.resume().await.expect("it runs");
        let mut guest = Guest::identify(copy.as_ref(), 3).await;
        let identified = ms(start);
        assert_eq!(guest.sh("cat /root/kept").await, "2");
        let first = ms(start);
        assert_eq!(guest.sh(&format!("echo {number} > /root/own; sync; cat /root/own")).await, number.to_string());
        let private = copy.counters().await.expect("counters").private_kib;
        println!(
            "copy {number}: created {created:.1}, identified {identified:.1}, first command {first:.1} ms; {private} KiB"
        );
        machines.push((copy, guest));
    }
    for (number, (_, guest)) in machines.iter_mut().enumerate() {
        assert_eq!(guest.sh("cat /root/own").await, number.to_string(), "another's disk or memory");
    }
    for (copy, _) in machines {
        copy.shutdown().await.expect("it ends");
    }
    vm.shutdown().await.expect("it ends");
    assert_eq!(processes_naming(&place), [0; 0]);
}
