//! The seal, from inside: a probe runs where a monitor would, through the keeper's own code, and tries to get out.
//!
//! What a host lacks is told by the trial; attempts that depend on it are skipped by name, loudly.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fabric_types::{Seal, Shape};
use node_hypervisor::{ImagePaths, MachineLimits, MemorySource, NetworkDevice, VmFolder, VmSpec, end_machine, seal};
use serde_json::json;

use crate::support::{example, keeper, runs, skip};

/// How long a probe may take on a busy host.
const LIMIT: Duration = Duration::from_secs(30);
/// The first of the numbers that machines' users have.
const FIRST_USER: u32 = 2_000_000_000;

/// A keeper around a probe.
struct Sealed {
    folder: VmFolder,
    keeper: Child,
    creator: UnixStream,
}

/// A place for machines, with the host's files around them.
struct Host {
    root: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let root = tempfile::Builder::new().prefix("atoll-seal-").tempdir().expect("a folder");
        fs::create_dir(root.path().join("template")).expect("made");
        for name in ["kernel", "initramfs", "root", "secret", "identity", "template/memory"] {
            fs::write(root.path().join(name), "the host's").expect("written");
            fs::set_permissions(root.path().join(name), fs::Permissions::from_mode(0o600)).expect("private");
        }
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn spec(&self, name: &str, limits: MachineLimits) -> VmSpec {
        let folder = VmFolder { dir: self.path(name), run: self.path(&format!("{name}.run")) };
        for path in [&folder.dir, &folder.run] {
            fs::create_dir(path).expect("made");
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("private");
        }
        let disk = folder.dir.join("disk");
        fs::write(&disk, "a disk").expect("written");
        VmSpec {
            label: name.to_owned(),
            folder,
            shape: Shape::DEFAULT,
            image: ImagePaths {
                kernel: self.path("kernel"),
                initramfs: self.path("initramfs"),
                root: self.path("root"),
            },
            disk,
            memory: MemorySource::Clone { template: self.path("template") },
            checkpoint: None,
            network: NetworkDevice::None,
            limits,
        }
    }

    /// Starts a keeper as a node does, with a probe for its monitor.
    fn start(&self, name: &str, limits: MachineLimits, arguments: &[String]) -> Sealed {
        let spec = self.spec(name, limits);
        let folder = spec.folder.clone();
        let config = json!({
            "schema": 1, "driver": "qemu", "spec": spec, "program": example("probe"), "arguments": arguments,
            "listeners": [{ "name": "q", "path": folder.run.join("q") }], "remove": [],
        });
        let file = folder.dir.join("keeper.json");
        fs::write(&file, config.to_string()).expect("written");
        let socket = folder.run.join("k");
        let listener = UnixListener::bind(&socket).expect("it listens");
        let mut command = Command::new(keeper().program);
        command.arg("--config").arg(&file).stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
        let keeper = command.stderr(Stdio::inherit()).spawn().expect("a keeper");
        let creator = UnixStream::connect(&socket).expect("connected");
        let mut sealed = Sealed { folder, keeper, creator };
        sealed.ask("hello");
        sealed
    }
}

