//! How a guest is booted: what the drivers put on the kernel's command line and which devices the agent looks for.
//!
//! ```text
//! kernel + initramfs      the agent is /init
//! first virtio disk       ROOT: the EROFS root file system, read-only, shared by all guests
//! second virtio disk      DISK: ext4, the sandbox's own, the upper layer over the root
//! virtio-serial port      PORT_NAME: the channel (QEMU)
//! vsock port              VSOCK_PORT: the channel where there is no such port (Cloud Hypervisor)
//! ```

/// Name of the virtio-serial port that carries the channel.
pub const PORT_NAME: &str = "atoll";
/// The vsock port that the agent listens on where there is no virtio-serial port.
pub const VSOCK_PORT: u32 = 1024;
/// The block device of the EROFS root: the first virtio disk.
pub const ROOT_DEVICE: &str = "/dev/vda";
/// The block device of the sandbox's own ext4 disk: the second virtio disk.
pub const DISK_DEVICE: &str = "/dev/vdb";
/// Names of the three files of an image, in its folder.
pub const KERNEL_FILE: &str = "kernel";
/// The initramfs: a `newc` archive with the agent as `/init`.
pub const INITRAMFS_FILE: &str = "initramfs";
/// The EROFS root file system.
pub const ROOT_FILE: &str = "root.erofs";
/// Where the initramfs keeps its kernel modules.
pub const MODULES_DIR: &str = "/modules";
/// The list of kernel modules in the initramfs, in the order to load them: one [`ModuleLine`] a line.
pub const MODULES_LIST: &str = "/modules.list";

/// What every guest boots with; a driver adds its console and, where asked for, [`KERNEL_ARGS_TCG`].
///
/// `panic=-1` with `-no-reboot` ends the monitor on a kernel panic; `quiet`, `audit=0`, `apparmor=0`, `lsm=landlock`,
/// `cryptomgr.notests`, `nowatchdog` and `no_timer_check` leave out work that serves no guest (600 ms of a boot under
/// emulation); `transparent_hugepage=madvise` keeps a clone's private memory small; `random.trust_cpu=on` lets the pool
/// start at once: the identity brings the host's entropy before any command runs.
pub const KERNEL_ARGS: &str = "quiet loglevel=4 panic=-1 audit=0 apparmor=0 lsm=landlock cryptomgr.notests nowatchdog \
    nokaslr random.trust_cpu=on rcupdate.rcu_expedited=1 no_timer_check transparent_hugepage=madvise";
/// Added under TCG: the emulated processor needs no mitigations, no second zeroing of memory and no account of what waits
/// for what at each switch (a hundredth of a command's time), and address randomization empties the translation cache at
/// each new process (26-52 ms a command instead of 6-14).
pub const KERNEL_ARGS_TCG: &str = "norandmaps mitigations=off init_on_alloc=0 tsc=reliable psi=0";
/// The console on QEMU's and Cloud Hypervisor's serial port.
pub const KERNEL_ARGS_CONSOLE: &str = "console=ttyS0";

/// One line of [`MODULES_LIST`]: a file in [`MODULES_DIR`] and when it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleLine {
    /// The file's name.
    pub file: String,
    /// When it is loaded.
    pub when: ModuleWhen,
}

/// When a module is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleWhen {
    /// At every boot.
    Always,
    /// When a virtio device of this type is there (virtio 1.2, section 5: 1 network, 4 entropy, 19 socket).
    Virtio(u16),
}

impl std::fmt::Display for ModuleLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.when {
            ModuleWhen::Always => write!(f, "{} always", self.file),
            ModuleWhen::Virtio(kind) => write!(f, "{} virtio:{kind}", self.file),
        }
    }
}

impl ModuleLine {
    /// Reads one line; `None` if it isn't one.
    pub fn parse(line: &str) -> Option<Self> {
        let (file, when) = line.trim().split_once(' ')?;
        if file.is_empty() || file.contains('/') {
            return None;
        }
        let when = match when.trim() {
            "always" => ModuleWhen::Always,
            other => ModuleWhen::Virtio(other.strip_prefix("virtio:")?.parse().ok()?),
        };
        Some(Self { file: file.to_owned(), when })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_line_reads_back_as_written() {
        for when in [ModuleWhen::Always, ModuleWhen::Virtio(19)] {
            let line = ModuleLine { file: "erofs.ko".to_owned(), when };
            assert_eq!(ModuleLine::parse(&line.to_string()), Some(line));
        }
    }

    #[test]
    fn a_module_line_never_names_a_path() {
        for bad in
            ["", "erofs.ko", "../x.ko always", "a/b.ko always", "x.ko sometimes", "x.ko virtio:", "x.ko virtio:99999"]
        {
            assert_eq!(ModuleLine::parse(bad), None, "{bad}");
        }
    }
}
