//! A machine's configuration, as a pure function: what isn't in it, the guest doesn't have.

use std::path::Path;

use cloud_hypervisor_client::models::console_config::ConsoleConfig;
use cloud_hypervisor_client::models::{
    ConsoleMode, CpusConfig, DiskConfig, ImageType, MemoryConfig, PayloadConfig, SerialConfig, VmConfig, VsockConfig,
};
use fabric_types::Accelerator;

use crate::VmSpec;
use crate::kernel_args::kernel_args;

/// The guest's vsock address. Every machine has its own: each monitor serves its own guest only.
const GUEST_CID: i64 = 3;

/// The configuration of `spec`'s machine, which boots `kernel`. The first disk is the root (read-only), the second the
/// machine's own; the serial port is the monitor's standard output, which the keeper limits; there is no network card.
pub(super) fn vm_config(spec: &VmSpec, kernel: &Path, landlock: bool, further_kernel_args: &str) -> VmConfig {
    let text = |path: &Path| Some(path.to_string_lossy().into_owned());
    let vcpus = i32::try_from(spec.shape.vcpus().0).unwrap_or(i32::MAX);
    let payload = PayloadConfig {
        kernel: text(kernel),
        initramfs: text(&spec.image.initramfs),
        cmdline: Some(kernel_args(Accelerator::Kvm, further_kernel_args)),
        ..PayloadConfig::new()
    };
    let disk = |id: &str, path: &Path, readonly| DiskConfig {
        path: text(path),
        readonly: Some(readonly),
        id: Some(id.to_owned()),
        image_type: Some(ImageType::Raw),
        ..DiskConfig::new()
    };
    VmConfig {
        cpus: Some(CpusConfig::new(vcpus, vcpus)),
        memory: Some(MemoryConfig::new(i64::from(spec.shape.memory().0) << 20)),
        disks: Some(vec![disk("root", &spec.image.root, true), disk("own", &spec.disk, false)]),
        vsock: Some(VsockConfig::new(GUEST_CID, spec.folder.channel_socket().to_string_lossy().into_owned())),
        serial: Some(SerialConfig::new(ConsoleMode::Tty)),
        console: Some(ConsoleConfig::new(ConsoleMode::Off)),
        landlock_enable: Some(landlock),
        ..VmConfig::new(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImagePaths, MemorySource, VmFolder};
    use fabric_types::Shape;

    #[test]
    fn the_machine_has_two_disks_a_channel_and_no_network() {
        let spec = VmSpec {
            label: "x".into(),
            folder: VmFolder { dir: "/v".into(), run: "/r".into() },
            shape: Shape::new(2, 512, 3).expect("a shape"),
            image: ImagePaths { kernel: "/i/kernel".into(), initramfs: "/i/initramfs".into(), root: "/i/root".into() },
            disk: "/v/disk".into(),
            memory: MemorySource::Boot,
            network: crate::NetworkDevice::None,
            limits: crate::MachineLimits::default(),
        };
        let json = serde_json::to_value(vm_config(&spec, Path::new("/v/kernel"), true, "loglevel=7")).expect("JSON");
        assert_eq!(json["payload"]["kernel"], "/v/kernel");
        assert_eq!(json["cpus"]["boot_vcpus"], 2);
        assert_eq!(json["memory"]["size"], 512 << 20);
        assert_eq!(json["disks"][0]["path"], "/i/root");
        assert_eq!(json["disks"][0]["readonly"], true);
        assert_eq!(json["disks"][1]["readonly"], false);
        assert_eq!(json["vsock"]["socket"], "/r/c");
        assert_eq!(json["serial"]["mode"], "Tty");
        assert_eq!(json["landlock_enable"], true);
        assert!(json.get("net").is_none_or(serde_json::Value::is_null));
        let line = json["payload"]["cmdline"].as_str().expect("text");
        assert!(line.starts_with("console=ttyS0 ") && line.ends_with(" loglevel=7"), "{line}");
    }
}
