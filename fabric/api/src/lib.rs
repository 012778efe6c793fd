//! Wire types: what clients and nodes say to each other, and the errors that cross a process.
//!
//! ```text
//! error     one error for every boundary: a code, whose fault it is, whether to retry
//! node      node-to-node requests and replies (protocol `atoll-node`)
//! v1        Atoll's own API, `/v1`
//! daytona   the Daytona wire, `/api` and `/toolbox`
//! ```
//!
//! Fields are added, never changed: an unknown field of a request from a client is an error where the wire allows
//! it, an unknown field from a node of a newer version is ignored.

pub mod daytona;
pub mod error;
pub mod millis;
pub mod node;
pub mod v1;

pub use error::{ApiError, ErrorCode, Fault, Retry};
