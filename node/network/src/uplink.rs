//! The side where packets leave the node: the link's outer end, the second wall, and the questions to other resolvers.
//!
//! All of it is made by a thread that lives in the uplink's namespace. Questions are asked from there and not from the
//! guests' namespace, since a host's resolver often listens on loopback alone.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query};
use ipnet::Ipv4Net;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::contract::NetworkFault;
use crate::filter;
use crate::links::{Links, switch};
use crate::namespace::Place;
use crate::plan::{Link, Tag, UPLINK_DEVICE};
use crate::rule::In;
use crate::ruleset;

/// Questions that wait for the thread.
const QUEUE: usize = 256;
/// Questions on their way at once, of all guests: each has a socket.
const QUESTIONS_MAX: usize = 256;
/// How long one resolver may think, and in how many rounds all are tried.
const ANSWER_MILLIS: u64 = 2000;
const ROUNDS: usize = 2;
/// Longest answer over UDP that is asked for, bytes: what passes without fragments (DNS flag day 2020).
const UDP_BYTES_MAX: u16 = 1232;
/// Resolvers that are asked, of those configured: as many as resolv.conf(5) takes.
const RESOLVERS_MAX: usize = 3;
/// Where a host says whom it asks.
const RESOLV_CONF: &str = "/etc/resolv.conf";

enum Job {
    Ask { query: Query, reply: oneshot::Sender<Option<Message>> },
    Remove { reply: oneshot::Sender<()> },
}

/// The thread in the uplink's namespace.
#[derive(Clone)]
pub(crate) struct Uplink {
    jobs: mpsc::Sender<Job>,
}

/// What it is set up from.
pub(crate) struct Plan {
    pub(crate) tag: Tag,
    pub(crate) place: Place,
    /// The guests' namespace.
    pub(crate) guests: PathBuf,
    /// Whether that has an end of the link already.
    pub(crate) joined: bool,
    pub(crate) forbidden: Vec<Ipv4Net>,
    pub(crate) resolvers: Vec<SocketAddr>,
}

impl Uplink {
    /// Sets the link and the wall up, and goes on answering.
    pub(crate) async fn start(plan: Plan) -> Result<(Self, Link), NetworkFault> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (ready, made) = oneshot::channel();
        let place = plan.place.clone();
        let work = move || async move {
            match set_up(&plan).await {
                Ok((link, links)) => {
                    let _ = ready.send(Ok(link));
                    serve(queue, resolvers(&plan.resolvers), &plan.tag, &links).await;
                }
                Err(fault) => {
                    if !plan.joined {
                        remove_wall(&plan.tag).await;
                    }
                    let _ = ready.send(Err(fault));
                }
            }
        };
        place.live("atoll-uplink", work).await?;
        let link = made.await.unwrap_or_else(|_| {
            Err(NetworkFault::System { action: "set the uplink up".to_owned(), cause: "its thread ended".to_owned() })
        })?;
        Ok((Self { jobs }, link))
    }

    /// What a resolver says, if any does.
    pub(crate) async fn ask(&self, query: Query) -> Option<Message> {
        let (reply, answer) = oneshot::channel();
        self.jobs.try_send(Job::Ask { query, reply }).ok()?;
        answer.await.ok().flatten()
    }

    /// Takes the link and the wall away.
    pub(crate) async fn remove(&self) {
        let (reply, done) = oneshot::channel();
        if self.jobs.send(Job::Remove { reply }).await.is_ok() {
            let _ = done.await;
        }
    }
}

async fn set_up(plan: &Plan) -> Result<(Link, Links), NetworkFault> {
    let links = Links::open()?;
    let outer = plan.tag.outer_device();
    let addresses = links.addresses().await?;
    let mut index = links.index(&outer).await?;
    if let Some(lone) = index.filter(|_| !plan.joined) {
        links.remove(lone).await?;
        index = None;
    }
    let of_device = |index| addresses.iter().find(|(at, _)| *at == index).and_then(|(_, at)| Link::of_outer(*at));
    let taken: Vec<_> = addresses.iter().map(|(_, address)| *address).collect();
    let link = index.and_then(of_device).or_else(|| plan.tag.link(&taken));
    let link = link.ok_or_else(|| NetworkFault::System {
        action: format!("find addresses for the link {outer}"),
        cause: "all of 100.127.0.0/16 is taken".to_owned(),
    })?;
    // The wall stands before the link does.
    filter::commit(
        "build the outer wall",
        &ruleset::outer(&plan.tag.outer_table(), &outer, link.inner, &plan.forbidden),
    )
    .await?;
    if index.is_none() {
        let guests = File::open(&plan.guests).map_err(|cause| NetworkFault::System {
            action: format!("open {}", plan.guests.display()),
            cause: cause.to_string(),
        })?;
        links.pair(&outer, UPLINK_DEVICE, guests.as_raw_fd()).await?;
        index = links.index(&outer).await?;
    }
    if let Some(index) = index {
        switch(&format!("ipv6/conf/{outer}/disable_ipv6"), "1").or_else(no_ipv6)?;
        links.bring_up(index, Some((link.outer, Link::PREFIX))).await?;
    }
    switch("ipv4/ip_forward", "1")?;
    Ok((link, links))
}

