//! A machine's card in each plug, against a far side in a network namespace of the test's own, under QEMU with TCG.

use std::fs::{self, File};
use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::unistd::Uid;
use node_hypervisor::{Hypervisor, NetworkDevice, Vm, VmSpec};

use crate::guest::Guest;
use crate::support::{Place, image, ms, runs, skip, until};
use crate::template::{clone_spec, driver, save_template};

/// How long a packet may take on a busy host.
const PACKET_LIMIT: Duration = Duration::from_secs(60);
/// The MAC that the guest sets; QEMU's own is every machine's.
const MAC: &str = "02:aa:bb:cc:dd:01";

/// A network namespace; dropping it removes it and all that is in it.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    fn new() -> Result<Self, String> {
        let name = format!("atollvm{}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    fn ip(&self, arguments: &[&str]) -> Result<(), String> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// Runs something in the namespace, on a thread that enters it.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("the namespace is there");
        std::thread::scope(|scope| {
            let entered = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("entered");
                work()
            });
            entered.join().expect("no panic within")
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("no program ip: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("ip {}: {said}", arguments.join(" "))) }
}

/// A namespace with a tap in it and another that stands for the uplink, or why there can be none.
pub(crate) fn lab() -> Result<Namespace, String> {
    if !Uid::effective().is_root() {
        return Err("only root makes taps".to_owned());
    }
    let lab = Namespace::new()?;
    lab.ip(&["tuntap", "add", "dev", "tap0", "mode", "tap"])?;
    lab.ip(&["addr", "add", "10.77.0.1/24", "dev", "tap0"])?;
    lab.ip(&["link", "set", "tap0", "up"])?;
    lab.ip(&["tuntap", "add", "dev", "up0", "mode", "tap"])?;
    lab.ip(&["addr", "add", "10.88.0.1/24", "dev", "up0"])?;
    lab.ip(&["link", "set", "up0", "up"])?;
    lab.ip(&["route", "add", "default", "dev", "up0"])?;
    Ok(lab)
}

async fn started(driver: &dyn Hypervisor, spec: VmSpec, ahead: bool) -> (Box<dyn Vm>, Guest) {
    let vm = if ahead {
        driver.spare(spec).await.expect("a spare").load().await.expect("loaded")
    } else {
        driver.create(spec).await.expect("cloned")
    };
    vm.resume().await.expect("it runs");
    let guest = Guest::identify(vm.as_ref(), 2).await;
    (vm, guest)
}

async fn set_up(guest: &mut Guest, address: &str) {
    guest
        .sh(&format!("ip link set eth0 address {MAC} && ip link set eth0 up && ip addr add {address}/24 dev eth0"))
        .await;
}

#[tokio::test]
async fn vm_card_of_a_template_without_network_works_in_every_plug() {
    let Some(image) = image() else { return skip("network card tests", "there is no guest image") };
    let lab = match lab() {
        Ok(lab) => lab,
        Err(why) => return skip("network card tests", &why),
    };
    let (place, driver) = (Place::new(image), driver().await);
    save_template(&driver, &place).await;
    for ahead in [false, true] {
        a_frame_reaches_the_tap(&driver, &place, &lab, ahead).await;
    }
    passt_serves_and_ends_with_its_machine(&driver, &place, &lab).await;
    a_missing_tap_is_an_error_that_leaves_nothing(&driver, &place, &lab).await;
}

async fn a_frame_reaches_the_tap(driver: &dyn Hypervisor, place: &Place, lab: &Namespace, ahead: bool) {
    let socket = lab.within(|| UdpSocket::bind("10.77.0.1:0").expect("bound"));
    let port = socket.local_addr().expect("an address").port();
    socket.set_read_timeout(Some(PACKET_LIMIT)).expect("set");
    let mut spec = clone_spec(place);
    spec.network = NetworkDevice::Tap { name: "tap0".into(), netns: Some(lab.path()) };
    let (vm, mut guest) = started(driver, spec, ahead).await;
    set_up(&mut guest, "10.77.0.2").await;
    // A packet whose address isn't resolved in 3 s is lost, so it is sent again.
    let send = format!(
        r#"python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
for _ in range(12):
    try:
        s.sendto(b"x" * 1400, ("10.77.0.1", {port}))
        print(s.recv(99).decode())
        break
    except OSError:
        pass
'"#
    );
    let start = Instant::now();
    let answer = async {
        tokio::task::spawn_blocking(move || {
            let mut packet = [0; 2000];
            let (count, from) = socket.recv_from(&mut packet).expect("a packet came");
            socket.send_to(b"far side", from).expect("sent");
            (count, from)
        })
        .await
        .expect("no panic")
    };
    let ((count, from), said) = tokio::join!(answer, guest.sh(&send));
    println!("a packet there and back over the tap in {:.0} ms", ms(start));
    assert_eq!((count, from.ip().to_string().as_str(), said.as_str()), (1400, "10.77.0.2", "far side"));
    let neighbours = Command::new("ip").args(["-n", &lab.name, "neigh", "show", "10.77.0.2"]).output().expect("ip");
    let neighbours = String::from_utf8_lossy(&neighbours.stdout).into_owned();
    assert!(neighbours.contains(MAC), "the frames don't carry the MAC that the guest set: {neighbours}");
    vm.shutdown().await.expect("it ends");
    lab.ip(&["link", "show", "tap0"]).expect("a tap outlives its machine");
    lab.ip(&["neigh", "flush", "dev", "tap0"]).expect("flushed");
}

async fn passt_serves_and_ends_with_its_machine(driver: &dyn Hypervisor, place: &Place, lab: &Namespace) {
    let Ok(passt) = which("passt") else { return skip("passt as a plug", "the program passt is not installed") };
    let listener = lab.within(|| TcpListener::bind("10.88.0.1:0").expect("bound"));
    let port = listener.local_addr().expect("an address").port();
    let mut spec = clone_spec(place);
    let flags = "--foreground --quiet --ipv4-only --no-map-gw --no-dhcp --tcp-ports none --udp-ports none \
                 --address 10.99.0.2 --netmask 24 --gateway 10.99.0.1 --interface up0";
    let arguments = ["netns", "exec", &lab.name, &passt].into_iter().chain(flags.split_whitespace());
    spec.network =
        NetworkDevice::Passt { program: "/usr/sbin/ip".into(), arguments: arguments.map(str::to_owned).collect() };
    let (vm, mut guest) = started(driver, spec, false).await;
    set_up(&mut guest, "10.99.0.2").await;
    let counters = vm.counters().await.expect("counters");
    let helpers = children_of(counters.keeper_pid, counters.vmm_pid);
    assert!(!helpers.is_empty(), "passt is no child of the keeper");
    let fetch = format!(
        "ip route add default via 10.99.0.1; python3 -c 'import socket; s = socket.create_connection((\"10.88.0.1\", {port}), 20); \
         s.sendall(b\"from a guest\"); s.close()'"
    );
    let accepted = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = listener.accept().expect("accepted");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("read");
        said
    });
    let (said, _) = tokio::join!(accepted, guest.sh(&fetch));
    assert_eq!(said.expect("no panic"), "from a guest");
    vm.shutdown().await.expect("it ends");
    until("passt ends with its machine", Duration::from_secs(30), || !helpers.iter().any(|&pid| runs(pid))).await;
}

async fn a_missing_tap_is_an_error_that_leaves_nothing(driver: &dyn Hypervisor, place: &Place, lab: &Namespace) {
    let mut spec = clone_spec(place);
    spec.network = NetworkDevice::Tap { name: "nosuchtap".into(), netns: Some(lab.path()) };
    let error = driver.create(spec.clone()).await.err().expect("no tap").to_string();
    assert!(error.contains("nosuchtap"), "{error}");
    assert_eq!(crate::support::files_in(&spec.folder.dir), ["disk"]);
    lab.ip(&["link", "show", "nosuchtap"]).expect_err("a tap was made that nobody filters");
}

/// Processes whose parent is `parent`, but for one.
fn children_of(parent: u32, but: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent_of = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        *pid != but && parent_of == Some(parent)
    };
    pids.filter(is_child).collect()
}

fn which(program: &str) -> Result<String, ()> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').map(|folder| format!("{folder}/{program}")).find(|file| fs::metadata(file).is_ok());
    found.ok_or(())
}
