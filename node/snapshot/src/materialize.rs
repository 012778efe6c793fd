//! Files out of the store. Each chunk is read, checked and unpacked once per file, by two threads; holes stay holes.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use fabric_types::Digest;

use crate::chunk::{Opener, PAGE, PAGE_BYTES};
use crate::error::{FileContext, StoreError};
use crate::folder::{Folder, sync_folder};
use crate::input::MaterializedSandbox;
use crate::manifest::{Base, Content, FileMap, FileName, Manifest};
use crate::sparse::{self, Source};

/// Threads that unpack: a restore shares the host with what runs on it.
const WORKERS: usize = 2;
/// Most parents above a manifest: a snapshot has one, and a snapshot of a snapshot's difference will have two.
pub(crate) const PARENTS_MAX: usize = 8;

/// A manifest with its name, and the folder that it lies in.
#[derive(Clone)]
pub(crate) struct Held<'a> {
    pub(crate) folder: &'a Folder,
    pub(crate) digest: Digest,
    pub(crate) manifest: Arc<Manifest>,
}

/// Puts a sandbox together in the form in which drivers resume one: memory as a difference, the disk whole.
pub(crate) fn sandbox(
    held: &Held<'_>,
    template_disk: Option<&Path>,
    into: &Path,
) -> Result<MaterializedSandbox, StoreError> {
    fs::create_dir_all(into).at("make", into)?;
    let [device_state, pages, disk] = ["device_state", "pages", "disk"].map(|name| into.join(name));
    let mut unfinished = Unfinished(vec![device_state.clone(), pages.clone(), disk.clone()]);
    held.whole(&FileName::DEVICE_STATE, None, &device_state, 0)?;
    let memory = held.map(&FileName::MEMORY, "a sandbox")?;
    held.lay(memory, &new_file(&pages, memory.length)?, &pages)?;
    held.whole(&FileName::DISK, template_disk, &disk, 0)?;
    unfinished.0.clear();
    Ok(MaterializedSandbox { manifest: Arc::clone(&held.manifest), device_state, pages, runs: runs(memory), disk })
}

/// Puts a folder together: all files or none, durable.
pub(crate) fn folder(held: &Held<'_>, into: &Path) -> Result<(), StoreError> {
    let fault = |why: &str| StoreError::Input { path: into.to_owned(), why: why.to_owned() };
    let (Some(parent), Some(name)) = (into.parent(), into.file_name()) else {
        return Err(fault("it is no place for a new folder"));
    };
    if fs::exists(into).at("look at", into)? {
        return Err(fault("it is there already"));
    }
    let mut partial = name.to_owned();
    partial.push(".partial");
    let partial = parent.join(partial);
    if fs::exists(&partial).at("look at", &partial)? {
        fs::remove_dir_all(&partial).at("remove", &partial)?;
    }
    fs::create_dir_all(&partial).at("make", &partial)?;
    let mut unfinished = Unfinished(vec![partial.clone()]);
    for name in held.manifest.files().keys() {
        let path = partial.join(name.as_str());
        held.whole(name, None, &path, 0)?;
        File::open(&path).and_then(|file| file.sync_all()).at("sync", &path)?;
    }
    sync_folder(&partial)?;
    fs::rename(&partial, into).at("name", into)?;
    unfinished.0.clear();
    sync_folder(parent)
}

/// Puts one file together: all of it or nothing, durable.
pub(crate) fn file(held: &Held<'_>, name: &FileName, into: &Path) -> Result<(), StoreError> {
    let (Some(parent), Some(own)) = (into.parent(), into.file_name()) else {
        return Err(StoreError::Input { path: into.to_owned(), why: "it is no place for a new file".to_owned() });
    };
    let mut partial = own.to_owned();
    partial.push(".partial");
    let partial = parent.join(partial);
    let mut unfinished = Unfinished(vec![partial.clone()]);
    held.whole(name, None, &partial, 0)?;
    File::open(&partial).and_then(|file| file.sync_all()).at("sync", &partial)?;
    fs::rename(&partial, into).at("name", into)?;
    unfinished.0.clear();
    sync_folder(parent)
}

