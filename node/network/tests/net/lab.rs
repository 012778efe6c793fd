//! A host, an internet and guests, in network namespaces of the test's own.
//!
//! ```text
//!  guest (own kernel stack, own namespace)       node's namespace        host                    far side
//!  eth0 ==frames== test ==frames== tapN  -- filter -- uplink/atoll-TAG -- out 11.0.0.1 ---- 11.0.0.2 all addresses
//!                    ^ forged frames                                     7000: a service     servers, decoys, resolvers
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use node_network::{NetworkChoice, NetworkConfig, Networks};

use crate::far::Far;

/// The host's own address on its network.
pub(crate) const HOST: &str = "11.0.0.1";
/// The fabric's public address, that the node's configuration forbids.
pub(crate) const FABRIC: &str = "11.9.9.9";
/// A service that everyone may reach, unless a policy says otherwise, and a second.
pub(crate) const PUBLIC: &str = "1.1.1.1";
pub(crate) const OTHER: &str = "9.9.9.9";
/// Where only forged packets are sent.
pub(crate) const FORGED: &str = "1.1.1.77";
/// What no guest reaches, all of it on the far side.
pub(crate) const DECOYS: [&str; 14] = [
    "169.254.169.254",
    "169.254.1.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.8",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "240.0.0.1",
    FABRIC,
];

/// How long something that takes milliseconds may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Everything, removed again when dropped.
pub(crate) struct Lab {
    pub(crate) tag: String,
    pub(crate) host: Space,
    pub(crate) far: Far,
    spaces: Vec<Space>,
}

/// A namespace, by name.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    name: String,
}

impl Space {
    fn make(name: String) -> Self {
        run("ip", &["netns", "add", &name]);
        let space = Self { name };
        space.ip(&["link", "set", "lo", "up"]);
        space
    }

    pub(crate) fn of(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Does something in here.
    pub(crate) fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.go(work).join().expect("the work inside of a namespace ends well")
    }

    /// Does something in here, beside the test.
    pub(crate) fn go<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let path = self.path();
        thread::spawn(move || {
            setns(File::open(&path).expect("a namespace"), CloneFlags::CLONE_NEWNET).expect("entered");
            work()
        })
    }

    pub(crate) fn ip(&self, arguments: &[&str]) -> String {
        let all: Vec<&str> = ["-n", &self.name].into_iter().chain(arguments.iter().copied()).collect();
        run("ip", &all)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let all: Vec<&str> = ["netns", "exec", &self.name].into_iter().chain(arguments.iter().copied()).collect();
        run("ip", &all)
    }
}

/// Runs a program and gives what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program starts");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {complaint}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what} within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Why no lab can be made here.
fn lacking() -> Option<String> {
    let works = |program: &str| Command::new(program).arg("-V").output().is_ok_and(|output| output.status.success());
    let why = if !nix::unistd::geteuid().is_root() {
        Some("network namespaces and taps need root".to_owned())
    } else if !works("ip") || !works("nft") {
        Some("`ip` (iproute2) or `nft` (nftables) is missing".to_owned())
    } else {
        let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
        tun.err().map(|cause| format!("/dev/net/tun can't be opened: {cause}"))
    };
    why.inspect(|why| skip(why))
}

/// Says that a test can't run here, and leaves the reason where the whole run's summary is made.
pub(crate) fn skip(why: &str) {
    let line = format!("SKIPPED: the guests' network: {why}");
    println!("{line}");
    if let Some(path) = std::env::var_os("ATOLL_SKIPS") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| writeln!(file, "{line}")).expect("ATOLL_SKIPS names a file that can be written");
    }
}

impl Lab {
    /// A lab; none where it can't be had.
    pub(crate) fn new() -> Option<Self> {
        if lacking().is_some() {
            return None;
        }
        let tag = format!("t{:x}", std::process::id());
        let host = Space::make(format!("{tag}-host"));
        let far = Space::make(format!("{tag}-far"));
        // From here on a panic removes what was made.
        let lab = Self { tag, host: host.clone(), far: Far::new(far.clone()), spaces: vec![host, far] };
        lab.host.ip(&["link", "add", "out", "type", "veth", "peer", "name", "in", "netns", &lab.spaces[1].name]);
        lab.host.ip(&["addr", "add", "11.0.0.1/24", "dev", "out"]);
        // What container engines put on hosts.
        lab.host.ip(&["addr", "add", "172.17.0.1/16", "dev", "lo"]);
        lab.host.ip(&["link", "set", "out", "up"]);
        lab.host.ip(&["route", "add", "default", "via", "11.0.0.2"]);
        lab.spaces[1].ip(&["addr", "add", "11.0.0.2/24", "dev", "in"]);
        lab.spaces[1].ip(&["link", "set", "in", "up"]);
        let more = [PUBLIC, OTHER, FORGED, "8.8.8.8", "1.1.1.78"];
        for address in DECOYS.iter().chain(&more) {
            lab.spaces[1].ip(&["addr", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        for address in DECOYS {
            lab.host.ip(&["route", "add", &format!("{address}/32"), "via", "11.0.0.2"]);
        }
        lab.far.start();
        lab.watch_host();
        Some(lab)
    }

    /// Counts what guests' packets end on the host itself.
    fn watch_host(&self) {
        self.host.run(&[
            "nft",
            "add table inet watch; add chain inet watch in { type filter hook input priority -150; }; \
            add rule inet watch in iifname \"atoll-*\" counter",
        ]);
    }

    /// Packets of guests that the host itself took in.
    pub(crate) fn host_took(&self) -> u64 {
        packets(&self.host.run(&["nft", "list chain inet watch in"])).first().copied().expect("a counter")
    }

    pub(crate) fn config(&self) -> NetworkConfig {
        NetworkConfig {
            tag: self.tag.clone(),
            choice: NetworkChoice::Tap,
            ports_ahead: 2,
            resolvers: vec!["11.0.0.2:53".parse::<SocketAddr>().expect("an address")],
            uplink: Some(self.host.path()),
            forbidden: vec![format!("{FABRIC}/32").parse().expect("a range")],
            bits_per_second: 0,
            connections: 64,
        }
    }

    pub(crate) async fn networks(&self) -> Networks {
        Networks::start(self.config()).await.expect("a network")
    }

    /// The namespace that the node made.
    pub(crate) fn node(&self) -> Space {
        Space::of(&format!("atoll-{}", self.tag))
    }

    /// A namespace for a guest.
    pub(crate) fn guest_space(&mut self) -> Space {
        let space = Space::make(format!("{}-g{}", self.tag, self.spaces.len()));
        self.spaces.push(space.clone());
        space
    }
}

/// The packets that each rule of a listing counted.
pub(crate) fn packets(listing: &str) -> Vec<u64> {
    let words: Vec<&str> = listing.split_whitespace().collect();
    words.windows(2).filter(|pair| pair[0] == "packets").filter_map(|pair| pair[1].parse().ok()).collect()
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut names: Vec<String> = self.spaces.iter().map(|space| space.name.clone()).collect();
        names.push(format!("atoll-{}", self.tag));
        for name in names {
            // What a good end has removed already is no news.
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}
