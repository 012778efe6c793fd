//! Cloud Hypervisor over its REST API: the driver for hosts with hardware virtualization.
//!
//! ```text
//! driver     finds the program out (version), makes or adopts machines
//! start      from a specification to a machine, and spares on the way
//! config     a machine's configuration, as pure functions
//! saved      device state on disk
//! card       what a machine's network card is plugged into
//! machine    one machine: the trait's verbs
//! api        the calls, each with a limit and a sentence
//! call       one request and its answer on the wire, with descriptors
//! ```
//!
//! A template's memory is a file that its monitor maps shared, so that a save writes device state alone. A clone maps the
//! file privately: its pages are shared by all clones until they are written. A clone's snapshot is its private pages
//! (the keeper reads them) and device state; a restore is a clone with those pages laid over it. So both cost what
//! differs from the template, not what a guest's memory is long. The monitor's own two ways ([`CloneMemory`]) are there
//! to be chosen. A machine boots once: a guest that resets itself has ended.

mod api;
mod call;
mod card;
mod config;
mod driver;
mod machine;
mod saved;
mod start;

pub use driver::{CloudHypervisorConfig, CloudHypervisorDriver};
pub(crate) use saved::open_plain;

/// How a clone or a restored machine comes by its memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CloneMemory {
    /// The template's file is mapped privately: nothing is copied before it is written, and what is only read is shared
    /// by all clones.
    #[default]
    Mapped,
    /// The monitor copies each page when it is touched first (userfaultfd), and the rest meanwhile
    /// (`memory_restore_mode=ondemand`). It needs the right to userfaultfd.
    OnDemand,
    /// The monitor copies all of it before the machine is there (`memory_restore_mode=copy`).
    Copy,
}
