//! Files into the store: one thread reads, compares and packs; another compresses, names and writes. What lies
//! between them is bounded, so that a guest of any size takes some MiB of memory here.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use fabric_types::Digest;

use crate::chunk::{PAGE, PAGE_BYTES, Sealer};
use crate::error::{FileContext, StoreError};
use crate::folder::{Folder, Staged};
use crate::input::{DiskInput, Ingested, SandboxInput, TemplateInput};
use crate::manifest::{
    Base, CHUNKS_MAX, ChunkRef, EXTENTS_MAX, FILE_BYTES_MAX, FileMap, FileName, Header, Kind, Manifest, ManifestError,
};
use crate::pack::{Frame, Packer};
use crate::pins::{PinSet, Pins};
use crate::sparse::{self, Page, Source, Under};

/// Frames between the two threads: each takes 1 MiB.
const FRAMES_WAITING_MAX: usize = 2;
/// Chunks that are made durable together: each holds a file open, and 32 of them are at most 32 MiB to write again if
/// the process ends.
pub(crate) const COMMIT_CHUNKS_MAX: usize = 32;

/// What is to be stored, of which kind.
pub(crate) struct Job {
    header: Header,
    files: Vec<FileJob>,
}

struct FileJob {
    name: FileName,
    path: PathBuf,
    /// The only pages that mean anything, if that is not all.
    ranges: Option<Vec<Range<u64>>>,
    base: Base,
    under: UnderPath,
}

enum UnderPath {
    Zeros,
    Unknown,
    File(PathBuf),
}

impl Job {
    pub(crate) fn sandbox(input: SandboxInput) -> Result<Self, StoreError> {
        let ranges = page_ranges(&input.pages, &input.runs)?;
        let (parent, memory_under, disk_under) = match input.template {
            None => (None, UnderPath::Zeros, UnderPath::Zeros),
            Some(template) => (
                Some(template.manifest),
                template.memory.map_or(UnderPath::Unknown, UnderPath::File),
                template.disk.map_or(UnderPath::Zeros, UnderPath::File),
            ),
        };
        let base = |under: &UnderPath| if matches!(under, UnderPath::Zeros) { Base::Zeros } else { Base::Parent };
        let whole = |name, path| FileJob { name, path, ranges: None, base: Base::Zeros, under: UnderPath::Zeros };
        let files = vec![
            whole(FileName::DEVICE_STATE, input.device_state),
            FileJob {
                base: base(&memory_under),
                under: memory_under,
                ranges: Some(ranges),
                ..whole(FileName::MEMORY, input.pages)
            },
            FileJob { base: base(&disk_under), under: disk_under, ..whole(FileName::DISK, input.disk) },
        ];
        let header = Header {
            kind: Kind::Sandbox,
            parent,
            fit: input.fit,
            shape: input.shape,
            generation: Some(input.generation),
            meta: input.meta,
        };
        Ok(Self { header, files })
    }

    pub(crate) fn template(input: TemplateInput) -> Self {
        let whole = |(name, path)| FileJob { name, path, ranges: None, base: Base::Zeros, under: UnderPath::Zeros };
        let files = input.files.into_iter().map(whole).collect();
        let (fit, shape, meta) = (input.fit, input.shape, input.meta);
        Self { header: Header { kind: Kind::Template, parent: None, fit, shape, generation: None, meta }, files }
    }

    /// Whole, so that an archive stands on no template: those of an older image go.
    pub(crate) fn disk(input: DiskInput) -> Self {
        let DiskInput { fit, shape, generation, meta, disk: path } = input;
        let name = FileName::DISK;
        let files = vec![FileJob { name, path, ranges: None, base: Base::Zeros, under: UnderPath::Zeros }];
        let header = Header { kind: Kind::Disk, parent: None, fit, shape, generation: Some(generation), meta };
        Self { header, files }
    }
}

