//! The listener: connections with their limits and timers, and the drain.

mod mend;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use fabric_gossip::ClusterView;
use fabric_quic::Fabric;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use mend::Mended;

use crate::router::router;
use crate::{Edge, EdgeConfig, EdgeLimits, LocalNode};

/// Bytes of a request's head that are read at all; what is over the limit of headers is refused by the front.
const HEAD_BYTES_MAX: usize = 1 << 20;
/// Headers of a request, and of trailers, that are read at all.
const HEADERS_MAX: usize = 1000;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// An HTTP/2 connection that says nothing for so long is asked whether it is there, and closed after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long to wait when the host has no file descriptor left: someone must close one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a gateway could not be started.
#[derive(Debug, Error)]
pub enum EdgeError {
    /// The listener can't be used.
    #[error("can't serve HTTP on {listen}: {source}")]
    Listener {
        /// Where.
        listen: SocketAddr,
        /// How.
        source: std::io::Error,
    },
}

/// Serves clients on `listener` until `shutdown`; then takes no more connections, and waits for requests that have
/// begun, at most [`EdgeLimits::drain`].
pub async fn serve(
    config: EdgeConfig,
    listener: std::net::TcpListener,
    local: Arc<dyn LocalNode>,
    fabric: Arc<dyn Fabric>,
    view: watch::Receiver<Arc<ClusterView>>,
    shutdown: CancellationToken,
) -> Result<(), EdgeError> {
    let listen = config.listen;
    let failed = |source| EdgeError::Listener { listen, source };
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = TcpListener::from_std(listener).map_err(failed)?;
    info!(%listen, public_url = config.public_url, region = %config.region, "serving clients");
    let limits = config.limits.clone();
    let router = router(Edge::new(config, local, fabric, view));
    let slots = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    let end = CancellationToken::new();
    loop {
        let next = async {
            // Closed never; and a client that waits here waits in the kernel's queue.
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection =
                    Connection { router: router.clone(), limits: limits.clone(), shutdown: shutdown.clone() };
                let end = end.clone();
                connections.spawn(async move {
                    end.run_until_cancelled(connection.serve(stream, peer)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                warn!(%listen, %error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if timeout(limits.drain, connections.wait()).await.is_err() {
        warn!(open = connections.len(), "requests were cut off: they outlasted the drain");
        end.cancel();
        connections.wait().await;
    }
    info!(%listen, "no longer serving clients");
    Ok(())
}

/// What one connection needs.
struct Connection {
    router: Router,
    limits: EdgeLimits,
    shutdown: CancellationToken,
}

impl Connection {
    async fn serve(self, stream: TcpStream, peer: SocketAddr) {
        // Answers are small and awaited: Nagle would add a round trip to them.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%peer, %error, "no TCP_NODELAY");
        }
        let begun = Arc::new(AtomicBool::new(false));
        let (router, first) = (self.router.clone(), Arc::clone(&begun));
        let service = service_fn(move |request: Request<Incoming>| {
            first.store(true, Ordering::Relaxed);
            router.clone().oneshot(request.map(axum::body::Body::new))
        });
        let builder = builder(&self.limits);
        let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(Mended::new(stream)), service));
        let (mut draining, mut awaits_first) = (false, true);
        let mut first_request = pin!(sleep(self.limits.headers_within));
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        debug!(%peer, %error, "a connection broke");
                    }
                    return;
                }
                () = self.shutdown.cancelled(), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = first_request.as_mut(), if awaits_first => {
                    if !begun.load(Ordering::Relaxed) {
                        debug!(%peer, "a connection sent no request in time");
                        return;
                    }
                    awaits_first = false;
                }
            }
        }
    }
}

fn builder(limits: &EdgeLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle_for)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32);
    builder
}
