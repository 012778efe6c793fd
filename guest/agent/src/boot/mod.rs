//! From the kernel's first process to a guest with its root file system.
//!
//! ```text
//! early mounts -> modules -> disks -> overlay -> switch root -> late mounts
//! ```

mod modules;
mod mounts;
mod root;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub(crate) use root::Root;

/// Why a guest can't boot.
#[derive(Debug, Error)]
pub(crate) enum BootError {
    /// A mount failed.
    #[error("can't mount {what} on {on}: {source}")]
    Mount {
        /// The file system or device.
        what: String,
        /// Where.
        on: PathBuf,
        /// How it failed.
        source: nix::Error,
    },
    /// A file of the initramfs or of /sys.
    #[error("can't {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
}

impl BootError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

/// Boots, as the first process.
pub(crate) fn run() -> Result<Root, BootError> {
    mounts::early()?;
    modules::load_all()?;
    let root = root::switch()?;
    mounts::late()?;
    Ok(root)
}
