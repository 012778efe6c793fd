//! The drivers on this very host: real keepers, real monitors, the real guest image.
//!
//! ```text
//! support             image, keeper, folders; a loud word for what can't run here
//! guest               the agent, spoken to over the channel
//! lifecycle           what every driver does, run against each driver that is present
//! killed              processes killed at any moment
//! card                a network card in every plug
//! fork                one snapshot restored several times, disks that grow
//! checkpoint          copies of a whole monitor
//! spare               monitors started ahead, and what a clone costs
//! template            templates, clones, snapshots, restores
//! probe               the probe
//! seal                the seal, from inside
//! freestanding        a guest of a few dozen bytes, for hosts whose KVM runs no stock kernel
//! cloud_hypervisor    that driver, with that guest
//! devices             that driver's card, disks, limits and balloon; what its keeper's death leaves
//! footprint           what its clones cost
//! counting            that guest on every driver: what is saved and loaded again keeps memory and registers
//! shim                help for a KVM without nested state
//! ```

#![expect(clippy::print_stdout, reason = "a test prints the figures it measured and what it skipped")]

mod card;
mod checkpoint;
mod cloud_hypervisor;
mod counting;
mod devices;
mod disks;
mod footprint;
mod fork;
mod freestanding;
mod guest;
mod killed;
mod lifecycle;
mod probe;
mod seal;
mod shim;
mod spare;
mod support;
mod template;
