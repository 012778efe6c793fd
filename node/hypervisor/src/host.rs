//! What the host's processor and kernel offer.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use crate::VmError;

/// The kernel's virtualization device.
const KVM: &str = "/dev/kvm";
/// What the processor says of itself (proc(5)).
const CPU_INFO: &str = "/proc/cpuinfo";

/// Whether `/dev/kvm` opens for reading and writing, as a monitor opens it.
pub(crate) fn kvm_opens() -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open(KVM).map(drop)
}

/// The processor's features and model, sorted: what the processor model `host` passes on to guests.
pub(crate) fn host_features() -> Result<Vec<String>, VmError> {
    let path = Path::new(CPU_INFO);
    let text = fs::read_to_string(path);
    let text = text.map_err(|source| VmError::File { action: "read", path: path.to_owned(), source })?;
    Ok(features_of(&text))
}

/// Whether the processor says that it has hardware virtualization itself. Without it, a `/dev/kvm` is a host's
/// emulation of it, and only a probe tells whether it runs our kernel.
pub(crate) fn has_vmx_or_svm() -> bool {
    host_features().is_ok_and(|features| features.iter().any(|feature| feature == "vmx" || feature == "svm"))
}

fn features_of(cpuinfo: &str) -> Vec<String> {
    let value = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
        line.split_once(':').map(|(_, value)| value.trim())
    };
    let mut features: Vec<String> = value("flags").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    features.push(format!("model={}", value("model name").unwrap_or_default()));
    features.sort_unstable();
    features
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_sorted_and_carry_the_model() {
        let text = "processor\t: 0\nmodel name\t: Fast 9\nflags\t\t: sse2 fpu\n\nprocessor\t: 1\nflags\t\t: other\n";
        assert_eq!(features_of(text), ["fpu", "model=Fast 9", "sse2"]);
    }
}
