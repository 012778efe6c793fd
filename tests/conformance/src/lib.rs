//! The stock clients against a running mesh, and the wire where no client goes.
//!
//! ```text
//! python   stock clients from PyPI, each in a folder of its own, kept between runs
//! raw      requests as bytes, so that malformed ones can be sent
//! ```

mod python;
mod raw;

pub use python::StockClient;
pub use raw::{Answer, Request};
