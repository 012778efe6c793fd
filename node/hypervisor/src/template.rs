//! A template's folder: memory, device state and disk of a guest that has booted, sealed by a manifest that is written
//! last.
//!
//! ```text
//! template.json   the manifest; without it the folder is half-made and never used
//! memory          guest memory, sparse, mapped by every clone
//! state           device state
//! disk            the machine's own disk at the same moment; a clone starts from a copy of it
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fabric_types::{Digest, Fit, HypervisorKind, Shape};
use serde::{Deserialize, Serialize};

use crate::disk::next_extent;
use crate::durable::{read_json, remove_file, write_json};
use crate::{ImagePaths, VmError};

/// Newest schema of `template.json` that this version reads and the one it writes.
const SCHEMA: u32 = 1;
/// The unit that zero memory is left out by, bytes.
const PAGE_BYTES: usize = 4096;
/// Bytes hashed at once.
const HASH_BYTES: usize = 1 << 20;

/// A sealed template's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateManifest {
    schema: u32,
    /// What must be equal where it is resumed.
    pub fit: Fit,
    /// Its shape, and that of every clone.
    pub shape: Shape,
    /// BLAKE3 over each page of memory that isn't zero, with its offset before it (64 bits, little-endian): the
    /// template's identity. A snapshot's private pages mean nothing over other memory.
    pub memory: Digest,
    /// BLAKE3 of the device state.
    pub state: Digest,
    /// BLAKE3 of the kernel and the initramfs it booted, one after the other.
    pub kernel: Digest,
    /// The root file system's length in bytes. Its content is the image's affair; a clone with another root would read
    /// garbage.
    pub root_bytes: u64,
    /// The memory file's length in bytes.
    pub memory_bytes: u64,
    /// Whether the device state begins without QEMU's section on itself, as a snapshot's does: a monitor that was started
    /// ahead then serves either.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bare_state: bool,
    /// Whether its memory is empty and it has no device state: machines boot over it, none is cloned from it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blank: bool,
}

impl TemplateManifest {
    /// Reads the manifest of a sealed template. A folder without one is an error of kind `File`, with `NotFound` as its
    /// source.
    pub fn read(folder: &Path) -> Result<Self, VmError> {
        read_json(&manifest_file(folder), SCHEMA)
    }

    /// Whether a driver of `fit` can clone this template with this shape and image: refused with what differs.
    pub fn check(&self, folder: &Path, fit: &Fit, shape: Shape, image: &ImagePaths) -> Result<(), VmError> {
        let length = |path: &Path| {
            let failed = |source| VmError::File { action: "look at", path: path.to_owned(), source };
            fs::metadata(path).map(|about| about.len()).map_err(failed)
        };
        let differs = if self.fit != *fit {
            format!("was saved under {:?}, this driver has {fit:?}", self.fit)
        } else if (self.shape.vcpus(), self.shape.memory()) != (shape.vcpus(), shape.memory()) {
            format!("has shape {}, not {shape}", self.shape)
        } else if self.root_bytes != length(&image.root)? {
            format!("was booted from another root than {}", image.root.display())
        } else if self.memory_bytes != length(&memory_file(folder))? {
            "has a memory file of another length than when it was sealed".to_owned()
        } else {
            return Ok(());
        };
        Err(VmError::Unsupported { verb: "clone", why: format!("the template in {} {differs}", folder.display()) })
    }
}

/// Syncs the template's files and writes its manifest. Blocks: hashing takes about a second for each GiB that isn't
/// zero.
pub(crate) fn seal(folder: &Path, fit: &Fit, shape: Shape, image: &ImagePaths) -> Result<(), VmError> {
    seal_as(folder, fit, shape, image, false)
}

