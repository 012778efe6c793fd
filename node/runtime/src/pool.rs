//! The warm pool: clones that have run each path once and are paused, with their session open; and behind them spares,
//! monitors that have everything but a guest.
//!
//! ```text
//!  sandboxes -- take --> Pool (handle) --> keeper task: owns the shelves, watches for deaths
//!                                              |  a shelf for each shape: demand decides what it holds
//!                                              |  a few jobs at once, at low priority
//!                                              v
//!                                          make a template, its checkpoint, a clone, a spare
//! ```
//! Nothing here is on the path of a create but `take`.

use std::sync::Arc;

use fabric_types::Shape;
use node_hypervisor::{Spare, Vm, VmFolder};
use node_network::Port;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::PoolStatus;
use crate::folder::Home;
use crate::guest::Link;
use crate::template::Template;

mod base;
mod checkpoint;
mod copies;
mod demand;
mod keeper;
mod make;
mod shelf;
#[cfg(test)]
mod tests;

pub(crate) use keeper::Keeper;
pub(crate) use make::{adopt, destroy};

/// Requests that wait for the keeper: one of each sandbox that a node may be creating at once.
const REQUESTS_MAX: usize = 256;

/// A clone that is nobody's yet.
pub(crate) struct Warm {
    pub(crate) home: Home,
    pub(crate) folder: VmFolder,
    pub(crate) template: Template,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) link: Link,
    /// What its network card is plugged into; nothing passes yet.
    pub(crate) port: Option<Port>,
    /// When it stood ready.
    pub(crate) made_at: Instant,
}

/// Everything that a clone needs but its guest: home, disk, port, and where the driver can, a started monitor.
pub(crate) struct Started {
    pub(crate) home: Home,
    pub(crate) folder: VmFolder,
    pub(crate) template: Template,
    pub(crate) port: Option<Port>,
    /// The monitor; none where the driver starts nothing ahead.
    pub(crate) monitor: Option<Box<dyn Spare>>,
}

impl Warm {
    /// Whether it is a copy of a checkpoint.
    fn is_copy(&self) -> bool {
        self.vm.spec().checkpoint.is_some()
    }
}

/// What stood ready for a create.
pub(crate) enum Ready {
    /// An exercised clone.
    Warm(Box<Warm>),
    /// A spare.
    Started(Box<Started>),
}

enum Request {
    Take { shape: Shape, reply: oneshot::Sender<Option<Ready>> },
    TakeSpare { template: String, reply: oneshot::Sender<Option<Box<Started>>> },
    Learn { template: Template },
    Destroy { reply: oneshot::Sender<()> },
}

/// The pool's handle.
pub(crate) struct Pool {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Arc<Vec<PoolStatus>>>,
}

/// The keeper's ends of the handle's channels, until it runs.
pub(crate) struct PoolSeat {
    requests: mpsc::Receiver<Request>,
    status: watch::Sender<Arc<Vec<PoolStatus>>>,
}

impl Pool {
    pub(crate) fn new() -> (Self, PoolSeat) {
        let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
        let (sender, status) = watch::channel(Arc::default());
        (Self { requests, status }, PoolSeat { requests: inbox, status: sender })
    }

    /// A warm clone of the shape, else, where no copies can be made, a spare, if there is one. Microseconds.
    pub(crate) async fn take(&self, shape: Shape) -> Option<Ready> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Take { shape, reply }).await.ok()?;
        answer.await.ok().flatten()
    }

    /// A spare with a monitor that waits for memory over this very template, if there is one. Microseconds.
    pub(crate) async fn take_spare(&self, template: &str) -> Option<Started> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::TakeSpare { template: template.to_owned(), reply }).await.ok()?;
        answer.await.ok().flatten().map(|spare| *spare)
    }

    /// Tells of the template of a shape that was asked for: from now on its clones can be made ahead.
    pub(crate) fn learn(&self, template: Template) {
        // A full queue means that the next create tells of it.
        let _ = self.requests.try_send(Request::Learn { template });
    }

    /// Ends every clone and removes what it left.
    pub(crate) async fn destroy(&self) {
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Destroy { reply }).await.is_ok() {
            // An error means that the keeper has ended, and has left its clones to the next start.
            let _ = answer.await;
        }
    }

    pub(crate) fn status(&self) -> watch::Receiver<Arc<Vec<PoolStatus>>> {
        self.status.clone()
    }
}
