//! Makes and removes ports beside the owner's requests: links take the kernel a while, and none of it is on a create's path.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::sync::mpsc;

use crate::contract::NetworkFault;
use crate::filter;
use crate::links::Links;
use crate::owner::Request;
use crate::plan::Number;
use crate::ruleset::{self, PortFacts, Sets};
use crate::sys;

/// Ports made or removed in one transaction: it takes some milliseconds, whatever it holds, until it holds very much.
const BATCH: usize = 32;
/// Bits of a gateway's address on its tap: the guest is reached by a route of its own, which is the port's switch.
const GATEWAY_PREFIX: u8 = 32;

/// A port to make.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) facts: PortFacts,
    /// Names the policy that it begins with.
    pub(crate) digest: String,
}

type Leaving = Vec<(Number, u32, Sets)>;

/// Those who make and remove. Lives on the owner's thread; needs a [`tokio::task::LocalSet`].
#[derive(Clone)]
pub(crate) struct Crew {
    links: Links,
    owner: mpsc::WeakSender<Request>,
    leaving: Rc<RefCell<Leaving>>,
    removing: Rc<Cell<bool>>,
}

impl Crew {
    pub(crate) fn new(links: Links, owner: mpsc::WeakSender<Request>) -> Self {
        Self { links, owner, leaving: Rc::default(), removing: Rc::default() }
    }

    async fn tell(&self, request: Request) {
        if let Some(owner) = self.owner.upgrade() {
            // An owner that has ended needs no word: its successor finds what there is.
            let _ = owner.send(request).await;
        }
    }

    /// Makes ports, and says so.
    pub(crate) fn make(&self, members: Vec<Member>) {
        for batch in members.chunks(BATCH) {
            let (crew, batch) = (self.clone(), batch.to_vec());
            tokio::task::spawn_local(async move {
                let made = crew.make_batch(&batch).await;
                crew.tell(Request::Made { made }).await;
            });
        }
    }

    async fn make_batch(&self, batch: &[Member]) -> Vec<(Number, Result<u32, NetworkFault>)> {
        let rules: Vec<_> = batch.iter().flat_map(|member| ruleset::port(&member.facts, &member.digest)).collect();
        // The filter is there before the device is.
        if let Err(fault) = filter::commit("add ports", &rules).await {
            let why = fault.to_string();
            let failed = |member: &Member| {
                let fault = NetworkFault::System { action: "make a network port".to_owned(), cause: why.clone() };
                (member.facts.number, Err(fault))
            };
            return batch.iter().map(failed).collect();
        }
        let mut made = Vec::new();
        for member in batch {
            let number = member.facts.number;
            let result = self.make_device(number).await;
            if result.is_err()
                && let Err(fault) =
                    filter::commit("remove half a port", &ruleset::remove(number, Sets::default())).await
            {
                tracing::warn!(%fault, number = number.0, "rules stay without a device");
            }
            made.push((number, result));
        }
        made
    }

    async fn make_device(&self, number: Number) -> Result<u32, NetworkFault> {
        let device = number.device();
        let fault = |cause: String| NetworkFault::System { action: format!("make the tap {device}"), cause };
        let owner = nix::unistd::geteuid().as_raw();
        sys::make_tap(&device, owner).map_err(|cause| fault(cause.to_string()))?;
        let index = self.links.index(&device).await?.ok_or_else(|| fault("it is gone at once".to_owned()))?;
        match self.links.bring_up(index, Some((number.gateway(), GATEWAY_PREFIX))).await {
            Ok(()) => Ok(index),
            Err(fault) => {
                let _ = self.links.remove(index).await;
                Err(fault)
            }
        }
    }

    /// Removes a port that is shut already, and says so. Those that come meanwhile go together.
    pub(crate) fn remove(&self, number: Number, index: u32, sets: Sets) {
        self.leaving.borrow_mut().push((number, index, sets));
        if self.removing.replace(true) {
            return;
        }
        let crew = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                let batch: Leaving = {
                    let mut leaving = crew.leaving.borrow_mut();
                    let count = leaving.len().min(BATCH);
                    leaving.drain(..count).collect()
                };
                if batch.is_empty() {
                    crew.removing.set(false);
                    return;
                }
                crew.remove_batch(&batch).await;
                let gone = batch.iter().map(|(number, ..)| *number).collect();
                crew.tell(Request::Gone { gone }).await;
            }
        });
    }

    async fn remove_batch(&self, batch: &Leaving) {
        for (number, index, _) in batch {
            if let Err(fault) = self.links.remove(*index).await {
                tracing::warn!(%fault, number = number.0, "a tap stays");
            }
        }
        let rules: Vec<_> = batch.iter().flat_map(|(number, _, sets)| ruleset::remove(*number, *sets)).collect();
        if let Err(fault) = filter::commit("remove ports", &rules).await {
            tracing::warn!(%fault, "rules of ports that are gone stay");
        }
    }
}
