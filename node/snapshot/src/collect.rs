//! Garbage collection: by reference from live manifests, after a grace period.
//!
//! A removed manifest, and all that it refers to, lives on until its grace has passed since it was removed; a chunk
//! that no manifest ever came to refer to, until it has passed since it was written. A removed template lives as long
//! as a snapshot of a clone of it. What cannot be read stops the collection before anything is removed.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fabric_types::Digest;

use crate::error::{FileContext, StoreError};
use crate::folder::{Folder, digests_in, sync_folder};
use crate::input::Collected;
use crate::manifest::Manifest;
use crate::pins::{Collection, Pins};

/// Begins a manifest's grace. Removing what isn't there is a success.
pub(crate) fn remove_manifest(folder: &Folder, digest: &Digest, now: SystemTime) -> Result<(), StoreError> {
    let path = folder.manifests().join(digest.to_string());
    let file = match File::options().write(true).open(&path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(StoreError::file("open", &path, source)),
    };
    // The time first: a manifest that is under `removed` always has it.
    file.set_modified(now).and_then(|()| file.sync_all()).at("set the time of", &path)?;
    let removed = folder.removed().join(digest.to_string());
    fs::rename(&path, &removed).at("remove", &path)?;
    sync_folder(&folder.removed())?;
    sync_folder(&folder.manifests())
}

/// Removes what nothing refers to.
pub(crate) fn run(folder: &Folder, pins: &Pins, now: SystemTime, grace: Duration) -> Result<Collected, StoreError> {
    // Before any manifest is looked at: see `Pins`.
    let collection = pins.collection();
    let mut collected = Collected::default();
    let mut live = Live::default();
    for digest in digests_in(&folder.manifests())? {
        match folder.read_manifest(&digest) {
            Ok(bytes) => live.add(&Manifest::parse(&bytes)?),
            // Removed since it was listed: it is among the removed now.
            Err(StoreError::NoManifest(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let mut removed = BTreeMap::new();
    for digest in digests_in(&folder.removed())? {
        let path = folder.removed().join(digest.to_string());
        match folder.read_manifest_or_removed(&digest) {
            Ok(bytes) => drop(removed.insert(digest, (Manifest::parse(&bytes)?, is_old(&path, now, grace)?))),
            Err(StoreError::NoManifest(_)) => {}
            Err(error) => return Err(error),
        }
    }
    keep_removed(&collection, &mut live, &mut removed);
    for digest in removed.keys() {
        let path = folder.removed().join(digest.to_string());
        fs::remove_file(&path).at("remove", &path)?;
        collected.manifests += 1;
    }
    // A manifest is gone for good before the first of its chunks is.
    sync_folder(&folder.removed())?;
    for first in 0..=u8::MAX {
        sweep(folder, first, &collection, &live, (now, grace), &mut collected)?;
    }
    for digest in digests_in(&folder.damaged())? {
        let path = folder.damaged().join(digest.to_string());
        if is_old(&path, now, grace)? {
            fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(collected)
}

/// What live manifests refer to.
#[derive(Default)]
struct Live {
    chunks: HashSet<Digest>,
    parents: HashSet<Digest>,
}

impl Live {
    fn add(&mut self, manifest: &Manifest) {
        self.chunks.extend(manifest.chunks().iter().map(|chunk| chunk.digest));
        self.parents.extend(manifest.header().parent);
    }
}

/// Takes out of `removed` what has to stay: in its grace, pinned, or the parent of what lives, and their parents.
fn keep_removed(collection: &Collection, live: &mut Live, removed: &mut BTreeMap<Digest, (Manifest, bool)>) {
    loop {
        let stays = removed.iter().find(|(digest, (_, is_old))| {
            !is_old || live.parents.contains(digest) || collection.unless_pinned(digest, || ()).is_none()
        });
        let Some(digest) = stays.map(|(digest, _)| *digest) else { return };
        if let Some((manifest, _)) = removed.remove(&digest) {
            live.add(&manifest);
        }
    }
}

fn sweep(
    folder: &Folder,
    first: u8,
    collection: &Collection,
    live: &Live,
    (now, grace): (SystemTime, Duration),
    collected: &mut Collected,
) -> Result<(), StoreError> {
    for digest in digests_in(&folder.chunk_folder(first))? {
        if live.chunks.contains(&digest) {
            continue;
        }
        let path = folder.chunk_path(&digest);
        let removed = collection.unless_pinned(&digest, || -> Result<Option<u64>, StoreError> {
            if !is_old(&path, now, grace)? {
                return Ok(None);
            }
            let bytes = fs::metadata(&path).at("look at", &path)?.len();
            fs::remove_file(&path).at("remove", &path)?;
            Ok(Some(bytes))
        });
        if let Some(bytes) = removed.transpose()?.flatten() {
            collected.chunks += 1;
            collected.bytes += bytes;
        }
    }
    Ok(())
}

/// Whether a file's time lies a grace or more back. One that is gone meanwhile isn't old.
fn is_old(path: &Path, now: SystemTime, grace: Duration) -> Result<bool, StoreError> {
    match fs::metadata(path).and_then(|metadata| metadata.modified()) {
        Ok(time) => Ok(now.duration_since(time).is_ok_and(|age| age >= grace)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(StoreError::file("look at", path, source)),
    }
}