/// A kernel without IPv6 has no switch to turn it off.
fn no_ipv6(fault: NetworkFault) -> Result<(), NetworkFault> {
    if fs::exists("/proc/sys/net/ipv6").unwrap_or(true) { Err(fault) } else { Ok(()) }
}

async fn serve(mut queue: mpsc::Receiver<Job>, resolvers: Vec<SocketAddr>, tag: &Tag, links: &Links) {
    let resolvers: Rc<[SocketAddr]> = resolvers.into();
    let places = Rc::new(Semaphore::new(QUESTIONS_MAX));
    while let Some(job) = queue.recv().await {
        match job {
            Job::Ask { query, reply } => {
                // With no place the reply is dropped, which says that nobody answered.
                let Ok(_) = places.try_acquire().map(|place| place.forget()) else { continue };
                let (resolvers, places) = (resolvers.clone(), places.clone());
                tokio::task::spawn_local(async move {
                    let _ = reply.send(ask(&resolvers, query).await);
                    places.add_permits(1);
                });
            }
            Job::Remove { reply } => {
                if let Ok(Some(index)) = links.index(&tag.outer_device()).await
                    && let Err(fault) = links.remove(index).await
                {
                    tracing::warn!(%fault, "the uplink's link stays");
                }
                remove_wall(tag).await;
                let _ = reply.send(());
                return;
            }
        }
    }
}

async fn remove_wall(tag: &Tag) {
    let table = In::new(nftables::types::NfFamily::INet, tag.outer_table());
    if let Err(fault) = filter::commit("remove the outer wall", &[table.add(), table.delete()]).await {
        tracing::warn!(%fault, "the outer wall stays");
    }
}

/// Those configured, else the host's.
fn resolvers(configured: &[SocketAddr]) -> Vec<SocketAddr> {
    if !configured.is_empty() {
        return configured.iter().take(RESOLVERS_MAX).copied().collect();
    }
    read_resolv_conf(&fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

fn read_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let is_it = words.next() == Some("nameserver");
        words.next().filter(|_| is_it)?.parse().ok().map(|address| SocketAddr::new(address, 53))
    };
    text.lines().filter_map(address).take(RESOLVERS_MAX).collect()
}

async fn ask(resolvers: &[SocketAddr], query: Query) -> Option<Message> {
    let limit = Duration::from_millis(ANSWER_MILLIS);
    for resolver in (0..ROUNDS).flat_map(|_| resolvers) {
        let answer = timeout(limit, over_udp(*resolver, &query)).await.ok().flatten();
        match answer {
            Some(answer) if !answer.metadata.truncation => return Some(answer),
            Some(_) => {
                if let Ok(Some(answer)) = timeout(limit, over_tcp(*resolver, &query)).await {
                    return Some(answer);
                }
            }
            None => {}
        }
    }
    None
}

fn message(query: &Query) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_BYTES_MAX);
    message.set_edns(edns);
    message
}

/// The answer to what was asked, or something that someone else sent.
fn matching(asked: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let same = answer.metadata.id == asked.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == asked.queries;
    same.then_some(answer)
}

/// A socket for each question: its port is as hard to guess as the question's number.
async fn over_udp(resolver: SocketAddr, query: &Query) -> Option<Message> {
    let any: SocketAddr = if resolver.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(resolver).await.ok()?;
    let asked = message(query);
    socket.send(&asked.to_vec().ok()?).await.ok()?;
    let mut bytes = [0u8; UDP_BYTES_MAX as usize];
    loop {
        let length = socket.recv(&mut bytes).await.ok()?;
        if let Some(answer) = matching(&asked, bytes.get(..length)?) {
            return Some(answer);
        }
    }
}

async fn over_tcp(resolver: SocketAddr, query: &Query) -> Option<Message> {
    let mut stream = TcpStream::connect(resolver).await.ok()?;
    let asked = message(query);
    let bytes = asked.to_vec().ok()?;
    stream.write_u16(u16::try_from(bytes.len()).ok()?).await.ok()?;
    stream.write_all(&bytes).await.ok()?;
    let mut answer = vec![0u8; stream.read_u16().await.ok()?.into()];
    stream.read_exact(&mut answer).await.ok()?;
    matching(&asked, &answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_resolvers_are_read() {
        let text = "# a comment\nsearch a.com\nnameserver 127.0.0.53\nnameserver wrong\n nameserver 2001:db8::1 \n";
        let found = read_resolv_conf(text);
        assert_eq!(
            found,
            ["127.0.0.53:53".parse().expect("an address"), "[2001:db8::1]:53".parse().expect("an address")]
        );
    }
}
