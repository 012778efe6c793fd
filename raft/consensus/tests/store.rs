//! What the stores promise: acknowledged writes survive power loss and SIGKILL, order is kept, and a failed flush
//! ends all trust.

#![allow(clippy::print_stdout, reason = "a child process prints what it did for its parent")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use fabric_quic::MemoryNetwork;
use fabric_types::NodeId;
use proptest::prelude::*;
use raft_consensus::{
    Backend, GroupName, HostError, Pair, RaftHost, RaftHostConfig, RedbBackend, Role, SledBackend, Store, StoreError,
    StoreHealth, StoreKind, VALUE_BYTES_MAX,
};
use raft_placement::region::Placement;
use tempfile::TempDir;

use support::{Cluster, OPTIONS, PATIENCE, command, node, until};

const KINDS: [StoreKind; 2] = [StoreKind::Sled, StoreKind::Redb];

fn open(kind: StoreKind, path: &Path) -> Store {
    Store::open(kind, path, &node(1)).expect("a store")
}

fn pair(key: u32, value: u32) -> Pair {
    (key.to_be_bytes().to_vec(), value.to_be_bytes().to_vec())
}

#[tokio::test]
async fn both_stores_read_ranges_in_order_and_remove_them() {
    for kind in KINDS {
        let folder = TempDir::new().expect("a folder");
        let store = open(kind, &folder.path().join("store"));
        store.insert((0..500).map(|key| pair(key, key)).collect()).expect("inserted");
        let key = |key: u32| key.to_be_bytes().to_vec();
        assert_eq!(store.range(&key(10), &key(13), 99).expect("a range"), [pair(10, 10), pair(11, 11), pair(12, 12)]);
        assert_eq!(store.range(&key(0), &key(500), 7).expect("a range").len(), 7);
        assert_eq!(store.last(&key(0), &key(400)).expect("an end"), Some(pair(399, 399)));
        store.remove(&key(0), &key(499)).expect("removed");
        assert_eq!(store.range(&key(0), &key(500), 99).expect("a range"), [pair(499, 499)]);
        let large = vec![(key(1), vec![0; VALUE_BYTES_MAX + 1])];
        assert!(matches!(store.insert(large), Err(StoreError::TooLarge { .. })));
        store.flush().await.expect("flushed");
    }
}

