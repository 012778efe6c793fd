//! Virtual machine monitors behind one trait of small verbs.
//!
//! ```text
//! vm                  the trait, the machine's specification, errors (this crate's contract)
//! probe               which monitor and accelerator really work on this host, and why
//! qemu                QEMU over QMP
//! cloud_hypervisor    Cloud Hypervisor over its REST API
//! keeper              the small process that is a monitor's parent and outlives the node
//! launch              what both drivers do around a keeper
//! spare               a monitor that was started ahead, as both drivers give it out
//! checkpoint          a whole monitor as files, and the way back to a process
//! seal                what shuts keeper and monitor off from the host, and limits them
//! host                what the processor and kernel offer
//! template, disk      the files that machines start from
//! memory              guest memory as files: put together, compared
//! atomic_files        small files that are whole or absent, for this crate and those above
//! durable             the same with this crate's limit and errors
//! sweep               what an earlier process left half-made
//! ```

pub mod atomic_files;
mod checkpoint;
mod cloud_hypervisor;
mod disk;
mod durable;
mod host;
mod keeper;
mod kernel_args;
mod launch;
mod memory;
mod probe;
mod process;
mod qemu;
pub mod seal;
mod spare;
mod sweep;
mod sys;
mod template;
mod vm;

pub use checkpoint::{checkpoint_disk, checkpoint_is_current};
pub use cloud_hypervisor::{CloneMemory, CloudHypervisorConfig, CloudHypervisorDriver};
pub use disk::{copy_sparse, make_disk};
pub use keeper::{KeeperProgram, keeper_main};
pub use probe::{AccelChoice, Finding, HypervisorChoice, ProbeConfig, ProbeError, Probed, probe};
pub use qemu::{QemuConfig, QemuDriver};
pub use sweep::{Swept, end_machine, sweep};
pub use template::{TemplateManifest, disk_file as template_disk, make_blank_template, memory_file as template_memory};
pub use vm::*;
