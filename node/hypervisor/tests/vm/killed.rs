//! Processes killed at any moment: the machine is kept or gone, never half.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fabric_types::Accelerator;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use node_hypervisor::{
    BoottimeMs, Hypervisor, QemuConfig, QemuDriver, Swept, Vm, VmError, VmFolder, VmSpec, VmState, end_machine, sweep,
};

use crate::support::{Place, example, files_in, image, keeper, processes_naming, runs, skip, until};

/// How long anything that was killed may take to be gone.
const GONE_LIMIT: Duration = Duration::from_secs(30);
/// How long a sweep waits for a keeper to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

async fn driver() -> QemuDriver {
    QemuDriver::new(QemuConfig::new(keeper(), Accelerator::Tcg)).await.expect("QEMU is installed")
}

async fn running(place: &Place) -> (Box<dyn Vm>, VmSpec) {
    let spec = place.booting();
    let vm = driver().await.create(spec.clone()).await.expect("created");
    vm.resume().await.expect("it runs");
    (vm, spec)
}

fn sigkill(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), Signal::SIGKILL).expect("killed");
}

/// A node in a process group of its own, as a child of this test.
fn node(spec: &VmSpec) -> Child {
    let mut child = Command::new(example("node"))
        .arg(&keeper().program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("the node starts");
    let stdin = child.stdin.take().expect("piped");
    serde_json::to_writer(&stdin, spec).expect("the specification is given");
    child
}

fn await_line(child: &mut Child, line: &str) {
    let lines = BufReader::new(child.stdout.as_mut().expect("piped")).lines();
    let found = lines.map_while(Result::ok).any(|said| said == line);
    assert!(found, "the node never said '{line}'");
}

fn kill_group(mut child: Child) {
    killpg(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGKILL).expect("killed");
    child.wait().expect("reaped");
}

#[tokio::test]
async fn vm_outlives_its_node_and_is_adopted_by_the_next() {
    let Some(image) = image() else { return skip("kill tests", "there is no guest image") };
    let place = Place::new(image);
    let spec = place.booting();
    let mut child = node(&spec);
    await_line(&mut child, "running");
    kill_group(child);

    assert_eq!(sweep([&spec.folder]), [Swept::Lives]);
    let vm = driver().await.adopt(&spec.folder).await.expect("adopted");
    assert_eq!(vm.state().await.expect("a state"), VmState::Running);
    assert_eq!(vm.spec(), &spec);
    vm.shutdown().await.expect("it ends");
    assert_eq!(processes_naming(&place), [0; 0]);
}

#[tokio::test]
async fn vm_half_made_when_its_node_is_killed_leaves_nothing() {
    let Some(image) = image() else { return skip("kill tests", "there is no guest image") };
    let place = Place::new(image);
    let mut outcomes = Vec::new();
    for delay_ms in [0, 1, 2, 4, 7, 10, 15, 20, 25, 30, 40, 50, 60, 80, 120, 300] {
        let spec = place.booting();
        let mut child = node(&spec);
        await_line(&mut child, "creating");
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        kill_group(child);
        let start = Instant::now();
        let swept = sweep([&spec.folder])[0];
        let unanswered = start.elapsed() >= ANSWER_LIMIT;
        outcomes.push(swept);
        if swept == Swept::Lives {
            // It was complete already: nobody wants it, so it is ended.
            assert!(end_machine(&spec.folder));
        }
        // What was swept is gone, and what couldn't be reached ends by itself.
        until("the end of a half-made machine", GONE_LIMIT, || processes_naming(&place).is_empty()).await;
        if unanswered {
            // A keeper that was still starting came to its folder only after the sweep had.
            sweep([&spec.folder]);
        }
        assert_eq!(files_in(&spec.folder.dir), ["disk"], "{swept:?} after {delay_ms} ms");
        // A node that was killed at once hadn't made its folder of sockets.
        if spec.folder.run.exists() {
            assert_eq!(files_in(&spec.folder.run), [""; 0], "{swept:?} after {delay_ms} ms");
        }
        assert_eq!(sweep([&spec.folder]), [Swept::Nothing]);
    }
    println!("killed while creating: {outcomes:?}");
}

#[tokio::test]
async fn vm_killed_monitor_is_seen_and_told() {
    let Some(image) = image() else { return skip("kill tests", "there is no guest image") };
    let place = Place::new(image);
    let (vm, spec) = running(&place).await;
    let counters = vm.counters().await.expect("counters");
    sigkill(counters.vmm_pid);
    let how = tokio::time::timeout(GONE_LIMIT, vm.ended()).await.expect("it is seen");
    assert_eq!(how, "the monitor was killed by signal 9");
    assert_eq!(vm.state().await.expect("a state"), VmState::Ended);
    let error = vm.resume().await.expect_err("it has ended").to_string();
    assert!(error.ends_with("has ended: the monitor was killed by signal 9"), "{error}");
    until("the keeper's end", GONE_LIMIT, || !runs(counters.keeper_pid)).await;
    // A node that wasn't there learns the same.
    assert_eq!(sweep([&spec.folder]), [Swept::Ended]);
    match driver().await.adopt(&spec.folder).await {
        Err(VmError::Ended { how, .. }) => assert_eq!(how, "the monitor was killed by signal 9"),
        other => panic!("adopted a dead machine: {:?}", other.err()),
    }
    vm.shutdown().await.expect("what is left is removed");
    assert_eq!(files_in(&spec.folder.dir), ["disk"]);
}

#[tokio::test]
async fn vm_dies_with_its_keeper() {
    let Some(image) = image() else { return skip("kill tests", "there is no guest image") };
    let place = Place::new(image);
    let (vm, spec) = running(&place).await;
    let counters = vm.counters().await.expect("counters");
    sigkill(counters.keeper_pid);
    let how = tokio::time::timeout(GONE_LIMIT, vm.ended()).await.expect("it is seen");
    assert_eq!(how, "its keeper was killed, and its monitor with it");
    until("the monitor's end", GONE_LIMIT, || !runs(counters.vmm_pid)).await;
    assert!(matches!(driver().await.adopt(&spec.folder).await, Err(VmError::Ended { .. })));
    assert_eq!(sweep([&spec.folder]), [Swept::Cleared]);
    assert_eq!(files_in(&spec.folder.dir), ["disk"]);
    assert_eq!(files_in(&spec.folder.run), [""; 0]);
}

#[tokio::test]
async fn vm_whose_keeper_takes_long_to_answer_is_no_leftover() {
    let Some(image) = image() else { return skip("kill tests", "there is no guest image") };
    let place = Place::new(image);
    let (vm, spec) = running(&place).await;
    let keeper = Pid::from_raw(i32::try_from(vm.counters().await.expect("counters").keeper_pid).expect("a pid"));
    kill(keeper, Signal::SIGSTOP).expect("stopped");
    let swept = tokio::task::spawn_blocking({
        let folder = spec.folder.clone();
        move || sweep([&folder])[0]
    });
    // Longer than one answer may take.
    tokio::time::sleep(2 * ANSWER_LIMIT).await;
    kill(keeper, Signal::SIGCONT).expect("it goes on");
    assert_eq!(swept.await.expect("swept"), Swept::Lives);
    assert_eq!(vm.state().await.expect("a state"), VmState::Running);
    vm.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn vm_whose_folder_was_removed_ends_by_itself() {
    let Some(image) = image() else { return skip("kill tests", "there is no guest image") };
    let place = Place::new(image);
    let (vm, spec) = running(&place).await;
    let counters = vm.counters().await.expect("counters");
    drop(vm);
    // Its keeper may write into it meanwhile.
    until("the folder's removal", GONE_LIMIT, || std::fs::remove_dir_all(&spec.folder.dir).is_ok()).await;
    // The keeper looks every 10 s, and 10 s later than that if it looked just before.
    until("the monitor's end", 2 * GONE_LIMIT, || !runs(counters.vmm_pid)).await;
    until("the keeper's end", GONE_LIMIT, || !runs(counters.keeper_pid)).await;
}

/// The clock of deadlines.
fn boottime_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("the clock");
    u64::try_from(now.tv_sec()).expect("after boot") * 1000
        + u64::try_from(now.tv_nsec()).expect("positive") / 1_000_000
}

#[tokio::test]
async fn vm_past_its_deadline_is_killed_though_its_node_sleeps() {
    let Some(image) = image() else { return skip("kill tests", "there is no guest image") };
    let place = Place::new(image);
    let (vm, spec) = running(&place).await;
    // Twice as long as a keeper may take to answer.
    vm.set_deadline(Some(BoottimeMs(boottime_ms() + 10_000))).await.expect("set");
    vm.set_deadline(None).await.expect("taken back");
    tokio::time::sleep(Duration::from_millis(10_300)).await;
    assert_eq!(vm.state().await.expect("a state"), VmState::Running, "a deadline that was taken back");
    let counters = vm.counters().await.expect("counters");
    vm.set_deadline(Some(BoottimeMs(boottime_ms() + 5000))).await.expect("set");
    drop(vm);
    until("the deadline", GONE_LIMIT, || !runs(counters.vmm_pid)).await;
    // A sweep ends a keeper that takes long to write how it ended.
    until("the keeper's end", GONE_LIMIT, || !runs(counters.keeper_pid)).await;
    until("its record", GONE_LIMIT, || sweep([&spec.folder]) == [Swept::Ended]).await;
    match driver().await.adopt(&spec.folder).await {
        Err(VmError::Ended { how, .. }) => assert_eq!(how, "its deadline passed"),
        other => panic!("adopted past the deadline: {:?}", other.err()),
    }
    assert!(end_machine(&spec.folder));
}

#[tokio::test]
async fn vm_keeper_that_is_asked_nonsense_goes_on() {
    let Some(image) = image() else { return skip("kill tests", "there is no guest image") };
    let place = Place::new(image);
    let (vm, spec) = running(&place).await;
    let VmFolder { run, .. } = &spec.folder;
    for nonsense in [&b"\n"[..], b"{\"op\":\"fly\"}\n", b"half a line", &[b'x'; 64 << 10], b"{\"op\":\"confirm\"}\n"] {
        let mut stream = std::os::unix::net::UnixStream::connect(run.join("k")).expect("connected");
        // The keeper may close before it has read all.
        let _ = stream.write_all(nonsense);
    }
    for _ in 0..200 {
        // A node that asks for the end anew in each turn of a loop.
        let waited = tokio::time::timeout(Duration::from_micros(300), vm.ended()).await;
        assert!(waited.is_err(), "it has ended");
    }
    let keeper = vm.counters().await.expect("counters").keeper_pid;
    until("the keeper's connections", GONE_LIMIT, || {
        std::fs::read_dir(format!("/proc/{keeper}/fd")).expect("listed").count() < 32
    })
    .await;
    assert_eq!(vm.state().await.expect("a state"), VmState::Running);
    // What it hasn't come to yet may take all its connections.
    let start = Instant::now();
    while let Err(error) = vm.set_deadline(None).await {
        assert!(start.elapsed() < GONE_LIMIT, "it doesn't answer any more: {error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    vm.shutdown().await.expect("it ends");
}
