//! The surface (`guest_proto::surface`) over HTTP/2, one connection a session.
//!
//! ```text
//! serve   a session as an HTTP/2 connection
//! route   which request is meant, and what it may carry: the door
//! answer  the requests, each answered
//! body    bodies in, bounded; bodies out
//! ```

mod answer;
mod body;
mod route;
mod serve;
#[cfg(test)]
mod tests;

pub(crate) use answer::Agent;
pub(crate) use route::hostile;
pub(crate) use serve::serve;
