//! Virtual machine monitors behind one trait of small verbs.
//!
//! ```text
//! vm                  the trait, the machine's specification, errors (this crate's contract)
//! probe               which monitor and accelerator really work on this host, and why
//! qemu                QEMU over QMP
//! cloud_hypervisor    Cloud Hypervisor over its REST API
//! keeper              the small process that is a monitor's parent and outlives the node
//! ```

mod vm;

pub use vm::*;
