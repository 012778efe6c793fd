//! The one owner of a node's guest network: a task on a thread in the guests' namespace.
//!
//! ```text
//!            make                 take                 release, spare       gone
//!   (free) ------> Making ------> Ready ------> Taken ---------> Leaving ---------> (free)
//!                     ^                          ^ |                ^
//!                     +---- release, wanted -----|-+                |
//!   found at the start: Left -- retain, in use --+                  |
//!                         +----- retain, not in use ----------------+
//! ```
//!
//! Making and removing go on beside the requests, since links take their time; what a create waits for is done here, in
//! order: a route for the policy that most have, one transaction for another.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fabric_types::NetworkPolicy;
use ipnet::Ipv4Net;
use ring::digest::{SHA256, digest};
use tokio::sync::{mpsc, oneshot};

use crate::conntrack::Connections;
use crate::contract::{NetworkConfig, NetworkFault, Port};
use crate::crew::{Crew, Leaver, Made, Member};
use crate::filter;
use crate::links::{Links, switch};
use crate::namespace::{self, Place};
use crate::plan::{self, Link, Mac, Number, PORTS_MAX, Plug, Tag, UPLINK_DEVICE};
use crate::resolver::{Directory, Known, Resolver};
use crate::ruleset::{self, Edition, Pinned, PortFacts, Sets};
use crate::uplink::{self, Uplink};

/// Requests that wait; who comes later waits outside.
const QUEUE: usize = 256;
/// Addresses that one guest's names may have at once.
const PINS_MAX: usize = 2048;

/// What the owner is asked for.
pub(crate) enum Request {
    Take {
        reply: oneshot::Sender<Result<Port, NetworkFault>>,
    },
    Taken {
        number: Number,
    },
    Apply {
        plug: Plug,
        policy: Box<NetworkPolicy>,
        reply: oneshot::Sender<Result<(), NetworkFault>>,
    },
    Block {
        plug: Plug,
        reply: oneshot::Sender<Result<(), NetworkFault>>,
    },
    Release {
        plug: Plug,
        reply: oneshot::Sender<()>,
    },
    Retain {
        in_use: Vec<Plug>,
        reply: oneshot::Sender<Result<(), NetworkFault>>,
    },
    Stop {
        remove: bool,
        reply: oneshot::Sender<()>,
    },
    /// The resolver's: addresses of names, for the policy of this epoch.
    Pin {
        number: Number,
        epoch: u64,
        pins: Vec<Pinned>,
        reply: oneshot::Sender<bool>,
    },
    /// The crew's: ports that are made, or not.
    Made {
        made: Vec<(Number, Result<u32, NetworkFault>)>,
    },
    /// The crew's: ports whose rules could be neither removed nor made new. Their numbers are not used again.
    Spoiled {
        spoiled: Vec<Number>,
    },
    /// The crew's: ports that are gone.
    Gone {
        gone: Vec<Number>,
    },
}

enum Phase {
    Making,
    Ready,
    Taken,
    Left,
    Leaving,
}

struct Held {
    phase: Phase,
    index: u32,
    mac: Option<Mac>,
    open: bool,
    edition: Edition,
    digest: String,
    sets: Sets,
    /// Addresses of names, and until when they pass.
    pins: HashMap<Ipv4Addr, (String, Instant)>,
    /// Who waits for the port to be made.
    waiting: Option<oneshot::Sender<Result<Port, NetworkFault>>>,
}

impl Held {
    fn new(phase: Phase, mac: Option<Mac>, digest: String) -> Self {
        Self {
            phase,
            index: 0,
            mac,
            open: false,
            edition: Edition(1),
            digest,
            sets: Sets::default(),
            pins: HashMap::new(),
            waiting: None,
        }
    }
}

/// The ends of an owner that its handle holds.
pub(crate) struct Started {
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) ready: mpsc::Receiver<Port>,
}

struct Owner {
    config: NetworkConfig,
    tag: Tag,
    links: Links,
    connections: Connections,
    uplink: Uplink,
    directory: Directory,
    crew: Crew,
    ports: BTreeMap<Number, Held>,
    ready: mpsc::Sender<Port>,
    /// What distinguishes policies beside themselves: what is forbidden.
    salt: String,
    next: u16,
    epoch: u64,
}

