//! What `checkpoint.json` says of a monitor.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::manifest_file;
use crate::NetworkDevice;
use crate::VmError;
use crate::durable::read_json;
use crate::process::boot_id;

/// Newest schema of `checkpoint.json` that this version reads and the one it writes.
pub(super) const SCHEMA: u32 = 1;
/// Changes whenever libraries are installed (ldconfig(8)).
const LIBRARIES: &str = "/etc/ld.so.cache";

/// A monitor, but for its memory's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(super) schema: u32,
    /// What has to be the same where it is restored.
    pub(super) origin: Origin,
    /// What its network card is plugged into.
    pub(crate) plug: Plug,
    /// Its memory, ascending and disjoint.
    pub(super) areas: Vec<Area>,
    /// The kernel's own areas in it (vvar, vdso), ascending.
    pub(super) kernel_areas: Vec<KernelArea>,
    /// The first is the one that the process began with.
    pub(super) threads: Vec<Thread>,
    pub(super) descriptors: Vec<Descriptor>,
    pub(super) actions: Vec<Action>,
    pub(super) layout: Layout,
    /// Where the keys of its random generators lie.
    pub(super) generators: Vec<u64>,
    /// Where a thread's number lies from its thread pointer on (glibc's `struct pthread`).
    pub(super) number_offset: u64,
}

/// A boot of a host, and a program on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// Atoll's own version.
    version: String,
    boot_id: String,
    program: PathBuf,
    /// Of the program and of the list of libraries: inode, length, time of the last change (seconds, nanoseconds).
    files: [(u64, u64, i64, i64); 2],
}

impl Origin {
    /// As it is now.
    pub(super) fn of(program: &Path) -> io::Result<Self> {
        let stamp = |path: &Path| {
            let about = fs::metadata(path)?;
            io::Result::Ok((about.ino(), about.len(), about.mtime(), about.mtime_nsec()))
        };
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: boot_id()?,
            program: program.to_owned(),
            // A host with another C library has no such list; then the program has to do.
            files: [stamp(program)?, stamp(Path::new(LIBRARIES)).unwrap_or_default()],
        })
    }
}

/// Kinds of plug: a copy needs one of the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Plug {
    /// None.
    None,
    /// A tap.
    Tap,
    /// A stream to passt.
    Passt,
}

impl From<&NetworkDevice> for Plug {
    fn from(device: &NetworkDevice) -> Self {
        match device {
            NetworkDevice::None => Self::None,
            NetworkDevice::Tap { .. } => Self::Tap,
            NetworkDevice::Passt { .. } => Self::Passt,
        }
    }
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Area {
    pub(super) start: u64,
    pub(super) end: u64,
    /// `PROT_*` of mmap(2).
    pub(super) rights: u32,
    pub(super) content: Content,
}

/// What an area begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Content {
    /// Nothing: zeroes.
    Zero,
    /// `pages`, from this offset on.
    Pages(u64),
    /// `base`, from this offset on: what the monitor itself had not written since it was restored.
    Base(u64),
    /// The template's memory, from this offset on, under the guest's private pages.
    Guest(u64),
}

/// An area that the kernel gives every process, somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KernelArea {
    pub(super) name: String,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// A thread that waits in a system call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Thread {
    /// As it makes the call again ([`super::tracee::waiting_again`]).
    pub(super) registers: Vec<u64>,
    /// Vector registers and the like.
    pub(super) state: Vec<u8>,
    /// Signals that it holds back.
    pub(super) mask: u64,
}

/// A number that the monitor knows a file by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Descriptor {
    pub(super) number: i32,
    pub(super) close_on_exec: bool,
    /// Whether reads and writes wait.
    pub(super) nonblocking: bool,
    pub(super) file: File,
}

/// What lies behind a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum File {
    /// `/dev/null`.
    Null,
    /// Console or errors: as the keeper gives them, under the same number.
    Output,
    /// eventfd(2).
    Event { count: u64, semaphore: bool },
    /// epoll(7), with nothing in it.
    Poll,
    /// signalfd(2).
    Signals { mask: u64 },
    /// The root file system.
    Root,
    /// The machine's own disk, with the locks that are held on it: whether to write, first byte, last.
    Disk { locks: Vec<(bool, u64, u64)> },
    /// The template's memory.
    Memory,
    /// A listener of that name.
    Listener(String),
    /// What the network card is plugged into.
    Plug,
    /// A connection: a copy finds it closed by its peer.
    Connection,
}

/// What a signal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Action {
    pub(super) signal: i32,
    /// `struct kernel_sigaction`: handler, flags, restorer, mask.
    pub(super) words: [u64; 4],
}

/// Where the kernel thinks that a program's parts lie (prctl(2), `PR_SET_MM_MAP`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layout {
    pub(super) code: (u64, u64),
    pub(super) data: (u64, u64),
    pub(super) heap: (u64, u64),
    pub(super) stack: u64,
    pub(super) arguments: (u64, u64),
    pub(super) environment: (u64, u64),
}

impl Manifest {
    /// Reads that of a complete checkpoint.
    pub(crate) fn read(folder: &Path) -> Result<Self, VmError> {
        read_json(&manifest_file(folder), SCHEMA)
    }

    /// Whether it is of this boot, this version and the program as it is.
    pub(crate) fn is_current(&self) -> bool {
        Origin::of(&self.origin.program).is_ok_and(|now| now == self.origin)
    }

    /// Bytes of the monitor's memory that copies share until they write them.
    pub(crate) fn shared_bytes(&self) -> u64 {
        let length = |area: &Area| match area.content {
            Content::Pages(_) | Content::Base(_) => area.end - area.start,
            Content::Zero | Content::Guest(_) => 0,
        };
        self.areas.iter().map(length).sum()
    }

    /// Whether it needs [`super::base_file`].
    pub(super) fn has_base(&self) -> bool {
        self.areas.iter().any(|area| matches!(area.content, Content::Base(_)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// That of a monitor with nothing.
    pub(in crate::checkpoint) fn manifest() -> Manifest {
        Manifest {
            schema: SCHEMA,
            origin: Origin::of(Path::new("/bin/sh")).expect("a program"),
            plug: Plug::None,
            areas: Vec::new(),
            kernel_areas: Vec::new(),
            threads: Vec::new(),
            descriptors: Vec::new(),
            actions: Vec::new(),
            layout: Layout::default(),
            generators: Vec::new(),
            number_offset: 0x2d0,
        }
    }

    #[test]
    fn a_checkpoint_is_of_one_boot_version_and_program() {
        assert!(manifest().is_current());
        let with = |change: fn(&mut Origin)| {
            let mut manifest = manifest();
            change(&mut manifest.origin);
            manifest.is_current()
        };
        assert!(!with(|origin| origin.boot_id.push('x')));
        assert!(!with(|origin| origin.version.push('x')));
        assert!(!with(|origin| origin.files[0].1 += 1), "another program");
        assert!(!with(|origin| origin.files[1].2 += 1), "other libraries");
        assert!(!with(|origin| origin.program = "/nonexistent".into()));
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let written = Manifest {
            areas: vec![Area { start: 1, end: 2, rights: 7, content: Content::Pages(3) }],
            descriptors: vec![Descriptor {
                number: 3,
                close_on_exec: true,
                nonblocking: false,
                file: File::Disk { locks: vec![(true, 100, u64::MAX)] },
            }],
            ..manifest()
        };
        fs::write(manifest_file(folder.path()), serde_json::to_vec(&written).expect("JSON")).expect("written");
        assert_eq!(Manifest::read(folder.path()).expect("read"), written);
        assert_eq!(written.shared_bytes(), 1);
    }
}
