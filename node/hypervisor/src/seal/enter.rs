//! The keeper's way into its seal, in order.
//!
//! ```text
//! limits     cgroups made and entered; the network's helper starts after it, so it is limited too
//! enclose    a user claimed, the machine's files given to it, namespaces, both roots
//! command    what the monitor's process does to itself before its program runs
//! settle     how that went; the keeper gives up its own rights
//! ```
//!
//! A part that fails is noted and the next is tried: a host without one part still has the others. What depends on
//! another part isn't tried without it.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use fabric_types::Seal;
use nix::cmsg_space;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};

use super::cgroup::{self, OomCounter};
use super::handout::Handout;
use super::parts::{Outcome, Part};
use super::user::Claim;
use super::view::{View, find, view};
use super::{filter, parts, root, rules, user};
use crate::keeper::KeeperConfig;
use crate::sys::seal::{
    Child, become_user, failed, filters_ask, give_up_bounding_set, give_up_capabilities, received, seal_command,
};

/// Most descriptors of a monitor: disks, sockets and queues are some 30; the rest is slack for many processors.
const DESCRIPTORS_MAX: u64 = 1024;
/// The monitor's root, for the call that can't allocate.
const MONITOR: &CStr = c"/monitor";

/// How much of the seal a machine must have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SealMode {
    /// All that the host can give; what it can't is told.
    #[default]
    Auto,
    /// All, or no machine starts.
    Required,
    /// Nothing: for finding out what the seal itself costs or breaks. It is told, too.
    Off,
}

impl SealMode {
    /// The mode that the environment variable `ATOLL_SEAL` names: `auto` (also when there is none), `required`, `off`.
    /// Another word is taken for the strictest.
    pub fn from_environment() -> Self {
        match std::env::var("ATOLL_SEAL").as_deref() {
            Err(_) | Ok("" | "auto") => Self::Auto,
            Ok("off") => Self::Off,
            Ok(_) => Self::Required,
        }
    }
}

/// What a driver says of its monitor's needs, and how strict to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealRequest {
    pub(crate) mode: SealMode,
    /// Files and folders that the monitor reads by name besides the image, shared with other machines.
    #[serde(default)]
    pub(crate) read: Vec<PathBuf>,
    /// Its own files and folders that it writes by name besides its disk.
    #[serde(default)]
    pub(crate) write: Vec<PathBuf>,
    /// Whether it uses `/dev/kvm`.
    #[serde(default)]
    pub(crate) kvm: bool,
    /// Further files and devices that it is given descriptors of instead of a right, and whether to write.
    #[serde(default)]
    pub(crate) handed: Vec<(PathBuf, bool)>,
}

/// A seal in the making.
pub(crate) struct Sealing {
    mode: SealMode,
    outcome: Outcome,
    oom: Option<OomCounter>,
    claim: Option<Claim>,
    handout: Option<Handout>,
    /// The namespace that the keeper's own threads are made in.
    own_pids: Option<File>,
    has_root: bool,
    view: View,
    report: Option<UnixStream>,
}

/// A finished seal, as the keeper holds it while its machine lives.
pub(crate) struct Sealed {
    pub(crate) seal: Seal,
    /// The machine's user, if it has one.
    pub(crate) claim: Option<Claim>,
    pub(crate) handout: Option<Handout>,
    pub(crate) oom: Option<OomCounter>,
}

impl Sealing {
    /// Enters the machine's cgroups.
    pub(crate) fn limits(config: &KeeperConfig) -> Self {
        let mut outcome = Outcome::default();
        let mode = config.seal.mode;
        let oom = (mode != SealMode::Off).then(|| cgroup::enter(&config.spec, &mut outcome)).flatten();
        Self {
            mode,
            outcome,
            oom,
            claim: None,
            handout: None,
            own_pids: None,
            has_root: false,
            view: View::default(),
            report: None,
        }
    }

