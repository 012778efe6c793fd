//! The fabric in one process, for tests: no socket, no cryptography, links that can be cut, healed and delayed.
//!
//! It behaves as the real one does where a user can tell: one taker per protocol, bounded queues, streams that break
//! when the link does, messages that are lost without a word. It answers faster about a peer that isn't there (at once,
//! where a dial over UDP waits for silence) and shows no versions or certificates.

mod pipe;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fabric_types::NodeId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    BiStream, Fabric, FabricError, MESSAGE_BYTES_MAX, MESSAGE_QUEUE_MAX, Message, Peer, Protocol, STREAM_QUEUE_MAX,
};

/// The port of every made-up address: nothing is bound to it.
const PORT: u16 = 7;

/// A network of nodes in this process.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    state: Arc<Mutex<State>>,
}

/// One node's end of a [`MemoryNetwork`].
pub struct MemoryFabric {
    network: MemoryNetwork,
    node: NodeId,
    address: SocketAddr,
    incarnation: u64,
    streams: Mutex<HashMap<Protocol, mpsc::Receiver<BiStream>>>,
    messages: Mutex<Option<mpsc::Receiver<Message>>>,
}

#[derive(Default)]
struct State {
    joined: u64,
    members: BTreeMap<NodeId, Member>,
    /// Kept when a node leaves, so that it comes back to its address.
    addresses: BTreeMap<NodeId, SocketAddr>,
    cuts: BTreeSet<Link>,
    delays: BTreeMap<Link, Duration>,
    /// Cancelled when the link breaks, and then replaced: every stream over it hangs on this.
    links: BTreeMap<Link, CancellationToken>,
}

struct Member {
    incarnation: u64,
    streams: HashMap<Protocol, mpsc::Sender<BiStream>>,
    messages: mpsc::Sender<Message>,
}

/// Two nodes, in order; a link has no direction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Link(NodeId, NodeId);

impl Link {
    fn new(a: &NodeId, b: &NodeId) -> Self {
        if a <= b { Self(a.clone(), b.clone()) } else { Self(b.clone(), a.clone()) }
    }

    fn touches(&self, node: &NodeId) -> bool {
        self.0 == *node || self.1 == *node
    }
}

impl MemoryNetwork {
    /// A network without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node. One that was there before comes back at the same address; one that still is there is replaced, as
    /// by a process that took over its port.
    pub fn join(&self, node: NodeId) -> Arc<MemoryFabric> {
        self.leave(&node);
        let mut state = self.lock();
        state.joined += 1;
        let incarnation = state.joined;
        let address = state.address_of(&node);
        let mut streams = HashMap::new();
        let mut queues = HashMap::new();
        for protocol in Protocol::ALL {
            let (sender, receiver) = mpsc::channel(STREAM_QUEUE_MAX);
            queues.insert(protocol, sender);
            streams.insert(protocol, receiver);
        }
        let (sender, receiver) = mpsc::channel(MESSAGE_QUEUE_MAX);
        state.members.insert(node.clone(), Member { incarnation, streams: queues, messages: sender });
        drop(state);
        Arc::new(MemoryFabric {
            network: self.clone(),
            node,
            address,
            incarnation,
            streams: Mutex::new(streams),
            messages: Mutex::new(Some(receiver)),
        })
    }

    /// Cuts the link between two nodes: streams over it break, new ones can't be opened, messages are lost.
    pub fn cut(&self, a: &NodeId, b: &NodeId) {
        let mut state = self.lock();
        state.cuts.insert(Link::new(a, b));
        state.break_links(|link| *link == Link::new(a, b));
    }

    /// Mends a link. What broke stays broken.
    pub fn heal(&self, a: &NodeId, b: &NodeId) {
        self.lock().cuts.remove(&Link::new(a, b));
    }

    /// Cuts a node's links to every node that has ever joined, itself left out.
    pub fn isolate(&self, node: &NodeId) {
        let others: Vec<NodeId> = self.lock().addresses.keys().filter(|other| *other != node).cloned().collect();
        others.iter().for_each(|other| self.cut(node, other));
    }

    /// Mends every link.
    pub fn heal_all(&self) {
        self.lock().cuts.clear();
    }

    /// Takes a node away without a word to anyone, as a crash does. Its fabric is of no use any more.
    pub fn leave(&self, node: &NodeId) {
        let mut state = self.lock();
        state.members.remove(node);
        state.break_links(|link| link.touches(node));
    }

    /// Delays what is sent over a link, each way: messages and streams opened from now on.
    pub fn delay(&self, a: &NodeId, b: &NodeId, delay: Duration) {
        self.lock().delays.insert(Link::new(a, b), delay);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

impl State {
    /// The address of a node, which it keeps: 127.1.0.1 and up.
    fn address_of(&mut self, node: &NodeId) -> SocketAddr {
        let number = u32::try_from(self.addresses.len() + 1).expect("a test joins fewer than 2^24 nodes");
        let first = u32::from(Ipv4Addr::new(127, 1, 0, 0));
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::from(first + number)), PORT);
        *self.addresses.entry(node.clone()).or_insert(address)
    }