#[tokio::test]
async fn what_was_flushed_is_in_a_copy_of_the_files_made_at_that_moment() {
    for kind in KINDS {
        let folder = TempDir::new().expect("a folder");
        let store = open(kind, &folder.path().join("store"));
        for round in 0..10_u32 {
            store.insert((0..50).map(|key| pair(round * 50 + key, round)).collect()).expect("inserted");
            store.flush().await.expect("flushed");
            let copy = folder.path().join(format!("copy-{round}"));
            copy_folder(&folder.path().join("store"), &copy);
            let copied = open(kind, &copy);
            // The store's own marks come after these keys.
            let found = copied.range(&[0], &[0, 1], 10_000).expect("a range");
            let written: Vec<_> = (0..(round + 1) * 50).map(|key| pair(key, key / 50)).collect();
            assert!(found == written, "{kind}: {} of {} pairs after round {round}", found.len(), written.len());
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// A disk that loses power: of the writes since the last sync any may be lost and any may be there.
#[derive(Debug, Clone, Default)]
struct LossyDisk(Arc<Mutex<Disk>>);

#[derive(Debug, Clone, Default)]
struct Disk {
    synced: Vec<u8>,
    seen: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(length) => bytes.resize(*length, 0),
            Self::Bytes(at, written) => {
                bytes.resize(bytes.len().max(at + written.len()), 0);
                bytes[*at..at + written.len()].copy_from_slice(written);
            }
        }
    }
}

impl LossyDisk {
    fn change(&self, change: Change) {
        let mut disk = self.0.lock().expect("no panic");
        change.apply(&mut disk.seen);
        disk.unsynced.push(change);
    }

    /// The disk after a power loss; bit `n % 64` of `kept` says whether the n-th write since the last sync is there.
    fn after_power_loss(&self, kept: u64) -> Self {
        let disk = self.0.lock().expect("no panic");
        let mut bytes = disk.synced.clone();
        for (at, change) in disk.unsynced.iter().enumerate() {
            if kept >> (at % 64) & 1 == 1 {
                change.apply(&mut bytes);
            }
        }
        Self(Arc::new(Mutex::new(Disk { synced: bytes.clone(), seen: bytes, unsynced: vec![] })))
    }
}

impl redb::StorageBackend for LossyDisk {
    fn len(&self) -> Result<u64, std::io::Error> {
        Ok(self.0.lock().expect("no panic").seen.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        let at = usize::try_from(offset).expect("a small disk");
        out.copy_from_slice(&self.0.lock().expect("no panic").seen[at..at + out.len()]);
        Ok(())
    }
    fn set_len(&self, length: u64) -> Result<(), std::io::Error> {
        self.change(Change::Length(usize::try_from(length).expect("a small disk")));
        Ok(())
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        let mut disk = self.0.lock().expect("no panic");
        disk.synced = disk.seen.clone();
        disk.unsynced.clear();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.change(Change::Bytes(usize::try_from(offset).expect("a small disk"), data.to_vec()));
        Ok(())
    }
}

fn redb_on(disk: LossyDisk) -> RedbBackend {
    RedbBackend::over(redb::Database::builder().create_with_backend(disk).expect("a database")).expect("a store")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn redb_on_a_disk_that_loses_power_keeps_what_was_flushed_and_the_order_of_the_rest(
        steps in proptest::collection::vec((0u8..6, 0u32..40, 1u32..30), 1..40),
        kept in any::<u64>(),
    ) {
        let disk = LossyDisk::default();
        let backend = redb_on(disk.clone());
        let mut model: BTreeMap<u32, u32> = BTreeMap::new();
        let mut history = vec![model.clone()];
        let mut flushed = 0;
        for (step, (kind, from, count)) in steps.into_iter().enumerate() {
            let value = u32::try_from(step).expect("few steps");
            match kind {
                0 => {
                    backend.flush().expect("flushed");
                    flushed = history.len() - 1;
                    continue;
                }
                1 => {
                    backend.remove(&from.to_be_bytes(), &(from + count).to_be_bytes()).expect("removed");
                    model.retain(|key, _| !(from..from + count).contains(key));
                }
                _ => {
                    let pairs: Vec<_> = (from..from + count).map(|key| pair(key, value)).collect();
                    backend.insert(&pairs).expect("inserted");
                    model.extend((from..from + count).map(|key| (key, value)));
                }
            }
            history.push(model.clone());
        }
        let left = redb_on(disk.after_power_loss(kept)).range(&[0], &[1], 10_000).expect("a range");
        let is_left = |moment: &BTreeMap<u32, u32>| {
            left.iter().cloned().eq(moment.iter().map(|(key, value)| pair(*key, *value)))
        };
        prop_assert!(history[flushed..].iter().any(is_left), "none of the moments since the last flush");
    }
}

/// A backend whose flushes can be made to fail.
struct Failing {
    inner: SledBackend,
    fails: Arc<AtomicBool>,
}

impl Backend for Failing {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(key)
    }
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        self.inner.range(from, to, limit)
    }
    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<Pair>, StoreError> {
        self.inner.last(from, to)
    }
    fn insert(&self, pairs: &[Pair]) -> Result<(), StoreError> {
        self.inner.insert(pairs)
    }
    fn remove(&self, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        self.inner.remove(from, to)
    }
    fn flush(&self) -> Result<(), StoreError> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(StoreError::Io { action: "syncing", cause: "no space left on device".into() });
        }
        self.inner.flush()
    }
}

