//! The guests' only resolver: UDP and TCP port 53 on every gateway address of the node's namespace.
//!
//! A guest is known by its address, which the filter vouches for. Lives on the owner's thread; an answer's addresses are
//! in the port's set before the answer leaves.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use fabric_types::NetworkPolicy;
use hickory_proto::op::ResponseCode;
use ipnet::Ipv4Net;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::contract::NetworkFault;
use crate::names::{Decision, Judgement, decide, judge, read, write};
use crate::owner::Request;
use crate::plan::Number;
use crate::ruleset::Pinned;
use crate::uplink::Uplink;

/// Longest question, bytes: a name of 255 and what is around it, with room for EDNS options.
const QUESTION_BYTES_MAX: usize = 1024;
/// Longest answer over UDP, bytes: what passes without fragments.
const UDP_BYTES_MAX: usize = 1232;
/// Questions of one guest on their way at once; what is more is dropped, and the guest asks again.
const QUESTIONS_MAX: u32 = 32;
/// TCP connections of one guest, and how long one may be silent.
const STREAMS_MAX: u32 = 4;
const STREAM_SECONDS_MAX: u64 = 10;

/// What the resolver knows of a port.
pub(crate) struct Known {
    pub(crate) policy: NetworkPolicy,
    /// Tells this policy of this port from the ones before.
    pub(crate) epoch: u64,
    questions: Cell<u32>,
    streams: Cell<u32>,
}

impl Known {
    pub(crate) fn new(policy: NetworkPolicy, epoch: u64) -> Rc<Self> {
        Rc::new(Self { policy, epoch, questions: Cell::new(0), streams: Cell::new(0) })
    }
}

/// The ports that have a policy; the owner writes, the resolver reads.
pub(crate) type Directory = Rc<RefCell<HashMap<Number, Rc<Known>>>>;

/// One of a few things at once, given back by itself.
struct Permit<'a>(&'a Cell<u32>);

impl<'a> Permit<'a> {
    fn take(count: &'a Cell<u32>, max: u32) -> Option<Self> {
        (count.get() < max).then(|| {
            count.set(count.get() + 1);
            Self(count)
        })
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// The resolver of one node.
#[derive(Clone)]
pub(crate) struct Resolver {
    directory: Directory,
    forbidden: Rc<Vec<Ipv4Net>>,
    uplink: Uplink,
    owner: mpsc::WeakSender<Request>,
}

impl Resolver {
    /// Listens in the calling thread's namespace. Has to be called on a [`tokio::task::LocalSet`].
    pub(crate) async fn start(
        directory: Directory,
        forbidden: Rc<Vec<Ipv4Net>>,
        uplink: Uplink,
        owner: mpsc::WeakSender<Request>,
    ) -> Result<(), NetworkFault> {
        let fault = |cause: std::io::Error| NetworkFault::System {
            action: "listen for the guests' questions".to_owned(),
            cause: cause.to_string(),
        };
        let at: SocketAddr = (Ipv4Addr::UNSPECIFIED, 53).into();
        let socket = Rc::new(UdpSocket::bind(at).await.map_err(fault)?);
        let listener = TcpListener::bind(at).await.map_err(fault)?;
        let resolver = Self { directory, forbidden, uplink, owner };
        tokio::task::spawn_local(resolver.clone().packets(socket));
        tokio::task::spawn_local(resolver.streams(listener));
        Ok(())
    }

    fn known(&self, from: SocketAddr) -> Option<(Number, Rc<Known>)> {
        let IpAddr::V4(address) = from.ip() else { return None };
        let number = Number::of_guest(address)?;
        let known = self.directory.borrow().get(&number).cloned()?;
        Some((number, known))
    }

    async fn packets(self, socket: Rc<UdpSocket>) {
        let mut bytes = [0u8; QUESTION_BYTES_MAX];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut bytes).await else {
                // An error that a guest provoked: its next packet may be well. Others get their turn.
                tokio::task::yield_now().await;
                continue;
            };
            let question = bytes.get(..length).unwrap_or_default().to_vec();
            let (resolver, socket) = (self.clone(), socket.clone());
            let Some((number, known)) = self.known(from) else { continue };
            if known.questions.get() >= QUESTIONS_MAX {
                continue;
            }
            tokio::task::spawn_local(async move {
                let Some(_permit) = Permit::take(&known.questions, QUESTIONS_MAX) else { return };
                if let Some(answer) = resolver.answer(number, &known, &question, Some(UDP_BYTES_MAX)).await {
                    let _ = socket.send_to(&answer, from).await;
                }
            });
        }
    }

    async fn streams(self, listener: TcpListener) {
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                tokio::task::yield_now().await;
                continue;
            };
            let Some((number, known)) = self.known(from) else { continue };
            let resolver = self.clone();
            tokio::task::spawn_local(async move {
                let Some(_permit) = Permit::take(&known.streams, STREAMS_MAX) else { return };
                resolver.stream(number, &known, stream).await;
            });
        }
    }

    /// Questions one after the other, until the guest is silent, says what can't be read, or has another policy.
    async fn stream(&self, number: Number, known: &Known, mut stream: TcpStream) {
        let limit = Duration::from_secs(STREAM_SECONDS_MAX);
        loop {
            let question = async {
                let length = usize::from(stream.read_u16().await.ok()?);
                let mut bytes = vec![0u8; Some(length).filter(|&length| length <= QUESTION_BYTES_MAX)?];
                stream.read_exact(&mut bytes).await.ok()?;
                Some(bytes)
            };
            let Ok(Some(question)) = timeout(limit, question).await else { return };
            let Some(answer) = self.answer(number, known, &question, None).await else { return };
            let Ok(length) = u16::try_from(answer.len()) else { return };
            let told = async {
                stream.write_u16(length).await?;
                stream.write_all(&answer).await
            };
            if !matches!(timeout(limit, told).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    async fn answer(&self, number: Number, known: &Known, bytes: &[u8], longest: Option<usize>) -> Option<Vec<u8>> {
        let question = match read(bytes)? {
            Ok(question) => question,
            Err(refusal) => return refusal.to_vec().ok(),
        };
        let longest = longest.map_or(usize::from(u16::MAX), |longest| longest.min(question.payload.into()));
        let say = |code| write(&question, code, Vec::new(), longest);
        if let Decision::Say(code) = decide(&known.policy, &question, &self.forbidden) {
            return say(code);
        }
        let Some(answer) = self.uplink.ask(question.query.clone()).await else {
            return say(ResponseCode::ServFail);
        };
        match judge(&known.policy, &question, &answer, &self.forbidden) {
            Judgement::Say(code) => say(code),
            Judgement::Reply { code, records, pins } => {
                let pins =
                    pins.into_iter().map(|(address, seconds)| Pinned { address, name: question.name.clone(), seconds });
                let pins: Vec<Pinned> = pins.collect();
                if !pins.is_empty() && !self.pin(number, known.epoch, pins).await {
                    return say(ResponseCode::ServFail);
                }
                write(&question, code, records, longest)
            }
        }
    }

    /// Whether the addresses pass now. Only the owner writes rules, so that no pin outlives its policy.
    async fn pin(&self, number: Number, epoch: u64, pins: Vec<Pinned>) -> bool {
        let (reply, done) = oneshot::channel();
        let Some(owner) = self.owner.upgrade() else { return false };
        if owner.send(Request::Pin { number, epoch, pins, reply }).await.is_err() {
            return false;
        }
        drop(owner);
        done.await.unwrap_or(false)
    }
}
