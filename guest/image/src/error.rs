//! Why an image could not be built or used.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why an image could not be built or used.
#[derive(Debug, Error)]
pub enum ImageError {
    /// A file could not be read or written.
    #[error("can't {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// Programs that the build needs are not installed.
    #[error("building the guest image needs {}; install with: apt-get install {}", .programs.join(", "), .packages.join(" "))]
    MissingPrograms {
        /// The programs.
        programs: Vec<&'static str>,
        /// The packages that hold them.
        packages: Vec<&'static str>,
    },
    /// A program ended with an error.
    #[error("{program} failed ({status}); its last words:\n{tail}")]
    Program {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// The last lines of its output.
        tail: String,
    },
    /// There is no agent binary and no source tree to build it from.
    #[error(
        "no agent binary: set ATOLL_AGENT to a statically linked atoll-agent, put it beside this program ({beside}), or run inside the source tree"
    )]
    NoAgent {
        /// Where it was looked for.
        beside: PathBuf,
    },
    /// The agent is dynamically linked: there is no C library in an initramfs.
    #[error(
        "{path} is no statically linked x86-64 executable; build it with RUSTFLAGS='-C target-feature=+crt-static' and --target x86_64-unknown-linux-gnu"
    )]
    AgentNotStatic {
        /// The binary.
        path: PathBuf,
    },
    /// The host's operating system isn't one that packages can be taken from.
    #[error("the guest image is built from Debian's or Ubuntu's packages; this host says: {found}")]
    UnknownHost {
        /// What its os-release says.
        found: String,
    },
    /// The host's apt knows no source for the distribution.
    #[error("no apt source of this host serves '{suite} main'; looked in {looked_in}")]
    NoSources {
        /// The suite.
        suite: String,
        /// The places.
        looked_in: String,
    },
    /// The kernel package isn't what the recipe expects.
    #[error("the kernel package: {what}")]
    KernelPackage {
        /// What is wrong.
        what: String,
    },
    /// A finished image doesn't fit its manifest.
    #[error("{path} is damaged: {what}; remove its folder and build again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The image was built by a newer version.
    #[error("{path} has schema version {found}; this version reads up to {known}")]
    Schema {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest known.
        known: u32,
    },
}

impl ImageError {
    /// For `map_err`: an I/O error with what was tried and with which file.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}
