//! Certificates and keys on disk: bounded reads, writes that are whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::FabricError;

/// For keys.
pub(crate) const PRIVATE_MODE: u32 = 0o600;
/// For certificates.
pub(crate) const PUBLIC_MODE: u32 = 0o644;
/// A PEM text of ours is under 2 KiB; what is larger is another file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

pub(crate) fn create_folder(folder: &Path) -> Result<(), FabricError> {
    fs::create_dir_all(folder).map_err(|error| unusable(folder, &error))
}

pub(crate) fn read_text(path: &Path) -> Result<String, FabricError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|error| unusable(path, &error))?;
    Ok(text)
}

/// Writes a temporary file, syncs it, renames it, syncs the folder.
pub(crate) fn write_text(path: &Path, text: &str, mode: u32) -> Result<(), FabricError> {
    write_and_rename(path, text, mode).map_err(|error| unusable(path, &error))
}

fn write_and_rename(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn unusable(path: &Path, error: &io::Error) -> FabricError {
    FabricError::Certificate { path: path.display().to_string(), cause: error.to_string() }
}
