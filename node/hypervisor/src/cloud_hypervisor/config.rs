//! A machine's configuration as the monitor takes it, as pure functions: what isn't in it, the guest doesn't have.
//!
//! The configuration of a clone is made anew from its specification, not taken from the saved one: a snapshot that came
//! from elsewhere must not name files of this host. Only what the device state depends on is kept of it: the
//! processors' description, and which of the optional devices there were.

use std::path::{Path, PathBuf};

use fabric_types::Accelerator;
use serde_json::{Value, json};

use super::CloneMemory;
use crate::kernel_args::kernel_args;
use crate::{MachineLimits, MemorySource, VmError, VmFolder, VmSpec, template};

/// The guest's vsock address. Every machine may have the same: each monitor serves its own guest only.
const GUEST_CID: u32 = 3;
/// The network card's name, for calls that bring its descriptor.
pub(super) const CARD: &str = "net";
/// The name of the disk that holds the image's root, for counts.
pub(super) const ROOT_DISK: &str = "root";
/// The name of the machine's own disk, for calls that change it.
pub(super) const OWN_DISK: &str = "own";
/// The name of the one zone of memory that is a file's.
const ZONE: &str = "memory";
/// Where the card's MAC begins: the agent sets its own, since every clone of a template has this one.
const CARD_MAC: &str = "02:00:00:00:00:01";
/// A rate limiter's buckets are filled within this time, ms: a second, so that a bucket's size is the rate.
const REFILL_MS: u64 = 1000;

/// What every machine of a driver has in common.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub(super) landlock: bool,
    pub(super) clone_memory: CloneMemory,
    pub(super) hugepages: bool,
    pub(super) balloon: bool,
    pub(super) network_bytes_per_second: Option<u64>,
    pub(super) kernel_args: String,
}

impl Common {
    /// Refuses what doesn't go together.
    pub(super) fn check(&self) -> Result<(), VmError> {
        let what = match self.clone_memory {
            CloneMemory::Mapped if self.hugepages => "huge pages",
            // It would punch holes into the template's file under all other clones.
            CloneMemory::Mapped if self.balloon => "a balloon",
            CloneMemory::Mapped | CloneMemory::OnDemand | CloneMemory::Copy => return Ok(()),
        };
        let why = format!("clones that map their template's memory can't have {what}; have them copied or on demand");
        Err(VmError::Unsupported { verb: "this choice of memory", why })
    }
}

/// The devices that a machine may have or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Optional {
    pub(super) card: bool,
    pub(super) balloon: bool,
}

impl Optional {
    /// Those of a saved configuration.
    pub(super) fn of(config: &Value) -> Self {
        let card = config["net"].as_array().is_some_and(|cards| !cards.is_empty());
        Self { card, balloon: config["balloon"].is_object() }
    }
}

/// The configuration of a machine that boots. Its card, if it is to have one, is added by a call of its own, since
/// `vm.create` takes no descriptors.
pub(super) fn boot_config(spec: &VmSpec, common: &Common) -> Value {
    let vcpus = spec.shape.vcpus().0;
    let mut config = machine_config(spec, common);
    // Without nested virtualization: a guest in the guest would be a second hypervisor to trust.
    config["cpus"] = json!({ "boot_vcpus": vcpus, "max_vcpus": vcpus, "nested": false });
    config["payload"]["initramfs"] = json!(spec.image.initramfs);
    config["payload"]["cmdline"] = json!(kernel_args(Accelerator::Kvm, &common.kernel_args));
    if common.balloon {
        config["balloon"] = balloon();
    }
    config
}

/// The configuration of a machine that is loaded from one saved with `saved`. A card expects one descriptor.
pub(super) fn loaded_config(spec: &VmSpec, common: &Common, saved: &Value) -> Value {
    let optional = Optional::of(saved);
    let mut config = machine_config(spec, common);
    config["cpus"] = saved["cpus"].clone();
    if optional.balloon {
        config["balloon"] = balloon();
    }
    if optional.card {
        let mut card = card_config(common);
        // A number that means nothing: it says that a descriptor comes with the call.
        card["fds"] = json!([-1]);
        config["net"] = json!([card]);
    }
    config
}

/// The card, for `vm.add-net`.
pub(super) fn card_config(common: &Common) -> Value {
    let mut card = json!({ "id": CARD, "mac": CARD_MAC, "num_queues": 2 });
    if let Some(rate) = common.network_bytes_per_second {
        card["rate_limiter_config"] = limiter(rate);
    }
    card
}

