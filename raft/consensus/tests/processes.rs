//! A group of three processes over QUIC: each may be killed with SIGKILL, and comes back on another port.
//!
//! A child is this program again, told by its environment which node it is. It reads orders from its standard input
//! and says on its standard output what came of them, a line each.
#![allow(clippy::print_stdout, reason = "a child process prints what it did for its parent")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, RwLock, mpsc};
use std::time::{Duration, Instant};

use fabric_quic::{Authority, Fabric, NodeIdentity, QuicConfig, QuicFabric};
use fabric_types::{NodeId, UnixMillis};
use raft_consensus::{Group, GroupName, GroupOptions, RaftHost, RaftHostConfig, StoreKind};
use raft_placement::region::Placement;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader as AsyncBufReader};

use support::{PATIENCE, command, node};

/// The folder of the node that a child is.
const CHILD_FOLDER: &str = "RAFT_CONSENSUS_PROCESS_FOLDER";
const MEMBERS: std::ops::RangeInclusive<u32> = 1..=3;
/// Snapshots while the test runs.
const OPTIONS: GroupOptions = GroupOptions { snapshot_every: 40, entries_kept: 10, ..GroupOptions::REGION };

type Addresses = BTreeMap<NodeId, SocketAddr>;

fn parse_addresses(text: &str) -> Addresses {
    let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.map(|(node, address)| (node.parse().expect("a node"), address.parse().expect("an address"))).collect()
}

/// One node of the group; without its environment it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_is_a_node() {
    let Ok(folder) = std::env::var(CHILD_FOLDER).map(PathBuf::from) else { return };
    let identity = NodeIdentity::load(&folder.join("identity")).expect("an identity");
    let fabric = QuicFabric::bind(QuicConfig { listen: ([127, 0, 0, 1], 0).into(), identity }).expect("a fabric");
    println!("listens {}", fabric.local_address());

    let addresses = Arc::new(RwLock::new(Addresses::new()));
    let known = Arc::clone(&addresses);
    let host = RaftHost::start(RaftHostConfig {
        data_dir: folder,
        store: StoreKind::Sled,
        fabric,
        resolve: Arc::new(move |node| known.read().expect("no panic").get(node).copied()),
    });
    let host = host.await.expect("a host");
    let group = host.open_group::<Placement>(GroupName::placement(&node(1).region()), OPTIONS).await.expect("a group");
    let mut orders = AsyncBufReader::new(tokio::io::stdin()).lines();
    while let Some(order) = orders.next_line().await.expect("an order") {
        obey(&order, &group, &addresses).await;
    }
}

async fn obey(order: &str, group: &Group<Placement>, addresses: &RwLock<Addresses>) {
    let (verb, rest) = order.split_once(' ').unwrap_or((order, ""));
    match verb {
        "peers" => {
            let peers = parse_addresses(rest);
            addresses.write().expect("no panic").clone_from(&peers);
            group.initialize(peers).await.expect("begun");
            println!("knows");
        }
        "propose" => {
            let number = rest.parse().expect("a number");
            match group.propose(command(number), PATIENCE).await {
                Ok(_) => println!("acknowledged {number}"),
                Err(error) => println!("failed {number}: {error}"),
            }
        }
        "status" => {
            let leader = group.leader().borrow().as_ref().map_or("none".to_owned(), ToString::to_string);
            println!("status {leader} {}", group.state().borrow().nodes().len());
        }
        _ => panic!("an unknown order: {order}"),
    }
}

/// A child, as its parent has it.
struct Member {
    process: Child,
    orders: ChildStdin,
    lines: mpsc::Receiver<String>,
    address: SocketAddr,
}

