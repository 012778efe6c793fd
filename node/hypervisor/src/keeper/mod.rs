//! The keeper: a small process that is one monitor's parent and outlives the node.
//!
//! ```text
//!   node ── spawns ──> keeper ── spawns, PR_SET_PDEATHSIG ──> monitor (QEMU, Cloud Hypervisor)
//!     │                  │ first listens on `k`, and holds the monitor's own listeners open until it has them
//!     │<── hello ────────┤ vm.json is on disk
//!     │ ... QMP or REST: the machine is prepared ...
//!     │─── confirm ─────>│ from now on the machine stays when the node goes
//!
//!   Unconfirmed ──confirm──> Kept ──> Ended{how}
//!        └── the creating connection closes, or CONFIRM_LIMIT passes ──> Ended; vm.json is removed
//!   both ── end, a deadline, or the monitor ends by itself ──> Ended
//! ```
//!
//! It knows nothing of sandboxes, nor what the monitor is: it has a command line, sockets to hand on and a record to
//! write. It dies with its monitor (which it then reaps, noting how it ended in `ended.json`), and its monitor with it.

mod client;
mod config;
mod console;
mod events;
pub(crate) mod pages;
mod plug;
mod protocol;
mod run;
mod serve;
mod spawn;
mod watch;

pub(crate) use client::{ASK_LIMIT, Creator, Here, Keeper, ask_blocking, unexpected};
pub(crate) use config::{EndRecord, KeeperConfig, ListenerConfig, SCHEMA, VmRecord};
pub(crate) use events::RESET;
pub(crate) use pages::{check_runs, read_runs, write_runs};
pub(crate) use plug::{PlugError, open_tap};
pub(crate) use protocol::{Based, Reply, Request};
pub use run::keeper_main;
pub use spawn::KeeperProgram;
pub(crate) use spawn::{SpawnedKeeper, spawn, vacant};
