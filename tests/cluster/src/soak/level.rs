//! What a mesh at rest uses: processes, descriptors, devices, cgroups, folders, and the node's memory.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use tests_harness::Mesh;

/// Descriptors that a node may have more than before: connections of the moment.
const DESCRIPTORS_SPARE: usize = 24;
/// Memory that a node may have more than before, KiB: caches that were not full yet, and the allocator's own.
const MEMORY_SPARE_KIB: u64 = 96 << 10;

/// A count of what a mesh uses at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// Keepers, monitors and what else they started.
    pub processes: usize,
    /// The node's open files.
    pub descriptors: usize,
    /// The node's resident memory, KiB.
    pub memory_kib: u64,
    /// Network devices of this host's first namespace.
    pub devices: usize,
    /// Cgroups of the product.
    pub cgroups: usize,
    /// Folders of sandboxes and pooled clones.
    pub homes: usize,
}

impl Level {
    /// Looks at a mesh of one node.
    pub fn of(mesh: &Mesh) -> anyhow::Result<Self> {
        let names = mesh.node_names()?;
        let name = names.first().context("a mesh has a node")?;
        let pid = mesh.node(name)?.pid;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("can't read the node's status")?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory_kib = memory.and_then(|text| text.split_whitespace().next()?.parse().ok()).context("no VmRSS")?;
        let node = mesh.data().join(name);
        Ok(Self {
            processes: mesh.keepers_and_machines().len(),
            descriptors: entries(Path::new(&format!("/proc/{pid}/fd"))),
            memory_kib,
            devices: entries(Path::new("/sys/class/net")),
            cgroups: cgroups().len(),
            homes: ["sandboxes", "pool"].iter().map(|room| entries(&node.join(room))).sum(),
        })
    }

    /// Whether `self`, later, is no more than `before`, but for what may differ from moment to moment.
    pub fn is_back_to(&self, before: &Self) -> anyhow::Result<()> {
        ensure!(self.processes <= before.processes, "processes are left: {before:?}, then {self:?}");
        ensure!(self.homes <= before.homes, "folders are left: {before:?}, then {self:?}");
        ensure!(self.devices <= before.devices, "network devices are left: {before:?}, then {self:?}");
        ensure!(self.cgroups <= before.cgroups, "cgroups are left: {before:?}, then {self:?}");
        let descriptors = before.descriptors + DESCRIPTORS_SPARE;
        ensure!(self.descriptors <= descriptors, "descriptors are left open: {before:?}, then {self:?}");
        let memory_kib = before.memory_kib + MEMORY_SPARE_KIB;
        ensure!(self.memory_kib <= memory_kib, "the node's memory grows: {before:?}, then {self:?}");
        Ok(())
    }
}

/// The product's cgroups, in whichever hierarchies there are.
pub(crate) fn cgroups() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut rest = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((folder, depth)) = rest.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if !is_folder || depth > 5 {
                continue;
            }
            let path = entry.path();
            if path.to_string_lossy().contains("atoll") {
                found.insert(path.clone());
            }
            rest.push((path, depth + 1));
        }
    }
    found
}

fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, |entries| entries.flatten().count())
}
