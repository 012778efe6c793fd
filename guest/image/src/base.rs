//! What all agents' images share: the root file system, the kernel and its modules.
//!
//! It depends on packages and recipe alone, so a changed agent costs a second, not another minute of packages.

use std::fs;
use std::path::{Path, PathBuf};

use guest_proto::boot::{KERNEL_FILE, ROOT_FILE};
use serde::{Deserialize, Serialize};

use crate::bootstrap::{bootstrap, check_programs};
use crate::error::ImageError;
use crate::inputs::{ImageInputs, base_digest};
use crate::manifest::{FileEntry, PackageEntry, parse_packages, read_versioned, write_json};
use crate::modules::{WANTED, resolve};
use crate::staged::{once, remove_folder, sync};

/// Version of `base.json`'s form.
const SCHEMA: u32 = 1;
const BASE_FILE: &str = "base.json";
/// The folder of the modules.
const MODULES: &str = "modules";

/// `base.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BaseManifest {
    pub(crate) schema: u32,
    pub(crate) kernel_release: String,
    pub(crate) kernel: FileEntry,
    pub(crate) root: FileEntry,
    /// Lines of the module list, in the order to load them.
    pub(crate) modules: Vec<String>,
    pub(crate) packages: Vec<PackageEntry>,
}

/// A finished base.
#[derive(Debug)]
pub(crate) struct Base {
    dir: PathBuf,
    pub(crate) manifest: BaseManifest,
}

impl Base {
    pub(crate) fn kernel(&self) -> PathBuf {
        self.dir.join(KERNEL_FILE)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join(ROOT_FILE)
    }

    pub(crate) fn module(&self, file: &str) -> PathBuf {
        self.dir.join(MODULES).join(file)
    }
}

/// What the names of bases' folders begin with.
pub(crate) const BASE: &str = "base-";

/// The name of the folder of these inputs' base.
pub fn base_name(inputs: &ImageInputs) -> String {
    format!("{BASE}{}", base_digest(inputs))
}

/// The base for these inputs under `root`, built if it must be.
pub(crate) fn ensure_base(
    root: &Path,
    inputs: &ImageInputs,
    waiting: &mut dyn FnMut(&Path),
    packages: &mut dyn FnMut(&str),
) -> Result<Base, ImageError> {
    let name = base_name(inputs);
    let dir = once(root, &name, waiting, &mut |partial| build(partial, inputs, packages))?;
    let manifest: BaseManifest = read_versioned(&dir.join(BASE_FILE), SCHEMA)?;
    manifest.kernel.check_size(&dir.join(KERNEL_FILE))?;
    manifest.root.check_size(&dir.join(ROOT_FILE))?;
    Ok(Base { dir, manifest })
}

fn build(partial: &Path, inputs: &ImageInputs, packages: &mut dyn FnMut(&str)) -> Result<(), ImageError> {
    check_programs()?;
    let work = partial.join("work");
    fs::create_dir(&work).map_err(ImageError::file("make", &work))?;
    let mut line = |text: &str| {
        if let Some(detail) = text.strip_prefix("I: ") {
            packages(detail);
        }
    };
    let bootstrapped = bootstrap(inputs, &work, &mut line)?;
    let (kernel_release, kernel) = find_kernel(&bootstrapped.kernel_tree())?;
    move_file(&kernel, &partial.join(KERNEL_FILE))?;
    move_file(&bootstrapped.root(), &partial.join(ROOT_FILE))?;

    let tree = modules_tree(&bootstrapped.kernel_tree(), &kernel_release)?;
    let folder = partial.join(MODULES);
    fs::create_dir(&folder).map_err(ImageError::file("make", &folder))?;
    let mut modules = Vec::new();
    for module in resolve(&tree, WANTED)? {
        let path = folder.join(&module.line.file);
        fs::write(&path, &module.bytes).map_err(ImageError::file("write", &path))?;
        sync(&path)?;
        modules.push(module.line.to_string());
    }
    sync(&folder)?;
    let list = bootstrapped.packages();
    let list = fs::read_to_string(&list).map_err(ImageError::file("read", &list))?;
    remove_folder(&work)?;
    let manifest = BaseManifest {
        schema: SCHEMA,
        kernel_release,
        kernel: FileEntry::of(&partial.join(KERNEL_FILE))?,
        root: FileEntry::of(&partial.join(ROOT_FILE))?,
        modules,
        packages: parse_packages(&list),
    };
    write_json(&partial.join(BASE_FILE), &manifest)?;
    [KERNEL_FILE, ROOT_FILE, BASE_FILE].iter().try_for_each(|file| sync(&partial.join(file)))
}

/// The kernel's release and its file in the unpacked package.
fn find_kernel(tree: &Path) -> Result<(String, PathBuf), ImageError> {
    let boot = tree.join("boot");
    for entry in fs::read_dir(&boot).map_err(ImageError::file("list", &boot))?.flatten() {
        let file_name = entry.file_name();
        if let Some(release) = file_name.to_str().and_then(|name| name.strip_prefix("vmlinuz-")) {
            return Ok((release.to_owned(), entry.path()));
        }
    }
    Err(ImageError::KernelPackage { what: "has no boot/vmlinuz-*".to_owned() })
}

/// `lib/modules/RELEASE`, which newer packages have below `usr`.
fn modules_tree(tree: &Path, release: &str) -> Result<PathBuf, ImageError> {
    ["usr/lib/modules", "lib/modules"]
        .iter()
        .map(|below| tree.join(below).join(release))
        .find(|folder| folder.is_dir())
        .ok_or_else(|| ImageError::KernelPackage { what: format!("has no lib/modules/{release}") })
}

fn move_file(from: &Path, to: &Path) -> Result<(), ImageError> {
    fs::rename(from, to).map_err(ImageError::file("rename", from))
}
