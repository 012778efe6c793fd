//! The golden test of who may call whom.
//!
//! ```text
//! rules   arrows.txt as values
//! tree    the workspace's packages and dependencies, as cargo tells them
//! check   rules and tree in, violations out; no I/O
//! ```

mod check;
mod rules;
mod tree;

pub use check::{Violation, check};
pub use rules::{Rules, RulesError};
pub use tree::{Edge, Package, Tree, TreeError, read_tree};