    fn node_at(&self, address: SocketAddr) -> Option<(&NodeId, &Member)> {
        let (node, _) = self.addresses.iter().find(|(_, known)| **known == address)?;
        self.members.get_key_value(node)
    }

    fn break_links(&mut self, broken: impl Fn(&Link) -> bool) {
        self.links.retain(|link, token| {
            let breaks = broken(link);
            if breaks {
                token.cancel();
            }
            !breaks
        });
    }
}

impl MemoryFabric {
    fn unreachable(&self, peer: &Peer, protocol: Protocol, cause: &str) -> FabricError {
        FabricError::Unreachable {
            peer: peer.node.as_ref().map_or_else(|| "any node".to_owned(), ToString::to_string),
            address: peer.address,
            protocol,
            cause: cause.to_owned(),
        }
    }

    fn is_member(&self, state: &State) -> bool {
        state.members.get(&self.node).is_some_and(|member| member.incarnation == self.incarnation)
    }
}

#[async_trait]
impl Fabric for MemoryFabric {
    fn node(&self) -> &NodeId {
        &self.node
    }

    fn local_address(&self) -> SocketAddr {
        self.address
    }

    async fn open(&self, peer: &Peer, protocol: Protocol) -> Result<BiStream, FabricError> {
        let mut state = self.network.lock();
        if !self.is_member(&state) {
            return Err(self.unreachable(peer, protocol, "this node has left the network"));
        }
        let Some((found, member)) = state.node_at(peer.address) else {
            return Err(self.unreachable(peer, protocol, "nothing listens there"));
        };
        let (found, queue) = (found.clone(), member.streams[&protocol].clone());
        let link = Link::new(&self.node, &found);
        if state.cuts.contains(&link) {
            return Err(self.unreachable(peer, protocol, "the link is cut"));
        }
        if let Some(expected) = peer.node.as_ref().filter(|expected| **expected != found) {
            return Err(FabricError::WrongPeer { address: peer.address, expected: expected.clone(), found });
        }
        let delay = state.delays.get(&link).copied().unwrap_or_default();
        let broken = state.links.entry(link).or_default().child_token();
        drop(state);
        let (send, their_recv) = pipe::pipe(&broken, delay);
        let (their_send, recv) = pipe::pipe(&broken, delay);
        let theirs = BiStream { peer: self.node.clone(), address: self.address, send: their_send, recv: their_recv };
        if queue.try_send(theirs).is_err() {
            // Refused: the opener sees its stream break, as it does over QUIC.
            broken.cancel();
        }
        Ok(BiStream { peer: found, address: peer.address, send, recv })
    }

    fn accept(&self, protocol: Protocol) -> Result<mpsc::Receiver<BiStream>, FabricError> {
        let mut streams = self.streams.lock().expect("no code panics while it holds this lock");
        streams.remove(&protocol).ok_or(FabricError::State("the streams of this protocol are taken already"))
    }

    fn send_message(&self, to: SocketAddr, bytes: Bytes) -> Result<(), FabricError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            let (bytes, limit) = (bytes.len() as u64, MESSAGE_BYTES_MAX as u64);
            return Err(FabricError::TooLarge { what: "a message", bytes, limit });
        }
        let state = self.network.lock();
        let Some((found, member)) = state.node_at(to) else { return Ok(()) };
        let link = Link::new(&self.node, found);
        if !self.is_member(&state) || state.cuts.contains(&link) {
            return Ok(());
        }
        let message = Message { from: self.address, bytes };
        let queue = member.messages.clone();
        match state.delays.get(&link).copied() {
            // A full queue loses the message, as a full socket buffer does.
            None => drop(queue.try_send(message)),
            Some(delay) => drop(tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                drop(queue.try_send(message));
            })),
        }
        Ok(())
    }

    fn messages(&self) -> Result<mpsc::Receiver<Message>, FabricError> {
        let mut messages = self.messages.lock().expect("no code panics while it holds this lock");
        messages.take().ok_or(FabricError::State("the messages are taken already"))
    }

    fn rtt(&self, peer: &Peer) -> Option<Duration> {
        let state = self.network.lock();
        let (found, _) = state.node_at(peer.address)?;
        let link = Link::new(&self.node, found);
        let reachable = self.is_member(&state) && !state.cuts.contains(&link);
        reachable.then(|| 2 * state.delays.get(&link).copied().unwrap_or_default())
    }

    async fn close(&self) {
        let mut state = self.network.lock();
        if self.is_member(&state) {
            state.members.remove(&self.node);
            state.break_links(|link| link.touches(&self.node));
        }
    }
}
