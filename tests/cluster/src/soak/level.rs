//! What a mesh at rest uses: processes, descriptors, network ports, cgroups, folders, and the node's memory.
//!
//! All of it is the mesh's own: other meshes come and go on the same machine meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use tests_harness::{GuestNetwork, Mesh};

/// Descriptors that a node may have more than before: connections of the moment.
const DESCRIPTORS_SPARE: usize = 24;
/// Memory that a node may have more than before, KiB: caches that were not full yet, and the allocator's own.
const MEMORY_SPARE_KIB: u64 = 96 << 10;
/// How many times as many ports there may be: those given back are kept for other guests, up to twice as many as are
/// made ahead.
const PORTS_TIMES: usize = 2;

/// What a mesh uses at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// Keepers, monitors and what else they started.
    pub processes: usize,
    /// The node's open files.
    pub descriptors: usize,
    /// The node's resident memory, KiB.
    pub memory_kib: u64,
    /// Ports of its guests' network, with those made ahead.
    pub ports: usize,
    /// Ports that let something through: those of sandboxes alone.
    pub open_ports: usize,
    /// Machines' cgroups without a process, where this mesh's are made: those of a machine that is gone. A machine that
    /// lives, whosever it is, is in its own.
    pub lost_cgroups: BTreeSet<PathBuf>,
    /// Folders of sandboxes and pooled clones.
    pub homes: usize,
}

impl Level {
    /// Looks at a mesh of one node.
    pub fn of(mesh: &Mesh) -> anyhow::Result<Self> {
        let names = mesh.node_names()?;
        let name = names.first().context("a mesh has a node")?;
        let node = mesh.node(name)?;
        let pid = node.pid;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("can't read the node's status")?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory_kib = memory.and_then(|text| text.split_whitespace().next()?.parse().ok()).context("no VmRSS")?;
        let network = GuestNetwork::of(&node);
        let homes = homes(&mesh.data().join(name));
        let bases: BTreeSet<PathBuf> = homes.iter().flat_map(|home| bases(home)).collect();
        Ok(Self {
            processes: mesh.keepers_and_machines().len(),
            descriptors: entries(Path::new(&format!("/proc/{pid}/fd"))).len(),
            memory_kib,
            ports: network.as_ref().map_or(0, |network| network.ports),
            open_ports: network.as_ref().map_or(0, |network| network.open),
            lost_cgroups: bases.iter().flat_map(|base| without_process(base)).collect(),
            homes: homes.len(),
        })
    }

    /// Whether `self`, later, is no more than `before`, but for what may differ from moment to moment.
    pub fn is_back_to(&self, before: &Self) -> anyhow::Result<()> {
        ensure!(self.processes <= before.processes, "processes are left: {before:?}, then {self:?}");
        ensure!(self.homes <= before.homes, "folders are left: {before:?}, then {self:?}");
        ensure!(self.open_ports <= before.open_ports, "network ports stay open: {before:?}, then {self:?}");
        let ports = before.ports * PORTS_TIMES;
        ensure!(self.ports <= ports, "network ports are left: {before:?}, then {self:?}");
        let lost = self.lost_cgroups.difference(&before.lost_cgroups).next();
        ensure!(lost.is_none(), "cgroups are left, {lost:?} among them: {before:?}, then {self:?}");
        let descriptors = before.descriptors + DESCRIPTORS_SPARE;
        ensure!(self.descriptors <= descriptors, "descriptors are left open: {before:?}, then {self:?}");
        let memory_kib = before.memory_kib + MEMORY_SPARE_KIB;
        ensure!(self.memory_kib <= memory_kib, "the node's memory grows: {before:?}, then {self:?}");
        Ok(())
    }
}

fn homes(node: &Path) -> Vec<PathBuf> {
    ["sandboxes", "pool"].iter().flat_map(|room| entries(&node.join(room))).collect()
}

/// The groups in which the groups of a home's machine lie, as the machine's keeper noted them.
fn bases(home: &Path) -> Vec<PathBuf> {
    let record = fs::read_to_string(home.join("vm/seal.json")).unwrap_or_default();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap_or_default();
    let groups = record["groups"].as_array().into_iter().flatten().filter_map(|group| group.as_str());
    groups.filter_map(|group| Path::new(group).parent().map(Path::to_owned)).collect()
}

/// The machines' groups in which nothing runs.
fn without_process(base: &Path) -> Vec<PathBuf> {
    let is_machines = |group: &PathBuf| {
        group.is_dir() && group.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vm-"))
    };
    // What is gone since it was listed isn't left.
    let is_empty =
        |group: &PathBuf| fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| text.trim().is_empty());
    entries(base).into_iter().filter(is_machines).filter(is_empty).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest() -> Level {
        Level {
            processes: 8,
            descriptors: 50,
            memory_kib: 60 << 10,
            ports: 13,
            open_ports: 0,
            lost_cgroups: BTreeSet::new(),
            homes: 4,
        }
    }

    #[test]
    fn groups_of_machines_that_live_are_nobodys_loss() {
        let root = tests_harness::temporary_folder().expect("a folder");
        let (home, base) = (root.path().join("home"), root.path().join("base"));
        for (group, processes) in [("vm-mine", "12\n"), ("vm-anothers", "34\n"), ("vm-lost", ""), ("node", "")] {
            fs::create_dir_all(base.join(group)).expect("made");
            fs::write(base.join(group).join("cgroup.procs"), processes).expect("written");
        }
        fs::create_dir_all(home.join("vm")).expect("made");
        let record = serde_json::json!({"schema": 1, "groups": [base.join("vm-mine")]});
        fs::write(home.join("vm/seal.json"), record.to_string()).expect("written");
        assert_eq!(bases(&home), std::slice::from_ref(&base));
        assert_eq!(without_process(&base), [base.join("vm-lost")]);
        assert!(bases(root.path()).is_empty());
    }

    #[test]
    fn what_a_mesh_has_more_than_before_is_named() {
        let told = |change: fn(&mut Level)| {
            let mut later = rest();
            change(&mut later);
            later.is_back_to(&rest()).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(told(|_| ()), "");
        assert_eq!(told(|later| (later.ports, later.descriptors) = (26, 74)), "");
        assert!(told(|later| later.ports = 27).starts_with("network ports are left"));
        assert!(told(|later| later.open_ports = 1).starts_with("network ports stay open"));
        assert!(told(|later| later.lost_cgroups = BTreeSet::from(["vm-1".into()])).starts_with("cgroups are left"));
        assert!(told(|later| later.processes = 9).starts_with("processes are left"));
        assert!(told(|later| later.homes = 5).starts_with("folders are left"));
        let mut before = rest();
        before.lost_cgroups.insert("vm-1".into());
        assert!(before.is_back_to(&before).is_ok());
    }
}