/// What a machine has however it starts. The kernel is a link that is there only until the guest has booted. The first
/// disk is the root (read-only), the second the machine's own; the serial port is the monitor's standard output, which
/// the keeper limits.
fn machine_config(spec: &VmSpec, common: &Common) -> Value {
    let disk = |id: &str, path: &Path, readonly: bool| {
        let mut disk = json!({ "id": id, "path": path, "readonly": readonly, "image_type": "Raw" });
        if let MachineLimits { io_bytes_per_second: Some(rate), .. } = spec.limits {
            disk["rate_limiter_config"] = limiter(rate);
        }
        disk
    };
    let folder = monitor_folder(&spec.folder);
    json!({
        "payload": { "kernel": kernel_link(&folder) },
        "memory": memory(spec, common),
        "disks": [disk(ROOT_DISK, &spec.image.root, true), disk(OWN_DISK, &spec.disk, false)],
        "vsock": { "id": "vsock", "cid": GUEST_CID, "socket": channel_socket(&spec.folder) },
        "rng": { "src": "/dev/urandom" },
        "serial": { "mode": "Tty" },
        "console": { "mode": "Off" },
        "landlock_enable": common.landlock,
        "landlock_rules": [{ "path": folder, "access": "rw" }],
    })
}

/// Where the monitor reads what it loads and writes what it saves. It and the channel's folder are all that the monitor
/// may write in; the node reads no link there.
pub(super) fn monitor_folder(folder: &VmFolder) -> PathBuf {
    folder.dir.join("monitor")
}

/// The folder of the channel's socket, which the monitor makes: apart from the keeper's sockets, and short.
pub(super) fn channel_folder(folder: &VmFolder) -> PathBuf {
    folder.run.join("v")
}

/// The channel's socket.
pub(super) fn channel_socket(folder: &VmFolder) -> PathBuf {
    channel_folder(folder).join("c")
}

/// The link to the kernel, in the monitor's folder.
pub(super) fn kernel_link(monitor_folder: &Path) -> PathBuf {
    monitor_folder.join("kernel")
}

/// Memory in a template's file is a zone of its own, mapped shared by the machine that makes it and privately by the
/// others: their monitor reads the file's pages and copies those that its guest writes.
fn memory(spec: &VmSpec, common: &Common) -> Value {
    let size = u64::from(spec.shape.memory().0) << 20;
    let zone = |file: Option<PathBuf>, shared: bool| {
        let hugepages = common.hugepages && file.is_none();
        let zone = json!({ "id": ZONE, "size": size, "file": file, "shared": shared, "hugepages": hugepages });
        json!({ "size": 0, "thp": false, "zones": [zone] })
    };
    let file = |template: &Path, shared| zone(Some(template::memory_file(template)), shared);
    match (&spec.memory, common.clone_memory) {
        (MemorySource::Boot, _) => zone(None, false),
        (MemorySource::BootTemplate { template }, _) => file(template, true),
        (MemorySource::BootOver { template }, _) => file(template, false),
        (MemorySource::Clone { template } | MemorySource::Restore { template, .. }, CloneMemory::Mapped) => {
            file(template, false)
        }
        (MemorySource::Clone { .. } | MemorySource::Restore { .. }, CloneMemory::OnDemand | CloneMemory::Copy) => {
            zone(None, false)
        }
    }
}

/// It takes nothing from the guest by itself; the guest reports what it has free, and gives back nothing that it needs.
fn balloon() -> Value {
    json!({ "id": "balloon", "size": 0, "deflate_on_oom": true, "free_page_reporting": true })
}

