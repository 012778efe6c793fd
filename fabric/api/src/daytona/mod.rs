//! The Daytona wire, `/api` and `/toolbox`, as its published clients (`daytona` 0.190 to 0.226) speak it.
//!
//! Requests ignore fields that this list doesn't know, since newer clients send more; answers carry every field
//! without which a client refuses the object. Numbers are whole, memory and disk are GiB, instants are RFC 3339.
//!
//! ```text
//! sandboxes  sandboxes, their pages, what is asked for and changed about one
//! snapshots  templates and snapshots
//! info       the gateway, its health, regions
//! process    the toolbox: commands, program texts, interpreters
//! files      the toolbox: files and folders
//! error      an error's body
//! ```

mod error;
mod files;
mod info;
mod process;
mod sandboxes;
mod snapshots;

pub use error::*;
pub use files::*;
pub use info::*;
pub use process::*;
pub use sandboxes::*;
pub use snapshots::*;
