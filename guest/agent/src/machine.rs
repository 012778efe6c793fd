//! What an identity and a shutdown change in the machine itself.
//!
//! Behind a trait, because the agent's tests run on machines whose clock, name and random pool are none of theirs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use guest_proto::boot::DISK_DEVICE;
use guest_proto::surface::{GuestLimits, GuestNetwork};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use nix::unistd::{Pid, sethostname, sync};

use crate::console::say;
use crate::limits::Bounds;
use crate::{network, sys};

/// What the clock shows until the first sandbox's identity: the first of January 2020, years before any real one. OpenSSL
/// seeds its generators anew when the clock has gone more than an hour further (its primary's time interval), so that
/// those in parked interpreters, which clones of this machine share, are seeded anew by the step to the real time.
const BEFORE_ANY_IDENTITY: Duration = Duration::from_secs(1_577_836_800);
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
    /// Sets the network card up, or takes it down where there is no network. Without a card a MAC is nobody's.
    fn set_network(&self, mac: Option<[u8; 6]>, network: Option<&GuestNetwork>) -> io::Result<()>;
    /// Puts in force what commands may use together.
    fn set_limits(&self, limits: &GuestLimits) -> io::Result<()>;
    /// Has the own disk's file system take all of its device; gives its size in bytes.
    fn grow_disk(&self) -> io::Result<u64>;
    /// Ends all processes, saves the disk and switches off. Doesn't return on the real one.
    fn power_off(&self);
}

/// The guest's own kernel.
#[derive(Debug)]
pub(crate) struct Guest {
    random: File,
    /// The disk's root, for growing it and for the last remount.
    disk: Option<File>,
    bounds: Arc<Bounds>,
    /// The MAC and network in force. Under emulation a card that goes down and up costs a command more than its own time,
    /// so what is in force already, as after a rehearsal with the same plug, is left alone.
    network: Mutex<Plugged>,
}

/// A card's MAC and network; neither while nothing was set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Plugged {
    mac: Option<[u8; 6]>,
    network: Option<GuestNetwork>,
}

impl Guest {
    /// Opens what is needed later and prepares what doesn't depend on an identity.
    pub(crate) fn new(disk: Option<File>, bounds: Arc<Bounds>) -> io::Result<Self> {
        let random = OpenOptions::new().write(true).open("/dev/urandom")?;
        let guest = Self { random, disk, bounds, network: Mutex::default() };
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(BEFORE_ANY_IDENTITY))?;
        // Written once before any clone is made, so that an identity only rewrites what is on the disk already.
        guest.set_names("atoll", &"0".repeat(32))?;
        network::prepare()?;
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

    fn set_network(&self, mac: Option<[u8; 6]>, network: Option<&GuestNetwork>) -> io::Result<()> {
        let wanted = Plugged { mac, network: network.cloned() };
        let mut in_force = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.network.is_some() && *in_force == wanted {
            return Ok(());
        }
        // Half a change is none that is known.
        *in_force = Plugged::default();
        network::set(mac, network)?;
        *in_force = wanted;
        Ok(())
    }

    fn set_limits(&self, limits: &GuestLimits) -> io::Result<()> {
        self.bounds.set(limits)
    }

    fn grow_disk(&self) -> io::Result<u64> {
        let disk = self.disk.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let mut device = File::open(DISK_DEVICE)?;
        let device_bytes = device.seek(SeekFrom::End(0))?;
        let block_bytes = fstatvfs(disk)?.block_size();
        if file_system_blocks(&mut device)? < device_bytes / block_bytes {
            sys::resize_ext4(disk, device_bytes / block_bytes)?;
        }
        Ok(file_system_blocks(&mut device)? * block_bytes)
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

/// Writes over what is there: a small file stays one block on the disk, with no new entry in a folder. One that keeps its
/// length isn't cut: the file system would begin a transaction to cut nothing.
pub(crate) fn rewrite(path: &str, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all(text.as_bytes())?;
    let length = text.len() as u64;
    if file.metadata()?.len() == length { Ok(()) } else { file.set_len(length) }
}

/// How many blocks the file system on a device has, by its superblock: 1024 bytes in, with the count's halves at 4 and
/// 0x150 (the kernel's documentation of ext4, "The Super Block").
fn file_system_blocks(device: &mut File) -> io::Result<u64> {
    let half = |at: u64| -> io::Result<u64> {
        let mut bytes = [0; 4];
        device.read_exact_at(&mut bytes, 1024 + at)?;
        Ok(u64::from(u32::from_le_bytes(bytes)))
    };
    Ok(half(0x150)? << 32 | half(4)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_over_is_all_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hostname");
        let path = path.to_str().unwrap();
        for text in ["one\n", "two\n", "longer\n", "x\n", "", "again\n"] {
            rewrite(path, text).unwrap();
            assert_eq!(fs::read_to_string(path).unwrap(), text);
        }
    }
}