/// Starts the owner's thread, and with it the whole network of a node.
pub(crate) async fn start(config: NetworkConfig) -> Result<Started, NetworkFault> {
    let tag = Tag::parse(&config.tag)?;
    let (requests, mut queue) = mpsc::channel(QUEUE);
    let (ready, taken) = mpsc::channel(PORTS_MAX.into());
    let (made, result) = oneshot::channel();
    let place = Place::Kept(tag.namespace());
    // A thread inherits its maker's namespace, and the uplink's thread is made by one that lives with the guests.
    let uplink = config.uplink.clone().map_or_else(Place::here, |path| Ok(Place::At(path)))?;
    let (back, tag_of_start) = (requests.downgrade(), tag.clone());
    let work = move || async move {
        match Box::pin(Owner::set_up(config, tag, uplink, back, ready)).await {
            Ok(mut owner) => {
                let _ = made.send(Ok(()));
                owner.run(&mut queue).await;
                filter::stop_ahead();
            }
            Err(fault) => {
                let _ = made.send(Err(fault));
            }
        }
    };
    let namespace = tag_of_start.namespace();
    let found = namespace.exists();
    place.live("atoll-network", work).await?;
    let result = result.await.unwrap_or_else(|_| {
        Err(NetworkFault::System { action: "set the network up".to_owned(), cause: "its thread ended".to_owned() })
    });
    // What was not there before goes again; what was there may have guests.
    if result.is_err()
        && !found
        && let Err(cause) = namespace::forget(&namespace)
    {
        tracing::warn!(%cause, "a network namespace without a use stays");
    }
    result?;
    Ok(Started { requests, ready: taken })
}