fn failing(path: &Path) -> (Store, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(false));
    let inner = SledBackend::open(path).expect("a store");
    (Store::over(Arc::new(Failing { inner, fails: Arc::clone(&fails) })), fails)
}

#[tokio::test]
async fn a_failed_flush_poisons_the_store_for_good() {
    let folder = TempDir::new().expect("a folder");
    let (store, fails) = failing(folder.path());
    store.insert(vec![pair(1, 1)]).expect("inserted");
    store.flush().await.expect("flushed");
    fails.store(true, Ordering::SeqCst);
    assert!(matches!(store.flush().await, Err(StoreError::Poisoned { .. })));
    // The kernel would say that all is well from here on.
    fails.store(false, Ordering::SeqCst);
    let poisoned = store.flush().await.expect_err("for good");
    assert!(poisoned.to_string().contains("no space left on device"), "{poisoned}");
    assert!(matches!(store.get(&[1]), Err(StoreError::Poisoned { .. })));
    assert!(matches!(store.insert(vec![pair(2, 2)]), Err(StoreError::Poisoned { .. })));
    assert!(matches!(&*store.health().borrow(), StoreHealth::Poisoned { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_disk_fails_stops_voting_says_so_and_the_others_go_on() {
    let folder = TempDir::new().expect("a folder");
    let (store, fails) = failing(&folder.path().join("store"));
    let mut cluster = Cluster::open(0, OPTIONS, StoreKind::Sled).await;
    cluster.start_over(1, store).await;
    cluster.start(2).await;
    cluster.start(3).await;
    cluster.initialize(1..=3).await;
    cluster.leader().await;
    cluster.propose(1, 1).await.expect("written");

    fails.store(true, Ordering::SeqCst);
    let sick = node(1);
    // The next entry that it is sent is the last that it sees.
    cluster.propose(2, 2).await.expect("two of three suffice");
    let metrics = until("the sick member has stopped", || async {
        Some(cluster.metrics(1)).filter(|metrics| metrics.failed.is_some())
    })
    .await;
    assert_eq!(metrics.role, Role::Stopped);
    let failed = metrics.failed.expect("a reason");
    assert!(failed.contains("poisoned"), "{failed}");
    assert!(matches!(&*cluster.running[&sick].host.store_health().borrow(), StoreHealth::Poisoned { .. }));
    let term = cluster.metrics(2).term;
    cluster.leader_among(|member| *member != sick).await;
    cluster.propose(3, 3).await.expect("two of three suffice");
    assert!(cluster.metrics(2).term >= term);
    let state = Arc::clone(&cluster.group(1).state().borrow());
    assert!(!state.nodes().contains_key(&node(3)), "it goes on applying");
}

async fn host(kind: StoreKind, folder: &Path, node: NodeId) -> Result<RaftHost, HostError> {
    RaftHost::start(RaftHostConfig {
        data_dir: folder.to_owned(),
        store: kind,
        fabric: MemoryNetwork::new().join(node),
        resolve: RaftHostConfig::resolve_nothing(),
    })
    .await
}

#[tokio::test]
async fn a_store_of_another_node_kind_or_schema_is_refused_with_a_sentence() {
    let folder = TempDir::new().expect("a folder");
    host(StoreKind::Sled, folder.path(), node(1)).await.expect("a host").shutdown().await;

    let foreign = host(StoreKind::Sled, folder.path(), node(2)).await.err().expect("another node's").to_string();
    assert!(foreign.contains("belongs to node fra-1, not to fra-2"), "{foreign}");
    let other = host(StoreKind::Redb, folder.path(), node(1)).await.err().expect("another kind").to_string();
    assert!(other.contains("holds a sled store"), "{other}");

    let path = folder.path().join("raft-sled");
    let backend = SledBackend::open(&path).expect("a store");
    backend.insert(&[(b"\0schema".to_vec(), 7_u32.to_be_bytes().to_vec())]).expect("inserted");
    backend.flush().expect("flushed");
    drop(backend);
    let newer = host(StoreKind::Sled, folder.path(), node(1)).await.err().expect("newer").to_string();
    assert!(newer.contains("has schema 7; this program knows schemas 1 to 1"), "{newer}");
}

#[test]
fn a_store_that_is_just_being_closed_is_waited_for() {
    for kind in [StoreKind::Sled, StoreKind::Redb] {
        let folder = TempDir::new().expect("a folder");
        let open = open(kind, folder.path());
        let closing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(open);
        });
        self::open(kind, folder.path());
        closing.join().expect("closed");
    }
}

/// Where the child below writes, and on which store. Without them it does nothing.
const CHILD_FOLDER: &str = "RAFT_CONSENSUS_CHILD_FOLDER";
const CHILD_KIND: &str = "RAFT_CONSENSUS_CHILD_KIND";

/// The process that the tests below kill: it writes one command after another and prints each that is acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_writes_until_it_is_killed() {
    let (Ok(folder), Ok(kind)) = (std::env::var(CHILD_FOLDER), std::env::var(CHILD_KIND)) else { return };
    let (_host, group) = alone(kind.parse().expect("a kind"), Path::new(&folder)).await;
    let begin = u32::try_from(group.state().borrow().nodes().len()).expect("few nodes");
    // More than its parent waits for, and in all its lives fewer than a region may have.
    for number in begin + 1..=begin + 150 {
        group.propose(command(number), PATIENCE).await.expect("written");
        println!("acknowledged {number}");
    }
}

async fn alone(kind: StoreKind, folder: &Path) -> (RaftHost, raft_consensus::Group<Placement>) {
    let host = host(kind, folder, node(1)).await.expect("a host");
    let options = raft_consensus::GroupOptions { snapshot_every: 50, entries_kept: 5, ..OPTIONS };
    let group = host.open_group::<Placement>(GroupName::catalog(), options).await.expect("a group");
    group.initialize([(node(1), ([127, 1, 0, 1], 7).into())].into()).await.expect("begun");
    group.read_barrier(PATIENCE).await.expect("it leads");
    (host, group)
}

async fn survives_sigkill(kind: StoreKind) {
    let folder = TempDir::new().expect("a folder");
    let mut last = 0;
    // After how many more acknowledgements, and how much later: in the middle of something else each time.
    for (more, delay_ms) in [(0, 3), (10, 1), (25, 7), (45, 4), (60, 2)] {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
            .envs([(CHILD_FOLDER, folder.path().as_os_str()), (CHILD_KIND, kind.as_str().as_ref())])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (acknowledge, acknowledged) = mpsc::channel();
        let reading = std::thread::spawn(move || {
            let lines = lines.map_while(Result::ok);
            let mut numbers = lines.filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<u32>().ok());
            numbers.try_for_each(|number| acknowledge.send(number))
        });
        for _ in 0..=more {
            last = acknowledged.recv_timeout(PATIENCE).expect("the child goes on");
        }
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        child.kill().expect("killed");
        child.wait().expect("ended");
        last = acknowledged.iter().max().unwrap_or(last);
        reading.join().expect("no panic").expect("all were received");

        let (host, group) = alone(kind, folder.path()).await;
        let state = Arc::clone(&group.state().borrow());
        let lost: Vec<_> = (1..=last).filter(|number| !state.nodes().contains_key(&node(*number))).collect();
        assert!(lost.is_empty(), "{kind} lost {lost:?} of {last} acknowledged commands");
        group.shutdown().await;
        drop(group);
        host.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_command_is_lost_by_killing_a_member_on_sled() {
    survives_sigkill(StoreKind::Sled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_command_is_lost_by_killing_a_member_on_redb() {
    survives_sigkill(StoreKind::Redb).await;
}
