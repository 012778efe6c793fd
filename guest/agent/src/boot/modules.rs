//! Loads the kernel modules of the initramfs, in the order of their list.

use std::fs::{self, File};
use std::path::Path;

use guest_proto::boot::{MODULES_DIR, MODULES_LIST, ModuleLine, ModuleWhen};

use super::BootError;
use crate::console::say;
use crate::sys;

/// Where the kernel shows the virtio devices it has found.
const VIRTIO_DEVICES: &str = "/sys/bus/virtio/devices";

/// Loads what every boot needs, then what the devices at hand need. A module that fails is said and left: whether it
/// was needed shows at the next step.
pub(super) fn load_all() -> Result<(), BootError> {
    let path = Path::new(MODULES_LIST);
    let text = fs::read_to_string(path).map_err(BootError::file("read", path))?;
    let lines: Vec<ModuleLine> = text.lines().filter_map(ModuleLine::parse).collect();
    lines.iter().filter(|line| line.when == ModuleWhen::Always).for_each(load);
    let kinds = virtio_kinds(Path::new(VIRTIO_DEVICES));
    lines.iter().filter(|line| matches!(line.when, ModuleWhen::Virtio(kind) if kinds.contains(&kind))).for_each(load);
    Ok(())
}

fn load(line: &ModuleLine) {
    let path = Path::new(MODULES_DIR).join(&line.file);
    if let Err(error) = File::open(&path).and_then(|file| sys::load_module(&file)) {
        say(&format!("can't load {}: {error}", line.file));
    }
}

/// The types of the virtio devices, from each one's `device` file (`0x0002`).
fn virtio_kinds(folder: &Path) -> Vec<u16> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("device")).ok())
        .filter_map(|text| u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_types_are_read_from_sysfs() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("virtio0", "0x0002\n"), ("virtio1", "0x0013\n"), ("virtio2", "what\n")] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("device"), text).unwrap();
        }
        let mut kinds = virtio_kinds(folder.path());
        kinds.sort_unstable();
        assert_eq!(kinds, [2, 19]);
        assert!(virtio_kinds(Path::new("/nowhere")).is_empty());
    }
}
