//! The contract between a host and the agent in its guest.
//!
//! ```text
//! boot      what the kernel is started with, which devices the agent looks for
//! surface   the agent's HTTP requests and answers (types only)
//! session   frames over one byte channel that breaks in the middle of a message, made into one clean byte stream
//! ```
//!
//! The contract has a number ([`surface::PROTOCOL`]). An old guest never adapts: a template or snapshot keeps the
//! number that its agent was built with, and the host speaks each number it still supports.

pub mod boot;
pub mod session;
pub mod surface;
