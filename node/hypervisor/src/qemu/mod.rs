//! QEMU over QMP: the driver for hosts without hardware virtualization or without Cloud Hypervisor.
//!
//! ```text
//! driver     finds the program out (version, machine type) and makes or adopts machines
//! start      from a specification to a machine, and spares on the way
//! command    a machine's command line, as pure functions
//! machine    one machine: the trait's verbs
//! disks      what it counts of its disks
//! qmp        the monitor's protocol
//! ```
//!
//! A template's memory is a file mapped shared; its device state is a migration stream without that memory
//! (`x-ignore-shared`). A clone maps the file privately and loads the stream. A clone's snapshot is its private pages
//! (the keeper reads them) and `xen-save-devices-state`; a restore is a clone with those pages laid over it. A machine
//! that boots over a template maps it like a clone, and is snapshotted like one.

mod command;
mod disks;
mod driver;
mod machine;
mod qmp;
mod start;

pub use driver::{QemuConfig, QemuDriver};
