//! Which kernel modules the initramfs needs, in the order to load them.
//!
//! Each module names its dependencies in its own `.modinfo` section (`depends=a,b`), so nothing but the unpacked
//! package is asked: no depmod, no running kernel. What is built in is in `modules.builtin` and needs no loading.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_proto::boot::{ModuleLine, ModuleWhen};

use crate::bootstrap::output;
use crate::error::ImageError;

/// What the guest uses, and when. Devices of kinds that not every driver attaches are loaded only where they are.
pub(crate) const WANTED: &[(&str, ModuleWhen)] = &[
    ("virtio_pci", ModuleWhen::Always),
    ("virtio_blk", ModuleWhen::Always),
    ("virtio_console", ModuleWhen::Virtio(3)),
    ("ext4", ModuleWhen::Always),
    ("erofs", ModuleWhen::Always),
    ("overlay", ModuleWhen::Always),
    ("virtio_rng", ModuleWhen::Virtio(4)),
    ("virtio_net", ModuleWhen::Virtio(1)),
    ("vmw_vsock_virtio_transport", ModuleWhen::Virtio(19)),
];
/// Modules that a module may need, itself and those of those included: a loop in hostile data ends here.
const MODULES_MAX: usize = 200;

/// A module to put into the initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its line in the list.
    pub(crate) line: ModuleLine,
    /// Its bytes, decompressed: the guest's kernel then has nothing to unpack.
    pub(crate) bytes: Vec<u8>,
}

/// The wanted modules of `lib/modules/RELEASE` with all they depend on, each after its dependencies.
pub(crate) fn resolve(tree: &Path, wanted: &[(&str, ModuleWhen)]) -> Result<Vec<Module>, ImageError> {
    let builtin = tree.join("modules.builtin");
    let builtin = fs::read_to_string(&builtin).map_err(ImageError::file("read", &builtin))?;
    let mut files = BTreeMap::new();
    index(&tree.join("kernel"), &mut files)?;
    let mut resolver = Resolver {
        files,
        builtin: builtin.lines().map(module_name).collect(),
        seen: BTreeSet::new(),
        chosen: Vec::new(),
    };
    for &(name, when) in wanted {
        resolver.add(name, when)?;
    }
    Ok(resolver.chosen)
}

struct Resolver {
    /// Module files by name.
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    seen: BTreeSet<String>,
    chosen: Vec<Module>,
}

impl Resolver {
    fn add(&mut self, name: &str, when: ModuleWhen) -> Result<(), ImageError> {
        if self.builtin.contains(name) || self.seen.len() > MODULES_MAX || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            return Err(ImageError::KernelPackage { what: format!("has no module {name}") });
        };
        let bytes = decompressed(path)?;
        for needed in depends(&bytes) {
            self.add(&needed, when)?;
        }
        self.chosen.push(Module { line: ModuleLine { file: format!("{name}.ko"), when }, bytes });
        Ok(())
    }
}

/// Every module file below a folder.
fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ImageError> {
    for entry in fs::read_dir(folder).map_err(ImageError::file("list", folder))?.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            index(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| name.contains(".ko")) {
            files.insert(module_name(name), path);
        }
    }
    Ok(())
}

fn decompressed(path: &Path) -> Result<Vec<u8>, ImageError> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => output(Command::new("xz").arg("-dc").arg(path)),
        Some("zst") => output(Command::new("zstd").arg("-dcq").arg(path)),
        Some("gz") => output(Command::new("gzip").arg("-dc").arg(path)),
        _ => fs::read(path).map_err(ImageError::file("read", path)),
    }
}

/// The `depends=` entry among a module's zero-terminated information strings.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = &module[at + KEY.len()..];
    let value = &value[..value.iter().position(|&byte| byte == 0).unwrap_or(0)];
    let text = String::from_utf8_lossy(value);
    text.split(',').filter(|name| !name.is_empty()).map(module_name).collect()
}

/// `kernel/fs/erofs/erofs.ko.xz` is `erofs`; dashes and underscores are the same to the kernel.
fn module_name(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with modules `name -> depends`.
    fn tree(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for (path, needs) in modules {
            let path = tree.path().join("kernel").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("\x7fELF...\0license=GPL\0depends={needs}\0name=x\0")).unwrap();
        }
        fs::write(tree.path().join("modules.builtin"), builtin).unwrap();
        tree
    }

    fn files(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.line.file.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let tree = tree(
            &[
                ("fs/erofs/erofs.ko", "libcrc32c"),
                ("lib/libcrc32c.ko", ""),
                ("drivers/x.ko", "libcrc32c,built"),
                ("net/transport.ko", "common-part,vsock"),
                ("net/common-part.ko", "vsock"),
                ("net/vsock.ko", ""),
            ],
            "kernel/lib/built.ko\n",
        );
        let modules = resolve(tree.path(), &[("erofs", ModuleWhen::Always), ("x", ModuleWhen::Virtio(1))]).unwrap();
        assert_eq!(files(&modules), ["libcrc32c.ko", "erofs.ko", "x.ko"]);
        assert_eq!(modules[0].line.when, ModuleWhen::Always);
        assert_eq!(modules[2].line.when, ModuleWhen::Virtio(1));
        let vsock = resolve(tree.path(), &[("transport", ModuleWhen::Always)]).unwrap();
        assert_eq!(files(&vsock), ["vsock.ko", "common_part.ko", "transport.ko"]);
    }

    #[test]
    fn what_is_built_in_needs_no_file_and_what_is_nowhere_is_an_error() {
        let tree = tree(&[("a.ko", "b"), ("b.ko", "a")], "kernel/fs/ext4/ext4.ko\n");
        assert_eq!(resolve(tree.path(), &[("ext4", ModuleWhen::Always)]).unwrap(), []);
        let error = resolve(tree.path(), &[("erofs", ModuleWhen::Always)]).unwrap_err();
        assert!(error.to_string().contains("erofs"), "{error}");
        // A loop ends.
        assert_eq!(resolve(tree.path(), &[("a", ModuleWhen::Always)]).unwrap().len(), 2);
    }

    #[test]
    fn information_cut_short_has_no_dependencies() {
        assert!(depends(b"\0depends=abc").is_empty());
        assert!(depends(b"\0depends=\0").is_empty());
        assert!(depends(b"").is_empty());
    }
}
