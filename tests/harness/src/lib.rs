//! Starts a real mesh in a temporary folder for the tests, and ends it.
//!
//! ```text
//! binary     where the repository and the atoll binary are
//! ports      a range of free ports
//! mesh       a mesh that runs: started, killed in parts, started again, stopped
//! command    the atoll command line against it
//! process    its processes, found by a mark, ended by pid
//! footprint  what it uses outside its folder while it runs, and what of that is left after
//! guests     what a node's guest network has, told apart from that of another mesh
//! lab        a network of the test's own, with decoys
//! step       named steps of a long test, and skips that are told
//! ```
//!
//! A start costs seconds and each test has a process of its own, so a test makes one mesh and does many steps on it.

mod binary;
mod command;
mod footprint;
mod guests;
pub mod lab;
mod mesh;
mod ports;
mod process;
mod step;

pub use binary::{atoll_binary, repository, runs};
pub use command::Ran;
pub use footprint::Footprint;
pub use guests::GuestNetwork;
pub use mesh::{Mesh, MeshOptions};
pub use nix::sys::signal::Signal;
pub use ports::free_port_base;
pub use process::{Process, marked};
pub use step::{eventually, skip, step, temporary_folder};
pub use tempfile::TempDir;
