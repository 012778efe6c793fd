//! HTTP to a guest's agent, on its way between the gateway that took the request and the node that owns the sandbox.
//!
//! ```text
//! gateway                                     owner
//!   open a stream of Protocol::Relay   ->
//!   frame: preamble                    ->       who is meant, under which generation, for whom
//!   HTTP/1.1 request                   ->       LocalNode::guest
//!                                      <-     HTTP/1.1 response; with the refusal header it is the owner's own error
//! ```
//! One request a stream. On the owner itself no stream is opened.

mod client;
mod preamble;
mod server;

pub(crate) use client::{Relayed, relay};
pub use preamble::RELAY_VERSION;
pub use server::serve_relay;

/// The response header by which an owner says that the answer is its own error, as JSON of [`fabric_api::ApiError`],
/// and not the guest's. It is removed from whatever a guest answers.
const REFUSAL_HEADER: http::HeaderName = http::HeaderName::from_static("x-atoll-refusal");
