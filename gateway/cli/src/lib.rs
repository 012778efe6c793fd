//! The client commands of atoll: sandboxes, snapshots, keys, regions and status over the API.
//!
//! ```text
//! args       what can be typed, and the help that teaches it
//! exit       exit codes, and the failures that they stand for
//! output     standard output and standard error: a table, a line, or one JSON object
//! progress   a spinner on a terminal while something is waited for
//! signals    Ctrl-C and SIGTERM as values
//! stdin      standard input, whole or in pieces
//! commands   what each command does, by the SDK alone
//! ```
//!
//! The binary flattens [`ClientCommand`] into its own commands, [`GlobalArgs`] into its own arguments, and calls
//! [`run`]. Nothing here knows how a node works.

mod args;
mod commands;
mod exit;
mod output;
mod progress;
mod signals;
mod stdin;

pub use args::{ClientCommand, GlobalArgs};
pub use commands::{run, run_with};
pub use exit::{EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_TIMEOUT, EXIT_USAGE};
pub use output::{Streams, age, bytes, table};
