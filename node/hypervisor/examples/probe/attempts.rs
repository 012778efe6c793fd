//! What is tried, each by itself.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr as InetAddress, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::kill;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Pid, Uid, chroot, getgroups, pivot_root, setuid};

use crate::sys;

type Outcome = io::Result<String>;
type Attempt = (&'static str, Outcome);

/// Tries everything. `given` names what the host has: `secret`, `identity`, `peer` (another machine's folder), `own`
/// (this machine's), `socket`, `abstract`, `port`, `pid`, `keeper`, `memory`.
pub(crate) fn all(given: &HashMap<&str, &str>) -> Vec<Attempt> {
    let of = |name: &str| given.get(name).copied().unwrap_or_default();
    let pid = |name: &str| of(name).parse().unwrap_or(0);
    let mut tried = files(&of);
    tried.extend(sockets(&of));
    tried.extend(processes(pid("pid"), pid("keeper")));
    tried.extend(namespaces());
    tried.extend(kernel());
    tried.extend(rights());
    tried.push(("identity", Err(io::Error::other(identity()))));
    tried
}

fn files<'a>(of: &impl Fn(&str) -> &'a str) -> Vec<Attempt> {
    let below_root = format!("/../../../..{}", of("secret"));
    vec![
        ("read /etc/shadow", read("/etc/shadow")),
        ("list /root", list("/root")),
        ("read a host's secret", read(of("secret"))),
        ("read it above the root", read(&below_root)),
        ("read the node's identity", read(of("identity"))),
        ("list another machine's folder", list(of("peer"))),
        ("read another machine's disk", read(&format!("{}/disk", of("peer")))),
        ("list its own folder", list(of("own"))),
        ("plant its own record", write(&format!("{}/vm.json", of("own")))),
        ("write the template's memory", write(of("memory"))),
        ("write through what it is handed", write_handed(of("memory"))),
        ("make a file in the root", write("/planted")),
        ("change a library", write("/usr/lib/planted")),
        ("read the host's processes", list("/proc")),
        ("write /proc/sys", write("/proc/sys/kernel/core_pattern")),
        ("write /sys", write("/sys/kernel/uevent_helper")),
        ("open /dev/mem", read("/dev/mem")),
        ("open /dev/kvm", open_both("/dev/kvm")),
        ("make a disk's device", done(mknod("/disk", SFlag::S_IFBLK, Mode::S_IRUSR, makedev(8, 0)))),
    ]
}

fn read(path: &str) -> Outcome {
    let mut byte = [0; 1];
    File::open(path)?.read(&mut byte).map(|count| format!("{count} bytes"))
}

fn list(path: &str) -> Outcome {
    Ok(format!("{} entries", fs::read_dir(path)?.count()))
}

fn write(path: &str) -> Outcome {
    OpenOptions::new().create(true).append(true).open(path)?.write_all(b"x").map(|()| String::new())
}

fn open_both(path: &str) -> Outcome {
    OpenOptions::new().read(true).write(true).open(path).map(|_| String::new())
}

/// Opens as QEMU does, for both; what comes must not write, nor be mapped shared to write.
fn write_handed(path: &str) -> Outcome {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0; 1];
    if file.read_at(&mut byte, 0)? != 1 {
        return Ok("it is handed what can't be read".to_owned());
    }
    file.write_at(b"x", 0).map(|_| String::new())
}

fn sockets<'a>(of: &impl Fn(&str) -> &'a str) -> Vec<Attempt> {
    let abstract_one = || {
        let address = SocketAddr::from_abstract_name(of("abstract"))?;
        UnixStream::connect_addr(&address).map(|_| String::new())
    };
    let tcp = |address: String| {
        let address: InetAddress = address.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
        TcpStream::connect_timeout(&address, Duration::from_secs(1)).map(|_| String::new())
    };
    let socket = |family, kind| sys::socket(family, kind).map(|()| String::new());
    vec![
        ("connect to another machine's socket", UnixStream::connect(of("socket")).map(|_| String::new())),
        ("connect to an abstract socket", abstract_one()),
        ("connect to the host's loopback", tcp(format!("127.0.0.1:{}", of("port")))),
        ("connect to the host's loopback by IPv6", tcp(format!("[::1]:{}", of("port")))),
        ("connect to the metadata service", tcp("169.254.169.254:80".to_owned())),
        ("make a raw socket", socket(libc::AF_INET, libc::SOCK_RAW)),
        ("make a packet socket", socket(libc::AF_PACKET, libc::SOCK_DGRAM)),
        ("make a netlink socket", socket(libc::AF_NETLINK, libc::SOCK_DGRAM)),
        ("make a vsock", socket(libc::AF_VSOCK, libc::SOCK_STREAM)),
    ]
}

