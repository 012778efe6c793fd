//! What this host has, divided by the nodes on it.

use std::path::Path;

use anyhow::Context as _;
use fabric_types::{Capacity, NodeLimits, Overcommit};

const KIB_PER_MIB: u64 = 1024;
const BYTES_PER_GIB: u64 = 1 << 30;

/// The limits of each of `nodes` nodes on this host: processors (at least one each), memory, and the free disk of the
/// data folder.
pub(crate) fn share(data: &Path, nodes: usize) -> anyhow::Result<NodeLimits> {
    let nodes = nodes as u64;
    let vcpus = std::thread::available_parallelism().context("can't count processors")?.get() as u64;
    let memory_mib = memory_total_kib().context("can't read MemTotal in /proc/meminfo")? / KIB_PER_MIB;
    let stat =
        nix::sys::statvfs::statvfs(data).with_context(|| format!("can't measure the disk of {}", data.display()))?;
    let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
    let physical = Capacity {
        vcpus: (vcpus / nodes).max(1),
        memory_mib: memory_mib / nodes,
        disk_gib: free / BYTES_PER_GIB / nodes,
    };
    Ok(NodeLimits { physical, overcommit: Overcommit::default(), sandboxes: None })
}

fn memory_total_kib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
}
