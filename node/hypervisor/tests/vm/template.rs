//! Templates, clones, snapshots and restores, under QEMU with TCG.

use std::path::Path;
use std::time::{Duration, Instant};

use fabric_types::{Accelerator, Fit};
use node_hypervisor::{
    Hypervisor, MemorySource, QemuConfig, QemuDriver, SnapshotTaken, TemplateManifest, Vm, VmError, VmSpec, VmState,
    copy_sparse, template_disk,
};

use crate::guest::Guest;
use crate::support::{Place, files_in, image, keeper, ms, skip};

pub(crate) async fn driver() -> QemuDriver {
    QemuDriver::new(QemuConfig::new(keeper(), Accelerator::Tcg)).await.expect("QEMU is installed")
}

/// Answers once the guest has had little to do for half a second: it starts interpreters ahead by itself, and a clone of
/// a guest in the middle of that would go on with it.
const IDLE: &str = "idle() { read -r _ _ _ _ idle _ < /proc/stat; echo $idle; }
while a=$(idle); sleep 0.5; b=$(idle); [ $((b - a)) -lt 40 ]; do :; done";

/// Boots the image, has python3 run once, waits until the guest is idle, and saves.
pub(crate) async fn save_template(driver: &QemuDriver, place: &Place) {
    let mut spec = place.booting();
    spec.memory = MemorySource::BootTemplate { template: place.template() };
    let start = Instant::now();
    let vm = driver.create(spec).await.expect("created");
    vm.resume().await.expect("it runs");
    let mut guest = Guest::rehearse(vm.as_ref(), 1).await;
    let booted = ms(start);
    guest.sh("python3 -c 'print(1)'; echo warm > /root/warm; sync").await;
    guest.sh(IDLE).await;
    let start = Instant::now();
    vm.save_template().await.expect("saved");
    println!("template: booted in {booted:.0} ms, saved in {:.0} ms", ms(start));
}

pub(crate) fn clone_spec(place: &Place) -> VmSpec {
    let spec = place.spec(MemorySource::Clone { template: place.template() });
    copy_sparse(&template_disk(&place.template()), &spec.disk).expect("copied");
    spec
}

pub(crate) async fn clone(driver: &QemuDriver, place: &Place) -> Box<dyn Vm> {
    let spec = clone_spec(place);
    let start = Instant::now();
    let vm = driver.create(spec).await.expect("cloned");
    let created = ms(start);
    assert_eq!(vm.state().await.expect("a state"), VmState::Paused);
    let counters = vm.counters().await.expect("counters");
    let start = Instant::now();
    vm.resume().await.expect("it runs");
    println!(
        "clone: paused and ready in {created:.1} ms, resumed in {:.2} ms, {} KiB private",
        ms(start),
        counters.private_kib
    );
    vm
}

pub(crate) fn restore_spec(place: &Place, taken: &SnapshotTaken) -> VmSpec {
    let snapshot = taken.files.clone();
    let spec = place.spec(MemorySource::Restore { template: place.template(), snapshot });
    copy_sparse(&taken.files.disk, &spec.disk).expect("copied");
    spec
}

pub(crate) async fn snapshot(vm: &dyn Vm, into: &Path) -> SnapshotTaken {
    let start = Instant::now();
    let taken = vm.snapshot(into).await.expect("a snapshot");
    let bytes: u64 = taken.files.runs.iter().map(|&(_, length)| length).sum();
    println!(
        "snapshot: stopped {:.1} ms of {:.1} ms, {} KiB private in {} runs",
        f64::from(u32::try_from(taken.stop_us).expect("under an hour")) / 1000.0,
        ms(start),
        bytes >> 10,
        taken.files.runs.len()
    );
    assert_eq!(files_in(into), ["disk", "pages", "state"]);
    taken
}

/// The sectors of the guest's own disk, once they are `bytes` or 30 s have passed: it hears of a growth by an interrupt.
pub(crate) async fn sectors(guest: &mut Guest, bytes: u64) -> String {
    let is = format!("[ $(cat /sys/block/vdb/size) = {} ]", bytes / 512);
    guest.sh(&format!("for n in $(seq 300); do {is} && break; sleep 0.1; done; cat /sys/block/vdb/size")).await
}

