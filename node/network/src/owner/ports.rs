//! A port's way through its states: ordered, made, taken, given back, and removed or made new.
//!
//! It may touch which ports there are and their phases, and gives the crew its work; links and rules are the crew's,
//! and what passes a port is `policy`'s.

use fabric_types::NetworkPolicy;
use tokio::sync::oneshot;

use super::{Held, Owner, Phase, unknown};
use crate::contract::{NetworkFault, Port};
use crate::crew::{Leaver, Made, Member};
use crate::plan::{Mac, Number, PORTS_MAX, Plug};
use crate::ruleset::PortFacts;

impl Owner {
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
    pub(super) fn refill(&mut self) {
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

    pub(super) fn take(&mut self, reply: oneshot::Sender<Result<Port, NetworkFault>>) {
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

    pub(super) fn made(&mut self, made: Made) {
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

    pub(super) async fn release(&mut self, plug: Plug) {
        match self.known(plug) {
            Ok(_) => self.give_up(plug.number).await,
            Err(fault) => tracing::debug!(%fault, "a port is given back that was given back before"),
        }
    }

    async fn give_up(&mut self, number: Number) {
        let shut = self.shut(number).await;
        let wanted = self.ahead() < 2 * self.config.ports_ahead as usize;
        let Some(held) = self.ports.get_mut(&number) else { return };
        held.phase = Phase::Leaving;
        let (index, sets) = (held.index, held.sets);
        let again = match shut {
            Ok(()) => wanted.then(|| self.begin(number, None)),
            // What can't be shut is no use for another guest; without its tap it is shut for certain.
            Err(fault) => {
                tracing::warn!(%fault, number = number.0, "a port that can't be shut is removed");
                None
            }
        };
        self.crew.remove(Leaver { number, index, sets, again });
    }

    pub(super) async fn retain(&mut self, in_use: &[Plug]) -> Result<(), NetworkFault> {
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
}
