//! Commands: started in a process group of their own, watched, killed as a group, their output bounded.
//!
//! ```text
//! command   a request as a command that can be started, or a refusal; pure but for looking programs up
//! reaper    collects every process that ends, and tells who waits for one
//! engine    starts a command; a task of its own watches it to its end, whether anyone still listens or not
//! output    the command's pipes: read while it runs, emptied when it ends, drained when children hold them
//! code      program texts for an interpreter
//! typescript  types taken out, lines kept
//! ```

mod code;
pub(crate) mod command;
mod engine;
mod output;
mod reaper;
mod typescript;

pub(crate) use code::{
    Language, NODE, PYTHON, importable, next_program, prepare as prepare_code, program_file, stored,
};
pub(crate) use command::{Command, merged, strings, timeout};
pub(crate) use engine::{Ended, Engine, Running, feed};
pub(crate) use reaper::{Reaper, Scope};
pub(crate) use typescript::{laid_out, transpiler};
