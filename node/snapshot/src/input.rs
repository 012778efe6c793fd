//! What goes into the store and what comes out of it: plain values at the crate's door.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use fabric_types::{Digest, Fit, Generation, Shape};

use crate::manifest::{FileName, Manifest};

/// One stop of a sandbox, as its driver left it on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxInput {
    /// What a node must have to resume it.
    pub fit: Fit,
    /// vCPU, memory and disk.
    pub shape: Shape,
    /// The generation that the sandbox ran under.
    pub generation: Generation,
    /// Whatever the runtime needs to resume it; opaque here. Its JSON takes at most
    /// [`HEADER_BYTES_MAX`](crate::HEADER_BYTES_MAX) together with the fields above.
    pub meta: serde_json::Value,
    /// The template that it was cloned from. Without one memory and disk are stored whole.
    pub template: Option<TemplateFiles>,
    /// Device state, opaque.
    pub device_state: PathBuf,
    /// A file as long as guest memory, of which only `runs` are meaningful.
    pub pages: PathBuf,
    /// Ranges of `pages` that differ from the template: (offset, length) in bytes, 4 KiB aligned, ascending, disjoint.
    pub runs: Vec<(u64, u64)>,
    /// The disk at the same moment.
    pub disk: PathBuf,
}

/// A template as the parent of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateFiles {
    /// The template's manifest, as `ingest_template` named it: the template's identity everywhere.
    pub manifest: Digest,
    /// Its memory file, if it is here: private pages that equal the template's are then left out.
    pub memory: Option<PathBuf>,
    /// Its disk, if the sandbox's disk began as a copy of it: equal pages are then left out. Without it the disk is
    /// stored whole.
    pub disk: Option<PathBuf>,
}

/// A template: a folder of files, each stored whole but for its zero pages.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateInput {
    /// What a node must have to resume its clones.
    pub fit: Fit,
    /// vCPU, memory and disk.
    pub shape: Shape,
    /// Whatever the runtime needs with it; opaque here. Nothing in it may depend on the host (no paths): it is part of
    /// the template's identity.
    pub meta: serde_json::Value,
    /// The template's files by the names that they get back where the template is materialized. A snapshot of a
    /// clone refers to the one named [`FileName::DISK`] where its disk is stored as a difference.
    pub files: BTreeMap<FileName, PathBuf>,
}

/// A stopped sandbox's disk.
#[derive(Debug, Clone, PartialEq)]
pub struct DiskInput {
    /// The driver that the sandbox ran under; a disk is booted under any.
    pub fit: Fit,
    /// vCPU, memory and disk.
    pub shape: Shape,
    /// The generation that the sandbox ran under.
    pub generation: Generation,
    /// Whatever the runtime needs with it; opaque here.
    pub meta: serde_json::Value,
    /// The disk, which nobody writes to meanwhile.
    pub disk: PathBuf,
}

/// A manifest and its chunks, durable in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingested {
    /// The manifest's name.
    pub manifest: Digest,
    /// Bytes of the files that it stands for, holes and what the parent has included.
    pub size_bytes: u64,
    /// Bytes that its chunks take, its parent's not counted.
    pub chunk_bytes: u64,
    /// Bytes of the chunks that were new in the store.
    pub stored_bytes: u64,
}

/// A snapshot put together again, in the form in which a driver resumes it.
#[derive(Debug, Clone, PartialEq)]
pub struct MaterializedSandbox {
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Device state.
    pub device_state: PathBuf,
    /// A sparse file as long as guest memory; only `runs` are meaningful.
    pub pages: PathBuf,
    /// The ranges of `pages` to be laid over the template's memory: (offset, length) in bytes, 4 KiB aligned,
    /// ascending, disjoint. A range may read as zeros: the guest cleared what the template has there.
    pub runs: Vec<(u64, u64)>,
    /// The whole disk.
    pub disk: PathBuf,
}

/// What is lacking before a manifest can be materialized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missing {
    /// Chunks of the manifest that are not in the store; its parent's not counted.
    pub chunks: u64,
    /// Bytes that they take.
    pub bytes: u64,
}

/// What a collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Manifests whose grace has passed since they were removed.
    pub manifests: u64,
    /// Chunks that nothing referred to.
    pub chunks: u64,
    /// Bytes that these chunks took.
    pub bytes: u64,
}
