//! What a clone costs under Cloud Hypervisor: the time until it counts and the memory that is its own, in each way to
//! come by memory, one after the other in rounds.

use std::fs;
use std::time::{Duration, Instant};

use fabric_types::Shape;
use node_hypervisor::{
    CloneMemory, CloudHypervisorConfig, CloudHypervisorDriver, Hypervisor, MemorySource, VmSpec, copy_sparse,
    template_disk,
};

use crate::cloud_hypervisor::driver;
use crate::counting::{counted, counts_on, restore_spec, save_template_of, snapshot, stopped};
use crate::freestanding::{self, Then};
use crate::shim::helped;
use crate::support::{Place, ms, until};

/// Rounds; each has one clone and one restore in each mode.
const ROUNDS: usize = 3;
/// Most memory of a monitor's own for one clone, KiB: what the design promises of it.
const OWN_KIB_MAX: u64 = 10 << 10;
/// Guest memory, MiB: the default shape's.
const MEMORY_MIB: i64 = 1024;

/// Private memory of one process, KiB.
#[derive(Debug, Default)]
struct Private {
    /// In the mapping that is the guest's memory.
    guest: u64,
    /// In all others.
    own: u64,
}

/// Adds up what belongs to no file and nobody else (proc(5), smaps).
fn private(pid: u32) -> Private {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("it runs");
    let (mut found, mut is_guest) = (Private::default(), false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let number = |words: &mut std::str::SplitWhitespace<'_>| words.next().and_then(|word| word.parse::<u64>().ok());
        match words.next() {
            Some("Size:") => is_guest = number(&mut words).is_some_and(|kib| kib >= (MEMORY_MIB.unsigned_abs() << 10)),
            Some("Anonymous:") => {
                let kib = number(&mut words).unwrap_or(0);
                if is_guest { found.guest += kib } else { found.own += kib }
            }
            _ => {}
        }
    }
    found
}

#[derive(Default)]
struct Figures {
    cloned_ms: Vec<f64>,
    counted_ms: Vec<f64>,
    restored_ms: Vec<f64>,
    own_kib: Vec<f64>,
    guest_kib: Vec<f64>,
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[tokio::test]
async fn vm_cloud_hypervisor_clone_costs_little() {
    let what = "cloud_hypervisor, what a clone costs";
    let folder = tempfile::tempdir().expect("a folder");
    if driver(what).await.is_none() {
        return;
    }
    let Some(config) = helped(what, folder.path()).await else { return };
    let shape = Shape::new(1, MEMORY_MIB, 1).expect("a shape");
    let place = Place::new(freestanding::image(&folder.path().join("image"), Then::Count));
    let mapped = CloudHypervisorDriver::new(config.clone()).await.expect("taken before");
    save_template_of(&mapped, &place, shape).await;
    let taken = {
        let vm = mapped.create(clone_of(&place, shape)).await.expect("cloned");
        vm.resume().await.expect("it runs");
        counts_on(vm.spec(), 1).await;
        stopped(vm.as_ref()).await;
        let taken = snapshot(vm.as_ref(), &place.path("s"), "mapped").await;
        vm.shutdown().await.expect("it ends");
        taken
    };
    let modes = [CloneMemory::Mapped, CloneMemory::OnDemand, CloneMemory::Copy];
    let mut figures: [Figures; 3] = Default::default();
    for _ in 0..ROUNDS {
        for (mode, figures) in modes.into_iter().zip(&mut figures) {
            let config = CloudHypervisorConfig { clone_memory: mode, ..config.clone() };
            let driver = CloudHypervisorDriver::new(config).await.expect("taken before");
            one_clone(&driver, clone_of(&place, shape), figures).await;
            let spec = VmSpec { shape, ..restore_spec(&place, &taken) };
            let start = Instant::now();
            let vm = driver.create(spec).await.expect("restored");
            figures.restored_ms.push(ms(start));
            vm.shutdown().await.expect("it ends");
        }
    }
    for (mode, figures) in modes.iter().zip(&figures) {
        println!(
            "{mode:?}: cloned in {:.1} ms, counts after {:.1} ms, restored in {:.1} ms; {:.0} KiB of the monitor's own, \
             {:.0} KiB of the guest's (medians of {ROUNDS})",
            median(&figures.cloned_ms),
            median(&figures.counted_ms),
            median(&figures.restored_ms),
            median(&figures.own_kib),
            median(&figures.guest_kib)
        );
        let own = figures.own_kib.iter().copied().fold(0.0, f64::max);
        assert!(own <= f64::from(u32::try_from(OWN_KIB_MAX).expect("small")), "{mode:?}: {own} KiB");
    }
    let shared = figures[0].guest_kib.iter().copied().fold(0.0, f64::max);
    assert!(shared <= 1024.0, "a clone that maps its template has {shared} KiB of guest memory after a few counts");
}

fn clone_of(place: &Place, shape: Shape) -> VmSpec {
    let spec = VmSpec { shape, ..place.spec(MemorySource::Clone { template: place.template() }) };
    copy_sparse(&template_disk(&place.template()), &spec.disk).expect("copied");
    spec
}

async fn one_clone(driver: &CloudHypervisorDriver, spec: VmSpec, figures: &mut Figures) {
    let start = Instant::now();
    let vm = driver.create(spec.clone()).await.expect("cloned");
    figures.cloned_ms.push(ms(start));
    vm.resume().await.expect("it runs");
    until("a count", Duration::from_secs(30), || !counted(&spec).is_empty()).await;
    figures.counted_ms.push(ms(start));
    let private = private(vm.counters().await.expect("counters").vmm_pid);
    figures.own_kib.push(f64::from(u32::try_from(private.own).expect("small")));
    figures.guest_kib.push(f64::from(u32::try_from(private.guest).expect("small")));
    vm.shutdown().await.expect("it ends");
}
