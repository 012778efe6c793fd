//! Spares, and what clones of them cost, under QEMU with TCG.

use std::fs;
use std::time::{Duration, Instant};

use node_hypervisor::{Hypervisor, MemorySource, VmError, VmState};

use crate::guest::Guest;
use crate::support::{Place, files_in, image, ms, processes_naming, runs, skip, until};
use crate::template::{clone_spec, driver, save_template};

/// Rounds of each figure.
const ROUNDS: usize = 5;
/// Most private memory of keeper and monitor of an idle clone that has run commands, KiB: the product's own bound.
const IDLE_KIB_MAX: u64 = 40 << 10;

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// What a process has for itself, KiB: private pages, whatever they are (proc(5), smaps_rollup).
fn private_kib(pid: u32) -> u64 {
    rollup_kib(pid, "Private_Clean:") + rollup_kib(pid, "Private_Dirty:")
}

fn rollup_kib(pid: u32, name: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a process of ours");
    let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0 kB");
    line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("a number")
}

#[tokio::test]
async fn vm_spare_costs_the_load_and_leaves_nothing_when_dropped() {
    let Some(image) = image() else { return skip("spare tests", "there is no guest image") };
    let (place, driver) = (Place::new(image), driver().await);
    save_template(&driver, &place).await;
    let (mut created, mut loaded, mut resumed, mut paused, mut again) = (vec![], vec![], vec![], vec![], vec![]);
    let mut machines = Vec::new();
    for round in 0..ROUNDS {
        let start = Instant::now();
        let spec = clone_spec(&place);
        let vm = driver.create(spec).await.expect("cloned");
        created.push(ms(start));
        vm.shutdown().await.expect("it ends");

        let spec = clone_spec(&place);
        let spare = driver.spare(spec.clone()).await.expect("a spare");
        assert_eq!(spare.spec(), &spec);
        let start = Instant::now();
        let vm = spare.load().await.expect("loaded");
        loaded.push(ms(start));
        assert_eq!(vm.state().await.expect("a state"), VmState::Paused);
        let start = Instant::now();
        vm.resume().await.expect("it runs");
        resumed.push(ms(start));
        let mut guest = Guest::identify(vm.as_ref(), 2).await;
        assert_eq!(guest.sh(&format!("echo {round}")).await, round.to_string());
        let start = Instant::now();
        vm.pause().await.expect("it pauses");
        paused.push(ms(start));
        let start = Instant::now();
        vm.resume().await.expect("it runs");
        again.push(ms(start));
        assert_eq!(guest.sh("echo on").await, "on");
        machines.push(vm);
    }
    println!(
        "medians of {ROUNDS}: create {:.1} ms, load of a spare {:.1} ms, first resume {:.1} ms, pause {:.1} ms, resume {:.1} ms",
        median(created),
        median(loaded),
        median(resumed),
        median(paused),
        median(again)
    );
    for vm in &machines {
        let counters = vm.counters().await.expect("counters");
        let (monitor, keeper) = (private_kib(counters.vmm_pid), private_kib(counters.keeper_pid));
        println!("an exercised clone among {ROUNDS}: {monitor} KiB private to QEMU, {keeper} KiB to its keeper");
        assert!(monitor + keeper <= IDLE_KIB_MAX, "{monitor} and {keeper} KiB");
    }
    let last = machines.pop().expect("a machine");
    let folder = last.spec().folder.clone();
    drop(last);
    let adopted = driver.adopt(&folder).await.expect("a loaded spare is a machine like any other");
    machines.push(adopted);
    for vm in machines {
        vm.shutdown().await.expect("it ends");
    }
    what_private_memory_is_made_of(&driver, &place).await;
    a_dropped_spare_leaves_nothing(&driver, &place).await;
}

/// Prints what each step of a clone's life adds to its private memory: written pages, since one machine alone shares
/// its files with nobody.
async fn what_private_memory_is_made_of(driver: &dyn Hypervisor, place: &Place) {
    let spare = driver.spare(clone_spec(place)).await.expect("a spare");
    let vm = spare.load().await.expect("loaded");
    let pid = vm.counters().await.expect("counters").vmm_pid;
    let mut steps = vec![("loaded", rollup_kib(pid, "Private_Dirty:"))];
    vm.resume().await.expect("it runs");
    let mut guest = Guest::identify(vm.as_ref(), 2).await;
    steps.push(("identified", rollup_kib(pid, "Private_Dirty:")));
    for command in ["true", "true", "python3 -c 'print(1)'", "python3 -c 'print(1)'", "node -e 'console.log(1)'"] {
        guest.sh(command).await;
        steps.push((command, rollup_kib(pid, "Private_Dirty:")));
    }
    println!("private memory of QEMU, KiB, after each step: {steps:?}");
    vm.shutdown().await.expect("it ends");
}

async fn a_dropped_spare_leaves_nothing(driver: &dyn Hypervisor, place: &Place) {
    let specs = [clone_spec(place), clone_spec(place)];
    let dropped = driver.spare(specs[0].clone()).await.expect("a spare");
    let discarded = driver.spare(specs[1].clone()).await.expect("a spare");
    let processes = processes_naming(place);
    assert_eq!(processes.len(), 4, "two keepers and two monitors");
    discarded.discard().await;
    drop(dropped);
    until("the spares' processes end", Duration::from_secs(30), || !processes.iter().any(|&pid| runs(pid))).await;
    for spec in &specs {
        until("the files go", Duration::from_secs(30), || {
            files_in(&spec.folder.dir) == ["disk"] && files_in(&spec.folder.run).is_empty()
        })
        .await;
    }
    let booting = place.spec(MemorySource::Boot);
    assert!(matches!(driver.spare(booting).await, Err(VmError::Unsupported { verb: "spare", .. })));
}
