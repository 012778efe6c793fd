//! From what a host's cgroups are and what a machine may use to the plan of writes: pure functions.
//!
//! Sources: Documentation/admin-guide/cgroup-v1/{memory,blkio-controller,pids}.rst, cgroup-v2.rst, scheduler/sched-bwc.rst.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::parts::Part;
use crate::MachineLimits;

/// Folder of all machines' groups, below the group that the node runs in.
pub(super) const OURS: &str = "atoll";
/// Where a node moves to in version 2, since a group with processes can't give controllers to its children.
pub(super) const NODE_LEAF: &str = "atoll-node";
/// Period of processor time, microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;
/// Least quota that the kernel takes, microseconds.
const QUOTA_US_MIN: u64 = 1_000;
/// A weight of 100 in version 1's shares.
const SHARES_EACH_100: u64 = 1024;

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Controller {
    Memory,
    Cpu,
    Pids,
    Io,
}

impl Controller {
    pub(super) const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::Pids, Self::Io];

    fn v1(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
            Self::Io => "blkio",
        }
    }

    pub(super) fn v2(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
            Self::Io => "io",
        }
    }

    fn part(self) -> Part {
        match self {
            Self::Memory => Part::MemoryLimit,
            Self::Cpu => Part::CpuLimit,
            Self::Pids => Part::PidsLimit,
            Self::Io => Part::IoLimit,
        }
    }
}

/// Which interface a controller has on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// Where one controller's groups are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) version: Version,
    /// The group below which ours are made.
    pub(super) base: PathBuf,
}

/// What a host's cgroups are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) places: BTreeMap<Controller, Place>,
    /// The disk under the machine's files, as `major:minor`; none if there isn't one.
    pub(super) disk: Option<String>,
}

/// One file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) file: PathBuf,
    pub(super) value: String,
    /// What is missing if it fails; none for a write that only makes another stronger.
    pub(super) part: Option<Part>,
}

/// What to do, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Controllers to hand down: `cgroup.subtree_control`, first the upper one.
    pub(super) hand_down: Vec<Write>,
    /// The machine's groups.
    pub(super) groups: Vec<PathBuf>,
    /// Limits, within those.
    pub(super) writes: Vec<Write>,
    /// What this host has no controller for.
    pub(super) gaps: Vec<(Part, String)>,
    /// What counts the kills for want of memory.
    pub(super) oom: Option<PathBuf>,
}

/// Where each controller lies, from `/proc/self/mountinfo`, `/proc/self/cgroup` and, for version 2, the controllers of
/// a group.
pub(super) fn places(mountinfo: &str, own: &str, controllers: impl Fn(&Path) -> String) -> BTreeMap<Controller, Place> {
    let mut found = BTreeMap::new();
    for mount in mountinfo.lines().filter_map(Mount::parse) {
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(names), Some(path)) = (fields.next(), fields.next()) else { continue };
            match mount.kind {
                "cgroup" => {
                    let names: Vec<&str> = names.split(',').collect();
                    for controller in Controller::ALL {
                        let name = controller.v1();
                        if names.contains(&name) && mount.options.split(',').any(|option| option == name) {
                            let base = mount.group(path).join(OURS);
                            found.insert(controller, Place { version: Version::One, base });
                        }
                    }
                }
                "cgroup2" if names.is_empty() => {
                    let group = mount.group(path);
                    let group = match group.parent() {
                        Some(parent) if group.ends_with(NODE_LEAF) => parent.to_owned(),
                        _ => group,
                    };
                    let offered = controllers(&group);
                    for controller in Controller::ALL {
                        if offered.split_whitespace().any(|name| name == controller.v2()) {
                            let place = Place { version: Version::Two, base: group.join(OURS) };
                            found.entry(controller).or_insert(place);
                        }
                    }
                }
                _ => {}
            }
        }
    }
    found
}

struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// A line of mountinfo (proc(5)): `36 35 98:0 /root /point rw - kind source options`.
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        Some(Self { root, point, kind: after.next()?, options: after.nth(1)? })
    }

    /// A group of `/proc/self/cgroup` as a folder: within a container the mount's root is the container's group.
    fn group(&self, path: &str) -> PathBuf {
        let within = path.strip_prefix(self.root).unwrap_or(path);
        Path::new(self.point).join(within.trim_start_matches('/'))
    }
}