fn processes(pid: i32, keeper: i32) -> Vec<Attempt> {
    vec![
        ("trace a process of the host", sys::trace(pid)),
        ("trace its keeper", sys::trace(keeper)),
        ("read a process's memory", sys::read_memory(pid)),
        ("signal a process of the host", done(kill(Pid::from_raw(pid), None))),
        ("signal its keeper", done(kill(Pid::from_raw(keeper), None))),
        ("signal every process", done(kill(Pid::from_raw(-1), None))),
        ("take another's descriptor", sys::call(libc::SYS_pidfd_getfd, [0, 0, 0])),
    ]
}

fn namespaces() -> Vec<Attempt> {
    let none: Option<&str> = None;
    vec![
        ("mount", done(mount(Some("x"), "/dev", Some("tmpfs"), MsFlags::empty(), none))),
        ("unmount", done(umount("/dev/null"))),
        ("change the root", done(pivot_root("/", "/"))),
        ("chroot", done(chroot("/usr"))),
        ("make a user namespace", done(unshare(CloneFlags::CLONE_NEWUSER))),
        ("make a network namespace", done(unshare(CloneFlags::CLONE_NEWNET))),
        ("clone into a user namespace", sys::clone_user_namespace()),
        ("clone3", sys::call(libc::SYS_clone3, [0, 0, 0])),
        ("mount by descriptors", sys::call(libc::SYS_fsopen, [0, 0, 0])),
    ]
}

fn kernel() -> Vec<Attempt> {
    vec![
        ("load a kernel", sys::call(libc::SYS_kexec_load, [0, 0, 0])),
        ("load a module", sys::call(libc::SYS_init_module, [0, 0, 0])),
        ("load a program (bpf)", sys::call(libc::SYS_bpf, [0, 0, 0])),
        ("watch the processor (perf)", sys::call(libc::SYS_perf_event_open, [0, 0, 0])),
        ("use io_uring", sys::call(libc::SYS_io_uring_setup, [0, 0, 0])),
        ("open by handle", sys::call(libc::SYS_open_by_handle_at, [0, 0, 0])),
        ("use the kernel's keys", sys::call(libc::SYS_keyctl, [0, 0, 0])),
        ("use ports", sys::call(libc::SYS_iopl, [3, 0, 0])),
        ("set the clock", sys::call(libc::SYS_clock_settime, [0, 0, 0])),
        ("reboot", sys::call(libc::SYS_reboot, [0, 0, 0])),
        ("read the kernel's log", sys::call(libc::SYS_syslog, [3, 0, 0])),
    ]
}

fn rights() -> Vec<Attempt> {
    vec![
        ("become root", done(setuid(Uid::from_raw(0)))),
        ("take capabilities", sys::take_capabilities()),
        ("have core files", done(setrlimit(Resource::RLIMIT_CORE, 1 << 20, 1 << 20))),
        ("have more descriptors", done(setrlimit(Resource::RLIMIT_NOFILE, 1 << 20, 1 << 20))),
    ]
}

/// Who it is, for the test to read.
fn identity() -> String {
    let groups: Vec<String> = getgroups().unwrap_or_default().iter().map(ToString::to_string).collect();
    let root: Vec<String> = fs::read_dir("/")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    format!("uid={} pid={} groups={} root={}", Uid::current(), Pid::this(), groups.join(","), root.join(","))
}

fn done<T>(outcome: nix::Result<T>) -> Outcome {
    outcome.map(|_| String::new()).map_err(io::Error::from)
}
