//! The session layer (contract; see the functions).

use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream inside one session.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
/// A boxed stream.
pub type BoxStream = Pin<Box<dyn Stream>>;
