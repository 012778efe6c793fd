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
//! builder     puts it together in a folder beside the place it goes to, then renames it
//! ```
//!
//! It knows nothing of hypervisors: an image is three files and a manifest.

mod agent;
mod bootstrap;
mod builder;
mod cpio;
mod error;
mod inputs;
mod manifest;
mod modules;
mod sources;

pub use agent::find_or_build_agent;
pub use builder::{ImageDir, Progress, Step, ensure};
pub use error::ImageError;
pub use inputs::{ImageInputs, digest};
pub use manifest::{FileEntry, Manifest, PackageEntry};
