//! Long runs against a mesh of one node, with kills in the middle, of any length.
//!
//! ```text
//! churn    create, exec and delete, again and again, while the node and keepers are killed
//! dance    pause, resume, fork, kill and delete in random order, against a model
//! level    what the mesh uses at rest: it has to be the same before and after
//! ```

mod churn;
mod dance;
mod level;

pub use churn::{Churn, ChurnOptions};
pub use dance::{Dance, DanceOptions};
pub use level::Level;
