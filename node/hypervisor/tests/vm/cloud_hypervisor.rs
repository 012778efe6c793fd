//! Cloud Hypervisor as it really is, with a freestanding guest: its verbs, its ends, and its words for what it refuses.
//! Where the program isn't there, or `/dev/kvm` doesn't open, that is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use fabric_types::{HypervisorKind, Shape};
use http_body_util::BodyExt;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use node_hypervisor::{
    AccelChoice, CloudHypervisorConfig, CloudHypervisorDriver, DeviceCounters, Hypervisor, HypervisorChoice,
    ImagePaths, MemorySource, NetworkCounters, ProbeConfig, Vm, VmError, VmSpec, VmState, probe,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::counting::all_said;
use crate::freestanding::{self, SAID, TICK, Then};
use crate::support::{Place, files_in, image, keeper, kvm, ms, processes_naming, runs, skip, until};

/// How long such a guest may take to say its line, or to end, on a busy host.
const SAY_LIMIT: Duration = Duration::from_secs(30);
/// What is told of a guest that powers itself off.
const POWERED_OFF: &str = "the monitor exited by itself with status 0 (the guest powered off or reset)";
/// What is told of one that resets itself.
const RESET: &str = "the guest reset, and a machine boots once";
/// Long enough to see whether a guest ticks: under a paravirtual KVM each tick takes 0.2 s.
const WATCH: Duration = Duration::from_secs(1);

/// The driver, or a loud word that the test can't run.
pub(crate) async fn driver(what: &str) -> Option<CloudHypervisorDriver> {
    if let Err(error) = kvm() {
        skip(what, &format!("/dev/kvm doesn't open: {error}"));
        return None;
    }
    match CloudHypervisorDriver::new(CloudHypervisorConfig::new(keeper())).await {
        Ok(driver) => Some(driver),
        Err(VmError::Program { .. }) => {
            skip(what, "no cloud-hypervisor binary");
            None
        }
        Err(error) => panic!("the cloud-hypervisor that is here can't be used: {error}"),
    }
}

/// A place whose machines boot such a guest, and the folder with its kernel, to be kept as long.
fn place(then: Then) -> (Place, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    (Place::new(freestanding::image(folder.path(), then)), folder)
}

/// A probe for Cloud Hypervisor by name.
fn by_name(place: &Place, image: ImagePaths) -> ProbeConfig {
    ProbeConfig {
        hypervisor: HypervisorChoice::CloudHypervisor,
        accel: AccelChoice::Auto,
        image,
        cache_dir: place.path("cache"),
        run: place.path("run"),
        keeper: keeper(),
    }
}

fn said(spec: &VmSpec) -> String {
    String::from_utf8_lossy(&fs::read(spec.folder.console_log()).unwrap_or_default()).into_owned()
}

fn ticks(spec: &VmSpec) -> usize {
    said(spec).matches(TICK).count()
}

async fn running(driver: &CloudHypervisorDriver, place: &Place) -> (Box<dyn Vm>, VmSpec) {
    let spec = place.booting();
    let vm = driver.create(spec.clone()).await.expect("created");
    vm.resume().await.expect("it runs");
    (vm, spec)
}

async fn how_it_ends(vm: &dyn Vm) -> String {
    tokio::time::timeout(SAY_LIMIT, vm.ended()).await.expect("its end is seen")
}

pub(crate) fn nothing_is_left(place: &Place, spec: &VmSpec) {
    assert_eq!(files_in(&spec.folder.dir), ["disk"]);
    assert_eq!(files_in(&spec.folder.run), [""; 0]);
    assert_eq!(processes_naming(place), [0; 0]);
}

#[tokio::test]
async fn vm_cloud_hypervisor_runs_pauses_and_resumes_a_guest() {
    let Some(driver) = driver("cloud_hypervisor, a freestanding guest").await else { return };
    let (place, _kernel) = place(Then::Tick);
    let spec = place.booting();
    let start = Instant::now();
    let vm = driver.create(spec.clone()).await.expect("created");
    let created = ms(start);
    assert_eq!(vm.state().await.expect("a state"), VmState::Paused);
    vm.pause().await.expect("a machine that never ran pauses");
    assert_eq!(said(&spec), "", "it runs before it was resumed");
    let start = Instant::now();
    vm.resume().await.expect("it runs");
    let booted = ms(start);
    until("the guest's words", SAY_LIMIT, || said(&spec).starts_with(SAID)).await;
    println!("created in {created:.1} ms, boot call {booted:.1} ms, the guest spoke after {:.1} ms", ms(start));
    until("a tick", SAY_LIMIT, || ticks(&spec) > 0).await;

    for _ in 0..3 {
        let start = Instant::now();
        vm.pause().await.expect("it pauses");
        let paused = ms(start);
        let start = Instant::now();
        assert_eq!(vm.state().await.expect("a state"), VmState::Paused);
        let asked = ms(start);
        all_said(vm.as_ref()).await;
        let (before, used) = (ticks(&spec), vm.counters().await.expect("counters"));
        tokio::time::sleep(WATCH).await;
        let still = vm.counters().await.expect("counters");
        assert_eq!(ticks(&spec), before, "a paused guest goes on");
        assert!(still.cpu_ms - used.cpu_ms <= 50, "a paused machine used {} ms", still.cpu_ms - used.cpu_ms);
        assert!(runs(still.vmm_pid) && runs(still.keeper_pid));
        let start = Instant::now();
        vm.resume().await.expect("it goes on");
        println!("paused in {paused:.2} ms, state in {asked:.2} ms, resumed in {:.2} ms: {still:?}", ms(start));
        vm.resume().await.expect("a second time changes nothing");
        until("a tick after a pause", SAY_LIMIT, || ticks(&spec) > before).await;
    }
    assert_eq!(said(&spec).matches(SAID).count(), 1, "it went on, it didn't start again");
    counts_both_disks(vm.as_ref()).await;
    confined(vm.counters().await.expect("counters").vmm_pid);

    let start = Instant::now();
    let error = vm.channel().await.expect_err("this guest has no agent").to_string();
    println!("channel refused in {:.0} ms: {error}", ms(start));
    // It wasn't booted to become a template, nor from one.
    assert!(matches!(vm.save_template().await, Err(VmError::Unsupported { .. })));
    assert!(matches!(vm.snapshot(&place.path("s")).await, Err(VmError::Unsupported { .. })));

    let start = Instant::now();
    vm.shutdown().await.expect("it ends");
    println!("shut down in {:.1} ms", ms(start));
    assert_eq!(vm.ended().await, "it was shut down");
    nothing_is_left(&place, &spec);
}

/// The monitor counts the disks under the names that the driver sums up; this guest uses neither.
async fn counts_both_disks(vm: &dyn Vm) {
    let (status, counts) = ask(vm.spec(), "GET", "vm.counters", String::new()).await;
    for (disk, count) in ["root", "own"].into_iter().zip([["read_bytes", "read_ops"], ["write_bytes", "write_ops"]]) {
        assert!(
            status == 200 && count.iter().all(|count| counts[disk][count] == json!(0)),
            "{disk}: {status} {counts}"
        );
    }
    let counted = vm.device_counters().await.expect("counts");
    // It has a card where a tap could be made for it, and nothing is plugged in there.
    let network = counts.get("net").map(|_| NetworkCounters::default());
    assert_eq!(counted, DeviceCounters { network, ..DeviceCounters::default() });
}

/// Each thread of a running monitor that runs guest code or parses a guest's bytes is under a system call filter.
fn confined(pid: u32) {
    let mut names = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("threads") {
        let path = thread.expect("a thread").path();
        let name = fs::read_to_string(path.join("comm")).expect("a name").trim().to_owned();
        let status = fs::read_to_string(path.join("status")).expect("a status");
        let filtered = status.lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"]));
        assert!(filtered || !name.starts_with("vcpu"), "{name} has no filter");
        names.push(format!("{name}{}", if filtered { "+" } else { "-" }));
    }
    println!("threads, + is filtered: {}", names.join(" "));
    assert!(names.iter().any(|name| name.starts_with("vcpu")), "{names:?}");
}

#[tokio::test]
async fn vm_cloud_hypervisor_ends_while_paused_and_before_its_first_instruction() {
    let Some(driver) = driver("cloud_hypervisor, ends").await else { return };
    let (place, _kernel) = place(Then::Tick);
    for (label, resumes, pauses) in [("never run", false, false), ("paused", true, true), ("running", true, false)] {
        let spec = place.booting();
        let vm = driver.create(spec.clone()).await.expect("created");
        if resumes {
            vm.resume().await.expect("it runs");
        }
        if pauses {
            vm.pause().await.expect("it pauses");
        }
        let start = Instant::now();
        vm.shutdown().await.expect("it ends");
        println!("shut down, {label}: {:.1} ms", ms(start));
        assert!(start.elapsed() < Duration::from_secs(7), "{label}: {:?}", start.elapsed());
        vm.shutdown().await.expect("ending is idempotent");
        assert_eq!(vm.state().await.expect("a state"), VmState::Ended);
        match vm.resume().await {
            Err(VmError::Ended { how, .. }) => assert_eq!(how, "it was shut down"),
            other => panic!("{label}: resumed after its end: {other:?}"),
        }
        nothing_is_left(&place, &spec);
    }
}

#[tokio::test]
async fn vm_cloud_hypervisor_guest_that_ends_itself_has_ended() {
    let Some(driver) = driver("cloud_hypervisor, guests that end themselves").await else { return };
    for then in [Then::PowerOff, Then::Reset, Then::TripleFault] {
        let (place, _kernel) = place(then);
        let (vm, spec) = running(&driver, &place).await;
        let how = how_it_ends(vm.as_ref()).await;
        println!("{then:?}: {how}");
        assert!(how == POWERED_OFF || (how == RESET && then != Then::PowerOff), "{then:?}: {how}");
        let told = fs::read_to_string(spec.folder.dir.join("events.log")).expect("its monitor's events");
        assert_eq!(told.contains(r#""event": "rebooting""#), how == RESET, "{then:?}: {told}");
        assert_eq!(said(&spec), SAID, "{then:?}: it started again");
        assert_eq!(vm.state().await.expect("a state"), VmState::Ended);
        match driver.adopt(&spec.folder).await {
            Err(VmError::Ended { how: told, .. }) => assert_eq!(told, how),
            other => panic!("{then:?}: adopted a dead machine: {:?}", other.err()),
        }
        match vm.pause().await {
            Err(VmError::Ended { how: told, .. }) => assert_eq!(told, how),
            other => panic!("{then:?}: paused a dead machine: {other:?}"),
        }
        vm.shutdown().await.expect("what is left is removed");
        nothing_is_left(&place, &spec);
    }
}

#[tokio::test]
async fn vm_cloud_hypervisor_machine_is_adopted_and_goes_on() {
    let Some(driver) = driver("cloud_hypervisor, adoption").await else { return };
    let (place, _kernel) = place(Then::Tick);
    let (vm, spec) = running(&driver, &place).await;
    let before = vm.counters().await.expect("counters");
    drop(vm);
    let start = Instant::now();
    let vm = driver.adopt(&spec.folder).await.expect("adopted");
    println!("adopted in {:.1} ms", ms(start));
    assert_eq!((vm.spec(), vm.state().await.expect("a state")), (&spec, VmState::Running));
    assert_eq!(vm.counters().await.expect("counters").vmm_pid, before.vmm_pid);
    // What is refused where a machine lives takes nothing away from it.
    let files = (files_in(&spec.folder.dir), files_in(&spec.folder.run));
    let error = driver.create(spec.clone()).await.err().expect("it lives there").to_string();
    assert!(error.contains("another machine's keeper lives in this folder"), "{error}");
    assert_eq!((files_in(&spec.folder.dir), files_in(&spec.folder.run)), files);
    let seen = ticks(&spec);
    until("a tick after adoption", SAY_LIMIT, || ticks(&spec) > seen).await;
    vm.pause().await.expect("it pauses");
    drop(vm);
    let vm = driver.adopt(&spec.folder).await.expect("adopted while it is paused");
    assert_eq!(vm.state().await.expect("a state"), VmState::Paused);
    kill(Pid::from_raw(i32::try_from(before.vmm_pid).expect("a pid")), Signal::SIGKILL).expect("killed");
    let how = how_it_ends(vm.as_ref()).await;
    assert!(how.starts_with("the monitor was killed by signal 9"), "{how}");
    vm.shutdown().await.expect("what is left is removed");
    nothing_is_left(&place, &spec);
}

#[tokio::test]
async fn vm_cloud_hypervisor_that_hangs_is_a_timeout_and_can_be_ended() {
    let Some(driver) = driver("cloud_hypervisor, a monitor that hangs").await else { return };
    let (place, _kernel) = place(Then::Tick);
    let (vm, spec) = running(&driver, &place).await;
    let pid = vm.counters().await.expect("counters").vmm_pid;
    kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), Signal::SIGSTOP).expect("stopped");
    until("the stop of all its threads", SAY_LIMIT, || all_stopped(pid)).await;
    let start = Instant::now();
    let error = vm.pause().await.expect_err("it hangs");
    println!("{error} ({:.0} ms)", ms(start));
    assert!(matches!(error, VmError::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("'vm.info'"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    // SIGTERM isn't heard; SIGKILL is.
    let start = Instant::now();
    vm.shutdown().await.expect("it ends");
    println!("a hanging monitor ended in {:.0} ms", ms(start));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    nothing_is_left(&place, &spec);
}

fn all_stopped(pid: u32) -> bool {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    threads.all(|thread| {
        let stat = fs::read_to_string(thread.expect("a thread").path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

#[tokio::test]
async fn vm_cloud_hypervisor_that_is_taken_over_opens_no_other_file() {
    let Some(driver) = driver("cloud_hypervisor, landlock").await else { return };
    let (place, _kernel) = place(Then::Tick);
    let (vm, spec) = running(&driver, &place).await;
    let (status, info) = ask(&spec, "GET", "vm.info", String::new()).await;
    assert_eq!((status, &info["state"]), (200, &json!("Running")));
    assert_eq!(info["config"]["payload"]["kernel"], json!(spec.folder.dir.join("monitor/kernel")));
    assert!(!spec.folder.dir.join("monitor/kernel").exists(), "a machine that has booted has a kernel to boot");
    let landlock = info["config"]["landlock_enable"] == json!(true);
    if !landlock {
        skip("cloud_hypervisor, landlock", "this kernel has none");
    }
    let (own, other) = (place.path("own"), &spec.disk);
    fs::write(&own, [0; 4096]).expect("written");
    // In a seal with a file tree of its own, the file isn't even there.
    for (path, whys) in [(&own, ["Permission denied", "No such file"]), (other, ["lock"; 2])] {
        let disk = json!({ "path": path, "image_type": "Raw" }).to_string();
        let (status, refusal) = ask(&spec, "PUT", "vm.add-disk", disk).await;
        println!("{}: {status} {refusal}", path.display());
        let refused = status >= 400 && whys.iter().any(|why| refusal.to_string().contains(why));
        let opened = path == &own && status < 300;
        assert!(refused || (opened && !landlock), "{refusal}");
    }
    vm.shutdown().await.expect("it ends");
    nothing_is_left(&place, &spec);
}

/// Asks the machine's monitor itself.
pub(crate) async fn ask(spec: &VmSpec, method: &str, name: &str, body: String) -> (u16, Value) {
    let stream = UnixStream::connect(spec.folder.run.join("q")).await.expect("connected");
    let (mut send, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP begins");
    tokio::spawn(connection);
    let request = hyper::Request::builder().method(method).uri(format!("/api/v1/{name}")).header("host", "localhost");
    let response = send.send_request(request.body(body).expect("a request")).await.expect("an answer");
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

#[tokio::test]
async fn vm_cloud_hypervisor_refuses_in_words_and_leaves_nothing() {
    let Some(driver) = driver("cloud_hypervisor, refusals").await else { return };
    let (place, _kernel) = place(Then::Tick);

    let mut spec = place.booting();
    spec.image = ImagePaths { kernel: place.path("no-kernel"), ..spec.image };
    fs::write(&spec.image.kernel, "this is no kernel").expect("written");
    refused_at_boot(&driver, &place, spec, "no kernel").await;

    let spec = place.booting();
    fs::remove_file(&spec.disk).expect("removed");
    fs::create_dir(&spec.disk).expect("made");
    refused_at_boot(&driver, &place, spec, "a folder as its disk").await;

    let mut spec = place.booting();
    spec.memory = MemorySource::Clone { template: place.path("no-template") };
    let error = driver.create(spec.clone()).await.err().expect("no clones").to_string();
    assert!(error.contains("template.json"), "{error}");
    assert!(!spec.folder.run.exists(), "a refused machine has a run folder");
}

async fn refused_at_boot(driver: &CloudHypervisorDriver, place: &Place, spec: VmSpec, what: &str) {
    let vm = match driver.create(spec.clone()).await {
        Ok(vm) => vm,
        Err(error) => {
            println!("{what}, at creation: {error}");
            assert!(matches!(error, VmError::Refused { .. }), "{error}");
            return nothing_is_left(place, &spec);
        }
    };
    let error = vm.resume().await.expect_err("it can't boot");
    println!("{what}, at boot: {error}");
    assert!(matches!(&error, VmError::Refused { monitor: "cloud-hypervisor", .. }), "{error}");
    let sentence = error.to_string();
    assert!(sentence.len() < 600 && !sentence.contains(['[', '"', '\n']), "{sentence}");
    // A machine that didn't boot is still there to be ended, and no more.
    vm.shutdown().await.expect("it ends");
    nothing_is_left(place, &spec);
}

#[tokio::test]
async fn vm_cloud_hypervisor_of_an_unknown_version_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let refusal = async |says: &str| {
        let program = folder.path().join("cloud-hypervisor");
        script(&program, says);
        let config = CloudHypervisorConfig { program, ..CloudHypervisorConfig::new(keeper()) };
        CloudHypervisorDriver::new(config).await.err().map(|error| error.to_string())
    };
    for version in ["v51.2", "v55.0", "v55.0-3-gabcdef"] {
        let error = refusal(&format!("echo cloud-hypervisor {version}")).await.expect("refused");
        let sentence = format!("cloud-hypervisor {version} is installed; versions 52 to 54 are supported");
        assert!(error.ends_with(&sentence), "{error}");
    }
    for version in ["v52.0", "v53.0-246-gabcdef0", "54.1"] {
        assert_eq!(refusal(&format!("echo cloud-hypervisor {version}")).await, None, "{version}");
    }
    for broken in ["exit 1", "echo segmentation fault >&2; kill -9 $$", "yes cloud-hypervisor | head -c 1000000"] {
        let error = refusal(broken).await.expect("refused");
        println!("{broken}: {error}");
        assert!(error.len() < 500, "{error}");
    }
    let start = Instant::now();
    let error = refusal("exec sleep 60").await.expect("refused");
    println!("a program that hangs: {error}");
    assert!(error.contains("ATOLL_CLOUD_HYPERVISOR") && start.elapsed() < Duration::from_secs(30), "{error}");
}

#[tokio::test]
async fn vm_cloud_hypervisor_that_dies_at_once_is_told_in_its_own_words() {
    let (place, folder) = place(Then::Tick);
    let program = folder.path().join("cloud-hypervisor");
    let dies = "echo 'the hypervisor is not available' >&2; exit 3";
    script(&program, &format!("[ \"$1\" != --version ] || exec echo cloud-hypervisor v54.0\n{dies}"));
    let config = CloudHypervisorConfig { program, ..CloudHypervisorConfig::new(keeper()) };
    let driver = CloudHypervisorDriver::new(config).await.expect("its version is known");
    let spec = place.booting();
    let start = Instant::now();
    let error = driver.create(spec.clone()).await.err().expect("it dies");
    println!("{error} ({:.0} ms)", ms(start));
    assert!(matches!(error, VmError::Ended { .. }), "{error}");
    assert!(error.to_string().ends_with("the hypervisor is not available"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    nothing_is_left(&place, &spec);
}

fn script(path: &Path, does: &str) {
    fs::write(path, format!("#!/bin/sh\n{does}\n")).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("executable");
}

#[tokio::test]
async fn vm_cloud_hypervisor_machines_have_their_shapes_and_share_a_root() {
    let Some(driver) = driver("cloud_hypervisor, shapes").await else { return };
    let (place, _kernel) = place(Then::Tick);
    let mut machines = Vec::new();
    for (cpu, memory) in [(1, 256), (2, 512)] {
        let mut spec = place.booting();
        spec.shape = Shape::new(cpu, memory, 3).expect("a shape");
        let vm = driver.create(spec.clone()).await.expect("created");
        vm.resume().await.expect("it runs");
        until("the guest's words", SAY_LIMIT, || said(&spec).starts_with(SAID)).await;
        let pid = vm.counters().await.expect("counters").vmm_pid;
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
        let names = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
        let vcpus = names.filter(|name| name.starts_with("vcpu")).count();
        assert_eq!(i64::try_from(vcpus).expect("few"), cpu);
        let (_, info) = ask(&spec, "GET", "vm.info", String::new()).await;
        assert_eq!(info["memory_actual_size"], json!(memory << 20));
        machines.push((vm, spec));
    }
    for (vm, _) in &machines {
        assert_eq!(vm.state().await.expect("a state"), VmState::Running);
        vm.shutdown().await.expect("it ends");
    }
    for (_, spec) in &machines {
        nothing_is_left(&place, spec);
    }
}

#[tokio::test]
async fn vm_probe_takes_cloud_hypervisor_only_where_it_boots() {
    let Some(driver) = driver("the probe of cloud_hypervisor").await else { return };
    // With a kernel that this KVM runs it is taken, unless the KVM is one that can't be saved.
    let (place, _kernel) = place(Then::Tick);
    let start = Instant::now();
    match probe(by_name(&place, place.booting().image)).await {
        Ok(probed) => {
            println!("probe, freestanding guest: {:.0} ms: {}", ms(start), probed.driver.isolation().reason);
            assert_eq!(probed.driver.fit(), driver.fit());
        }
        Err(error) => {
            println!("probe, freestanding guest: {:.0} ms: {error}", ms(start));
            let sentence = error.to_string();
            let why = "it boots our kernel and can't save it: cloud-hypervisor refused 'vm.snapshot': ";
            assert!(sentence.contains(why) && sentence.contains("NestedState"), "{sentence}");
        }
    }
    assert_eq!(processes_naming(&place), [0; 0]);

    // With one that faults at once, or ends in the middle, it is not: in seconds, with a reason.
    for then in [Then::TripleFault, Then::PowerOff] {
        let (place, _kernel) = self::place(then);
        let start = Instant::now();
        let error = probe(by_name(&place, place.booting().image)).await.expect_err("it ends").to_string();
        println!("probe, {then:?}: {:.0} ms: {error}", ms(start));
        assert!(error.contains("cloud_hypervisor with kvm doesn't work: "), "{error}");
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        assert_eq!(processes_naming(&place), [0; 0]);
    }

    let Some(image) = image() else { return skip("cloud_hypervisor, our kernel", "there is no guest image") };
    let place = Place::new(image.clone());
    let start = Instant::now();
    let outcome = probe(by_name(&place, image)).await;
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    match outcome {
        Ok(probed) => {
            println!("probe, our kernel: {:.0} ms: {}", ms(start), probed.driver.isolation().reason);
            assert_eq!(probed.driver.fit().hypervisor, HypervisorKind::CloudHypervisor);
        }
        Err(error) => {
            println!("probe, our kernel: {:.0} ms: {error}", ms(start));
            assert!(error.to_string().contains("cloud_hypervisor with kvm doesn't work: "), "{error}");
        }
    }
    assert_eq!(processes_naming(&place), [0; 0]);
}
