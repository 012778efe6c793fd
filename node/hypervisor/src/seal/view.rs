//! What a monitor may see of the host, as a list: what isn't in it isn't there.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::keeper::KeeperConfig;
use crate::{MemorySource, template};

/// Where programs' shared libraries lie; links among them are made again as links.
const LIBRARIES: [&str; 5] = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache"];
/// Firmware of the distribution's QEMU.
const FIRMWARE: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/share/qboot"];
/// What a script needs besides: a wrapper around a monitor is one.
const PROGRAMS: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
/// Devices without rights or state.
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];
/// The processor's virtualization.
const KVM: &str = "/dev/kvm";

/// The list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Files and folders, read-only.
    pub(crate) read: Vec<PathBuf>,
    /// The machine's own, to write.
    pub(crate) write: Vec<PathBuf>,
    /// Files that are shared with other machines: read-only, and readable for every machine's user.
    pub(crate) shared: Vec<PathBuf>,
    /// Devices.
    pub(crate) devices: Vec<PathBuf>,
    /// What the monitor opens for writing and is given a descriptor of instead: the file, and whether it may write.
    pub(crate) handed: Vec<(PathBuf, bool)>,
    /// A file that the monitor would make and fill itself.
    pub(crate) made: Option<PathBuf>,
}

/// The view of a machine's monitor, whose program is `program`.
pub(super) fn view(config: &KeeperConfig, program: &Path) -> View {
    let spec = &config.spec;
    let mut view = View { shared: vec![spec.image.root.clone()], write: vec![spec.disk.clone()], ..View::default() };
    view.read.extend(LIBRARIES.iter().chain(&FIRMWARE).map(PathBuf::from));
    view.read.extend(around(program));
    let boots = |view: &mut View| view.shared.extend([spec.image.kernel.clone(), spec.image.initramfs.clone()]);
    match &spec.memory {
        MemorySource::Boot => boots(&mut view),
        MemorySource::BootTemplate { template } => {
            boots(&mut view);
            view.made = Some(template::memory_file(template));
        }
        MemorySource::BootOver { template }
        | MemorySource::Clone { template }
        | MemorySource::Restore { template, .. } => {
            if matches!(spec.memory, MemorySource::BootOver { .. }) {
                boots(&mut view);
            }
            let memory = template::memory_file(template);
            view.read.push(memory.clone());
            view.handed.push((memory, false));
        }
    }
    view.shared.extend(config.seal.read.iter().cloned());
    view.write.extend(config.seal.write.iter().cloned());
    view.devices.extend(DEVICES.iter().map(PathBuf::from));
    if fs::metadata(KVM).is_ok_and(|about| about.file_type().is_char_device()) && config.seal.kvm {
        view.devices.push(KVM.into());
        view.handed.push((KVM.into(), true));
    }
    for (path, write) in &config.seal.handed {
        if path.starts_with("/dev") {
            view.devices.push(path.clone());
        }
        view.handed.push((path.clone(), *write));
    }
    view
}

/// The program, and what a program that was built apart has beside it.
fn around(program: &Path) -> Vec<PathBuf> {
    let mut found = vec![program.to_owned()];
    let folder = program.parent().unwrap_or(Path::new("/"));
    if is_script(program) {
        found.extend(PROGRAMS.iter().map(PathBuf::from));
        found.push(folder.to_owned());
    }
    let prefix =
        folder.parent().filter(|prefix| folder.file_name() == Some(OsStr::new("bin")) && *prefix != Path::new("/"));
    if let Some(prefix) = prefix.filter(|prefix| *prefix != Path::new("/usr")) {
        found.extend(["share", "lib", "lib64", "libexec"].map(|name| prefix.join(name)));
    }
    found
}

fn is_script(program: &Path) -> bool {
    let mut start = [0; 2];
    File::open(program).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *b"#!"
}

/// The program's file itself: found in PATH, with all links followed.
pub(crate) fn find(program: &Path) -> io::Result<PathBuf> {
    if program.components().count() > 1 {
        return fs::canonicalize(program);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file());
    found.map_or(Err(io::ErrorKind::NotFound.into()), fs::canonicalize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_the_file_that_it_is() {
        assert!(find(Path::new("sh")).expect("a shell").is_absolute());
        assert!(find(Path::new("no-such-program-anywhere")).is_err());
        assert!(find(Path::new("/no/such/program")).is_err());
    }

    #[test]
    fn a_program_apart_brings_its_share_and_a_script_its_shell() {
        assert_eq!(around(Path::new("/usr/bin/qemu")), [Path::new("/usr/bin/qemu")]);
        let apart = around(Path::new("/opt/qemu/bin/qemu"));
        assert!(apart.contains(&"/opt/qemu/share".into()) && !apart.contains(&"/opt/qemu".into()));
        let folder = tempfile::tempdir().expect("a folder");
        let script = folder.path().join("wrapper");
        fs::write(&script, "#!/bin/sh\n").expect("written");
        assert!(around(&script).contains(&"/bin".into()) && around(&script).contains(&folder.path().to_owned()));
    }
}
