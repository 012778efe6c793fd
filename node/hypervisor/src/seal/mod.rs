//! The seal: what shuts a keeper and its monitor off from the host.
//!
//! ```text
//! enter       the order in which a keeper seals itself and its monitor
//! findings    what of it this host can give, found out by a trial
//! parts       the parts by name: in force or missing, never silently dropped
//! limits      from the host's cgroups and a machine's limits to a plan of writes (pure)
//! cgroup      the plan carried out, and taken back
//! user        a user for each machine
//! view, root  which files the monitor sees, and the two file trees made of them
//! filter      system calls (pure)
//! rules       landlock
//! handout     descriptors given to a monitor instead of a right to open
//! ```
//!
//! The keeper and its monitor have one user and share network and queues. The monitor has a file tree and a process
//! namespace of its own: it sees neither the keeper nor the machine's folders, so it can neither trace the one nor
//! plant files in the other for the node to read. The keeper reads and writes the monitor's memory for snapshots by
//! being the same user and outside its namespaces; it keeps no capability for it.

mod cgroup;
mod enter;
mod filter;
mod findings;
mod handout;
mod limits;
mod parts;
mod root;
mod rules;
mod user;
mod view;

pub(crate) use cgroup::{OomCounter, release};
pub use enter::SealMode;
pub(crate) use enter::{SealRequest, Sealed, Sealing};
pub(crate) use filter::later as later_filter;
pub(crate) use findings::{NOTHING, TRIAL, TRIAL_IN, trial, trial_in};
pub use findings::{examine, findings};
pub(crate) use handout::Handout;
pub use parts::Part;
pub(crate) use user::Claim;
pub(crate) use view::find;