#[tokio::test]
async fn vm_clones_of_one_template_live_apart() {
    let Some(image) = image() else { return skip("template tests", "there is no guest image") };
    let (place, driver) = (Place::new(image), driver().await);
    save_template(&driver, &place).await;
    assert_eq!(files_in(&place.template()), ["disk", "memory", "state", "template.json"]);
    let manifest = TemplateManifest::read(&place.template()).expect("sealed");

    let (one, other) = (clone(&driver, &place).await, clone(&driver, &place).await);
    let mut guest_one = Guest::identify(one.as_ref(), 2).await;
    let mut guest_other = Guest::identify(other.as_ref(), 2).await;
    assert_eq!(guest_one.sh("cat /root/warm").await, "warm", "the template's disk is the clone's");
    guest_one.sh("echo mine > /root/own && sync").await;
    assert_eq!(guest_other.sh("ls /root").await, "warm", "one clone's file is seen by another");
    assert_ne!(guest_one.sh("cat /etc/machine-id").await, guest_other.sh("cat /etc/machine-id").await);
    let random = "head -c 16 /dev/urandom | od -An -tx1";
    assert_ne!(guest_one.sh(random).await, guest_other.sh(random).await, "two clones drew the same bytes");
    assert_eq!(guest_one.sh("ip -o link | grep -vc lo || true").await, "1", "a guest has one network card");

    one.pause().await.expect("it pauses");
    assert_eq!(guest_other.sh("echo still here").await, "still here");
    one.resume().await.expect("it goes on");
    assert_eq!(guest_one.sh("cat /root/own").await, "mine", "the channel survives a pause");
    let idle = other.counters().await.expect("counters");
    println!("clone after its first commands: {} KiB private, {} KiB resident", idle.private_kib, idle.rss_kib);
    for vm in [one, other] {
        vm.shutdown().await.expect("it ends");
    }
    assert_eq!(TemplateManifest::read(&place.template()).expect("still sealed"), manifest);
    template_refuses_what_does_not_fit(&driver, &place).await;
}

async fn template_refuses_what_does_not_fit(driver: &QemuDriver, place: &Place) {
    let mut larger = clone_spec(place);
    larger.shape = fabric_types::Shape::new(2, 1024, 3).expect("a shape");
    let error = driver.create(larger).await.err().expect("another shape").to_string();
    assert!(error.contains("has shape 1x1024x3, not 2x1024x3"), "{error}");

    let mut again = place.booting();
    again.memory = MemorySource::BootTemplate { template: place.template() };
    let error = driver.create(again).await.err().expect("it is sealed").to_string();
    assert!(error.contains("holds a sealed template"), "{error}");

    let path = place.template().join("template.json");
    let sealed = std::fs::read_to_string(&path).expect("read");
    let Fit { version, .. } = driver.fit();
    std::fs::write(&path, sealed.replace(version, "6.1.0")).expect("written");
    let error = driver.create(clone_spec(place)).await.err().expect("another QEMU").to_string();
    assert!(error.contains("was saved under"), "{error}");
    std::fs::remove_file(&path).expect("removed");
    assert!(
        matches!(driver.create(clone_spec(place)).await, Err(VmError::File { .. })),
        "a half-made template was cloned"
    );
}

/// A process that counts in its memory only, and tells when it is asked.
const COUNTER: &str = "cat > /root/count.py <<'E'
import signal, time
n = 0
def tell(*_):
    with open('/root/n', 'w') as f:
        f.write(str(n))
signal.signal(signal.SIGUSR1, tell)
open('/root/up', 'w').close()
while True:
    n += 1
    time.sleep(0.01)
E
setsid python3 /root/count.py > /dev/null 2>&1 & echo $! > /root/pid; while [ ! -e /root/up ]; do sleep 0.05; done; cat /root/pid";

/// How long it may take to count on, on a busy host.
const COUNT_LIMIT: Duration = Duration::from_secs(30);

/// Dirties 100 MiB of memory with bytes that nobody could guess.
pub(crate) const DIRTY: &str = "mkdir -p /dev/shm; head -c 1M /dev/urandom > /tmp/b; for n in $(seq 100); do echo $n; cat /tmp/b; done > /dev/shm/dirty";
pub(crate) const SUM: &str = "cksum < /dev/shm/dirty";

