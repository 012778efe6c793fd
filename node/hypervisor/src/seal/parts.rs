//! The seal's parts by name, and what became of each.

use std::collections::BTreeMap;
use std::fmt::Display;

use fabric_types::{Seal, SealGap};
use serde::{Deserialize, Serialize};

/// One part of the seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// A user of the machine's own, which owns nothing else on the host.
    User,
    /// A file tree of its own: the monitor's program and the machine's files.
    MountNamespace,
    /// It sees no other process.
    PidNamespace,
    /// A network with nothing in it: no host loopback, no abstract sockets.
    NetworkNamespace,
    /// System V and POSIX queues of its own.
    IpcNamespace,
    /// No capability, none to be had back.
    Capabilities,
    /// No program gives new rights.
    NoNewPrivileges,
    /// System calls that no monitor needs are refused.
    Seccomp,
    /// A second list of what may be opened, kept by another part of the kernel.
    Landlock,
    /// The template's memory can't be opened for writing.
    ReadOnlyTemplate,
    /// A limit on memory.
    MemoryLimit,
    /// Guest memory isn't written to swap.
    NoSwap,
    /// A share and a limit of processor time.
    CpuLimit,
    /// A limit on processes and threads.
    PidsLimit,
    /// A limit on bytes read and written.
    IoLimit,
    /// Limits on descriptors; no core files.
    Rlimits,
}

impl Part {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 16] = [
        Self::User,
        Self::MountNamespace,
        Self::PidNamespace,
        Self::NetworkNamespace,
        Self::IpcNamespace,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::Seccomp,
        Self::Landlock,
        Self::ReadOnlyTemplate,
        Self::MemoryLimit,
        Self::NoSwap,
        Self::CpuLimit,
        Self::PidsLimit,
        Self::IoLimit,
        Self::Rlimits,
    ];

    /// The name in the API and in `atoll doctor`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::MountNamespace => "mount_namespace",
            Self::PidNamespace => "pid_namespace",
            Self::NetworkNamespace => "network_namespace",
            Self::IpcNamespace => "ipc_namespace",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivileges => "no_new_privileges",
            Self::Seccomp => "seccomp",
            Self::Landlock => "landlock",
            Self::ReadOnlyTemplate => "read_only_template",
            Self::MemoryLimit => "memory_limit",
            Self::NoSwap => "no_swap",
            Self::CpuLimit => "cpu_limit",
            Self::PidsLimit => "pids_limit",
            Self::IoLimit => "io_limit",
            Self::Rlimits => "rlimits",
        }
    }

    /// What its lack costs.
    pub fn cost(self) -> &'static str {
        match self {
            Self::User => "a monitor that a guest has taken over has the node's user's rights over what it can reach",
            Self::MountNamespace => "a monitor that a guest has taken over sees the host's files",
            Self::PidNamespace => "it sees the host's processes",
            Self::NetworkNamespace => "it reaches the host's loopback, networks and abstract sockets",
            Self::IpcNamespace => "it sees the host's System V memory and queues",
            Self::Capabilities => "it keeps rights that no monitor needs",
            Self::NoNewPrivileges => "a set-user-id program gives it rights",
            Self::Seccomp => "more of the kernel can be attacked from it",
            Self::Landlock => "one layer fewer around the monitor's files",
            Self::ReadOnlyTemplate => "it can change the memory that later clones start from",
            Self::MemoryLimit => "a machine may take memory from its neighbours",
            Self::NoSwap => "guest memory may be written to the host's swap",
            Self::CpuLimit => "a busy machine slows its neighbours",
            Self::PidsLimit => "a monitor may start processes until the host has none left",
            Self::IoLimit => "a machine may take the host's disk for itself",
            Self::Rlimits => "a monitor may open descriptors without end",
        }
    }

    /// What to do about its lack.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::User => "run the node as root, with the user numbers from 2000000000 on unused",
            Self::MountNamespace | Self::PidNamespace | Self::NetworkNamespace | Self::IpcNamespace => {
                "run the node as root, or allow unprivileged user namespaces"
            }
            Self::Capabilities | Self::NoNewPrivileges | Self::Rlimits => "run the node as root",
            Self::Seccomp => "use a kernel with CONFIG_SECCOMP_FILTER",
            Self::Landlock => "boot with landlock among the kernel's lsm=, Linux 5.13 or newer",
            Self::ReadOnlyTemplate => "use Linux 5.14 or newer",
            Self::MemoryLimit | Self::NoSwap | Self::CpuLimit | Self::PidsLimit => {
                "run the node as root, or in a systemd unit with Delegate=yes"
            }
            Self::IoLimit => "keep sandboxes on a file system with one disk, and run the node as root",
        }
    }

    /// The part of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.as_str() == name)
    }
}

/// What became of the parts so far.
#[derive(Debug, Default, Clone)]
pub(crate) struct Outcome(BTreeMap<Part, Result<(), String>>);

impl Outcome {
    /// Notes one part. What has failed once stays failed.
    pub(crate) fn note<E: Display>(&mut self, part: Part, done: Result<(), E>) {
        match (self.0.get(&part), done) {
            (Some(Err(_)), _) => {}
            (_, Ok(())) => drop(self.0.insert(part, Ok(()))),
            (_, Err(error)) => drop(self.0.insert(part, Err(error.to_string()))),
        }
    }

    pub(crate) fn has(&self, part: Part) -> bool {
        self.0.get(&part).is_some_and(Result::is_ok)
    }

    /// What is in force and what is missing; a part that nobody got to is missing.
    pub(crate) fn seal(&self) -> Seal {
        let mut seal = Seal::default();
        for part in Part::ALL {
            let why = match self.0.get(&part) {
                Some(Ok(())) => {
                    seal.in_force.push(part.as_str().to_owned());
                    continue;
                }
                Some(Err(why)) => why.as_str(),
                None => "it wasn't tried",
            };
            seal.missing.push(gap(part, why));
        }
        seal
    }
}

/// A gap, with what to do.
pub(crate) fn gap(part: Part, why: &str) -> SealGap {
    SealGap { part: part.as_str().to_owned(), why: format!("{why}; {}", part.remedy()) }
}

/// A seal of which nothing is in force.
pub(crate) fn nothing(why: &str) -> Seal {
    Seal { in_force: Vec::new(), missing: Part::ALL.into_iter().map(|part| gap(part, why)).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_in_force_or_missing_never_dropped() {
        let mut outcome = Outcome::default();
        outcome.note(Part::User, Ok::<(), String>(()));
        outcome.note(Part::Landlock, Err("the kernel has none"));
        outcome.note(Part::Landlock, Ok::<(), String>(()));
        let seal = outcome.seal();
        assert_eq!(seal.in_force, ["user"]);
        assert_eq!(seal.in_force.len() + seal.missing.len(), Part::ALL.len());
        let landlock = seal.missing.iter().find(|gap| gap.part == "landlock").expect("named");
        assert!(landlock.why.starts_with("the kernel has none; boot with landlock"), "{}", landlock.why);
    }

    #[test]
    fn names_are_read_back() {
        for part in Part::ALL {
            assert_eq!(Part::from_name(part.as_str()), Some(part));
            assert_eq!(serde_json::to_value(part).expect("JSON"), part.as_str());
        }
        assert_eq!(Part::from_name("magic"), None);
    }
}
