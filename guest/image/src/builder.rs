//! An image: the base's kernel and root (hard links) and an initramfs with the agent.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use guest_proto::boot::{INITRAMFS_FILE, KERNEL_FILE, MODULES_DIR, MODULES_LIST, ModuleLine, ROOT_FILE};
use guest_proto::surface::PROTOCOL;

use crate::base::{Base, ensure_base};
use crate::cpio::Archive;
use crate::error::ImageError;
use crate::inputs::{ImageInputs, digest};
use crate::manifest::{FileEntry, MANIFEST_FILE, Manifest, SCHEMA, write_json};
use crate::shelf::Hold;
use crate::staged::{once, sync};

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

/// The steps, in order. Nearly all of the time is `Packages`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Another process builds the same.
    Waiting,
    /// mmdebstrap downloads, unpacks and packs the root file system.
    Packages,
    /// Modules and agent go into an initramfs.
    Initramfs,
    /// It is there.
    Done,
}

impl Step {
    /// A few words for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting for another build",
            Self::Packages => "packages",
            Self::Initramfs => "initramfs",
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

    /// Holds it: until what this answers is dropped, it isn't taken away.
    ///
    /// # Errors
    /// When it has just been.
    pub fn hold(&self) -> Result<Hold, ImageError> {
        Hold::on(&self.dir)
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

/// The image for these inputs under `root`: the finished one, or a new one. Blocks: a minute if its packages were never
/// built, else a second.
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
    // Two callbacks of one build both tell the same listener.
    let progress = std::cell::RefCell::new(progress);
    let tell = |step, detail: String| (progress.borrow_mut())(Progress { step, detail });
    let mut waiting = |lock: &Path| tell(Step::Waiting, lock.display().to_string());
    let mut packages = |line: &str| tell(Step::Packages, line.to_owned());
    let base = ensure_base(root, inputs, &mut waiting, &mut packages)?;
    let dir = once(root, &name, &mut waiting, &mut |partial| {
        tell(Step::Initramfs, format!("kernel {}, agent {}", base.manifest.kernel_release, inputs.agent.display()));
        build(partial, &name, &base, inputs)
    })?;
    tell(Step::Done, dir.display().to_string());
    ImageDir::open(&dir)
}

fn build(partial: &Path, name: &str, base: &Base, inputs: &ImageInputs) -> Result<(), ImageError> {
    link(&base.kernel(), &partial.join(KERNEL_FILE))?;
    link(&base.root(), &partial.join(ROOT_FILE))?;
    let initramfs = partial.join(INITRAMFS_FILE);
    write_initramfs(&initramfs, base, inputs)?;
    let manifest = Manifest {
        schema: SCHEMA,
        inputs: name.to_owned(),
        agent_protocol: PROTOCOL,
        kernel_release: base.manifest.kernel_release.clone(),
        suite: inputs.distribution.suite.clone(),
        kernel: base.manifest.kernel.clone(),
        initramfs: FileEntry::of(&initramfs)?,
        root: base.manifest.root.clone(),
        packages: base.manifest.packages.clone(),
    };
    write_json(&partial.join(MANIFEST_FILE), &manifest)?;
    [INITRAMFS_FILE, MANIFEST_FILE].iter().try_for_each(|file| sync(&partial.join(file)))
}

/// One file under two names; a copy where the file system has no links.
fn link(from: &Path, to: &Path) -> Result<(), ImageError> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map_err(ImageError::file("copy", from))?;
    sync(to)
}

/// `/init` is the agent; modules lie in one folder, with the list of their order.
fn write_initramfs(path: &Path, base: &Base, inputs: &ImageInputs) -> Result<(), ImageError> {
    let agent = fs::read(&inputs.agent).map_err(ImageError::file("read", &inputs.agent))?;
    let list: String = base.manifest.modules.iter().map(|line| format!("{line}\n")).collect();
    let mut modules = Vec::new();
    for line in base.manifest.modules.iter().filter_map(|line| ModuleLine::parse(line)) {
        let file = base.module(&line.file);
        modules.push((line.file, fs::read(&file).map_err(ImageError::file("read", &file))?));
    }
    let folder = MODULES_DIR.trim_start_matches('/');
    let write = |file: File| -> io::Result<()> {
        let mut archive = Archive::new(BufWriter::new(file));
        for name in ["dev", "proc", "sys", "newroot", folder] {
            archive.folder(name)?;
        }
        archive.console()?;
        archive.file("init", &agent)?;
        archive.file(MODULES_LIST.trim_start_matches('/'), list.as_bytes())?;
        for (file, bytes) in &modules {
            archive.file(&format!("{folder}/{file}"), bytes)?;
        }
        archive.finish()?.flush()
    };
    File::create(path).and_then(write).map_err(ImageError::file("write", path))
}