    /// Enters namespaces and roots; answers the monitor's program as the file that is there.
    pub(crate) fn enclose(&mut self, config: &KeeperConfig) -> io::Result<PathBuf> {
        let program = find(&config.program)?;
        if self.mode == SealMode::Off {
            return Ok(program);
        }
        let mut view = view(config, &program);
        if let Some(made) = &view.made {
            File::options().create(true).append(true).mode(0o600).open(made)?;
        }
        let handout = if filters_ask() {
            Handout::open(&view).map_err(|error| error.to_string())
        } else {
            Err("this kernel's filters can't ask".to_owned())
        };
        match handout {
            Ok(handout) => {
                self.outcome.note(Part::ReadOnlyTemplate, Ok::<(), String>(()));
                self.handout = Some(handout);
            }
            Err(why) => {
                // The monitor has to open these itself, for writing.
                view.write.extend(view.handed.drain(..).map(|(path, _)| path));
                view.read.retain(|path| !view.write.contains(path));
                self.outcome.note(Part::ReadOnlyTemplate, Err(&why));
                self.outcome.note(Part::User, Err(&why));
            }
        }
        let is_root = geteuid().is_root();
        if is_root {
            self.claim_user(config);
        } else {
            self.outcome.note(Part::User, Err("the node isn't root, so its machines share its user"));
            if let Err(error) = user_namespace() {
                let why = format!("no user namespace can be made: {error}");
                let parts = [Part::MountNamespace, Part::PidNamespace, Part::NetworkNamespace, Part::IpcNamespace];
                parts.into_iter().for_each(|part| self.outcome.note(part, Err(&why)));
                return Ok(program);
            }
        }
        let folder = &config.spec.folder;
        let mounted = self.unshare(Part::MountNamespace, CloneFlags::CLONE_NEWNS);
        self.unshare(Part::NetworkNamespace, CloneFlags::CLONE_NEWNET);
        self.unshare(Part::IpcNamespace, CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS);
        self.give_files(&view, &[&folder.dir, &folder.run]);
        // The namespace has to be opened while the host's /proc is this process's own.
        let own_pids = File::open("/proc/self/ns/pid");
        if mounted {
            let entered = root::enter(&view, &[&folder.dir, &folder.run]);
            self.has_root = entered.is_ok();
            self.outcome.note(Part::MountNamespace, entered);
        }
        if !self.has_root {
            self.take_files_back(&view, &[&folder.dir, &folder.run]);
            self.outcome.note(Part::User, Err("a user of its own needs a file tree of its own"));
        }
        // The way back is tried first: a keeper that couldn't go back to its own could start no thread.
        let back =
            own_pids.and_then(|own| setns(&own, CloneFlags::CLONE_NEWPID).map(|()| own).map_err(io::Error::from));
        match back {
            Ok(own) => {
                if self.unshare(Part::PidNamespace, CloneFlags::CLONE_NEWPID) {
                    self.own_pids = Some(own);
                }
            }
            Err(error) => {
                let why = format!("the keeper couldn't go back to the namespace that it came from: {error}");
                self.outcome.note(Part::PidNamespace, Err(why));
            }
        }
        self.view = view;
        Ok(program)
    }

    /// Has the monitor's process seal itself before its program runs, whatever the mode: it always dies with its keeper.
    pub(crate) fn command(&mut self, config: &KeeperConfig, command: &mut Command) -> io::Result<()> {
        let (ours, its) = UnixStream::pair()?;
        let keepers = ours.as_raw_fd();
        self.report = Some(ours);
        let sealed = self.mode != SealMode::Off;
        let rules = if sealed { self.rules() } else { None };
        let asks = self.handout.as_ref().is_some_and(|handout| !handout.is_empty());
        // Where no cgroup counts them. The user is the machine's own, so nobody else's processes count.
        let counted = self.uid().is_some() && !self.outcome.has(Part::PidsLimit);
        let child = Child {
            root: self.has_root.then_some(MONITOR),
            user: self.uid().map(|uid| (uid, user::SHARED_GROUP)),
            give_up: sealed,
            rules,
            filter: if sealed { filter::program(asks) } else { Vec::new() },
            asks,
            descriptors: DESCRIPTORS_MAX,
            processes: config.spec.limits.pids.filter(|_| counted).map(u64::from),
            traced: config.spec.checkpoint.is_some(),
            report: its.into(),
            keepers,
        };
        seal_command(command, child);
        Ok(())
    }