fn seal_as(folder: &Path, fit: &Fit, shape: Shape, image: &ImagePaths, blank: bool) -> Result<(), VmError> {
    let failed = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| VmError::File { action, path, source }
    };
    let (memory, state) = (memory_file(folder), state_file(folder));
    for path in [&memory, &state, &disk_file(folder)] {
        File::open(path).and_then(|file| file.sync_all()).map_err(failed("sync", path))?;
    }
    let kernel = hash_files(&[&image.kernel, &image.initramfs]).map_err(failed("hash", &image.kernel))?;
    let manifest = TemplateManifest {
        schema: SCHEMA,
        fit: fit.clone(),
        shape,
        memory: hash_memory(&memory).map_err(failed("hash", &memory))?,
        state: hash_files(&[&state]).map_err(failed("hash", &state))?,
        kernel,
        root_bytes: fs::metadata(&image.root).map_err(failed("look at", &image.root))?.len(),
        memory_bytes: fs::metadata(&memory).map_err(failed("look at", &memory))?.len(),
        bare_state: fit.hypervisor == HypervisorKind::Qemu,
        blank,
    };
    write_json(&manifest_file(folder), &manifest)
}

/// Makes a blank template: memory of the shape's size that is all holes, an empty device state and an empty disk. A
/// machine that boots over it ([`crate::MemorySource::BootOver`]) is snapshotted and restored like a clone, on any node
/// that makes the same blank: it takes a millisecond and no disk. Blocks. A folder that holds a template is an error.
pub fn make_blank_template(folder: &Path, fit: &Fit, shape: Shape, image: &ImagePaths) -> Result<(), VmError> {
    prepare(folder)?;
    for (path, length) in
        [(memory_file(folder), u64::from(shape.memory().0) << 20), (state_file(folder), 0), (disk_file(folder), 0)]
    {
        let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        made.and_then(|file| file.set_len(length)).map_err(|source| VmError::File {
            action: "make",
            path: path.clone(),
            source,
        })?;
    }
    seal_as(folder, fit, shape, image, true)
}

/// A folder that becomes a template: an earlier, half-made one's memory would be the new guest's.
pub(crate) fn prepare(folder: &Path) -> Result<(), VmError> {
    fs::create_dir_all(folder).map_err(|source| VmError::File { action: "make", path: folder.to_owned(), source })?;
    if manifest_file(folder).exists() {
        let why = format!("{} holds a sealed template; clones may be running from it", folder.display());
        return Err(VmError::Unsupported { verb: "boot template", why });
    }
    remove_file(&memory_file(folder))?;
    remove_file(&state_file(folder))
}

/// The manifest, whose presence says that the template is complete.
pub(crate) fn manifest_file(folder: &Path) -> PathBuf {
    folder.join("template.json")
}

/// Guest memory.
pub fn memory_file(folder: &Path) -> PathBuf {
    folder.join("memory")
}

/// Device state.
pub(crate) fn state_file(folder: &Path) -> PathBuf {
    folder.join("state")
}

/// The disk of a sealed template: a clone's disk is a copy of it (`copy_sparse`).
pub fn disk_file(folder: &Path) -> PathBuf {
    folder.join("disk")
}

pub(crate) fn hash_files(paths: &[&Path]) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        hasher.update_reader(File::open(path)?)?;
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

