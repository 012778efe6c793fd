//! Messages that may be lost: a datagram where it fits, else a stream of its own. Nobody ever waits for one.
//!
//! ```text
//! send_message -> queue -> dispatch -> queue per peer -> one task per peer -> connection
//! ```
//! Every queue is bounded and drops what doesn't fit: gossip repeats itself.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, SendDatagramError};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace};

use crate::pool::Pool;
use crate::{MESSAGE_BYTES_MAX, Message, Protocol};

/// Messages that wait for the task of one peer. A gossip round sends a handful; more means that the peer doesn't answer.
const PEER_QUEUE_MAX: usize = 64;
/// Tasks of peers: twice the members of the largest cluster.
const PEERS_MAX: usize = 1024;
/// A peer's task ends after this long without a message.
const PEER_IDLE: Duration = Duration::from_secs(60);
/// A message too large for a datagram is given up after this: by then gossip has said something newer.
const STREAM_DEADLINE: Duration = Duration::from_secs(5);

/// Hands messages to the tasks of their peers until the shutdown.
pub(crate) async fn dispatch(
    pool: Arc<Pool>,
    mut outgoing: mpsc::Receiver<(SocketAddr, Bytes)>,
    shutdown: CancellationToken,
) {
    let mut peers: HashMap<SocketAddr, mpsc::Sender<Bytes>> = HashMap::new();
    loop {
        let (to, bytes) = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            next = outgoing.recv() => match next {
                Some(next) => next,
                None => return,
            },
        };
        if peers.get(&to).is_none_or(mpsc::Sender::is_closed) {
            if peers.len() >= PEERS_MAX {
                peers.retain(|_, queue| !queue.is_closed());
            }
            if peers.len() >= PEERS_MAX {
                debug!(%to, "a message is lost: too many peers");
                continue;
            }
            let (sender, receiver) = mpsc::channel(PEER_QUEUE_MAX);
            let sending = send_to_peer(Arc::clone(&pool), to, receiver);
            tokio::spawn(shutdown.clone().run_until_cancelled_owned(sending));
            peers.insert(to, sender);
        }
        if peers[&to].try_send(bytes).is_err() {
            trace!(%to, "a message is lost: the peer's queue is full");
        }
    }
}

/// The task of one peer.
async fn send_to_peer(pool: Arc<Pool>, to: SocketAddr, mut queue: mpsc::Receiver<Bytes>) {
    while let Ok(Some(bytes)) = timeout(PEER_IDLE, queue.recv()).await {
        match pool.get(to, Protocol::Gossip).await {
            Ok(link) => {
                if !send(&link.connection, bytes).await {
                    pool.release_link(to, Protocol::Gossip, &link);
                }
            }
            Err(error) => {
                trace!(%to, %error, "a message is lost: no connection");
                // What queued up meanwhile is as old as this one.
                while queue.try_recv().is_ok() {}
            }
        }
    }
}

/// Sends one message; false if the connection is of no more use.
async fn send(connection: &Connection, bytes: Bytes) -> bool {
    if connection.max_datagram_size().is_some_and(|most| bytes.len() <= most) {
        match connection.send_datagram(bytes.clone()) {
            Ok(()) => return true,
            Err(SendDatagramError::ConnectionLost(_)) => return false,
            // The path's limit has just shrunk, or the peer takes none.
            Err(SendDatagramError::TooLarge | SendDatagramError::Disabled | SendDatagramError::UnsupportedByPeer) => {}
        }
    }
    let sending = async {
        let mut stream = connection.open_uni().await.ok()?;
        stream.write_all(&bytes).await.ok()?;
        stream.finish().ok()
    };
    matches!(timeout(STREAM_DEADLINE, sending).await, Ok(Some(())))
}

/// Takes the messages of one connection until it ends.
pub(crate) async fn receive(connection: Connection, queue: mpsc::Sender<Message>) {
    let from = connection.remote_address();
    loop {
        tokio::select! {
            datagram = connection.read_datagram() => match datagram {
                // An empty one only asks whether this process knows the connection (see `pool`).
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => deliver(&queue, from, bytes),
                Err(_) => return,
            },
            stream = connection.accept_uni() => match stream {
                // Their number is bounded by the connection's limit on streams.
                Ok(mut stream) => {
                    let queue = queue.clone();
                    tokio::spawn(async move {
                        let reading = stream.read_to_end(MESSAGE_BYTES_MAX);
                        match timeout(STREAM_DEADLINE, reading).await {
                            Ok(Ok(bytes)) => deliver(&queue, from, bytes.into()),
                            Ok(Err(error)) => debug!(%from, %error, "a message is lost"),
                            Err(_) => debug!(%from, "a message is lost: it took too long"),
                        }
                    });
                }
                Err(_) => return,
            },
        }
    }
}

fn deliver(queue: &mpsc::Sender<Message>, from: SocketAddr, bytes: Bytes) {
    if queue.try_send(Message { from, bytes }).is_err() {
        trace!(%from, "a message is lost: the queue is full");
    }
}
