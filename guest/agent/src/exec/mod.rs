//! Commands: started in a process group of their own, watched, killed as a group, their output bounded.
//!
//! ```text
//! command   a request as a command that can be started, or a refusal; pure but for looking programs up
//! reaper    collects every process that ends, and tells who waits for one
//! engine    starts a command; a task of its own watches it to its end, whether anyone still listens or not
//! output    the command's pipes: read while it runs, emptied when it ends, drained when children hold them
//! code      program texts for an interpreter
//! ```

mod code;
mod command;
mod engine;
mod output;
mod reaper;

pub(crate) use code::prepare as prepare_code;
pub(crate) use command::Command;
pub(crate) use engine::{Ended, Engine};
pub(crate) use reaper::{Reaper, Scope};
