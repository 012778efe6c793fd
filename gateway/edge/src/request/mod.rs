//! What a handler reads of a request. Everything is parsed here, once; errors say what was wrong and where.

mod caller;
mod json;
mod params;
mod path;

pub(crate) use caller::{Caller, authenticate};
pub(crate) use json::JsonBody;
pub(crate) use params::Params;
pub(crate) use path::Segments;