/// The plan for a machine whose groups are called `name`.
pub(super) fn plan(facts: &Facts, limits: &MachineLimits, name: &str) -> Plan {
    let mut plan = Plan::default();
    for controller in Controller::ALL {
        let Some(place) = facts.places.get(&controller) else {
            let why = format!("this host offers no cgroup controller '{}'", controller.v2());
            if controller == Controller::Memory {
                plan.gaps.push((Part::NoSwap, why.clone()));
            }
            plan.gaps.push((controller.part(), why));
            continue;
        };
        let group = place.base.join(name);
        if place.version == Version::Two {
            let file = |folder: &Path| folder.join("cgroup.subtree_control");
            let value = format!("+{}", controller.v2());
            for folder in place.base.parent().into_iter().chain([place.base.as_path()]) {
                plan.hand_down.push(Write { file: file(folder), value: value.clone(), part: Some(controller.part()) });
            }
        }
        if !plan.groups.contains(&group) {
            plan.groups.push(group.clone());
        }
        let mut writes = Writes { group: &group, part: controller.part(), into: &mut plan.writes };
        match (controller, place.version) {
            (Controller::Memory, version) => {
                memory(&mut writes, version, limits);
                let counter = if version == Version::One { "memory.oom_control" } else { "memory.events" };
                plan.oom = Some(group.join(counter));
            }
            (Controller::Cpu, version) => cpu(&mut writes, version, limits),
            (Controller::Pids, _) => {
                if let Some(pids) = limits.pids {
                    writes.add("pids.max", pids.to_string());
                }
            }
            (Controller::Io, version) => match (&facts.disk, limits.io_bytes_per_second) {
                (Some(disk), Some(bytes)) => io(&mut writes, version, disk, bytes),
                (None, _) => {
                    let why = "the file system of the machines' files has no disk of its own".to_owned();
                    plan.gaps.push((Part::IoLimit, why));
                }
                (Some(_), None) => {}
            },
        }
    }
    plan
}

struct Writes<'a> {
    group: &'a Path,
    part: Part,
    into: &'a mut Vec<Write>,
}

impl Writes<'_> {
    fn add(&mut self, file: &str, value: String) {
        self.add_for(Some(self.part), file, value);
    }

    fn add_for(&mut self, part: Option<Part>, file: &str, value: String) {
        self.into.push(Write { file: self.group.join(file), value, part });
    }
}

fn memory(writes: &mut Writes<'_>, version: Version, limits: &MachineLimits) {
    match version {
        Version::One => {
            writes.add_for(Some(Part::NoSwap), "memory.swappiness", "0".to_owned());
            if let Some(bytes) = limits.memory_bytes {
                writes.add("memory.limit_in_bytes", bytes.to_string());
                // Memory and swap together: absent where the kernel counts no swap, and swappiness is 0 anyway.
                writes.add_for(None, "memory.memsw.limit_in_bytes", bytes.to_string());
            }
        }
        Version::Two => {
            writes.add_for(Some(Part::NoSwap), "memory.swap.max", "0".to_owned());
            if let Some(bytes) = limits.memory_bytes {
                writes.add("memory.max", bytes.to_string());
            }
        }
    }
}

fn cpu(writes: &mut Writes<'_>, version: Version, limits: &MachineLimits) {
    let quota_us = limits.cpu_millis.map(|millis| (u64::from(millis) * PERIOD_US / 1000).max(QUOTA_US_MIN));
    match version {
        Version::One => {
            if let Some(weight) = limits.cpu_weight {
                let shares = (u64::from(weight) * SHARES_EACH_100 / 100).clamp(2, 262_144);
                writes.add("cpu.shares", shares.to_string());
            }
            if let Some(quota_us) = quota_us {
                writes.add("cpu.cfs_period_us", PERIOD_US.to_string());
                writes.add("cpu.cfs_quota_us", quota_us.to_string());
            }
        }
        Version::Two => {
            if let Some(weight) = limits.cpu_weight {
                writes.add("cpu.weight", weight.clamp(1, 10_000).to_string());
            }
            if let Some(quota_us) = quota_us {
                writes.add("cpu.max", format!("{quota_us} {PERIOD_US}"));
            }
        }
    }
}