impl Held<'_> {
    fn map(&self, name: &FileName, expected: &'static str) -> Result<&FileMap, StoreError> {
        self.manifest.files().get(name).ok_or_else(|| StoreError::Shape {
            manifest: self.digest,
            file: name.clone(),
            expected,
        })
    }

    /// Makes a file whole: what its base has, and the extents over it. `base_file` is that of the parent if it is at
    /// hand; else the parent's manifest makes it.
    fn whole(&self, name: &FileName, base_file: Option<&Path>, into: &Path, depth: usize) -> Result<(), StoreError> {
        let map = self.map(name, "whole")?;
        let file = match (map.base, base_file) {
            (Base::Zeros, _) => new_file(into, map.length)?,
            (Base::Parent, Some(base_path)) => {
                let base = File::open(base_path).at("open", base_path)?;
                let length = base.metadata().at("look at", base_path)?.len().min(map.length);
                let file = new_file(into, 0)?;
                sparse::copy(&Source { file: &base, path: base_path, length }, &file, into)?;
                file
            }
            (Base::Parent, None) => {
                self.parent(depth)?.whole(name, None, into, depth + 1)?;
                File::options().write(true).open(into).at("open", into)?
            }
        };
        file.set_len(map.length).at("set the length of", into)?;
        if map.base == Base::Parent {
            for extent in map.extents.iter().filter(|extent| extent.content == Content::Zeros) {
                sparse::clear_pages(&file, into, map.length, extent.page, extent.pages)?;
            }
        }
        self.lay(map, &file, into)
    }

    fn parent(&self, depth: usize) -> Result<Self, StoreError> {
        if depth >= PARENTS_MAX {
            return Err(StoreError::Depth(self.digest, PARENTS_MAX));
        }
        // A manifest whose file has a parent has one itself: it was checked when it was parsed.
        let digest = self.manifest.header().parent.ok_or(StoreError::NoManifest(self.digest))?;
        let bytes = self.folder.read_manifest_or_removed(&digest)?;
        Ok(Self { folder: self.folder, digest, manifest: Arc::new(Manifest::parse(&bytes)?) })
    }

    /// Writes the extents that are filled from chunks.
    fn lay(&self, map: &FileMap, file: &File, path: &Path) -> Result<(), StoreError> {
        let mut pieces: Vec<Piece> = map.extents.iter().filter_map(Piece::new).collect();
        pieces.sort_unstable_by_key(|piece| (piece.chunk, piece.at_page));
        let groups: Vec<&[Piece]> = pieces.chunk_by(|left, right| left.chunk == right.chunk).collect();
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let work = || -> Result<(), StoreError> {
            let mut opener = Opener::new()?;
            while !failed.load(Ordering::Relaxed) {
                let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                let laid = self.lay_chunk(group, map.length, &mut opener, file, path);
                if laid.is_err() {
                    failed.store(true, Ordering::Relaxed);
                }
                laid?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let others: Vec<_> = (1..WORKERS.min(groups.len())).map(|_| scope.spawn(work)).collect();
            let mine = work();
            let theirs = others
                .into_iter()
                .map(|other| other.join().unwrap_or(Err(StoreError::Worker("read and unpack chunks"))));
            theirs.fold(mine, Result::and)
        })
    }

    fn lay_chunk(
        &self,
        pieces: &[Piece],
        length: u64,
        opener: &mut Opener,
        file: &File,
        path: &Path,
    ) -> Result<(), StoreError> {
        let Some(first) = pieces.first() else { return Ok(()) };
        // Extents lie in listed chunks, and within them: checked when the manifest was parsed.
        let chunk = self.manifest.chunks()[first.chunk as usize];
        let stored = self.folder.read_chunk(&chunk.digest)?;
        let raw = opener.open(chunk.digest, &stored, chunk.pages)?;
        for piece in pieces {
            let bytes = &raw[piece.at_page as usize * PAGE..][..piece.pages as usize * PAGE];
            sparse::write_pages(file, path, length, piece.page, bytes)?;
        }
        Ok(())
    }
}

/// A part of a chunk and where it goes.
struct Piece {
    chunk: u32,
    at_page: u32,
    page: u64,
    pages: u32,
}

impl Piece {
    fn new(extent: &crate::manifest::Extent) -> Option<Self> {
        match extent.content {
            Content::Chunk { chunk, at_page } => Some(Self { chunk, at_page, page: extent.page, pages: extent.pages }),
            Content::Zeros => None,
        }
    }
}

/// The byte ranges that a file's extents cover, those that touch joined.
fn runs(map: &FileMap) -> Vec<(u64, u64)> {
    let mut pages: Vec<Range<u64>> = Vec::new();
    for extent in &map.extents {
        match pages.last_mut() {
            Some(last) if last.end == extent.page => last.end = extent.end_page(),
            _ => pages.push(extent.page..extent.end_page()),
        }
    }
    let bytes = |range: Range<u64>| (range.start * PAGE_BYTES, (range.end - range.start) * PAGE_BYTES);
    pages.into_iter().map(bytes).collect()
}

fn new_file(path: &Path, length: u64) -> Result<File, StoreError> {
    let file = File::create(path).at("make", path)?;
    file.set_len(length).at("set the length of", path)?;
    Ok(file)
}

/// Paths that are removed on drop, unless they were taken out.
struct Unfinished(Vec<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        for path in &self.0 {
            // What can't be removed is written over by the next attempt.
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}