/// Carries out a job. Returns when chunks and manifest are durable.
pub(crate) fn run(folder: &Folder, pins: &Pins, job: Job) -> Result<Ingested, StoreError> {
    let mut parent_pin = pins.set();
    if let Some(parent) = job.header.parent {
        // A snapshot whose parent is nowhere could not be resumed anywhere.
        parent_pin.add(parent);
        folder.read_manifest_or_removed(&parent)?;
    }
    let (frames, waiting) = sync_channel(FRAMES_WAITING_MAX);
    let (files, stored) = thread::scope(|scope| {
        let storer = scope.spawn(move || Storer::new(folder, pins).and_then(|storer| storer.run(&waiting)));
        let files = pack(&job.files, frames);
        let stored = storer.join().map_err(|_| StoreError::Worker("compress and write chunks"));
        (files, stored)
    });
    // The packer's first error may be that the storer has ended: the storer's own is the cause.
    let stored = stored??;
    let manifest = Manifest::new(job.header, stored.chunks, files?)?;
    let (digest, bytes) = manifest.encode()?;
    folder.put_manifest(&digest, &bytes)?;
    drop(stored.pins);
    Ok(Ingested {
        manifest: digest,
        size_bytes: manifest.size_bytes(),
        chunk_bytes: manifest.chunk_bytes(),
        stored_bytes: stored.new_bytes,
    })
}

/// The reading thread: compares and packs file after file.
fn pack(jobs: &[FileJob], frames: SyncSender<Frame>) -> Result<BTreeMap<FileName, FileMap>, StoreError> {
    let mut packer = Packer::default();
    let mut files = BTreeMap::new();
    let send = |frame: Option<Frame>| match frame {
        Some(frame) => frames.send(frame).map_err(|_| StoreError::Worker("compress and write chunks")),
        None => Ok(()),
    };
    for job in jobs {
        let file = File::open(&job.path).at("open", &job.path)?;
        let source = sized(&file, &job.path)?;
        let under_file = match &job.under {
            UnderPath::File(path) => Some((File::open(path).at("open", path)?, path)),
            UnderPath::Zeros | UnderPath::Unknown => None,
        };
        let under = match (&under_file, &job.under) {
            (Some((file, path)), _) => Under::File(sized(file, path)?),
            (None, UnderPath::Unknown) => Under::Unknown,
            (None, UnderPath::Zeros | UnderPath::File(_)) => Under::Zeros,
        };
        let ranges = match (&job.ranges, &under) {
            (Some(ranges), _) => ranges.clone(),
            (None, Under::File(under)) => differing_ranges(&source, under)?,
            (None, Under::Zeros | Under::Unknown) => sparse::data_ranges(&source)?,
        };
        if ranges.last().is_some_and(|last| last.end > source.length.div_ceil(PAGE_BYTES)) {
            return Err(StoreError::Input {
                path: job.path.clone(),
                why: format!("a run of changed pages reaches past its {} bytes", source.length),
            });
        }
        sparse::differences(&source, &ranges, &under, |page, content| {
            if packer.extents() > EXTENTS_MAX {
                let (found, limit) = (packer.extents() as u64, EXTENTS_MAX as u64);
                return Err(ManifestError::TooMany { what: "extents", found, limit }.into());
            }
            match content {
                Page::Data(bytes) => send(packer.data(page, bytes)),
                Page::Zeros => {
                    packer.zeros(page);
                    Ok(())
                }
            }
        })?;
        let (extents, frame) = packer.end_file();
        send(frame)?;
        files.insert(job.name.clone(), FileMap { length: source.length, base: job.base, extents });
    }
    Ok(files)
}

/// Where a file can differ from what lies under it: where either has data.
fn differing_ranges(source: &Source<'_>, under: &Source<'_>) -> Result<Vec<Range<u64>>, StoreError> {
    let clipped = Source { length: under.length.min(source.length), ..*under };
    Ok(sparse::union(sparse::data_ranges(source)?, sparse::data_ranges(&clipped)?))
}

fn sized<'a>(file: &'a File, path: &'a Path) -> Result<Source<'a>, StoreError> {
    let metadata = file.metadata().at("look at", path)?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        let why = format!("it is no file of at most {FILE_BYTES_MAX} bytes");
        return Err(StoreError::Input { path: path.to_owned(), why });
    }
    Ok(Source { file, path, length: metadata.len() })
}

