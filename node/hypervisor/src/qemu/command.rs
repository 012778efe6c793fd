//! A machine's command line, as pure functions: what isn't on it, the guest doesn't have.
//!
//! There is no display, USB, sound or firmware setting; the first virtio disk is the root (read-only), the second the
//! machine's own; one virtio serial port, `atoll`, is the channel; the first serial port is the console. Every machine
//! has one network card at the same place, whatever it is plugged into, so that a template booted without a network is
//! loaded by clones with one. QEMU's own user-mode network, whose 10.0.2.2 is the host's loopback, is on no line.
//!
//! What a clone has for itself under TCG (written pages, QEMU 7.2, default shape), MiB:
//!
//! ```text
//! 14-17  loaded, with kernel and initramfs left out (17 more with them)
//! 20-22  ... and has its identity
//! 31-32  ... and has run a shell command
//! 55     ... and has run python once
//! 12-14  a copy of a checkpoint that has done all of this and more (`crate::checkpoint`)
//! ```
//!
//! Of the 55, 31 are translated code, 6.6 the guest's memory, 5 QEMU's heap, 4 relocated pages of its program and
//! libraries. Without huge pages (the keeper's prctl) it is 2.7 less. A smaller cache of translated code would bound the
//! largest part, and have every program that no longer fits translated again; so it isn't smaller. Copies share it.

use std::path::Path;

use fabric_types::{Accelerator, Fit};
use serde_json::{Value, json};

use crate::kernel_args::kernel_args;
use crate::{MemorySource, NetworkDevice, VmSpec, template};

/// The virtio port's name, by which the agent finds it in /sys/class/virtio-ports.
const CHANNEL_PORT: &str = "atoll";
/// The node name of the machine's own disk, for QMP.
pub(super) const OWN_DISK: &str = "own";
/// Cache of translated code under TCG, MiB: python3 and node warmed up take some 60 MiB of it, and it is memory private
/// to each machine. When it is full, it is emptied.
const TCG_CACHE_MIB: u32 = 128;
/// What QEMU may not call: new programs, other users' rights, scheduling of others, obsolete calls (seccomp).
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
/// The processor under TCG: AMD's, so that the guest's kernel doesn't guard against what only Intel's leak (page tables
/// of its own for user space, costly to translate), with the instructions of x86-64-v2 that distributions begin to
/// assume.
pub(super) const TCG_CPU: &str = "qemu64-v1";
/// Added to [`TCG_CPU`].
pub(super) const TCG_FEATURES: [&str; 8] = ["abm", "cx16", "lahf-lm", "popcnt", "rdrand", "sse4.1", "sse4.2", "ssse3"];

/// The network card, but for what it is plugged into. All that depends on a plug's abilities is off, so that the same
/// card loads under any: the plugs have no header for offloads, and without them buffers need not be merged. Its MAC
/// is the agent's to set, so QEMU's may be every machine's. No ROM: nothing boots from it.
const CARD: &str = "virtio-net-pci,id=card,addr=0x8,disable-legacy=on,romfile=,mac=02:00:00:00:00:01,csum=off,gso=off,\
    guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,host_tso4=off,host_tso6=off,host_ecn=off,\
    host_ufo=off,mrg_rxbuf=off,guest_announce=off,mq=off";

/// Leaves the section on QEMU's own configuration out of streams: `xen-save-devices-state` writes none, and a reader that
/// expects one refuses. Templates are saved without it too, so that one monitor loads either.
const BARE_STATE: [&str; 2] = ["-global", "migration.send-configuration=off"];