    /// After the monitor was started and `command` let go: hears how its seal went, and gives up the keeper's rights.
    pub(crate) fn settle(mut self) -> io::Result<Sealed> {
        let Some(report) = self.report.take() else { return Err(io::ErrorKind::NotConnected.into()) };
        let (bits, listener) = hear(&report)?;
        if let Some(handout) = &mut self.handout {
            handout.listen(listener);
        }
        if self.mode == SealMode::Off {
            let seal = parts::nothing("it is switched off (ATOLL_SEAL=off)");
            return Ok(Sealed { seal, claim: None, handout: None, oom: None });
        }
        if let Some(own) = self.own_pids.take() {
            setns(own, CloneFlags::CLONE_NEWPID)?;
        }
        give_up_bounding_set();
        let uid = self.uid();
        if let Some(uid) = uid {
            become_user(uid, user::SHARED_GROUP)?;
        }
        let given_up = give_up_capabilities().map_err(|error| error.to_string());
        self.outcome.note(Part::Capabilities, given_up);
        self.outcome.note(Part::NoNewPrivileges, nix::sys::prctl::set_no_new_privs());
        let parts = [
            (Part::Rlimits, failed::RLIMITS),
            (Part::Capabilities, failed::CAPABILITIES),
            (Part::NoNewPrivileges, failed::NO_NEW_PRIVILEGES),
            (Part::Landlock, failed::LANDLOCK),
            (Part::Seccomp, failed::SECCOMP),
        ];
        for (part, bit) in parts {
            let done = if bits & bit == 0 { Ok(()) } else { Err("the kernel refused it to the monitor's process") };
            self.outcome.note(part, done);
        }
        let seal = self.outcome.seal();
        if self.mode == SealMode::Required && !seal.missing.is_empty() {
            let missing: Vec<String> = seal.missing.iter().map(|gap| format!("{}: {}", gap.part, gap.why)).collect();
            let message = format!("the seal is required and lacks {}", missing.join("; "));
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let claim = self.claim.filter(|_| uid.is_some());
        Ok(Sealed { seal, claim, handout: self.handout, oom: self.oom })
    }

    fn uid(&self) -> Option<u32> {
        self.claim.as_ref().map(|claim| claim.uid).filter(|_| self.outcome.has(Part::User))
    }

    fn claim_user(&mut self, config: &KeeperConfig) {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        if !user::is_mapped(&map) {
            return self
                .outcome
                .note(Part::User, Err("the node runs in a user namespace without numbers for machines"));
        }
        match user::claim(&config.spec.folder.dir) {
            Ok(claim) => {
                self.claim = Some(claim);
                self.outcome.note(Part::User, Ok::<(), String>(()));
            }
            Err(error) => self.outcome.note(Part::User, Err(format!("no user number can be claimed: {error}"))),
        }
    }

    fn unshare(&mut self, part: Part, flags: CloneFlags) -> bool {
        let done = unshare(flags);
        self.outcome.note(part, done);
        done.is_ok()
    }

    /// Gives the machine's user what it writes, and lets it read what is shared.
    fn give_files(&mut self, view: &View, folders: &[&Path]) {
        let Some(uid) = self.uid() else { return };
        let own = view.write.iter().chain(&view.made).map(PathBuf::as_path);
        for path in own.chain(folders.iter().copied()) {
            self.noted("give", path, user::give(path, uid));
        }
        for path in &view.shared {
            self.noted("share", path, user::share(path));
        }
    }

    fn noted(&mut self, action: &str, path: &Path, done: io::Result<()>) {
        if let Err(error) = done {
            self.outcome.note(Part::User, Err(format!("can't {action} {}: {error}", path.display())));
        }
    }

    fn take_files_back(&self, view: &View, folders: &[&Path]) {
        let own = view.write.iter().chain(&view.made).map(PathBuf::as_path);
        for path in own.chain(folders.iter().copied()) {
            // It is the node's that was given away a moment ago; what fails is the start of the monitor, which says so.
            let _ = user::give(path, 0);
        }
    }

    fn rules(&mut self) -> Option<OwnedFd> {
        let root = if self.has_root { root::MONITOR } else { "/" };
        let made = rules::ruleset(&self.view, Path::new(root));
        match made {
            Ok(Some(rules)) => return Some(rules),
            Ok(None) => self.outcome.note(Part::Landlock, Err("the kernel has none")),
            Err(error) => self.outcome.note(Part::Landlock, Err(format!("its rules can't be made: {error}"))),
        }
        None
    }
}

/// A user namespace in which this process may do what it couldn't outside, as the user that it was.
fn user_namespace() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// The report of the monitor's process, and what listens to its filter.
fn hear(report: &UnixStream) -> io::Result<(u32, Option<OwnedFd>)> {
    let mut bytes = [0; 4];
    let mut control = cmsg_space!([std::os::fd::RawFd; 1]);
    let mut pieces = [io::IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(report.as_raw_fd(), &mut pieces, Some(&mut control), flags)?;
    let mut listener = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            listener = descriptors.into_iter().map(received).next();
        }
    }
    if message.bytes != bytes.len() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the monitor's process said nothing of its seal"));
    }
    Ok((u32::from_ne_bytes(bytes), listener))
}
