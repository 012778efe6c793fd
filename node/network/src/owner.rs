//! The one owner of a node's guest network: a task on a thread in the guests' namespace.
//!
//! ```text
//!            make                 take                 release              gone
//!   (free) ------> Making ------> Ready ------> Taken ---------> Leaving ---------> (free)
//!     ^               | ^                        ^ |                ^ |
//!     +---- failed ---+ +---- release, wanted ---|-+                | +-- spoiled: it stays, and its number isn't used again
//!   found at the start: Left -- retain, in use --+                  |
//!                         +----- retain, not in use ----------------+
//! ```
//!
//! Making and removing go on beside the requests, since links take their time; what a create waits for is done here, in
//! order: a route for the policy that most have, one transaction for another.
//!
//! ```text
//! set_up  what stands before the first request, and what goes with the last
//! ports   a port's way through the states above
//! policy  what passes a port
//! ```

mod policy;
mod ports;
mod set_up;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::Instant;

use fabric_types::NetworkPolicy;
use tokio::sync::{mpsc, oneshot};

use crate::conntrack::Connections;
use crate::contract::{NetworkConfig, NetworkFault, Port};
use crate::crew::Crew;
use crate::filter;
use crate::links::Links;
use crate::namespace::{self, Place};
use crate::plan::{Mac, Number, PORTS_MAX, Plug, Tag};
use crate::resolver::Directory;
use crate::ruleset::{Edition, Pinned, Sets};
use crate::uplink::Uplink;

/// Requests that wait; who comes later waits outside.
const QUEUE: usize = 256;

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

impl Owner {
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

    /// The port of a guest that is there still: with another's card the number has been given to another.
    fn known(&mut self, plug: Plug) -> Result<&mut Held, NetworkFault> {
        let number = plug.number;
        if self.ports.get(&number).is_some_and(|held| held.mac == Some(plug.mac)) {
            self.set_taken(number);
        }
        let is_it = |held: &&mut Held| {
            matches!(held.phase, Phase::Taken | Phase::Left) && held.mac.is_none_or(|mac| mac == plug.mac)
        };
        self.ports.get_mut(&number).filter(is_it).ok_or_else(|| unknown(number))
    }
}

fn unknown(number: Number) -> NetworkFault {
    NetworkFault::System { action: format!("find port {}", number.0), cause: "this node has no such port".to_owned() }
}
