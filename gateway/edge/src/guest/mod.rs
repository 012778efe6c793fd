//! The agent's surface as functions: a request built, sent to the sandbox's owner, its answer read with a limit.
//!
//! ```text
//! call      one request, with one retry where the route was old and the body can be sent again
//! answer    what the agent answers: a body, or an error put into the mesh's words
//! surface   exec, code-run, files, logs
//! contexts  stateful interpreters
//! lines     lines of JSON out of an answer that streams
//! upload    bytes on their way into a file, counted
//! ```
//! What a guest answers is hostile: every read is bounded, every text that is repeated is clipped.

mod answer;
mod call;
mod contexts;
mod lines;
mod surface;
mod upload;

pub(crate) use answer::lossy;
pub(crate) use contexts::DEFAULT_CONTEXT;
pub(crate) use lines::Lines;
pub(crate) use surface::{Guest, run_within};
pub(crate) use upload::Upload;
