//! Builds the guest image from Debian's packages by name: kernel, initramfs with the agent, root file system.
//!
//! ```text
//! inputs      what an image is made from, and the digest that names it
//! agent       finds the agent's binary, or has cargo build it
//! sources     the host's own apt sources, as far as they serve the distribution's packages
//! bootstrap   runs mmdebstrap with the recipe; leaves root.erofs and the unpacked kernel package
//! modules     which kernel modules the initramfs needs, in the order to load them
//! cpio        writes a newc archive
//! manifest    manifest.json: digests and sizes of what was built
//! staged      a folder that is built once: complete, or not there
//! base        root file system, kernel and modules: what the images of all agents share
//! shelf       the images of a folder: which there are, who uses them, taking away what nobody does
//! builder     an image: the base and an initramfs with the agent
//! ```
//!
//! It knows nothing of hypervisors: an image is three files and a manifest.

mod agent;
mod base;
mod bootstrap;
mod builder;
mod cpio;
mod error;
mod inputs;
mod manifest;
mod modules;
mod shelf;
mod sources;
mod staged;

pub use agent::find_or_build_agent;
pub use base::base_name;
pub use builder::{ImageDir, Progress, Step, ensure};
pub use error::ImageError;
pub use inputs::{Distribution, DistributionKind, ImageInputs, digest};
pub use manifest::{FileEntry, Manifest, PackageEntry};
pub use shelf::{Hold, Kind, Shelved, TEMPLATES, Use, shelf, take_away};
