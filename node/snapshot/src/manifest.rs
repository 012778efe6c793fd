//! A manifest: which chunks make which files, and what a node must have to use them. A value of [`Manifest`] is
//! proof that it holds together; bytes become one only through [`Manifest::parse`]. Its bytes are `codec`'s.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use fabric_types::{Digest, Fit, Generation, Shape};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::chunk::{CHUNK_PAGES_MAX, CHUNK_STORED_BYTES_MAX, PAGE_BYTES};
use crate::{chunk, codec};

/// The newest schema that this version reads. A manifest is written in the oldest that can say what it stands for: its
/// name is its hash, and a template has the same one on nodes of different versions.
pub const MANIFEST_SCHEMA: u32 = 2;
/// Longest manifest, in bytes: what the two limits below take, encoded, with room for the header.
pub const MANIFEST_BYTES_MAX: usize = 48 * 1024 * 1024;
/// Longest header, in bytes of JSON: environment and labels of a sandbox are limited to a quarter of it at the edge.
pub const HEADER_BYTES_MAX: usize = 256 * 1024;
/// Most chunks of one manifest: at 256 KiB, the least that a full frame holds, 128 GiB of changed pages.
pub const CHUNKS_MAX: usize = 512 * 1024;
/// Most extents of one manifest: 2 Mi of them take 64 MiB while they are in memory.
pub const EXTENTS_MAX: usize = 2 * 1024 * 1024;
/// Most files of one manifest: a template has about five.
pub const FILES_MAX: usize = 64;
/// Longest file, in bytes: twice the largest disk of a shape.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024 * 1024;
/// Longest name of a file, in characters.
const FILE_NAME_CHARS_MAX: usize = 64;

/// What a manifest stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A sandbox frozen in the middle of its life.
    Sandbox,
    /// What sandboxes of one image and shape start from.
    Template,
    /// A stopped sandbox's disk, without memory: an archive. Since schema 2.
    Disk,
}

impl Kind {
    /// The oldest schema that knows it.
    pub(crate) fn schema(self) -> u32 {
        match self {
            Self::Sandbox | Self::Template => 1,
            Self::Disk => 2,
        }
    }
}

/// The part of a manifest that says what it is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// What it stands for.
    pub kind: Kind,
    /// The manifest of the template that files with [`Base::Parent`] are differences from.
    pub parent: Option<Digest>,
    /// What a node must have to resume it.
    pub fit: Fit,
    /// vCPU, memory and disk.
    pub shape: Shape,
    /// The generation that the sandbox ran under; templates have none.
    pub generation: Option<Generation>,
    /// The runtime's own; opaque here.
    pub meta: serde_json::Value,
}

/// One chunk, as a manifest refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    /// Its name: the BLAKE3 hash of its stored bytes.
    pub digest: Digest,
    /// Pages of 4 KiB that it holds, from 1 to [`CHUNK_PAGES_MAX`].
    pub pages: u32,
    /// Bytes that it takes, compressed.
    pub stored_bytes: u32,
}

/// What a file is where no extent says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Zeros.
    Zeros,
    /// What the file of the same name in the parent manifest has.
    Parent,
}

/// What an extent is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Zeros, over whatever the base has.
    Zeros,
    /// Pages of a chunk.
    Chunk {
        /// Index into the manifest's chunks.
        chunk: u32,
        /// The first page within the chunk.
        at_page: u32,
    },
}

/// A run of pages of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first page: its offset is this times 4 KiB.
    pub page: u64,
    /// How many.
    pub pages: u32,
    /// What they are filled with.
    pub content: Content,
}

impl Extent {
    /// The page after the last.
    pub fn end_page(&self) -> u64 {
        self.page.saturating_add(u64::from(self.pages))
    }
}

/// One file: extents over a base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMap {
    /// Its length in bytes. A last page that reaches past it is cut there.
    pub length: u64,
    /// What it is where no extent lies.
    pub base: Base,
    /// Ascending and disjoint.
    pub extents: Vec<Extent>,
}

/// A file's name inside a manifest: a plain name that can't leave a folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileName(std::borrow::Cow<'static, str>);