/// Runs of bytes as runs of pages, if they are what a driver promises.
fn page_ranges(path: &Path, runs: &[(u64, u64)]) -> Result<Vec<Range<u64>>, StoreError> {
    let mut ranges: Vec<Range<u64>> = Vec::with_capacity(runs.len());
    for (offset, length) in runs {
        let (start, pages) = (offset / PAGE_BYTES, length / PAGE_BYTES);
        let aligned = offset % PAGE_BYTES == 0 && length % PAGE_BYTES == 0;
        let ascending = ranges.last().is_none_or(|last| last.end <= start);
        let end = start.checked_add(pages).filter(|end| *end <= FILE_BYTES_MAX / PAGE_BYTES);
        match end {
            Some(end) if aligned && ascending && pages > 0 => ranges.push(start..end),
            _ => {
                let why = format!("its run of {length} bytes at {offset} is unaligned, empty or out of order");
                return Err(StoreError::Input { path: path.to_owned(), why });
            }
        }
    }
    Ok(ranges)
}

/// The writing thread.
struct Storer<'a> {
    folder: &'a Folder,
    sealer: Sealer,
    pins: PinSet,
    chunks: Vec<ChunkRef>,
    staged: Vec<Staged>,
    /// Names that are staged but not yet given.
    staged_names: HashSet<Digest>,
    /// First bytes of names that were there already.
    met: BTreeSet<u8>,
    new_bytes: u64,
}

struct Stored {
    pins: PinSet,
    chunks: Vec<ChunkRef>,
    new_bytes: u64,
}

impl<'a> Storer<'a> {
    fn new(folder: &'a Folder, pins: &Pins) -> Result<Self, StoreError> {
        Ok(Self {
            folder,
            sealer: Sealer::new()?,
            pins: pins.set(),
            chunks: Vec::new(),
            staged: Vec::new(),
            staged_names: HashSet::new(),
            met: BTreeSet::new(),
            new_bytes: 0,
        })
    }

    fn run(mut self, frames: &Receiver<Frame>) -> Result<Stored, StoreError> {
        for frame in frames {
            self.store(&frame)?;
            if self.staged.len() >= COMMIT_CHUNKS_MAX {
                self.commit()?;
            }
        }
        self.commit()?;
        Ok(Stored { pins: self.pins, chunks: self.chunks, new_bytes: self.new_bytes })
    }

    fn store(&mut self, frame: &Frame) -> Result<(), StoreError> {
        let (digest, stored) = self.sealer.seal(&frame.raw)?;
        let too_many =
            |found: usize| ManifestError::TooMany { what: "chunks", found: found as u64, limit: CHUNKS_MAX as u64 };
        if self.chunks.len() >= CHUNKS_MAX {
            return Err(too_many(self.chunks.len() + 1).into());
        }
        let fault = |_| StoreError::ChunkSize { bytes: stored.len(), limit: crate::CHUNK_STORED_BYTES_MAX };
        let pages = u32::try_from(frame.raw.len() / PAGE).map_err(fault)?;
        let stored_bytes = u32::try_from(stored.len()).map_err(fault)?;
        self.chunks.push(ChunkRef { digest, pages, stored_bytes });
        // Pinned before it is looked for: what is there now stays there.
        self.pins.add(digest);
        if self.staged_names.contains(&digest) {
            return Ok(());
        }
        if self.folder.has_chunk(&digest)? {
            self.met.insert(digest.as_bytes()[0]);
            return Ok(());
        }
        self.staged.push(self.folder.stage_chunk(&digest, &stored)?);
        self.staged_names.insert(digest);
        self.new_bytes += u64::from(stored_bytes);
        Ok(())
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        let staged = std::mem::take(&mut self.staged);
        self.folder.commit(staged, &std::mem::take(&mut self.met))?;
        self.staged_names.clear();
        Ok(())
    }
}
