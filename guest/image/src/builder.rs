//! Puts an image together in a folder beside the place it goes to, then renames it.
//!
//! ```text
//! ROOT/<digest>.lock     held by whoever builds or waits for this image
//! ROOT/<digest>.partial  the build; removed at the start of the next one if it was cut short
//! ROOT/<digest>/         kernel, initramfs, root.erofs, manifest.json: complete and synced, or not there
//! ```

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use guest_proto::boot::{INITRAMFS_FILE, KERNEL_FILE, MODULES_DIR, MODULES_LIST, ROOT_FILE};
use guest_proto::surface::PROTOCOL;

use crate::bootstrap::{Bootstrapped, bootstrap, check_programs};
use crate::cpio::Archive;
use crate::error::ImageError;
use crate::inputs::{ImageInputs, digest};
use crate::manifest::{FileEntry, MANIFEST_FILE, Manifest, SCHEMA, parse_packages};
use crate::modules::{WANTED, resolve};

/// A finished image on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDir {
    /// Its folder.
    pub dir: PathBuf,
    /// What its manifest says.
    pub manifest: Manifest,
}

/// What the build is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The step.
    pub step: Step,
    /// What it says of itself, for a person.
    pub detail: String,
}

/// The steps, in order. About nine tenths of the time is `Packages`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Another process builds the same image.
    Waiting,
    /// mmdebstrap downloads and unpacks.
    Packages,
    /// Kernel and modules go into an initramfs with the agent.
    Initramfs,
    /// Everything is measured, hashed and synced.
    Sealing,
    /// It is there.
    Done,
}

impl Step {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting for another build",
            Self::Packages => "packages",
            Self::Initramfs => "initramfs",
            Self::Sealing => "sealing",
            Self::Done => "done",
        }
    }
}

impl ImageDir {
    /// Opens a finished image and compares its files' sizes with its manifest.
    ///
    /// # Errors
    /// When a file is missing or has another size, or the manifest is of a newer schema.
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        let image = Self { dir: dir.to_owned(), manifest: Manifest::read(dir)? };
        for (entry, path) in image.entries() {
            entry.check_size(&path)?;
        }
        Ok(image)
    }

    /// Compares every byte with the manifest's digests (about a second a gigabyte).
    ///
    /// # Errors
    /// Names the first file that differs.
    pub fn verify_digests(&self) -> Result<(), ImageError> {
        self.entries().into_iter().try_for_each(|(entry, path)| entry.check_digest(&path))
    }

    /// The kernel (a bzImage).
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(KERNEL_FILE)
    }

    /// The initramfs with the agent.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join(INITRAMFS_FILE)
    }

    /// The EROFS root file system.
    pub fn root(&self) -> PathBuf {
        self.dir.join(ROOT_FILE)
    }

    fn entries(&self) -> [(&FileEntry, PathBuf); 3] {
        let manifest = &self.manifest;
        [(&manifest.kernel, self.kernel()), (&manifest.initramfs, self.initramfs()), (&manifest.root, self.root())]
    }
}

/// The image for these inputs under `root`: the finished one, or a new one. Blocks, for a minute when it builds.
///
/// A build that is killed leaves only a partial folder, which the next build removes.
///
/// # Errors
/// When programs are missing (one error names all their packages), a package can't be had, or the disk is full.
pub fn ensure(root: &Path, inputs: &ImageInputs, progress: &mut dyn FnMut(Progress)) -> Result<ImageDir, ImageError> {
    let name = digest(inputs)?;
    fs::create_dir_all(root).map_err(ImageError::file("make", root))?;
    let root = &fs::canonicalize(root).map_err(ImageError::file("resolve", root))?;
    let dir = root.join(&name);
    if dir.is_dir() {
        return ImageDir::open(&dir);
    }
    let lock_path = root.join(format!("{name}.lock"));
    let lock = File::create(&lock_path).map_err(ImageError::file("make", &lock_path))?;
    if lock.try_lock().is_err() {
        progress(Progress { step: Step::Waiting, detail: lock_path.display().to_string() });
        lock.lock().map_err(ImageError::file("lock", &lock_path))?;
    }
    if dir.is_dir() {
        return ImageDir::open(&dir);
    }
    check_programs()?;
    let partial = root.join(format!("{name}.partial"));
    remove_folder(&partial)?;
    let built = build(&partial, &name, inputs, progress);
    if built.is_err() {
        // The error that matters is the build's; a leftover folder is removed by the next build.
        let _ = remove_folder(&partial);
    }
    built?;
    fs::rename(&partial, &dir).map_err(ImageError::file("rename", &partial))?;
    sync(root)?;
    progress(Progress { step: Step::Done, detail: dir.display().to_string() });
    ImageDir::open(&dir)
}

