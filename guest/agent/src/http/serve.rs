//! A session as an HTTP/2 connection.

use std::convert::Infallible;
use std::sync::Arc;

use guest_proto::session::Stream;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::answer::Agent;

/// Requests at once on one session: above the commands at once, so that their limit is the one that is told.
const STREAMS_MAX: u32 = 200;
/// Bytes of a request's header: the surface's own fit in a tenth.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Body bytes of one request on their way: an upload's pieces are written as fast as the disk takes them.
const STREAM_WINDOW_BYTES: u32 = 512 << 10;
/// Body bytes of all requests on their way. Below what the session layer lets pile up.
const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;

/// Serves one session until it ends.
pub(crate) async fn serve(agent: Arc<Agent>, session: impl Stream + 'static) {
    let service = service_fn(move |request| {
        let agent = Arc::clone(&agent);
        async move { Ok::<_, Infallible>(agent.answer(request).await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .serve_connection(TokioIo::new(session), service);
    // A session ends when the next host opens its own: that is how every connection ends, and no fault.
    let _ = connection.await;
}