/// The arguments that make `spec`'s machine, stopped. `{fd:NAME}` stands for listeners that the keeper hands on;
/// `bare_state` says how the template that is cloned was saved.
pub(super) fn arguments(spec: &VmSpec, fit: &Fit, bare_state: bool, further_kernel_args: &str) -> Vec<String> {
    let memory_mib = spec.shape.memory().0;
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
    add(&["-name", &format!("guest={}", safe_label(&spec.label))]);
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot", "-S"]);
    add(&["-sandbox", SANDBOX]);
    add(&[
        "-machine",
        &format!("{},memory-backend=memory,sata=off,smbus=off,usb=off,vmport=off,hpet=off,graphics=off", fit.machine),
    ]);
    add(&["-accel", &accelerator(fit.accelerator)]);
    add(&["-cpu", &cpu(fit)]);
    add(&["-smp", &spec.shape.vcpus().0.to_string(), "-m", &format!("{memory_mib}M")]);
    add(&["-object", &memory(&spec.memory, memory_mib).to_string()]);
    add(&["-blockdev", &disk("root", &spec.image.root, true).to_string()]);
    add(&["-device", "virtio-blk-pci,drive=root,disable-legacy=on,num-queues=1"]);
    add(&["-blockdev", &disk(OWN_DISK, &spec.disk, false).to_string()]);
    add(&["-device", &format!("virtio-blk-pci,drive={OWN_DISK},disable-legacy=on,num-queues=1,discard=on")]);
    add(&["-device", "virtio-serial-pci,max_ports=2,disable-legacy=on"]);
    add(&["-chardev", "socket,id=channel,fd={fd:c},server=on,wait=off"]);
    add(&["-device", &format!("virtserialport,chardev=channel,name={CHANNEL_PORT}")]);
    match &spec.network {
        NetworkDevice::None => add(&["-device", CARD]),
        NetworkDevice::Tap { .. } => {
            add(&["-netdev", "tap,id=net,fd={fd:net},vhost=off", "-device", &format!("{CARD},netdev=net")]);
        }
        NetworkDevice::Passt { .. } => {
            let plug = "stream,id=net,server=off,addr.type=fd,addr.str={fd:net}";
            add(&["-netdev", plug, "-device", &format!("{CARD},netdev=net")]);
        }
    }
    add(&["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    add(&["-chardev", "socket,id=monitor,fd={fd:q},server=on,wait=off", "-mon", "chardev=monitor,mode=control"]);
    match &spec.memory {
        MemorySource::Boot | MemorySource::BootTemplate { .. } | MemorySource::BootOver { .. } => {
            add(&["-kernel", &spec.image.kernel.to_string_lossy(), "-initrd", &spec.image.initramfs.to_string_lossy()]);
            add(&["-append", &kernel_args(fit.accelerator, further_kernel_args)]);
        }
        // Without kernel and initramfs: their copies in QEMU would be 17 MB of private memory that no clone reads.
        MemorySource::Clone { .. } | MemorySource::Restore { .. } => add(&["-incoming", "defer"]),
    }
    let bare = match &spec.memory {
        MemorySource::Clone { .. } => bare_state,
        MemorySource::BootTemplate { .. } | MemorySource::Restore { .. } => true,
        MemorySource::Boot | MemorySource::BootOver { .. } => false,
    };
    if bare {
        add(&BARE_STATE);
    }
    arguments
}

fn accelerator(accelerator: Accelerator) -> String {
    match accelerator {
        Accelerator::Kvm => "kvm".to_owned(),
        // One thread for each vCPU where there are several.
        Accelerator::Tcg => format!("tcg,tb-size={TCG_CACHE_MIB}"),
    }
}

fn cpu(fit: &Fit) -> String {
    let features = match fit.accelerator {
        Accelerator::Tcg => fit.cpu_features.iter().map(|feature| format!(",{feature}=on")).collect(),
        // The model `host` has them by itself.
        Accelerator::Kvm => ",migratable=on".to_owned(),
    };
    format!("{}{features}", fit.cpu_model)
}

fn memory(source: &MemorySource, memory_mib: u32) -> Value {
    let size = u64::from(memory_mib) << 20;
    match source {
        MemorySource::Boot => json!({ "qom-type": "memory-backend-ram", "id": "memory", "size": size }),
        MemorySource::BootTemplate { template } => file(size, &template::memory_file(template), true),
        MemorySource::BootOver { template }
        | MemorySource::Clone { template }
        | MemorySource::Restore { template, .. } => file(size, &template::memory_file(template), false),
    }
}

fn file(size: u64, path: &Path, share: bool) -> Value {
    json!({ "qom-type": "memory-backend-file", "id": "memory", "size": size, "mem-path": path, "share": share })
}

fn disk(name: &str, path: &Path, read_only: bool) -> Value {
    let discard = if read_only { "ignore" } else { "unmap" };
    // The root is shared by every machine of the host and never written: a lock on it only makes a clone's `cont` fail
    // while another machine holds the image inactive in a migration.
    let locking = if read_only { "off" } else { "auto" };
    json!({
        "node-name": name, "driver": "raw", "read-only": read_only, "discard": discard,
        "file": {
            "driver": "file", "filename": path, "read-only": read_only, "discard": discard, "aio": "threads",
            "locking": locking,
        },
    })
}

/// A label as an option's value: QEMU takes commas and equals signs for itself.
fn safe_label(label: &str) -> String {
    let keep = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    label.chars().filter(|&character| keep(character)).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImagePaths, SnapshotFiles, VmFolder};
    use fabric_types::{HypervisorKind, Shape};

    fn fit(accelerator: Accelerator) -> Fit {
        Fit {
            hypervisor: HypervisorKind::Qemu,
            version: "7.2.22".into(),
            machine: "pc-q35-7.2".into(),
            accelerator,
            cpu_model: TCG_CPU.into(),
            cpu_features: TCG_FEATURES.map(str::to_owned).to_vec(),
        }
    }

    fn spec(memory: MemorySource) -> VmSpec {
        VmSpec {
            label: "pool,1=x".into(),
            folder: VmFolder { dir: "/v".into(), run: "/r".into() },
            shape: Shape::DEFAULT,
            image: ImagePaths {
                kernel: "/i/kernel".into(),
                initramfs: "/i/initramfs".into(),
                root: "/i/root,x".into(),
            },
            disk: "/v/disk".into(),
            memory,
            checkpoint: None,
            network: crate::NetworkDevice::None,
            limits: crate::MachineLimits::default(),
        }
    }

    fn line(memory: MemorySource) -> String {
        arguments(&spec(memory), &fit(Accelerator::Tcg), true, "").join(" ")
    }

    #[test]
    fn every_machine_has_the_same_card_and_none_a_user_mode_network() {
        let snapshot = SnapshotFiles { device_state: "/s".into(), pages: "/p".into(), runs: vec![], disk: "/d".into() };
        for memory in [
            MemorySource::Boot,
            MemorySource::BootTemplate { template: "/t".into() },
            MemorySource::BootOver { template: "/t".into() },
            MemorySource::Clone { template: "/t".into() },
            MemorySource::Restore { template: "/t".into(), snapshot },
        ] {
            for (network, plug) in [
                (NetworkDevice::None, None),
                (NetworkDevice::Tap { name: "t".into(), netns: None }, Some("tap,")),
                (NetworkDevice::Passt { program: "passt".into(), arguments: vec![] }, Some("stream,")),
            ] {
                let spec = VmSpec { network, ..spec(memory.clone()) };
                let words = arguments(&spec, &fit(Accelerator::Tcg), true, "");
                let line = words.join(" ");
                assert!(line.contains("-nic none") && line.contains("-nodefaults"), "{line}");
                assert!(line.contains("-sandbox on,") && line.contains(" -S "), "{line}");
                assert_eq!(words.iter().filter(|word| word.starts_with(CARD)).count(), 1, "{line}");
                let netdevs: Vec<_> = words.iter().skip_while(|word| *word != "-netdev").skip(1).take(1).collect();
                assert_eq!(netdevs.len(), usize::from(plug.is_some()), "{line}");
                assert!(netdevs.iter().all(|netdev| netdev.starts_with(plug.expect("named"))), "{line}");
                assert!(words.iter().all(|word| word != "-net" && !word.starts_with("user,")), "{line}");
                assert!(!line.contains("slirp") && !line.contains("hostfwd"), "{line}");
            }
        }
    }

    #[test]
    fn a_clone_maps_privately_and_carries_no_kernel() {
        let boot = line(MemorySource::BootTemplate { template: "/t".into() });
        assert!(boot.contains(r#""mem-path":"/t/memory","#) && boot.contains(r#""share":true"#), "{boot}");
        assert!(boot.contains("-kernel /i/kernel -initrd /i/initramfs -append console=ttyS0"), "{boot}");
        let over = line(MemorySource::BootOver { template: "/t".into() });
        assert!(over.contains(r#""share":false"#) && over.contains("-kernel /i/kernel"), "{over}");
        let clone = line(MemorySource::Clone { template: "/t".into() });
        assert!(clone.contains(r#""share":false"#) && clone.contains("-incoming defer"), "{clone}");
        assert!(!clone.contains("-kernel") && !clone.contains("-initrd"), "{clone}");
    }

    #[test]
    fn a_clone_reads_what_its_template_wrote() {
        let with = |memory: MemorySource, bare: bool| {
            arguments(&spec(memory), &fit(Accelerator::Tcg), bare, "").join(" ").contains("send-configuration=off")
        };
        assert!(with(MemorySource::BootTemplate { template: "/t".into() }, false), "templates are saved bare");
        let clone = MemorySource::Clone { template: "/t".into() };
        assert!(with(clone.clone(), true) && !with(clone, false), "an older template has the section");
    }

    #[test]
    fn names_cannot_smuggle_options() {
        let line = line(MemorySource::Boot);
        assert!(line.starts_with("-name guest=pool1x -nodefaults"), "{line}");
        assert!(line.contains(r#""filename":"/i/root,x""#), "paths stand in JSON, where a comma is a comma: {line}");
    }
}