async fn count(guest: &mut Guest) -> u64 {
    let told = "rm -f /root/n; kill -USR1 $(cat /root/pid); while [ ! -s /root/n ]; do sleep 0.02; done; cat /root/n";
    guest.sh(told).await.parse().expect("a number")
}

#[tokio::test]
async fn vm_restored_goes_on_where_its_snapshot_was_taken() {
    let Some(image) = image() else { return skip("template tests", "there is no guest image") };
    let (place, driver) = (Place::new(image), driver().await);
    save_template(&driver, &place).await;
    let vm = clone(&driver, &place).await;
    let mut guest = Guest::identify(vm.as_ref(), 2).await;
    let pid = guest.sh(COUNTER).await;
    guest.sh("echo before > /root/file").await;
    let idle = snapshot(vm.as_ref(), &place.path("s0")).await;
    std::fs::remove_dir_all(place.path("s0")).expect("removed");
    drop(idle);
    guest.sh(DIRTY).await;
    let sum = guest.sh(SUM).await;
    let before = count(&mut guest).await;
    let taken = snapshot(vm.as_ref(), &place.path("s1")).await;
    assert_eq!(vm.state().await.expect("a state"), VmState::Running, "it goes on after a snapshot");
    guest.sh("echo after > /root/file && sync").await;
    let start = Instant::now();
    while count(&mut guest).await <= before {
        assert!(start.elapsed() < COUNT_LIMIT, "the original doesn't count on");
    }

    let start = Instant::now();
    let restored = driver.create(restore_spec(&place, &taken)).await.expect("restored");
    let created = ms(start);
    assert_eq!(restored.state().await.expect("a state"), VmState::Paused);
    restored.resume().await.expect("it runs");
    let mut second = Guest::identify(restored.as_ref(), 3).await;
    let echoed = second.sh("echo hi").await;
    println!("restore: paused and ready in {created:.1} ms, first exec answered after {:.1} ms", ms(start));
    assert_eq!(echoed, "hi");
    let counted = count(&mut second).await;
    assert!(counted >= before && counted < before + 3000, "{counted} doesn't follow {before}");
    assert_eq!(second.sh("cat /root/pid").await, pid);
    assert_eq!(second.sh(SUM).await, sum, "memory came back changed");
    assert_eq!(second.sh("cat /root/file").await, "before", "the disk is of another moment than the memory");

    // A restored machine is snapshotted like any other, also when it is paused, and stays paused then.
    restored.pause().await.expect("it pauses");
    let again = snapshot(restored.as_ref(), &place.path("s2")).await;
    assert_eq!(restored.state().await.expect("a state"), VmState::Paused);
    restored.shutdown().await.expect("it ends");
    vm.shutdown().await.expect("it ends");
    let third = driver.create(restore_spec(&place, &again)).await.expect("restored");
    third.resume().await.expect("it runs");
    let mut guest = Guest::identify(third.as_ref(), 4).await;
    assert!(count(&mut guest).await >= counted);
    assert_eq!(guest.sh(SUM).await, sum);
    third.shutdown().await.expect("it ends");
    restore_refuses_misplaced_pages(&driver, &place, &again).await;
}

async fn restore_refuses_misplaced_pages(driver: &QemuDriver, place: &Place, taken: &SnapshotTaken) {
    let mut bad = taken.clone();
    bad.files.runs.push((u64::MAX - 4095, 4096));
    let error = driver.create(restore_spec(place, &bad)).await.err().expect("misplaced").to_string();
    assert!(error.contains("restore the pages of"), "{error}");
    let mut cut = taken.clone();
    cut.files.device_state = place.path("cut");
    let state = std::fs::read(&taken.files.device_state).expect("read");
    std::fs::write(&cut.files.device_state, &state[..state.len() / 2]).expect("written");
    let spec = restore_spec(place, &cut);
    let error = driver.create(spec.clone()).await.err().expect("half a device state").to_string();
    println!("half a device state: {error}");
    assert_eq!(files_in(&spec.folder.dir), ["disk"]);
    assert_eq!(files_in(&spec.folder.run), [""; 0]);
}