fn hash_memory(path: &Path) -> io::Result<Digest> {
    const ZERO: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; HASH_BYTES];
    let mut from = 0;
    while let Some((start, end)) = next_extent(&file, from, length)? {
        // Extents may be cut anywhere by the file system; pages may not.
        let mut at = start - start % PAGE_BYTES as u64;
        while at < end {
            let bytes = usize::try_from(end - at).unwrap_or(HASH_BYTES).next_multiple_of(PAGE_BYTES).min(HASH_BYTES);
            let bytes = bytes.min(usize::try_from(length - at).unwrap_or(HASH_BYTES));
            file.read_exact_at(&mut buffer[..bytes], at)?;
            for (offset, page) in (at..).step_by(PAGE_BYTES).zip(buffer[..bytes].chunks(PAGE_BYTES)) {
                if page != &ZERO[..page.len()] {
                    hasher.update(&offset.to_le_bytes());
                    hasher.update(page);
                }
            }
            at += bytes as u64;
        }
        from = at;
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric_types::Accelerator;

    fn fit() -> Fit {
        Fit {
            hypervisor: HypervisorKind::Qemu,
            version: "7.2.22".into(),
            machine: "pc-q35-7.2".into(),
            accelerator: Accelerator::Tcg,
            cpu_model: "qemu64-v1".into(),
            cpu_features: vec!["cx16".into()],
        }
    }

    fn sealed(folder: &Path) -> ImagePaths {
        let image = ImagePaths { kernel: folder.join("k"), initramfs: folder.join("i"), root: folder.join("r") };
        for path in [&image.kernel, &image.initramfs, &image.root, &state_file(folder), &disk_file(folder)] {
            fs::write(path, b"some bytes").expect("written");
        }
        let memory = File::create(memory_file(folder)).expect("created");
        memory.set_len(4 << 20).expect("sized");
        memory.write_all_at(b"kernel", 1 << 20).expect("written");
        seal(folder, &fit(), Shape::DEFAULT, &image).expect("sealed");
        image
    }

    #[test]
    fn a_sealed_template_fits_its_like_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = sealed(folder.path());
        let manifest = TemplateManifest::read(folder.path()).expect("read");
        manifest.check(folder.path(), &fit(), Shape::DEFAULT, &image).expect("fits");
        let larger_disk = Shape::new(1, 1024, 10).expect("a shape");
        manifest.check(folder.path(), &fit(), larger_disk, &image).expect("the disk's size is the file's");
        let other_machine = Fit { machine: "pc-q35-8.0".into(), ..fit() };
        assert!(manifest.check(folder.path(), &other_machine, Shape::DEFAULT, &image).is_err());
        let other_shape = Shape::new(2, 1024, 3).expect("a shape");
        assert!(manifest.check(folder.path(), &fit(), other_shape, &image).is_err());
        fs::write(&image.root, b"another root").expect("written");
        assert!(manifest.check(folder.path(), &fit(), Shape::DEFAULT, &image).is_err());
    }

    #[test]
    fn a_blank_template_takes_no_disk_and_is_not_made_over_another() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().expect("a folder");
        let image = sealed(folder.path());
        let refused = make_blank_template(folder.path(), &fit(), Shape::DEFAULT, &image);
        assert!(matches!(refused, Err(VmError::Unsupported { .. })));
        let blank = folder.path().join("blank");
        make_blank_template(&blank, &fit(), Shape::DEFAULT, &image).expect("made");
        let manifest = TemplateManifest::read(&blank).expect("sealed");
        manifest.check(&blank, &fit(), Shape::DEFAULT, &image).expect("fits");
        assert!(manifest.blank && !TemplateManifest::read(folder.path()).expect("read").blank);
        let about = fs::metadata(memory_file(&blank)).expect("there");
        assert_eq!((about.len(), about.blocks()), (1 << 30, 0));
    }

    #[test]
    fn a_folder_from_before_is_prepared_unless_it_is_sealed() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(memory_file(folder.path()), b"old memory").expect("written");
        prepare(folder.path()).expect("half-made");
        assert!(!memory_file(folder.path()).exists(), "another guest's memory stayed");
        fs::write(manifest_file(folder.path()), b"{}").expect("written");
        assert!(matches!(prepare(folder.path()), Err(VmError::Unsupported { .. })));
    }

    #[test]
    fn a_folder_without_manifest_is_no_template() {
        let folder = tempfile::tempdir().expect("a folder");
        sealed(folder.path());
        fs::remove_file(manifest_file(folder.path())).expect("removed");
        assert!(matches!(
            TemplateManifest::read(folder.path()),
            Err(VmError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound
        ));
    }

    #[test]
    fn identity_is_the_content_and_not_the_holes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (sparse, full, other) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
        let mut bytes = vec![0; 3 << 20];
        bytes[5000] = 7;
        fs::write(&full, &bytes).expect("written");
        let file = File::create(&sparse).expect("created");
        file.set_len(3 << 20).expect("sized");
        file.write_all_at(&[7], 5000).expect("written");
        bytes.swap(5000, 5000 + PAGE_BYTES);
        fs::write(&other, &bytes).expect("written");
        let hash = |path: &Path| hash_memory(path).expect("hashed");
        assert_eq!(hash(&sparse), hash(&full));
        assert_ne!(hash(&full), hash(&other), "the same page elsewhere is other memory");
    }
}
