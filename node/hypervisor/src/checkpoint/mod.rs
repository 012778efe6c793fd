//! A checkpoint: a whole monitor as files, and the way back to a process.
//!
//! ```text
//! a machine, paused                    folder                     a copy, in a seal of its own
//!   QEMU: threads, translated  --take--> checkpoint.json   --restore--> QEMU's program, stopped at its first
//!   code, heap, descriptors              pages, base  (the monitor's)   instruction, becomes the process that was
//!   the guest's private pages            guest, runs                    taken: the same addresses, threads and
//!                                        memory, differs, disk          numbers of descriptors, other files behind them
//! ```
//!
//! Under TCG nearly all that a new clone costs is translating the guest's code again, and nearly all that it weighs is the
//! outcome. A copy maps `pages` privately: what it doesn't write it shares with every other copy. Checkpoint and restore
//! of processes is what CRIU does for any process; a monitor that is paused is a small case of it: its threads wait in
//! three calls, and the keeper knows what each descriptor is.
//!
//! ```text
//! manifest    what is written in checkpoint.json
//! look        what /proc says of a process (pure: text in, values out)
//! remote      its memory, from outside
//! tracee      one stopped thread, and calls made in its name
//! known       what the keeper knows of its monitor, and each descriptor by it
//! areas       what lies at its addresses, and what of it has to be written
//! generators  random generators within it, which each copy has keys of its own for
//! take        from a paused monitor to the folder
//! steps       the calls that make a process another one (pure)
//! restore     from the folder to a monitor
//! ```
//!
//! All copies of one checkpoint have one layout of addresses and one set of QEMU's own secrets (stack guards): who breaks
//! out of one knows those of the others. QEMU's random generators get new keys with each copy, and the guest's own secrets are
//! renewed by its identity, as for any clone.

mod areas;
mod generators;
mod known;
mod look;
mod manifest;
mod remote;
mod restore;
mod steps;
mod take;
mod tracee;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub(crate) use known::{Known, Memory};
pub(crate) use manifest::{Manifest, Plug};
pub(crate) use restore::{Restoring, prepare};
pub(crate) use take::{Files, take};

use crate::VmError;
use crate::keeper::{read_runs, write_runs};
use crate::memory::assemble;
use crate::template::memory_file;

/// Why a monitor couldn't be taken or restored.
#[derive(Debug, Error)]
pub(crate) enum CheckpointError {
    /// A call that failed.
    #[error("can't {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// How it failed.
        source: io::Error,
    },
    /// Something that this doesn't know how to carry over.
    #[error("{0}")]
    Unfit(String),
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> CheckpointError {
    move |source| CheckpointError::System { action, source: source.into() }
}

/// The copy of the machine's own disk, of the same moment. A copy of the machine starts from a copy of it.
pub fn checkpoint_disk(folder: &Path) -> PathBuf {
    folder.join("disk")
}

/// The monitor's memory.
pub(crate) fn pages_file(folder: &Path) -> PathBuf {
    folder.join("pages")
}

/// What `pages` was to the monitor that was taken, where that was a copy itself: a second name of that file.
pub(crate) fn base_file(folder: &Path) -> PathBuf {
    folder.join("base")
}

/// The guest's memory, whole, where the checkpoint has one of its own: [`complete`]. Else copies map the template's.
pub(crate) fn own_memory_file(folder: &Path) -> PathBuf {
    folder.join("memory")
}

/// The ranges in which that differs from the template's.
pub(crate) fn differs_file(folder: &Path) -> PathBuf {
    folder.join("differs")
}

/// The guest's private pages, at their offsets; see [`crate::keeper::read_runs`] for where they are.
pub(crate) fn guest_file(folder: &Path) -> PathBuf {
    folder.join("guest")
}

/// The ranges of [`guest_file`].
pub(crate) fn runs_file(folder: &Path) -> PathBuf {
    folder.join("runs")
}

/// All else; written last.
pub(crate) fn manifest_file(folder: &Path) -> PathBuf {
    folder.join("checkpoint.json")
}

/// Gives a checkpoint a memory of its own: the template's with the guest's private pages laid over it. Copies map it and share
/// those pages too; else each is given them. Worth it for a checkpoint with many copies: it takes a second and a file as large
/// as the template's memory. Blocks. Call it before anyone copies from it.
pub(crate) fn complete(folder: &Path, template: &Path) -> Result<(), VmError> {
    if own_memory_file(folder).exists() {
        return Ok(());
    }
    let failed = |action, path: PathBuf| move |source| VmError::File { action, path, source };
    let (guest, runs) = (guest_file(folder), runs_file(folder));
    let private = read_runs(&runs).map_err(failed("read", runs.clone()))?;
    assemble(&memory_file(template), &guest, &private, &own_memory_file(folder))?;
    write_runs(&differs_file(folder), &private).map_err(failed("write", differs_file(folder)))?;
    write_runs(&runs, &[]).map_err(failed("write", runs.clone()))?;
    std::fs::File::create(&guest).map(drop).map_err(failed("empty", guest))
}

/// Whether the checkpoint in `folder` is complete and this host can still take it up: it was taken since the host's last
/// boot, by this version, from the same program with the same libraries. Reads one small file.
pub fn checkpoint_is_current(folder: &Path) -> bool {
    Manifest::read(folder).is_ok_and(|manifest| manifest.is_current())
}