impl Sealed {
    /// Asks on the creator's connection and reads the answer.
    fn ask(&mut self, op: &str) -> serde_json::Value {
        self.creator.write_all(json!({ "op": op }).to_string().as_bytes()).expect("asked");
        self.creator.write_all(b"\n").expect("asked");
        let mut line = String::new();
        BufReader::new(&self.creator).read_line(&mut line).expect("answered");
        serde_json::from_str(&line).unwrap_or_default()
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.dir.join("console.log")).unwrap_or_default()
    }

    /// Waits until the probe has said `word`.
    fn await_word(&self, word: &str) -> String {
        let start = Instant::now();
        while !self.said().contains(word) {
            assert!(start.elapsed() < LIMIT, "the probe never said '{word}': {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.said()
    }

    /// The monitor's process, from the record.
    fn record(&self) -> serde_json::Value {
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(self.folder.dir.join("vm.json")).unwrap_or_default();
            match serde_json::from_str(&text) {
                Ok(record) => return record,
                Err(_) => assert!(start.elapsed() < LIMIT, "no record was written"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        end_machine(&self.folder);
        // It has ended; a test that failed earlier must not wait for it.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// A process of the host, ended with the test.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What this host's seal is; the parts that it lacks are told as skips.
fn this_hosts_seal() -> Seal {
    let seal = seal::examine(&keeper());
    for gap in &seal.missing {
        skip(&format!("seal, {}", gap.part), &gap.why);
    }
    seal
}

fn has(seal: &Seal, parts: &[&str]) -> bool {
    parts.iter().all(|part| seal.in_force.iter().any(|name| name == part))
}

/// What an attempt needs to be denied; what isn't named here, the file tree and the filter deny.
fn needs(attempt: &str) -> &'static [&'static str] {
    match attempt {
        "write through what it is handed" => &["read_only_template"],
        "connect to an abstract socket"
        | "connect to the host's loopback"
        | "connect to the host's loopback by IPv6"
        | "connect to the metadata service" => &["network_namespace"],
        "signal a process of the host" | "signal its keeper" | "signal every process" => &["pid_namespace"],
        "become root" | "take capabilities" => &["user", "capabilities"],
        "have core files" | "have more descriptors" => &["rlimits"],
        "make a disk's device" => &["capabilities"],
        name if name.starts_with("read") || name.starts_with("list") || name.starts_with("write") => {
            &["mount_namespace"]
        }
        "plant its own record"
        | "make a file in the root"
        | "change a library"
        | "open /dev/mem"
        | "open /dev/kvm"
        | "connect to another machine's socket" => &["mount_namespace"],
        _ => &["seccomp"],
    }
}

#[test]
fn seal_lets_nothing_out() {
    let seal = this_hosts_seal();
    let host = Host::new();
    let peer = host.start("peer", MachineLimits::default(), &["hold".to_owned()]);
    peer.await_word("holding");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let name = format!("atoll-seal-test-{}", std::process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("bound");
    let victim = Victim(Command::new("sleep").arg("3600").spawn().expect("a process of the host"));
    let peers_keeper = peer.record()["keeper"]["pid"].to_string();
    let arguments = [
        "out".to_owned(),
        format!("secret={}", host.text("secret")),
        format!("identity={}", host.text("identity")),
        format!("peer={}", host.text("peer")),
        format!("own={}", host.text("own")),
        format!("socket={}", host.path("peer.run").join("q").display()),
        format!("abstract={name}"),
        format!("port={}", tcp.local_addr().expect("bound").port()),
        format!("pid={}", victim.0.id()),
        format!("keeper={peers_keeper}"),
        format!("memory={}", host.path("template").join("memory").display()),
    ];
    let own = host.start("own", MachineLimits::default(), &arguments);
    let said = own.await_word("done");
    let mut allowed = Vec::new();
    for line in said.lines().filter(|line| *line != "done") {
        println!("{line}");
        let Some((name, _)) = line.split_once(" ALLOWED") else { continue };
        if has(&seal, needs(name)) {
            allowed.push(line.to_owned());
        } else {
            skip(&format!("seal, attempt '{name}'"), &format!("{:?} isn't in force here", needs(name)));
        }
    }
    assert!(said.lines().count() > 55, "attempts are missing: {said}");
    assert_eq!(allowed, [""; 0], "these got out");
    assert!(runs(victim.0.id()), "the host's process was ended");
    let memory = fs::read(host.path("template").join("memory")).expect("read");
    assert_eq!(memory, b"the host's", "the template's memory was changed");
    check_identity(&seal, &said);
}

fn check_identity(seal: &Seal, said: &str) {
    let line = said.lines().find(|line| line.starts_with("identity")).expect("said");
    let field = |name: &str| {
        let found = line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_default().to_owned()
    };
    if has(seal, &["user"]) {
        assert!(field("uid").parse::<u32>().expect("a number") >= FIRST_USER, "{line}");
        assert_eq!(field("groups"), (FIRST_USER - 1).to_string(), "{line}");
    }
    if has(seal, &["pid_namespace"]) {
        assert_eq!(field("pid"), "1", "{line}");
    }
    if has(seal, &["mount_namespace"]) {
        let root = field("root");
        for hidden in ["root", "home", "proc", "sys", "run", "var", "boot", "mnt"] {
            // The first folder of the host's own paths may be among them; then it holds only what leads there.
            let leads_there = std::env::temp_dir().starts_with(Path::new("/").join(hidden))
                || example("probe").starts_with(Path::new("/").join(hidden));
            assert!(leads_there || !root.split(',').any(|name| name == hidden), "{hidden} is in {root}");
        }
    }
}

#[test]
fn seal_gives_two_machines_two_users_and_keeps_folders_private() {
    let seal = this_hosts_seal();
    if !has(&seal, &["user"]) {
        return skip("seal, users", "machines share the node's user here");
    }
    let host = Host::new();
    let hold = ["hold".to_owned()];
    let (one, other) =
        (host.start("a", MachineLimits::default(), &hold), host.start("b", MachineLimits::default(), &hold));
    let users = [&one, &other].map(|machine| machine.record()["uid"].as_u64().expect("recorded"));
    assert_ne!(users[0], users[1]);
    for (machine, uid) in [&one, &other].into_iter().zip(users) {
        for path in [&machine.folder.dir, &machine.folder.run] {
            let about = fs::metadata(path).expect("there");
            assert_eq!((about.mode() & 0o777, u64::from(about.uid())), (0o700, uid), "{}", path.display());
        }
        for entry in fs::read_dir(&machine.folder.dir).expect("listed").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let mode = entry.metadata().expect("there").mode();
            assert!(mode & 0o077 == 0 || name == "disk", "{name} is {:o}", mode & 0o777);
        }
        for role in ["keeper", "vmm"] {
            let pid = machine.record()[role]["pid"].as_u64().expect("a number");
            let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
            assert!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")), "{role}: {status}");
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert!(status.contains(&format!("{set}:\t0000000000000000")), "{role}: {status}");
            }
            assert!(status.contains("NoNewPrivs:\t1"), "{role}: {status}");
            assert_eq!(role == "vmm", status.contains("Seccomp:\t2"), "{role}: {status}");
        }
    }
}

/// The folders of a machine's cgroups, from its record.
fn groups(machine: &Sealed) -> Vec<PathBuf> {
    let text = fs::read_to_string(machine.folder.dir.join("seal.json")).expect("recorded");
    let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let groups = record["groups"].as_array().cloned().unwrap_or_default();
    groups.iter().filter_map(|group| group.as_str().map(PathBuf::from)).collect()
}

#[test]
fn seal_ends_a_fork_bomb_at_its_limit() {
    let seal = this_hosts_seal();
    if !has(&seal, &["pids_limit"]) && !has(&seal, &["user"]) {
        return skip("seal, fork bomb", "neither cgroups nor users limit processes here");
    }
    let host = Host::new();
    let limits = MachineLimits { pids: Some(40), ..MachineLimits::default() };
    let machine = host.start("bomb", limits, &["threads".to_owned()]);
    let said = machine.await_word("threads");
    let count: u32 = said.split(' ').nth(1).and_then(|count| count.parse().ok()).expect("a number");
    println!("{said}");
    assert!((20..40).contains(&count), "{said}");
}

#[test]
fn seal_kills_a_memory_hog_and_not_its_neighbour() {
    let seal = this_hosts_seal();
    if !has(&seal, &["memory_limit"]) {
        return skip("seal, memory hog", "cgroups limit no memory here");
    }
    let host = Host::new();
    let neighbour = host.start("calm", MachineLimits::default(), &["hold".to_owned()]);
    neighbour.await_word("holding");
    let limits = MachineLimits { memory_bytes: Some(64 << 20), ..MachineLimits::default() };
    // It begins once it is confirmed: how a machine ended before that is noted nowhere.
    let disk = host.path("hog").join("disk");
    let arguments = ["memory".to_owned(), "512".to_owned(), disk.display().to_string()];
    let mut hog = host.start("hog", limits, &arguments);
    hog.ask("confirm");
    fs::write(&disk, "begin").expect("written");
    let start = Instant::now();
    let ended = hog.folder.dir.join("ended.json");
    while !ended.exists() {
        assert!(start.elapsed() < LIMIT, "it wasn't killed: {}", hog.said());
        std::thread::sleep(Duration::from_millis(5));
    }
    let how = fs::read_to_string(&ended).expect("read");
    assert!(how.contains("its limit of memory"), "{how}");
    assert!(!hog.said().contains("MiB"), "{}", hog.said());
    let vmm = neighbour.record()["vmm"]["pid"].as_u64().expect("a number");
    assert!(runs(u32::try_from(vmm).expect("a pid")), "the neighbour was killed");
}

#[test]
fn seal_leaves_no_cgroup_behind_whatever_was_killed() {
    let host = Host::new();
    let seal = this_hosts_seal();
    if !has(&seal, &["cpu_limit"]) {
        return skip("seal, cgroups", "none can be made here");
    }
    let mut machine = host.start("killed", MachineLimits::default(), &["hold".to_owned()]);
    machine.await_word("holding");
    let groups = groups(&machine);
    assert!(!groups.is_empty() && groups.iter().all(|group| group.is_dir()), "{groups:?}");
    machine.keeper.kill().and_then(|()| machine.keeper.wait()).expect("killed");
    assert!(end_machine(&machine.folder));
    for group in groups {
        assert!(!group.exists(), "{} stayed", group.display());
    }
}

#[test]
fn seal_without_root_names_what_it_lacks() {
    if !nix::unistd::geteuid().is_root() {
        return skip("seal, another user", "this test isn't root, so it can't become somebody else");
    }
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("open to all");
    let program = folder.path().join("keeper");
    fs::copy(keeper().program, &program).expect("copied");
    let nobody = 65_534;
    let output =
        Command::new(&program).arg("--seal").current_dir("/").uid(nobody).gid(nobody).output().expect("it ran");
    let said = String::from_utf8_lossy(&output.stderr);
    let seal: Seal = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    println!("{seal:?}");
    let missing: Vec<&str> = seal.missing.iter().map(|gap| gap.part.as_str()).collect();
    assert!(missing.contains(&"user") && missing.contains(&"memory_limit"), "{missing:?}");
    assert!(has(&seal, &["capabilities", "no_new_privileges", "seccomp", "rlimits"]), "{seal:?}");
    assert!(seal.missing.iter().all(|gap| gap.why.contains("; ")), "each says what to do: {seal:?}");
}
