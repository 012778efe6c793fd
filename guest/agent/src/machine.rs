//! What an identity and a shutdown change in the machine itself.
//!
//! Behind a trait, because the agent's tests run on machines whose clock, name and random pool are none of theirs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use nix::unistd::{Pid, sethostname, sync};

use crate::console::say;
use crate::sys;

/// How long processes may take to end after SIGTERM.
const TERM_WAIT: Duration = Duration::from_secs(1);
/// Between two looks at whether they have.
const TERM_POLL: Duration = Duration::from_millis(10);

/// The machine under the agent.
pub(crate) trait Machine: Send + Sync {
    /// Credits fresh entropy and forces a reseed: from then on no random number follows from what was before.
    fn reseed(&self, entropy: &[u8]) -> io::Result<()>;
    /// Steps the wall clock, to nanoseconds since the epoch.
    fn set_clock(&self, wall_clock_ns: u64) -> io::Result<()>;
    /// Names the machine: host name, /etc/hostname, /etc/hosts, /etc/machine-id.
    fn set_names(&self, hostname: &str, machine_id: &str) -> io::Result<()>;
    /// Gives the network card its address. Without a card there is nothing to do.
    fn set_mac(&self, mac: [u8; 6]) -> io::Result<()>;
    /// Ends all processes, saves the disk and switches off. Doesn't return on the real one.
    fn power_off(&self);
}

/// The guest's own kernel.
#[derive(Debug)]
pub(crate) struct Guest {
    random: File,
    /// The disk's root, for the last remount.
    disk: Option<File>,
}

impl Guest {
    /// Opens what is needed later and prepares what doesn't depend on an identity.
    pub(crate) fn new(disk: Option<File>) -> io::Result<Self> {
        let random = OpenOptions::new().write(true).open("/dev/urandom")?;
        let guest = Self { random, disk };
        if let Err(error) = control_socket().and_then(|socket| sys::interface_up(socket.as_raw_fd(), "lo")) {
            say(&format!("can't bring up the loopback interface: {error}"));
        }
        // Written once before any clone is made, so that an identity only rewrites what is on the disk already.
        guest.set_names("atoll", &"0".repeat(32))?;
        fs::write("/etc/resolv.conf", "# This guest has no network.\n")?;
        Ok(guest)
    }
}

impl Machine for Guest {
    fn reseed(&self, entropy: &[u8]) -> io::Result<()> {
        sys::reseed(&self.random, entropy)
    }

    fn set_clock(&self, wall_clock_ns: u64) -> io::Result<()> {
        let time = TimeSpec::from_duration(Duration::from_nanos(wall_clock_ns));
        Ok(clock_settime(ClockId::CLOCK_REALTIME, time)?)
    }

    fn set_names(&self, hostname: &str, machine_id: &str) -> io::Result<()> {
        sethostname(hostname)?;
        rewrite("/etc/machine-id", &format!("{machine_id}\n"))?;
        rewrite("/etc/hostname", &format!("{hostname}\n"))?;
        rewrite(
            "/etc/hosts",
            &format!("127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost ip6-loopback\n"),
        )
    }

    fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        let Some(card) = network_card() else { return Ok(()) };
        sys::interface_mac(control_socket()?.as_raw_fd(), &card, mac)
    }

    fn power_off(&self) {
        let everyone = Pid::from_raw(-1);
        // Without other processes there is nobody to tell.
        let _ = kill(everyone, Signal::SIGTERM);
        let start = Instant::now();
        while start.elapsed() < TERM_WAIT && others_run() {
            thread::sleep(TERM_POLL);
        }
        let _ = kill(everyone, Signal::SIGKILL);
        sync();
        if let Some(disk) = &self.disk {
            let path = format!("/proc/self/fd/{}", disk.as_raw_fd());
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            if let Err(error) = mount(None::<&str>, path.as_str(), None::<&str>, flags, None::<&str>) {
                // It was synced; its journal holds the rest.
                say(&format!("can't remount the disk read-only: {error}"));
            }
        }
        let Err(error) = reboot(RebootMode::RB_POWER_OFF);
        say(&format!("can't switch off: {error}"));
    }
}

/// Writes over what is there: a small file stays one block on the disk, with no new entry in a folder.
fn rewrite(path: &str, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

/// A socket to ask for interfaces by (netdevice(7)).
fn control_socket() -> io::Result<std::os::fd::OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// The guest's only card, if it has one.
fn network_card() -> Option<String> {
    let entries = fs::read_dir("/sys/class/net").ok()?;
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).find(|name| name != "lo")
}

/// Whether any process but this one and the kernel's own is left.
fn others_run() -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).any(|pid| {
        // A kernel thread has no command line, nor has one that has ended and isn't collected yet.
        pid != 1
            && fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).is_ok_and(|line| !line.is_empty())
    })
}
