//! Measures commits of a group whose every entry is synced to disk: `cargo run --release -p raft-consensus --example
//! commit_latency [FOLDER]`. Members are in this process, over the fabric's in-memory double; without FOLDER a
//! temporary one is used, which may be in memory and then says nothing about a disk.
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use fabric_quic::{Fabric, MemoryNetwork};
use fabric_types::{Capacity, NodeId, NodeLimits, Overcommit};
use raft_consensus::{Group, GroupName, GroupOptions, RaftHost, RaftHostConfig, StoreKind};
use raft_placement::region::{Command, Placement};
use tokio::time::Instant;

/// Commits that each client makes, and how long one may take.
const COMMITS_PER_CLIENT: u32 = 200;
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let temporary = tempfile::tempdir()?;
    let folder = std::env::args().nth(1).map_or_else(|| temporary.path().to_owned(), Into::into);
    println!("store  members  clients  commits/s  p50 ms  p95 ms  p99 ms");
    for kind in [StoreKind::Sled, StoreKind::Redb] {
        for members in [1, 3] {
            let run = folder.join(format!("commit-latency-{kind}-{members}"));
            measure(kind, members, &run).await?;
            std::fs::remove_dir_all(run)?;
        }
    }
    Ok(())
}

async fn measure(kind: StoreKind, members: u32, folder: &Path) -> anyhow::Result<()> {
    let network = MemoryNetwork::new();
    let (mut hosts, mut groups, mut voters) = (Vec::new(), Vec::new(), BTreeMap::new());
    for number in 1..=members {
        let node: NodeId = format!("fra-{number}").parse()?;
        let fabric = network.join(node.clone());
        voters.insert(node.clone(), fabric.local_address());
        let data_dir = folder.join(node.as_str());
        let resolve = RaftHostConfig::resolve_nothing();
        let host = RaftHost::start(RaftHostConfig { data_dir, store: kind, fabric, resolve }).await?;
        groups.push(host.open_group::<Placement>(GroupName::parse("placement-fra")?, GroupOptions::REGION).await?);
        hosts.push(host);
    }
    groups[0].initialize(voters).await?;
    groups[0].propose(command(0), PATIENCE).await?;
    let leader = groups.iter().find(|group| group.is_leader()).unwrap_or(&groups[0]).clone();
    for clients in [1, 16, 64] {
        let begun = Instant::now();
        let clients = (0..clients).map(|client| tokio::spawn(write(leader.clone(), client)));
        let mut taken: Vec<Duration> = Vec::new();
        for client in clients.collect::<Vec<_>>() {
            taken.extend(client.await??);
        }
        let rate = taken.len() as f64 / begun.elapsed().as_secs_f64();
        taken.sort_unstable();
        let at = |percent: usize| taken[(taken.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
        let clients = taken.len() / COMMITS_PER_CLIENT as usize;
        println!("{kind:5}  {members:7}  {clients:7}  {rate:9.0}  {:6.2}  {:6.2}  {:6.2}", at(50), at(95), at(99));
    }
    for group in groups {
        group.shutdown().await;
    }
    drop(leader);
    for host in hosts {
        host.shutdown().await;
    }
    Ok(())
}

async fn write(group: Group<Placement>, client: u32) -> anyhow::Result<Vec<Duration>> {
    let mut taken = Vec::new();
    for number in 0..COMMITS_PER_CLIENT {
        let begun = Instant::now();
        group.propose(command(client * COMMITS_PER_CLIENT + number), PATIENCE).await?;
        taken.push(begun.elapsed());
    }
    Ok(taken)
}

/// One of a few hundred nodes, with other limits each time: every command changes something.
fn command(number: u32) -> Command {
    let node = NodeId::new(&"fra".parse().expect("a region"), number % 500 + 1);
    let physical = Capacity { vcpus: 4 + u64::from(number), memory_mib: 8192, disk_gib: 100 };
    Command::RegisterNode { node, limits: NodeLimits { physical, overcommit: Overcommit::default(), sandboxes: None } }
}
