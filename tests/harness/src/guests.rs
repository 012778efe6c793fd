//! A node's guest network as the kernel tells of it: found through the node's own thread in it, so that what another
//! mesh has on the same machine is never taken for this one's.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::process::Process;

/// Where namespaces have names, ip-netns(8).
const NAMESPACES: &str = "/run/netns";

/// One node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNetwork {
    /// The name of its namespace, and of the device that it is reached through.
    pub name: String,
    /// Ports: those of guests, and those made ahead.
    pub ports: usize,
    /// Ports that let something through.
    pub open: usize,
}

impl GuestNetwork {
    /// That of a node's process; `None` where guests have no network of taps.
    pub fn of(node: &Process) -> Option<Self> {
        let own = inode(Path::new("/proc/self/ns/net"))?;
        let tasks = fs::read_dir(format!("/proc/{}/task", node.pid)).ok()?.flatten().map(|task| task.path());
        let mut elsewhere = tasks.filter_map(|task| Some((inode(&task.join("ns/net"))?, task)));
        elsewhere.find_map(|(namespace, task)| {
            let name = (namespace != own).then(|| name_of(namespace))??;
            let devices = fs::read_to_string(task.join("net/dev")).ok()?;
            let routes = fs::read_to_string(task.join("net/route")).ok()?;
            Some(Self { name, ports: ports(&devices), open: open(&routes) })
        })
    }

    /// What is there of it on this machine, by its name.
    pub(crate) fn left(name: &str) -> Vec<String> {
        let device = Path::new("/sys/class/net").join(name);
        let namespace = Path::new(NAMESPACES).join(name);
        let device = device.exists().then(|| format!("network device {name}"));
        let namespace = namespace.exists().then(|| format!("network namespace {name}"));
        device.into_iter().chain(namespace).collect()
    }
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|about| about.ino())
}

fn name_of(namespace: u64) -> Option<String> {
    let named = fs::read_dir(NAMESPACES).ok()?.flatten().map(|entry| entry.path());
    let own = |path: &PathBuf| inode(path) == Some(namespace);
    let path = named.into_iter().find(own)?;
    path.file_name()?.to_str().filter(|name| name.starts_with("atoll-")).map(str::to_owned)
}

/// The taps in a table of devices, proc_pid_net(5).
fn ports(devices: &str) -> usize {
    devices.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| is_port(name.trim())).count()
}

/// The taps with a route in a table of routes: its first column is the device.
fn open(routes: &str) -> usize {
    routes.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| is_port(name)).count()
}

fn is_port(name: &str) -> bool {
    name.strip_prefix("tap").is_some_and(|number| number.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_taps_and_the_open_ones_have_a_route() {
        let devices =
            "Inter-|   Receive\n face |bytes\n    lo:  0 0\nuplink: 10 1\n  tap0: 5 1\ntap12:0 0\ntape: 1 1\n";
        assert_eq!(ports(devices), 2);
        let routes = "Iface\tDestination\tGateway\nuplink\t00000000\tDDF77F64\ntap0\t02006064\t00000000\n";
        assert_eq!(open(routes), 1);
        assert_eq!((ports(""), open("")), (0, 0));
    }

    #[test]
    fn a_process_of_this_namespace_has_no_guest_network() {
        let own = Process::of(std::process::id() as i32).expect("this process");
        assert_eq!(GuestNetwork::of(&own), None);
        assert!(GuestNetwork::left("atoll-00000000").is_empty());
    }
}
