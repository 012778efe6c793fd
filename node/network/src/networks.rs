//! The door of this crate: a handle to the one task that owns a node's guest network.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use fabric_types::{GuestNetwork, NetworkPolicy};
use tokio::sync::{mpsc, oneshot};

use crate::contract::{NetworkChoice, NetworkConfig, NetworkFault, Port};
use crate::owner::{self, Request, Started};
use crate::passt;
use crate::plan::{Mac, Number, Plug};

/// A node's guest network. Cheap to clone; all clones speak with the same owner, which ends with the last of them and
/// leaves what it made as [`Networks::stop`] with `false` does.
#[derive(Debug, Clone)]
pub struct Networks {
    way: Way,
    reason: String,
}

#[derive(Debug, Clone)]
enum Way {
    None,
    Passt {
        program: PathBuf,
    },
    Tap {
        requests: mpsc::Sender<Request>,
        /// The ports made ahead: the lock is held for one look.
        ready: Arc<Mutex<mpsc::Receiver<Port>>>,
    },
}

impl Networks {
    /// Starts the network. Whatever ports an earlier process of this tag left go on as they are, until [`Networks::retain`];
    /// their names are answered again once their policy is applied again, which changes no open connection.
    pub async fn start(config: NetworkConfig) -> Result<Self, NetworkFault> {
        match config.choice {
            NetworkChoice::None => Ok(Self {
                way: Way::None,
                reason: "guests have no network, as this node's configuration asks".to_owned(),
            }),
            NetworkChoice::Tap => Self::taps(config).await,
            NetworkChoice::Passt => match passt::find() {
                Some(program) => Ok(Self { way: Way::Passt { program }, reason: passt::REACHED.to_owned() }),
                None => Err(NetworkFault::System {
                    action: "give guests a network through `passt`".to_owned(),
                    cause: "it is not installed (package passt)".to_owned(),
                }),
            },
            // `passt` is not tried: it holds none of the rules that hold for every guest.
            NetworkChoice::Auto => match Self::taps(config).await {
                Ok(networks) => Ok(networks),
                Err(fault) => {
                    Ok(Self { way: Way::None, reason: format!("guests have no network, since this node {fault}") })
                }
            },
        }
    }

    async fn taps(config: NetworkConfig) -> Result<Self, NetworkFault> {
        let Started { requests, ready } = owner::start(config).await?;
        let reason = "guests have taps behind the packet filter: this node may administer the network".to_owned();
        Ok(Self { way: Way::Tap { requests, ready: Arc::new(Mutex::new(ready)) }, reason })
    }

    /// How guests get their network.
    pub fn kind(&self) -> GuestNetwork {
        match self.way {
            Way::None => GuestNetwork::None,
            Way::Passt { .. } => GuestNetwork::Passt,
            Way::Tap { .. } => GuestNetwork::Tap,
        }
    }

    /// Why they get it this way, in one sentence.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// A port for a new guest; `None` where guests have no network. It lets nothing through until [`Networks::apply`]
    /// (behind `passt` it does at once, and `apply` only refuses). Microseconds while ports made ahead last.
    pub async fn take(&self) -> Result<Option<Port>, NetworkFault> {
        let (requests, ready) = match &self.way {
            Way::None => return Ok(None),
            Way::Passt { program } => return Ok(Some(passt::port(program, Mac::from_chance(rand::random())))),
            Way::Tap { requests, ready } => (requests, ready),
        };
        if requests.is_closed() {
            return Err(ended());
        }
        let made = ready.lock().ok().and_then(|mut ready| ready.try_recv().ok());
        if let Some(port) = made {
            if let Port::Tap { number, .. } = &port {
                // An owner with its hands full learns it from the next request about this port.
                let _ = requests.try_send(Request::Taken { number: Number(*number) });
            }
            return Ok(Some(port));
        }
        self.ask(|reply| Request::Take { reply }).await?.map(Some)
    }

    /// Puts a policy in force, also under open connections: those that it forbids die at once, the others go on. Addresses
    /// of names that it still allows go on passing.
    pub async fn apply(&self, port: &Port, policy: &NetworkPolicy) -> Result<(), NetworkFault> {
        self.check(policy)?;
        let Some(plug) = Plug::of(port)? else { return Ok(()) };
        self.ask(|reply| Request::Apply { plug, policy: Box::new(policy.clone()), reply }).await?
    }

    /// Lets nothing through the port any more, and forgets its connections.
    pub async fn block(&self, port: &Port) -> Result<(), NetworkFault> {
        let Some(plug) = Plug::of(port)? else {
            return Err(NetworkFault::Unenforceable {
                what: "a blocked network",
                why: "its guests' network is `passt`, which filters nothing; end its process instead".to_owned(),
            });
        };
        self.ask(|reply| Request::Block { plug, reply }).await?
    }

    /// Takes a port back. It is shut when this returns, and soon after removed or, if nobody holds its tap, made new for
    /// another guest: nothing of its guest's state stays. A port that was given back before is left alone.
    pub async fn release(&self, port: Port) {
        let given = match Plug::of(&port) {
            Ok(Some(plug)) => self.ask(|reply| Request::Release { plug, reply }).await,
            Ok(None) => return,
            Err(fault) => Err(fault),
        };
        if let Err(fault) = given {
            tracing::warn!(%fault, ?port, "a network port can't be given back");
        }
    }

    /// After a restart: removes every port that an earlier process left, but these. Fails when one of these is lost.
    pub async fn retain(&self, in_use: &[Port]) -> Result<(), NetworkFault> {
        if !matches!(self.way, Way::Tap { .. }) {
            return Ok(());
        }
        let in_use = in_use.iter().filter_map(|port| Plug::of(port).transpose()).collect::<Result<_, _>>()?;
        self.ask(|reply| Request::Retain { in_use, reply }).await?
    }

    /// Whether this node can enforce a policy.
    pub fn check(&self, policy: &NetworkPolicy) -> Result<(), NetworkFault> {
        if let Err(error) = policy.check() {
            return Err(NetworkFault::Unenforceable { what: "a network policy", why: error.to_string() });
        }
        match self.way {
            Way::Tap { .. } | Way::None => Ok(()),
            Way::Passt { .. } => passt::check(policy),
        }
    }

    /// Ends the owner. With `remove`, namespaces, tables and devices go too; without, guests go on, filtered, but the
    /// node's resolver answers nobody until the next process.
    pub async fn stop(&self, remove: bool) {
        // An owner that has ended has nothing to end.
        let _ = self.ask(|reply| Request::Stop { remove, reply }).await;
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, NetworkFault> {
        let Way::Tap { requests, .. } = &self.way else { return Err(ended()) };
        let (reply, answer) = oneshot::channel();
        requests.send(request(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }
}

fn ended() -> NetworkFault {
    NetworkFault::System { action: "ask the owner of the guests' network".to_owned(), cause: "it has ended".to_owned() }
}