/// How the guests' namespace treats packets, beside the rules.
fn switches() -> Result<(), NetworkFault> {
    let must = [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/conf/default/rp_filter", "1"),
        ("ipv4/conf/all/arp_ignore", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv4/conf/all/accept_source_route", "0"),
        // A connection that was forgotten is not taken up again in its middle.
        ("netfilter/nf_conntrack_tcp_loose", "0"),
        // Two hours and four minutes (RFC 5382), not five days: a guest may leave many behind.
        ("netfilter/nf_conntrack_tcp_timeout_established", "7440"),
    ];
    must.iter().try_for_each(|(name, value)| switch(name, value))?;
    // A kernel without IPv6 has no such switches, and the rules drop it anyway.
    for name in ["ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"] {
        let _ = switch(name, "1");
    }
    Ok(())
}

impl Owner {
    async fn set_up(
        config: NetworkConfig,
        tag: Tag,
        place: Place,
        requests: mpsc::WeakSender<Request>,
        ready: mpsc::Sender<Port>,
    ) -> Result<Self, NetworkFault> {
        let forbidden = plan::forbidden(&config.forbidden);
        let links = Links::open()?;
        let no_conntrack = |cause: std::io::Error| NetworkFault::System {
            action: "speak with the connection tracking (nf_conntrack_netlink)".to_owned(),
            cause: cause.to_string(),
        };
        let connections = Connections::open().map_err(no_conntrack)?;
        let base = ruleset::base(&forbidden);
        // A kernel without what one port needs would show it only when the first is made.
        let one = PortFacts {
            number: Number(0),
            mac: Mac::from_chance([0; 5]),
            bits_per_second: config.bits_per_second.max(1),
            connections: 1,
        };
        let trial: Vec<_> = base.iter().cloned().chain(ruleset::port(&one, "")).collect();
        filter::try_out(&trial).await?;
        // The rules stand before there is anything that they could let through.
        filter::commit("build the base", &base).await?;
        // No connection has this mark: it shows whether the kernel can forget at all.
        connections.forget(Number::MARK_MASK, u32::MAX).map_err(no_conntrack)?;
        switches()?;

        let inner = links.index(UPLINK_DEVICE).await?;
        let outer = uplink::Plan {
            tag: tag.clone(),
            place,
            guests: tag.namespace(),
            joined: inner.is_some(),
            forbidden: forbidden.clone(),
            resolvers: config.resolvers.clone(),
        };
        let (uplink, link) = Uplink::start(outer).await?;
        if let Some(lo) = links.index("lo").await? {
            links.bring_up(lo, None).await?;
        }
        let missing = || NetworkFault::System { action: "find the uplink".to_owned(), cause: "it is gone".to_owned() };
        let inner = links.index(UPLINK_DEVICE).await?.ok_or_else(missing)?;
        links.bring_up(inner, Some((link.inner, Link::PREFIX))).await?;
        links.default_route(&link).await?;

        let directory: Directory = Rc::new(RefCell::new(HashMap::new()));
        Resolver::start(directory.clone(), Rc::new(forbidden.clone()), uplink.clone(), requests.clone()).await?;
        let mut owner = Self {
            salt: salt(&forbidden, &config),
            config,
            tag,
            crew: Crew::new(links.clone(), requests),
            links,
            connections,
            uplink,
            directory,
            ports: BTreeMap::new(),
            ready,
            next: 0,
            epoch: 0,
        };
        owner.find_ports().await?;
        filter::start_ahead();
        owner.refill();
        Ok(owner)
    }

    /// What an earlier process left: ports whose guests may go on. Rules without a device are half a port, and go.
    async fn find_ports(&mut self) -> Result<(), NetworkFault> {
        let listed = filter::list("inet", ruleset::TABLE).await?.unwrap_or_default();
        let found = crate::found::read(&listed);
        let devices = self.links.all().await?;
        let open = self.links.open_ports().await?;
        let now = Instant::now();
        for link in &devices {
            let Some(number) = Number::of_device(&link.name) else { continue };
            let Some(rules) = found.get(&number) else {
                self.links.remove(link.index).await?;
                continue;
            };
            let mut held = Held::new(Phase::Left, rules.mac, rules.digest.clone());
            held.index = link.index;
            held.open = open.contains(&number);
            held.edition = rules.edition;
            held.sets = rules.sets;
            let pin = |pin: &Pinned| (pin.address, (pin.name.clone(), now + Duration::from_secs(pin.seconds.into())));
            held.pins = rules.pins.iter().map(pin).collect();
            self.ports.insert(number, held);
        }
        for (number, rules) in found.iter().filter(|(number, _)| !self.ports.contains_key(*number)) {
            filter::commit("remove half a port", &ruleset::remove(*number, rules.sets)).await?;
        }
        Ok(())
    }

    async fn run(&mut self, queue: &mut mpsc::Receiver<Request>) {
        while let Some(request) = queue.recv().await {
            match request {
                Request::Take { reply } => self.take(reply),
                Request::Taken { number } => {
                    self.set_taken(number);
                    self.refill();
                }
                Request::Apply { plug, policy, reply } => {
                    let _ = reply.send(self.apply(plug, *policy).await);
                }
                Request::Block { plug, reply } => {
                    let _ = reply.send(self.block(plug).await);
                }
                Request::Release { plug, reply } => {
                    self.release(plug).await;
                    let _ = reply.send(());
                }
                Request::Retain { in_use, reply } => {
                    let _ = reply.send(self.retain(&in_use).await);
                }
                Request::Pin { number, epoch, pins, reply } => {
                    let _ = reply.send(self.pin(number, epoch, pins).await);
                }
                Request::Made { made } => self.made(made),
                Request::Spoiled { spoiled } => {
                    for number in spoiled {
                        let Some(held) = self.ports.get_mut(&number) else { continue };
                        held.phase = Phase::Leaving;
                        if let Some(waiting) = held.waiting.take() {
                            let _ = waiting.send(Err(unknown(number)));
                        }
                    }
                    self.refill();
                }
                Request::Gone { gone } => {
                    for number in gone {
                        self.ports.remove(&number);
                    }
                    self.refill();
                }
                Request::Stop { remove, reply } => {
                    if remove {
                        self.remove_all().await;
                    }
                    // Whoever asks from now on hears that the owner has ended.
                    queue.close();
                    let _ = reply.send(());
                    return;
                }
            }
        }
    }

    fn set_taken(&mut self, number: Number) {
        if let Some(held) = self.ports.get_mut(&number)
            && matches!(held.phase, Phase::Ready)
        {
            held.phase = Phase::Taken;
        }
    }

    /// A free number, each in its turn, so that an address just given up rests.
    fn free_number(&mut self) -> Option<Number> {
        let number = (0..PORTS_MAX).map(|step| Number((self.next + step) % PORTS_MAX));
        let number = number.into_iter().find(|number| !self.ports.contains_key(number))?;
        self.next = (number.0 + 1) % PORTS_MAX;
        Some(number)
    }

    fn facts(&self, number: Number, mac: Mac) -> PortFacts {
        let (bits_per_second, connections) = (self.config.bits_per_second, self.config.connections.max(1));
        PortFacts { number, mac, bits_per_second, connections }
    }

    /// Ports that are ready, or will be, for nobody yet.
    fn ahead(&self) -> usize {
        let waits = |held: &&Held| match held.phase {
            Phase::Making => held.waiting.is_none(),
            Phase::Ready => true,
            Phase::Taken | Phase::Left | Phase::Leaving => false,
        };
        self.ports.values().filter(waits).count()
    }

    /// Orders ports until as many are ready as are wanted ahead.
    fn refill(&mut self) {
        let lacking = (self.config.ports_ahead as usize).saturating_sub(self.ahead());
        let members: Vec<Member> = (0..lacking).map_while(|_| self.order(None)).collect();
        self.crew.make(members);
    }

    fn order(&mut self, waiting: Option<oneshot::Sender<Result<Port, NetworkFault>>>) -> Option<Member> {
        match self.free_number() {
            Some(number) => Some(self.begin(number, waiting)),
            None => {
                waiting.map(|waiting| waiting.send(Err(NetworkFault::Full { limit: PORTS_MAX })));
                None
            }
        }
    }

    /// A port's life begins, with a card of its own.
    fn begin(&mut self, number: Number, waiting: Option<oneshot::Sender<Result<Port, NetworkFault>>>) -> Member {
        let mac = Mac::from_chance(rand::random());
        let digest = self.digest(&NetworkPolicy::default());
        let mut held = Held::new(Phase::Making, Some(mac), digest.clone());
        held.waiting = waiting;
        self.ports.insert(number, held);
        Member { facts: self.facts(number, mac), digest }
    }

    fn take(&mut self, reply: oneshot::Sender<Result<Port, NetworkFault>>) {
        // One that is being made anyway is soonest ready.
        let making = self.ports.values_mut().find(|held| matches!(held.phase, Phase::Making) && held.waiting.is_none());
        match making {
            Some(held) => held.waiting = Some(reply),
            None => {
                let member = self.order(Some(reply));
                self.crew.make(member.into_iter().collect());
            }
        }
        self.refill();
    }

    fn made(&mut self, made: Made) {
        for (number, result) in made {
            let Some(held) = self.ports.get_mut(&number) else { continue };
            let waiting = held.waiting.take();
            let (index, mac) = match (result, held.mac) {
                (Ok(index), Some(mac)) => (index, mac),
                (result, _) => {
                    self.ports.remove(&number);
                    let fault = result.err().unwrap_or(NetworkFault::Full { limit: PORTS_MAX });
                    match waiting {
                        Some(waiting) => drop(waiting.send(Err(fault))),
                        None => tracing::warn!(%fault, number = number.0, "a network port was not made"),
                    }
                    continue;
                }
            };
            held.index = index;
            let port = number.port(self.tag.namespace(), mac);
            held.phase = Phase::Ready;
            let refused = match waiting {
                Some(waiting) => match waiting.send(Ok(port)) {
                    Ok(()) => {
                        held.phase = Phase::Taken;
                        None
                    }
                    // Who waited has gone: the port is as good as new.
                    Err(port) => port.ok(),
                },
                None => Some(port),
            };
            if let Some(port) = refused {
                // The queue holds as many as there are ports.
                let _ = self.ready.try_send(port);
            }
        }
    }

    fn digest(&self, policy: &NetworkPolicy) -> String {
        let policy = serde_json::to_string(policy).unwrap_or_default();
        let hash = digest(&SHA256, format!("{}{policy}", self.salt).as_bytes());
        hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The port of a guest that is there still: with another's card the number has been given to another.
    fn known(&mut self, plug: Plug) -> Result<&mut Held, NetworkFault> {
        self.set_taken(plug.number);
        let is_it = |held: &&mut Held| {
            matches!(held.phase, Phase::Taken | Phase::Left) && held.mac.is_none_or(|mac| mac == plug.mac)
        };
        self.ports.get_mut(&plug.number).filter(is_it).ok_or_else(|| unknown(plug.number))
    }

    async fn apply(&mut self, plug: Plug, policy: NetworkPolicy) -> Result<(), NetworkFault> {
        let number = plug.number;
        let digest = self.digest(&policy);
        let now = Instant::now();
        self.known(plug)?;
        let held = self.ports.get_mut(&number).ok_or_else(|| unknown(number))?;
        if held.digest != digest {
            let edition = match held.edition.0.checked_add(1) {
                Some(edition) => Edition(edition),
                None => {
                    forget(&self.connections, number)?;
                    Edition(1)
                }
            };
            let covered = |name: &str| policy.allow_domains.iter().any(|pattern| pattern.covers(name));
            held.pins.retain(|_, (name, until)| *until > now && covered(name));
            let seconds = |until: Instant| u32::try_from((until - now).as_secs() + 1).unwrap_or(1);
            let pin = |(address, (name, until)): (&Ipv4Addr, &(String, Instant))| Pinned {
                address: *address,
                name: name.clone(),
                seconds: seconds(*until),
            };
            let pins: Vec<Pinned> = held.pins.iter().map(pin).collect();
            let mut sets = held.sets;
            let commands = ruleset::policy(number, &policy, edition, &digest, &mut sets, &pins);
            filter::commit("change a policy", &commands).await?;
            (held.edition, held.digest, held.sets) = (edition, digest, sets);
        }
        self.epoch += 1;
        self.directory.borrow_mut().insert(number, Known::new(policy, self.epoch));
        if !held.open {
            self.links.open_port(number, held.index).await?;
            held.open = true;
        }
        Ok(())
    }

    async fn block(&mut self, plug: Plug) -> Result<(), NetworkFault> {
        self.known(plug)?;
        self.shut(plug.number).await
    }

    /// Nothing comes from the port or goes there, and its connections are forgotten.
    async fn shut(&mut self, number: Number) -> Result<(), NetworkFault> {
        self.directory.borrow_mut().remove(&number);
        let held = self.ports.get_mut(&number).ok_or_else(|| unknown(number))?;
        self.links.shut_port(number, held.index).await?;
        held.open = false;
        forget(&self.connections, number)
    }

    async fn release(&mut self, plug: Plug) {
        match self.known(plug) {
            Ok(_) => self.give_up(plug.number).await,
            Err(fault) => tracing::debug!(%fault, "a port is given back that was given back before"),
        }
    }

    async fn give_up(&mut self, number: Number) {
        let shut = self.shut(number).await;
        let spare = self.ahead() < 2 * self.config.ports_ahead as usize;
        let Some(held) = self.ports.get_mut(&number) else { return };
        held.phase = Phase::Leaving;
        let (index, sets) = (held.index, held.sets);
        let again = match shut {
            Ok(()) => spare.then(|| self.begin(number, None)),
            // What can't be shut is no use for another guest; without its tap it is shut for certain.
            Err(fault) => {
                tracing::warn!(%fault, number = number.0, "a port that can't be shut is removed");
                None
            }
        };
        self.crew.remove(Leaver { number, index, sets, again });
    }

    async fn retain(&mut self, in_use: &[Plug]) -> Result<(), NetworkFault> {
        let left = self.ports.iter().filter(|(_, held)| matches!(held.phase, Phase::Left));
        let left: Vec<Number> = left.map(|(number, _)| *number).collect();
        for number in left {
            let plug = in_use.iter().find(|plug| plug.number == number && self.known(**plug).is_ok());
            match (plug, self.ports.get_mut(&number)) {
                (Some(plug), Some(held)) => (held.phase, held.mac) = (Phase::Taken, Some(plug.mac)),
                _ => self.give_up(number).await,
            }
        }
        match in_use.iter().find(|plug| self.known(**plug).is_err()) {
            Some(lost) => Err(unknown(lost.number)),
            None => Ok(()),
        }
    }

    async fn pin(&mut self, number: Number, epoch: u64, pins: Vec<Pinned>) -> bool {
        let current = self.directory.borrow().get(&number).is_some_and(|known| known.epoch == epoch);
        let Some(held) = self.ports.get_mut(&number).filter(|held| current && held.sets.pins) else { return false };
        let now = Instant::now();
        held.pins.retain(|_, (_, until)| *until > now);
        if held.pins.len() + pins.len() > PINS_MAX {
            return false;
        }
        if let Err(fault) = filter::commit("pin a name's addresses", &ruleset::pin(number, &pins)).await {
            tracing::warn!(%fault, number = number.0, "a name's addresses can't be let through");
            return false;
        }
        for pin in pins {
            held.pins.insert(pin.address, (pin.name, now + Duration::from_secs(pin.seconds.into())));
        }
        true
    }

    async fn remove_all(&mut self) {
        for link in self.links.all().await.unwrap_or_default() {
            if Number::of_device(&link.name).is_some()
                && let Err(fault) = self.links.remove(link.index).await
            {
                tracing::warn!(%fault, device = link.name, "a tap stays");
            }
        }
        self.uplink.remove().await;
        if let Err(cause) = namespace::forget(&self.tag.namespace()) {
            tracing::warn!(%cause, "the guests' network namespace stays");
        }
    }
}

fn salt(forbidden: &[Ipv4Net], config: &NetworkConfig) -> String {
    format!("{forbidden:?} {} {} ", config.bits_per_second, config.connections)
}

fn forget(connections: &Connections, number: Number) -> Result<(), NetworkFault> {
    connections.forget(number.mark(), Number::MARK_MASK).map_err(|cause| NetworkFault::System {
        action: format!("forget the connections of port {}", number.0),
        cause: cause.to_string(),
    })
}

fn unknown(number: Number) -> NetworkFault {
    NetworkFault::System { action: format!("find port {}", number.0), cause: "this node has no such port".to_owned() }
}