fn limiter(bytes_per_second: u64) -> Value {
    json!({ "bandwidth": { "size": bytes_per_second, "one_time_burst": 0, "refill_time": REFILL_MS } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImagePaths, NetworkDevice, SnapshotFiles};
    use fabric_types::Shape;

    fn common(clone_memory: CloneMemory) -> Common {
        Common {
            landlock: true,
            clone_memory,
            hugepages: false,
            balloon: false,
            network_bytes_per_second: None,
            kernel_args: "loglevel=7".into(),
        }
    }

    fn spec(memory: MemorySource) -> VmSpec {
        VmSpec {
            label: "x".into(),
            folder: VmFolder { dir: "/v".into(), run: "/r".into() },
            shape: Shape::new(2, 512, 3).expect("a shape"),
            image: ImagePaths { kernel: "/i/kernel".into(), initramfs: "/i/initramfs".into(), root: "/i/root".into() },
            disk: "/v/disk".into(),
            memory,
            checkpoint: None,
            network: NetworkDevice::None,
            limits: MachineLimits::default(),
        }
    }

    #[test]
    fn a_booting_machine_has_two_disks_a_channel_and_no_network() {
        let json = boot_config(&spec(MemorySource::Boot), &common(CloneMemory::Mapped));
        assert_eq!(json["payload"]["kernel"], "/v/monitor/kernel");
        assert_eq!(json["cpus"], json!({ "boot_vcpus": 2, "max_vcpus": 2, "nested": false }));
        assert_eq!(json["memory"]["zones"][0]["size"], 512 << 20);
        assert_eq!(json["disks"][0]["path"], "/i/root");
        assert_eq!(json["disks"][0]["readonly"], true);
        assert_eq!(json["disks"][1]["readonly"], false);
        assert_eq!(json["vsock"]["socket"], "/r/v/c");
        assert_eq!(json["serial"]["mode"], "Tty");
        assert_eq!(json["landlock_enable"], true);
        assert_eq!(json["landlock_rules"], json!([{ "path": "/v/monitor", "access": "rw" }]));
        assert!(json.get("net").is_none() && json.get("balloon").is_none());
        let line = json["payload"]["cmdline"].as_str().expect("text");
        assert!(line.starts_with("console=ttyS0 ") && line.ends_with(" loglevel=7"), "{line}");
    }

    #[test]
    fn a_templates_memory_is_written_by_its_maker_alone() {
        let zone = |memory| boot_config(&spec(memory), &common(CloneMemory::Mapped))["memory"]["zones"][0].clone();
        let maker = zone(MemorySource::BootTemplate { template: "/t".into() });
        assert_eq!((&maker["file"], &maker["shared"]), (&json!("/t/memory"), &json!(true)));
        let over = zone(MemorySource::BootOver { template: "/t".into() });
        assert_eq!((&over["file"], &over["shared"]), (&json!("/t/memory"), &json!(false)));
        let snapshot = SnapshotFiles { device_state: "/s".into(), pages: "/p".into(), runs: vec![], disk: "/d".into() };
        for memory in
            [MemorySource::Clone { template: "/t".into() }, MemorySource::Restore { template: "/t".into(), snapshot }]
        {
            for (clone_memory, file) in [
                (CloneMemory::Mapped, json!("/t/memory")),
                (CloneMemory::OnDemand, Value::Null),
                (CloneMemory::Copy, Value::Null),
            ] {
                let config = loaded_config(&spec(memory.clone()), &common(clone_memory), &json!({}));
                let zone = &config["memory"]["zones"][0];
                assert_eq!((&zone["file"], &zone["shared"]), (&file, &json!(false)), "{clone_memory:?}");
            }
        }
    }

    #[test]
    fn a_saved_configuration_brings_no_file_of_its_own() {
        let saved = json!({
            "cpus": { "boot_vcpus": 2, "max_vcpus": 2, "max_phys_bits": 46 },
            "payload": { "kernel": "/etc/shadow" },
            "disks": [{ "id": "root", "path": "/etc/shadow" }, { "id": "x", "path": "/etc/shadow" }],
            "fs": [{ "socket": "/etc/shadow" }], "pmem": [{ "file": "/etc/shadow" }],
            "rng": { "src": "/etc/shadow" }, "serial": { "mode": "File", "file": "/etc/shadow" },
            "net": [{ "id": "net", "tap": "/etc/shadow" }], "balloon": { "size": 1 << 30 },
            "landlock_rules": [{ "path": "/etc/shadow", "access": "rw" }],
        });
        let config =
            loaded_config(&spec(MemorySource::Clone { template: "/t".into() }), &common(CloneMemory::Mapped), &saved);
        assert!(!config.to_string().contains("shadow"), "{config}");
        assert_eq!(config["cpus"], saved["cpus"]);
        assert_eq!(config["net"], json!([{ "id": "net", "mac": CARD_MAC, "num_queues": 2, "fds": [-1] }]));
        assert_eq!(config["balloon"]["size"], 0);
        assert!(config["payload"].get("initramfs").is_none());
    }

    #[test]
    fn limits_are_the_monitors_to_keep() {
        let mut spec = spec(MemorySource::Boot);
        spec.limits.io_bytes_per_second = Some(1 << 20);
        let common = Common { network_bytes_per_second: Some(5), ..common(CloneMemory::Mapped) };
        for disk in boot_config(&spec, &common)["disks"].as_array().expect("disks") {
            assert_eq!(disk["rate_limiter_config"]["bandwidth"]["size"], 1 << 20);
        }
        assert_eq!(card_config(&common)["rate_limiter_config"]["bandwidth"]["size"], 5);
    }

    #[test]
    fn memory_that_is_mapped_has_no_balloon_and_no_huge_pages() {
        for (hugepages, balloon) in [(true, false), (false, true)] {
            let asked = |clone_memory| Common { hugepages, balloon, ..common(clone_memory) };
            let error = asked(CloneMemory::Mapped).check().expect_err("refused").to_string();
            assert!(error.contains("on demand"), "{error}");
            asked(CloneMemory::OnDemand).check().expect("fine");
        }
        common(CloneMemory::Mapped).check().expect("fine");
    }
}