impl Member {
    fn start(folder: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "child_that_is_a_node", "--nocapture"])
            .env(CHILD_FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child");
        let orders = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let (say, lines) = mpsc::channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
        let mut member = Self { process, orders, lines, address: ([0, 0, 0, 0], 0).into() };
        member.address = member.hears("listens ").parse().expect("an address");
        member
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("it lives");
    }

    /// The rest of the next line that begins so.
    fn hears(&self, begin: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line '{begin}...'"));
            if let Some(rest) = line.strip_prefix(begin) {
                return rest.to_owned();
            }
            assert!(!line.starts_with("failed"), "{line}");
        }
    }

    fn status(&mut self) -> (String, usize) {
        self.order("status");
        let status = self.hears("status ");
        let (leader, nodes) = status.split_once(' ').expect("two words");
        (leader.to_owned(), nodes.parse().expect("a number"))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // SIGKILL, and gone when this returns. One that has ended already is no error.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

struct Mesh {
    folder: TempDir,
    members: BTreeMap<u32, Member>,
    written: u32,
}

impl Mesh {
    fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let authority = Authority::generate().expect("an authority");
        for number in MEMBERS {
            let identity = authority.issue(&node(number), UnixMillis(4_000_000_000_000)).expect("an identity");
            identity.save(&folder.path().join(node(number).as_str()).join("identity")).expect("saved");
        }
        let mut mesh = Self { folder, members: BTreeMap::new(), written: 0 };
        MEMBERS.for_each(|number| mesh.run(number));
        mesh.introduce();
        mesh
    }

    fn run(&mut self, number: u32) {
        self.members.insert(number, Member::start(&self.folder.path().join(node(number).as_str())));
    }

    /// Tells all where all are.
    fn introduce(&mut self) {
        let pairs = self.members.iter().map(|(number, member)| format!("{}={}", node(*number), member.address));
        let order = format!("peers {}", pairs.collect::<Vec<_>>().join(" "));
        self.members.values_mut().for_each(|member| member.order(&order));
        self.members.values().for_each(|member| drop(member.hears("knows")));
    }

    /// Commits some commands more, each at the next member in turn.
    fn write(&mut self, count: u32) {
        for _ in 0..count {
            self.written += 1;
            let at = self.written as usize % self.members.len();
            let member = self.members.values_mut().nth(at).expect("below their number");
            member.order(&format!("propose {}", self.written));
            assert_eq!(member.hears("acknowledged "), self.written.to_string());
        }
    }

    /// Who leads, once all agree and hold every acknowledged command.
    fn agreed(&mut self) -> u32 {
        let begun = Instant::now();
        loop {
            let written = self.written as usize;
            let stati: Vec<_> = self.members.values_mut().map(Member::status).collect();
            let leader =
                MEMBERS.into_iter().find(|number| stati.iter().all(|(leader, _)| *leader == node(*number).as_str()));
            if let Some(leader) = leader.filter(|leader| self.members.contains_key(leader))
                && stati.iter().all(|(_, nodes)| *nodes == written)
            {
                return leader;
            }
            assert!(begun.elapsed() < PATIENCE, "{written} were acknowledged; leader and commands: {stati:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn three_processes_survive_a_killed_leader_that_returns_on_another_port() {
    let mut mesh = Mesh::start();
    mesh.write(60);
    for _ in 0..2 {
        let leader = mesh.agreed();
        let killed = mesh.members.remove(&leader).expect("it runs");
        let before = killed.address;
        drop(killed);
        let begun = Instant::now();
        mesh.write(1);
        println!("a command was acknowledged {:?} after the leader's death", begun.elapsed());
        mesh.write(59);
        assert_ne!(mesh.agreed(), leader);

        mesh.run(leader);
        assert_ne!(mesh.members[&leader].address, before, "the test wants another port");
        mesh.introduce();
        mesh.write(9);
        mesh.agreed();
    }
}

#[test]
fn three_processes_that_are_all_killed_at_once_lose_nothing_acknowledged() {
    let mut mesh = Mesh::start();
    mesh.write(90);
    for member in mesh.members.values_mut() {
        member.process.kill().expect("killed");
    }
    mesh.members.clear();
    MEMBERS.for_each(|number| mesh.run(number));
    mesh.introduce();
    mesh.agreed();
    mesh.write(9);
    mesh.agreed();
}
