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

/// A port whose guest has gone. It is shut, and its connections are forgotten.
#[derive(Debug, Clone)]
pub(crate) struct Leaver {
    pub(crate) number: Number,
    pub(crate) index: u32,
    pub(crate) sets: Sets,
    /// What it is made into, if it is wanted for another guest.
    pub(crate) again: Option<Member>,
}

/// Ports that are made, by their devices' indices, or not.
pub(crate) type Made = Vec<(Number, Result<u32, NetworkFault>)>;

/// Those who make and remove. Lives on the owner's thread; needs a [`tokio::task::LocalSet`].
#[derive(Clone)]
pub(crate) struct Crew {
    links: Links,
    owner: mpsc::WeakSender<Request>,
    leaving: Rc<RefCell<Vec<Leaver>>>,
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

    async fn make_batch(&self, batch: &[Member]) -> Made {
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

    /// Removes a port, or makes it new for another guest, and says so. Those that come meanwhile go together.
    pub(crate) fn remove(&self, leaver: Leaver) {
        self.leaving.borrow_mut().push(leaver);
        if self.removing.replace(true) {
            return;
        }
        let crew = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                let batch: Vec<Leaver> = {
                    let mut leaving = crew.leaving.borrow_mut();
                    let count = leaving.len().min(BATCH);
                    leaving.drain(..count).collect()
                };
                if batch.is_empty() {
                    crew.removing.set(false);
                    return;
                }
                let numbers: Vec<Number> = batch.iter().map(|leaver| leaver.number).collect();
                let Ok((made, gone)) = crew.remove_batch(batch).await else {
                    crew.tell(Request::Spoiled { spoiled: numbers }).await;
                    continue;
                };
                if !made.is_empty() {
                    crew.tell(Request::Made { made }).await;
                }
                if !gone.is_empty() {
                    crew.tell(Request::Gone { gone }).await;
                }
            }
        });
    }

    /// A tap that is used again needs no change of links, which all namespaces wait for; its rules are all new. One that
    /// someone still holds open is no use for another guest.
    async fn remove_batch(&self, mut batch: Vec<Leaver>) -> Result<(Made, Vec<Number>), NetworkFault> {
        for leaver in &mut batch {
            if leaver.again.is_some() && self.links.is_held(leaver.index).await {
                leaver.again = None;
            }
            if leaver.again.is_none()
                && let Err(fault) = self.links.remove(leaver.index).await
            {
                tracing::warn!(%fault, number = leaver.number.0, "a tap stays");
            }
        }
        let mut rules = Vec::new();
        for leaver in &batch {
            rules.extend(ruleset::remove(leaver.number, leaver.sets));
            let again = leaver.again.iter();
            rules.extend(again.flat_map(|member| ruleset::port(&member.facts, &member.digest)));
        }
        if let Err(fault) = filter::commit("remove ports", &rules).await {
            tracing::warn!(%fault, "rules of ports that are gone stay until the next start");
            return Err(fault);
        }
        let (mut made, mut gone) = (Vec::new(), Vec::new());
        for leaver in batch {
            match leaver.again {
                Some(_) => made.push((leaver.number, Ok(leaver.index))),
                None => gone.push(leaver.number),
            }
        }
        Ok((made, gone))
    }
}