/// Builds everything into `partial` and syncs it.
fn build(
    partial: &Path,
    name: &str,
    inputs: &ImageInputs,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), ImageError> {
    let work = partial.join("work");
    fs::create_dir_all(&work).map_err(ImageError::file("make", &work))?;
    let work = fs::canonicalize(&work).map_err(ImageError::file("resolve", &work))?;
    let mut line = |text: &str| {
        if let Some(detail) = text.strip_prefix("I: ") {
            let detail = detail.lines().next().unwrap_or_default().to_owned();
            progress(Progress { step: Step::Packages, detail });
        }
    };
    let bootstrapped = bootstrap(inputs, &work, &mut line)?;

    progress(Progress { step: Step::Initramfs, detail: "kernel, modules, agent".to_owned() });
    let (release, kernel) = find_kernel(&bootstrapped.kernel_tree())?;
    move_file(&kernel, &partial.join(KERNEL_FILE))?;
    move_file(&bootstrapped.root(), &partial.join(ROOT_FILE))?;
    write_initramfs(&partial.join(INITRAMFS_FILE), &bootstrapped, &release, inputs)?;

    progress(Progress { step: Step::Sealing, detail: "digests".to_owned() });
    let packages = bootstrapped.packages();
    let packages = fs::read_to_string(&packages).map_err(ImageError::file("read", &packages))?;
    remove_folder(&work)?;
    let manifest = Manifest {
        schema: SCHEMA,
        inputs: name.to_owned(),
        agent_protocol: PROTOCOL,
        kernel_release: release,
        suite: inputs.distribution.suite.clone(),
        kernel: FileEntry::of(&partial.join(KERNEL_FILE))?,
        initramfs: FileEntry::of(&partial.join(INITRAMFS_FILE))?,
        root: FileEntry::of(&partial.join(ROOT_FILE))?,
        packages: parse_packages(&packages),
    };
    let path = partial.join(MANIFEST_FILE);
    let text = serde_json::to_string_pretty(&manifest)
        .map_err(|error| ImageError::Damaged { path: path.clone(), what: error.to_string() })?;
    fs::write(&path, text + "\n").map_err(ImageError::file("write", &path))?;
    for file in [KERNEL_FILE, INITRAMFS_FILE, ROOT_FILE, MANIFEST_FILE] {
        sync(&partial.join(file))?;
    }
    sync(partial)
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

/// `/init` is the agent; modules lie in one folder, with the list of their order.
fn write_initramfs(
    path: &Path,
    bootstrapped: &Bootstrapped,
    release: &str,
    inputs: &ImageInputs,
) -> Result<(), ImageError> {
    let tree = [format!("usr/lib/modules/{release}"), format!("lib/modules/{release}")]
        .iter()
        .map(|below| bootstrapped.kernel_tree().join(below))
        .find(|folder| folder.is_dir())
        .ok_or_else(|| ImageError::KernelPackage { what: format!("has no lib/modules/{release}") })?;
    let modules = resolve(&tree, WANTED)?;
    let agent = fs::read(&inputs.agent).map_err(ImageError::file("read", &inputs.agent))?;

    let file = File::create(path).map_err(ImageError::file("make", path))?;
    let list: String = modules.iter().map(|module| format!("{}\n", module.line)).collect();
    let write = || -> std::io::Result<()> {
        let mut archive = Archive::new(BufWriter::new(file));
        for folder in ["dev", "proc", "sys", "newroot", MODULES_DIR.trim_start_matches('/')] {
            archive.folder(folder)?;
        }
        archive.console()?;
        archive.file("init", &agent)?;
        archive.file(MODULES_LIST.trim_start_matches('/'), list.as_bytes())?;
        for module in &modules {
            archive.file(&format!("{}/{}", MODULES_DIR.trim_start_matches('/'), module.line.file), &module.bytes)?;
        }
        archive.finish()?.flush()
    };
    write().map_err(ImageError::file("write", path))
}

fn move_file(from: &Path, to: &Path) -> Result<(), ImageError> {
    fs::rename(from, to).map_err(ImageError::file("rename", from))
}

fn remove_folder(path: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ImageError::file("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(ImageError::file("sync", path))
}
