//! The connections that this node sends on: at most one per address and protocol, dialled when first needed.
//!
//! ```text
//!            get             hello came
//! (nothing) ----> Dialling ------------> Open ----> (nothing)    closed, reset, suspected or unused for long
//!     ^              | failed
//!     +-- time --- Failed      until its pause is over, get fails at once
//! ```
//! The pool owns this state and nobody else changes it. A connection is good when the peer has said hello on it: only
//! then has the peer accepted our certificate and our version of the protocol.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fabric_types::NodeId;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quinn::{Connection, ConnectionError, Endpoint};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::hello::{self, HelloError};
use crate::{Message, Protocol, codes, messages, tls};

/// A dial, hello included. A peer across an ocean answers in under a second; three lost packets fit.
pub(crate) const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// A second attempt begins beside the first after this, and so on until one comes to something: the first packets to a
/// process that was just starting are lost, and QUIC repeats them ever more rarely.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after the first failed dial; it doubles with each.
const BACKOFF_LEAST: Duration = Duration::from_millis(50);
/// The longest pause: a peer that is started again is found within this.
const BACKOFF_MOST: Duration = Duration::from_secs(1);
/// A connection nobody has asked for in this long is let go; streams on it live on.
const UNUSED_MAX: Duration = Duration::from_secs(300);
/// How often unused connections and old failures are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Addresses times protocols that are remembered: a mesh of 1,000 nodes with some of everything, and a bound on what a
/// stream of bad addresses can cost.
const SLOTS_MAX: usize = 8192;
/// The name that is dialled. It is not checked (see `tls`); TLS wants one.
const SERVER_NAME: &str = "any.node.atoll";

/// Why there is no connection.
#[derive(Debug, Clone, Error)]
pub(crate) enum DialError {
    /// In words.
    #[error("{0}")]
    Failed(String),
    /// The peer speaks another version of the protocol.
    #[error("it speaks version {theirs} of the protocol")]
    Version {
        /// Its version.
        theirs: u32,
    },
}

/// A connection that is good to send on.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) node: NodeId,
    /// Ends what the pool itself holds of the connection; it then closes with its last stream.
    released: CancellationToken,
}

type Key = (SocketAddr, Protocol);
type Outcome = Option<Result<Link, DialError>>;

enum Slot {
    Dialling { failures: u32, outcome: watch::Sender<Outcome> },
    Open { link: Link, used: Instant },
    Failed { failures: u32, until: Instant, error: DialError },
}

enum Lookup {
    Good(Link),
    Paused(DialError),
    Dialling(watch::Receiver<Outcome>),
    Begun(watch::Receiver<Outcome>),
}

/// See the module.
pub(crate) struct Pool {
    endpoint: Endpoint,
    clients: HashMap<Protocol, quinn::ClientConfig>,
    slots: Mutex<HashMap<Key, Slot>>,
    messages: mpsc::Sender<Message>,
    shutdown: CancellationToken,
}

