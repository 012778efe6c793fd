//! Region descriptors and the choice of the nearest.
//!
//! ```text
//! descriptor   one regions/<code>.json, parsed; Terraform reads the same files with jsondecode
//! catalog      the descriptors that are built in, and those of a folder
//! nearest      which of several regions is nearest: a pure function
//! ```

mod catalog;
mod descriptor;
mod nearest;

pub use catalog::{builtin, builtins, load_dir};
pub use descriptor::{Endpoints, Location, RegionDescriptor, RegionError, SCHEMA};
pub use nearest::{distance_km, nearest, rank};
