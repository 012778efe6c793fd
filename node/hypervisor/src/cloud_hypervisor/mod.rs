//! Cloud Hypervisor over its REST API: the driver for hosts with hardware virtualization.
//!
//! ```text
//! driver     finds the program out (version), makes or adopts machines
//! config     a machine's configuration, as a pure function
//! machine    one machine: the trait's verbs
//! api        the calls, each with a limit and a sentence
//! call       one request and its answer on the wire
//! ```
//!
//! It creates, boots, pauses, resumes, counts and ends machines. Templates, clones, snapshots and restores are refused
//! as not possible: the driver has no way to them yet. A machine boots once: a guest that resets itself has ended.

mod api;
mod call;
mod config;
mod driver;
mod machine;

pub use driver::{CloudHypervisorConfig, CloudHypervisorDriver};