fn io(writes: &mut Writes<'_>, version: Version, disk: &str, bytes: u64) {
    match version {
        Version::One => {
            writes.add("blkio.throttle.read_bps_device", format!("{disk} {bytes}"));
            writes.add("blkio.throttle.write_bps_device", format!("{disk} {bytes}"));
        }
        Version::Two => writes.add("io.max", format!("{disk} rbps={bytes} wbps={bytes}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/pids rw,relatime shared:7 - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";
    const V1_OWN: &str = "4:memory:/system/node\n3:pids:/\n2:cpu,cpuacct:/x\n1:name=systemd:/y\n0::/\n";

    fn all() -> MachineLimits {
        MachineLimits {
            memory_bytes: Some(1 << 30),
            cpu_weight: Some(200),
            cpu_millis: Some(1500),
            pids: Some(64),
            io_bytes_per_second: Some(5_000_000),
        }
    }

    fn lines(plan: &Plan) -> Vec<String> {
        plan.hand_down.iter().chain(&plan.writes).map(|w| format!("{} {}", w.file.display(), w.value)).collect()
    }

    #[test]
    fn version_1_is_found_below_the_groups_that_the_node_runs_in() {
        let found = places(V1, V1_OWN, |_| "hugetlb".to_owned());
        let base = |controller| found[&controller].base.display().to_string();
        assert_eq!(base(Controller::Memory), "/sys/fs/cgroup/memory/system/node/atoll");
        assert_eq!(base(Controller::Cpu), "/sys/fs/cgroup/cpu,cpuacct/x/atoll");
        assert_eq!(base(Controller::Pids), "/sys/fs/cgroup/pids/atoll");
        assert!(!found.contains_key(&Controller::Io) && found.values().all(|place| place.version == Version::One));
    }

    #[test]
    fn version_2_is_found_beside_the_nodes_leaf_and_within_a_container() {
        let mounts = "30 24 0:26 /docker/7 /sys/fs/cgroup rw - cgroup2 cgroup rw,nsdelegate\n";
        for own in ["0::/docker/7\n", "0::/docker/7/atoll-node\n"] {
            let found = places(mounts, own, |group| {
                assert_eq!(group, Path::new("/sys/fs/cgroup"));
                "cpu io memory pids".to_owned()
            });
            assert_eq!(found.len(), 4);
            assert!(found.values().all(|place| place.base == Path::new("/sys/fs/cgroup/atoll")));
        }
    }

    #[test]
    fn a_hybrid_host_takes_each_controller_where_it_is() {
        let found = places(V1, V1_OWN, |_| "io pids".to_owned());
        assert_eq!(found[&Controller::Io].version, Version::Two);
        assert_eq!(found[&Controller::Pids].version, Version::One);
    }

    #[test]
    fn version_1_writes_every_limit() {
        let place = |name: &str| Place { version: Version::One, base: Path::new("/c").join(name).join("atoll") };
        let places = [
            (Controller::Memory, place("memory")),
            (Controller::Cpu, place("cpu")),
            (Controller::Pids, place("pids")),
            (Controller::Io, place("blkio")),
        ];
        let facts = Facts { places: places.into_iter().collect(), disk: Some("254:0".to_owned()) };
        let plan = plan(&facts, &all(), "vm-1");
        assert_eq!(
            lines(&plan),
            [
                "/c/memory/atoll/vm-1/memory.swappiness 0",
                "/c/memory/atoll/vm-1/memory.limit_in_bytes 1073741824",
                "/c/memory/atoll/vm-1/memory.memsw.limit_in_bytes 1073741824",
                "/c/cpu/atoll/vm-1/cpu.shares 2048",
                "/c/cpu/atoll/vm-1/cpu.cfs_period_us 100000",
                "/c/cpu/atoll/vm-1/cpu.cfs_quota_us 150000",
                "/c/pids/atoll/vm-1/pids.max 64",
                "/c/blkio/atoll/vm-1/blkio.throttle.read_bps_device 254:0 5000000",
                "/c/blkio/atoll/vm-1/blkio.throttle.write_bps_device 254:0 5000000",
            ]
        );
        assert_eq!(plan.groups.len(), 4);
        assert!(plan.gaps.is_empty());
        assert_eq!(plan.oom.as_deref(), Some(Path::new("/c/memory/atoll/vm-1/memory.oom_control")));
    }

    #[test]
    fn version_2_hands_controllers_down_and_writes_every_limit_in_one_group() {
        let place = Place { version: Version::Two, base: "/c/unit/atoll".into() };
        let places = Controller::ALL.map(|controller| (controller, place.clone()));
        let facts = Facts { places: places.into_iter().collect(), disk: Some("8:0".to_owned()) };
        let plan = plan(&facts, &all(), "vm-1");
        assert_eq!(plan.groups, [Path::new("/c/unit/atoll/vm-1")]);
        let lines = lines(&plan);
        assert_eq!(
            lines[..2],
            ["/c/unit/cgroup.subtree_control +memory", "/c/unit/atoll/cgroup.subtree_control +memory"]
        );
        assert_eq!(
            lines[8..],
            [
                "/c/unit/atoll/vm-1/memory.swap.max 0",
                "/c/unit/atoll/vm-1/memory.max 1073741824",
                "/c/unit/atoll/vm-1/cpu.weight 200",
                "/c/unit/atoll/vm-1/cpu.max 150000 100000",
                "/c/unit/atoll/vm-1/pids.max 64",
                "/c/unit/atoll/vm-1/io.max 8:0 rbps=5000000 wbps=5000000",
            ]
        );
    }

    #[test]
    fn what_a_host_lacks_is_named_and_what_is_not_asked_for_is_not_written() {
        let plan = plan(&Facts::default(), &all(), "vm-1");
        let parts: Vec<Part> = plan.gaps.iter().map(|(part, _)| *part).collect();
        assert_eq!(parts, [Part::NoSwap, Part::MemoryLimit, Part::CpuLimit, Part::PidsLimit, Part::IoLimit]);
        let place = Place { version: Version::Two, base: "/c/atoll".into() };
        let facts = Facts { places: [(Controller::Cpu, place)].into_iter().collect(), disk: None };
        assert!(super::plan(&facts, &MachineLimits::default(), "vm-1").writes.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_places_or_none(mounts in ".{0,300}", own in ".{0,100}") {
            let _ = places(&mounts, &own, |_| String::new());
        }
    }
}