impl FileName {
    /// A snapshot's device state.
    pub const DEVICE_STATE: Self = Self(std::borrow::Cow::Borrowed("device_state"));
    /// Guest memory.
    pub const MEMORY: Self = Self(std::borrow::Cow::Borrowed("memory"));
    /// The disk.
    pub const DISK: Self = Self(std::borrow::Cow::Borrowed("disk"));

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FileName {
    type Err = ManifestError;
    fn from_str(text: &str) -> Result<Self, ManifestError> {
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if first && rest && text.len() <= FILE_NAME_CHARS_MAX {
            Ok(Self(text.to_owned().into()))
        } else {
            Err(ManifestError::FileName(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A manifest that holds together.
#[derive(Clone, PartialEq)]
pub struct Manifest {
    header: Header,
    chunks: Vec<ChunkRef>,
    files: BTreeMap<FileName, FileMap>,
}

/// Why bytes or parts are no manifest.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Not what a manifest begins with.
    #[error("these are not a manifest's bytes")]
    Magic,
    /// Written by a newer version.
    #[error("the manifest has schema version {found}; this version reads up to {known}")]
    Schema {
        /// Its version.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// Cut short, or a number that is no number.
    #[error("the manifest is malformed at byte {at}: {what}")]
    Malformed {
        /// Where.
        at: usize,
        /// What was expected there.
        what: &'static str,
    },
    /// The header is no JSON of a header.
    #[error("the manifest's header is malformed: {0}")]
    Header(#[source] serde_json::Error),
    /// More of something than a manifest may have.
    #[error("a manifest may have {limit} {what}; this one has {found}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many it has.
        found: u64,
        /// How many it may have.
        limit: u64,
    },
    /// Not a file's name.
    #[error("'{0}' is not a file's name in a manifest: 1 to 64 characters of a-z, A-Z, 0-9, '.', '_' and '-'")]
    FileName(String),
    /// Parts that contradict each other.
    #[error("the manifest contradicts itself: {0}")]
    Contradiction(&'static str),
}

impl Manifest {
    /// A manifest from its parts, if they hold together.
    pub fn new(
        header: Header,
        chunks: Vec<ChunkRef>,
        files: BTreeMap<FileName, FileMap>,
    ) -> Result<Self, ManifestError> {
        let manifest = Self { header, chunks, files };
        manifest.check()?;
        Ok(manifest)
    }

    /// A manifest from its bytes, which may come from anyone.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest = codec::decode(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Its bytes, and its name: their BLAKE3 hash.
    pub fn encode(&self) -> Result<(Digest, Vec<u8>), ManifestError> {
        let bytes = codec::encode(self)?;
        Ok((chunk::digest_of(&bytes), bytes))
    }

    /// A manifest whose parts `check` has not seen yet: only for the decoder.
    pub(crate) fn unchecked(header: Header, chunks: Vec<ChunkRef>, files: BTreeMap<FileName, FileMap>) -> Self {
        Self { header, chunks, files }
    }

    /// What it is of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its chunks, in the order in which a restore wants them.
    pub fn chunks(&self) -> &[ChunkRef] {
        &self.chunks
    }

    /// Its files.
    pub fn files(&self) -> &BTreeMap<FileName, FileMap> {
        &self.files
    }

    /// Bytes of the files that it stands for.
    pub fn size_bytes(&self) -> u64 {
        self.files.values().map(|file| file.length).sum()
    }

    /// Bytes that its chunks take; a chunk listed twice counts twice.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.stored_bytes)).sum()
    }

    fn check(&self) -> Result<(), ManifestError> {
        within("chunks", self.chunks.len(), CHUNKS_MAX)?;
        within("files", self.files.len(), FILES_MAX)?;
        within("extents", self.files.values().map(|file| file.extents.len()).sum(), EXTENTS_MAX)?;
        for chunk in &self.chunks {
            if chunk.pages == 0 || chunk.pages > CHUNK_PAGES_MAX {
                return Err(ManifestError::Contradiction("a chunk has no pages or more than a chunk can hold"));
            }
            if chunk.stored_bytes == 0 || chunk.stored_bytes as usize > CHUNK_STORED_BYTES_MAX {
                return Err(ManifestError::Contradiction("a chunk takes no bytes or more than a chunk can"));
            }
        }
        self.files.values().try_for_each(|file| self.check_file(file))
    }

    fn check_file(&self, file: &FileMap) -> Result<(), ManifestError> {
        if file.length > FILE_BYTES_MAX {
            return Err(ManifestError::TooMany { what: "bytes in a file", found: file.length, limit: FILE_BYTES_MAX });
        }
        if file.base == Base::Parent && self.header.parent.is_none() {
            return Err(ManifestError::Contradiction("a file is a difference from a parent, and there is no parent"));
        }
        let mut next_page = 0;
        for extent in &file.extents {
            if extent.pages == 0 || extent.page < next_page {
                return Err(ManifestError::Contradiction("extents are empty, overlap or don't ascend"));
            }
            next_page = extent.end_page();
            if let Content::Chunk { chunk, at_page } = extent.content {
                let chunk = self
                    .chunks
                    .get(chunk as usize)
                    .ok_or(ManifestError::Contradiction("an extent lies in a chunk that isn't listed"))?;
                if u64::from(at_page) + u64::from(extent.pages) > u64::from(chunk.pages) {
                    return Err(ManifestError::Contradiction("an extent reaches past the end of its chunk"));
                }
            }
        }
        if next_page > file.length.div_ceil(PAGE_BYTES) {
            return Err(ManifestError::Contradiction("an extent reaches past the end of its file"));
        }
        Ok(())
    }
}

/// Counts instead of lists: there can be millions of extents.
impl fmt::Debug for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extents: usize = self.files.values().map(|file| file.extents.len()).sum();
        f.debug_struct("Manifest")
            .field("header", &self.header)
            .field("files", &self.files.keys().map(FileName::as_str).collect::<Vec<_>>())
            .field("chunks", &self.chunks.len())
            .field("extents", &extents)
            .finish()
    }
}

fn within(what: &'static str, found: usize, limit: usize) -> Result<(), ManifestError> {
    if found > limit {
        return Err(ManifestError::TooMany { what, found: found as u64, limit: limit as u64 });
    }
    Ok(())
}