impl Pool {
    pub(crate) fn new(
        endpoint: Endpoint,
        clients: HashMap<Protocol, quinn::ClientConfig>,
        messages: mpsc::Sender<Message>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self { endpoint, clients, slots: Mutex::default(), messages, shutdown })
    }

    /// A connection to an address, dialled if there is none. Callers that ask while it is dialled share the dial.
    /// Cancel safe: the dial goes on for whoever asks next.
    pub(crate) async fn get(self: &Arc<Self>, address: SocketAddr, protocol: Protocol) -> Result<Link, DialError> {
        let key = (address, protocol);
        let mut outcome = match self.lookup(key) {
            Lookup::Good(link) => return Ok(link),
            Lookup::Paused(error) => return Err(error),
            Lookup::Dialling(outcome) => outcome,
            Lookup::Begun(outcome) => {
                tokio::spawn(Arc::clone(self).dial(key));
                outcome
            }
        };
        let outcome = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        match outcome {
            Ok(Some(outcome)) => outcome,
            Ok(None) | Err(_) => Err(DialError::Failed("the fabric is closing".into())),
        }
    }

    /// What there is for a caller of [`Pool::get`]. `Begun` obliges it to dial.
    fn lookup(&self, key: Key) -> Lookup {
        let mut slots = self.lock();
        let room = slots.len() < SLOTS_MAX;
        let failures = match slots.get_mut(&key) {
            Some(Slot::Open { link, used }) if link.connection.close_reason().is_none() => {
                *used = Instant::now();
                return Lookup::Good(link.clone());
            }
            Some(Slot::Dialling { outcome, .. }) => return Lookup::Dialling(outcome.subscribe()),
            Some(Slot::Failed { until, error, .. }) if Instant::now() < *until => {
                return Lookup::Paused(error.clone());
            }
            Some(Slot::Failed { failures, .. }) => *failures,
            Some(Slot::Open { .. }) => 0,
            None if room => 0,
            None => {
                let cause = format!("{SLOTS_MAX} connections are remembered already");
                return Lookup::Paused(DialError::Failed(cause));
            }
        };
        let (sender, receiver) = watch::channel(None);
        slots.insert(key, Slot::Dialling { failures, outcome: sender });
        Lookup::Begun(receiver)
    }

    /// Takes over a connection that a peer has dialled, for answers to it. It replaces an older one, which lives on: the
    /// peer may still be sending on that.
    pub(crate) fn adopt(self: &Arc<Self>, protocol: Protocol, connection: Connection, node: NodeId) {
        let key = (connection.remote_address(), protocol);
        let link = Link { connection, node, released: self.shutdown.child_token() };
        let mut slots = self.lock();
        if slots.len() >= SLOTS_MAX && !slots.contains_key(&key) {
            return;
        }
        if let Some(Slot::Dialling { outcome, .. }) = slots.get(&key) {
            outcome.send_replace(Some(Ok(link.clone())));
        }
        slots.insert(key, Slot::Open { link: link.clone(), used: Instant::now() });
        // It is there, whatever was said of it before: no pause stands between it and the next caller.
        slots.retain(|(address, _), slot| *address != key.0 || !matches!(slot, Slot::Failed { .. }));
        drop(slots);
        tokio::spawn(Arc::clone(self).watch(key, link));
    }

    /// Forgets a connection, so that the next caller gets a new one. Streams on it live on.
    pub(crate) fn release(&self, address: SocketAddr, protocol: Protocol) {
        let mut slots = self.lock();
        if let Some(Slot::Open { link, .. }) = slots.get(&(address, protocol)) {
            link.released.cancel();
            slots.remove(&(address, protocol));
        }
    }

    /// Forgets one connection, if it is still the one in use.
    pub(crate) fn release_link(&self, address: SocketAddr, protocol: Protocol, stale: &Link) {
        let mut slots = self.lock();
        if let Some(Slot::Open { link, .. }) = slots.get(&(address, protocol))
            && link.connection.stable_id() == stale.connection.stable_id()
        {
            link.released.cancel();
            slots.remove(&(address, protocol));
        }
    }

    /// The shortest round trip measured on any connection to an address.
    pub(crate) fn rtt(&self, address: SocketAddr) -> Option<Duration> {
        let slots = self.lock();
        let open = Protocol::ALL.into_iter().filter_map(|protocol| match slots.get(&(address, protocol)) {
            Some(Slot::Open { link, .. }) if link.connection.close_reason().is_none() => Some(link.connection.rtt()),
            _ => None,
        });
        open.min()
    }

    /// Lets go of what has not been used for long, until the shutdown.
    pub(crate) async fn sweep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(SWEEP_INTERVAL);
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let now = Instant::now();
            self.lock().retain(|_, slot| match slot {
                Slot::Dialling { .. } => true,
                Slot::Failed { until, .. } => now < *until + UNUSED_MAX,
                Slot::Open { link, used } => {
                    let keep = now < *used + UNUSED_MAX;
                    if !keep {
                        link.released.cancel();
                    }
                    keep
                }
            });
        }
    }

    async fn dial(self: Arc<Self>, key: Key) {
        let (address, protocol) = key;
        let dialled = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(DialError::Failed("the fabric is closing".into())),
            dialled = timeout(DIAL_DEADLINE, self.attempt(address, protocol)) => dialled.unwrap_or_else(|_| {
                Err(DialError::Failed(format!("no answer in {} s", DIAL_DEADLINE.as_secs())))
            }),
        };
        if let Err(error) = &dialled {
            debug!(%address, ?protocol, %error, "a dial failed");
        }
        let opened = self.settle(key, dialled);
        if let Some(link) = opened {
            if protocol == Protocol::Gossip {
                let reading = messages::receive(link.connection.clone(), self.messages.clone());
                tokio::spawn(link.released.clone().run_until_cancelled_owned(reading));
            }
            self.watch(key, link).await;
        }
    }

    /// Records what a dial came to and tells those who wait for it.
    fn settle(&self, key: Key, dialled: Result<Link, DialError>) -> Option<Link> {
        let mut slots = self.lock();
        match (slots.remove(&key), dialled) {
            // A connection from the peer came first and is in use; this one, if any, is the newer.
            (Some(open @ Slot::Open { .. }), Err(_)) => {
                slots.insert(key, open);
                None
            }
            (previous, Ok(link)) => {
                slots.insert(key, Slot::Open { link: link.clone(), used: Instant::now() });
                if let Some(Slot::Dialling { outcome, .. }) = previous {
                    outcome.send_replace(Some(Ok(link.clone())));
                }
                Some(link)
            }
            (previous, Err(error)) => {
                let failures = match &previous {
                    Some(Slot::Dialling { failures, .. } | Slot::Failed { failures, .. }) => failures + 1,
                    Some(Slot::Open { .. }) | None => 1,
                };
                let until = Instant::now() + backoff(failures);
                slots.insert(key, Slot::Failed { failures, until, error: error.clone() });
                if let Some(Slot::Dialling { outcome, .. }) = previous {
                    outcome.send_replace(Some(Err(error)));
                }
                None
            }
        }
    }

    /// One dial: attempts side by side, of which the first to end decides.
    async fn attempt(&self, address: SocketAddr, protocol: Protocol) -> Result<Link, DialError> {
        let mut attempts = FuturesUnordered::new();
        let mut begin = tokio::time::interval(ATTEMPT_INTERVAL);
        loop {
            tokio::select! {
                Some(ended) = attempts.next() => return ended,
                _ = begin.tick() => attempts.push(self.connect(address, protocol)),
            }
        }
    }

    async fn connect(&self, address: SocketAddr, protocol: Protocol) -> Result<Link, DialError> {
        let config = self.clients[&protocol].clone();
        let connecting = self
            .endpoint
            .connect_with(config, address, SERVER_NAME)
            .map_err(|error| DialError::Failed(error.to_string()))?;
        let connection = connecting.await.map_err(|error| refusal(&error))?;
        let peer = tls::peer_of(&connection).map_err(DialError::Failed)?;
        match hello::receive(&connection).await {
            Ok(()) => {}
            Err(HelloError::Connection(error)) => return Err(refusal(&error)),
            Err(HelloError::Version(theirs)) => return Err(DialError::Version { theirs }),
            Err(HelloError::Malformed) => return Err(DialError::Failed("it did not say hello".into())),
        }
        Ok(Link { connection, node: peer.node().clone(), released: self.shutdown.child_token() })
    }

    /// Waits for the end of a connection and takes it out of the pool.
    async fn watch(self: Arc<Self>, key: Key, link: Link) {
        let reason = tokio::select! {
            biased;
            () = link.released.cancelled() => return,
            reason = link.connection.closed() => reason,
        };
        debug!(address = %key.0, protocol = ?key.1, node = %link.node, %reason, "a connection ended");
        self.release_link(key.0, key.1, &link);
        if reason == ConnectionError::Reset {
            // The process at that address is another one: what else leads to the old one is dead as well, and what leads
            // to the new one is not.
            self.probe(key.0);
        }
    }

    /// Sends an empty datagram, which means nothing, on every open connection to an address: a process that doesn't know
    /// the connection answers with a reset, which would else have to wait for the next stream or keep-alive.
    fn probe(&self, address: SocketAddr) {
        let slots = self.lock();
        for protocol in Protocol::ALL {
            if let Some(Slot::Open { link, .. }) = slots.get(&(address, protocol)) {
                // Fails only if the connection has ended already.
                drop(link.connection.send_datagram(Bytes::new()));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Slot>> {
        self.slots.lock().expect("no code panics while it holds this lock")
    }
}

/// A peer's refusal in a dialler's words.
fn refusal(error: &ConnectionError) -> DialError {
    match codes::spoken_version(error) {
        Some(theirs) => DialError::Version { theirs },
        None => DialError::Failed(error.to_string()),
    }
}

/// The pause after so many failed dials in a row.
fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (BACKOFF_LEAST * 2_u32.pow(doublings)).min(BACKOFF_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_and_stays_within_a_second() {
        let pauses: Vec<u128> = (1..=7).map(|failures| backoff(failures).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MOST);
    }
}
