//! Accepts connections and takes each stream to the queue of its protocol, which the ALPN names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fabric_types::NodeId;
use quinn::{Connection, Endpoint, Incoming};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::pool::Pool;
use crate::{BiStream, Message, Protocol, codes, hello, messages, tls};

/// A handshake takes two round trips; a peer that needs longer is refused.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Connections accepted at a time: four protocols from each of 2,000 peers.
const CONNECTIONS_MAX: usize = 8192;
/// Above this a dialler must show that its address is its own before it costs a handshake (RFC 9000, section 8.1.2).
const UNPROVEN_MAX: usize = CONNECTIONS_MAX / 2;
/// See the module.
pub(crate) struct Router {
    pub(crate) pool: Arc<Pool>,
    pub(crate) streams: HashMap<Protocol, mpsc::Sender<BiStream>>,
    pub(crate) messages: mpsc::Sender<Message>,
    pub(crate) shutdown: CancellationToken,
}

impl Router {
    /// Accepts until the shutdown.
    pub(crate) async fn run(self: Arc<Self>, endpoint: Endpoint) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let incoming = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                incoming = endpoint.accept() => match incoming {
                    Some(incoming) => incoming,
                    None => return,
                },
            };
            if slots.available_permits() < UNPROVEN_MAX && incoming.may_retry() {
                // Fails only for an address that has been proven.
                drop(incoming.retry());
                continue;
            }
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                debug!(from = %incoming.remote_address(), "a connection is refused: too many are open");
                incoming.refuse();
                continue;
            };
            let router = Arc::clone(&self);
            tokio::spawn(async move {
                let shutdown = router.shutdown.clone();
                shutdown.run_until_cancelled(router.serve(incoming)).await;
                drop(slot);
            });
        }
    }

    async fn serve(&self, incoming: Incoming) {
        let from = incoming.remote_address();
        let connection = match timeout(HANDSHAKE_DEADLINE, incoming.into_future()).await {
            Ok(Ok(connection)) => connection,
            // A stranger at the door, a peer of another mesh, an old certificate: nothing for a person to do here, and
            // whoever scans the port must not fill the log.
            Ok(Err(error)) => return debug!(%from, %error, "a handshake failed"),
            Err(_) => return debug!(%from, "a handshake took too long"),
        };
        let refuse = |why: &str| {
            info!(%from, why, "a connection is refused");
            connection.close(codes::REFUSED, why.as_bytes());
        };
        let node = match tls::peer_of(&connection) {
            Ok(certificate) => certificate.node().clone(),
            Err(why) => return refuse(&why),
        };
        let Some((protocol, version)) = tls::protocol_of(&connection) else {
            return refuse("the protocol is unknown");
        };
        if version != Protocol::WIRE_VERSION {
            info!(%from, %node, ?protocol, version, "a peer speaks another version");
            return hello::refuse(&connection, protocol, version);
        }
        match timeout(HANDSHAKE_DEADLINE, hello::send(&connection)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return debug!(%from, %node, %error, "a peer left before it was greeted"),
            Err(_) => return refuse("it takes no hello"),
        }
        match protocol {
            Protocol::Gossip => {
                self.pool.adopt(protocol, connection.clone(), node);
                messages::receive(connection, self.messages.clone()).await;
            }
            Protocol::Raft | Protocol::NodeApi | Protocol::Chunks | Protocol::Relay => {
                self.take_streams(&connection, protocol, &node).await;
            }
        }
    }

    async fn take_streams(&self, connection: &Connection, protocol: Protocol, node: &NodeId) {
        let address = connection.remote_address();
        let queue = &self.streams[&protocol];
        while let Ok((send, recv)) = connection.accept_bi().await {
            let Ok(place) = queue.try_reserve() else {
                debug!(%node, ?protocol, "a stream is refused: the queue is full");
                let (mut send, mut recv) = (send, recv);
                // Fails only if the peer has given the stream up already.
                drop(send.reset(codes::BUSY));
                drop(recv.stop(codes::BUSY));
                continue;
            };
            place.send(BiStream { peer: node.clone(), address, send: Box::pin(send), recv: Box::pin(recv) });
        }
    }
}
