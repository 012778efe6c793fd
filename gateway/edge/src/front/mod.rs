//! Around every request, from the outside in:
//!
//! ```text
//! rescue   request id, panics, errors put into words, the access log
//! limits   requests at once, bytes of headers and body
//! ```

pub(crate) mod drain;
pub(crate) mod limits;
pub(crate) mod rescue;
