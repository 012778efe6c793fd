//! What passes a port: its policy, the addresses of names, and whether anything does.
//!
//! It may touch a port's rules, its route and its connections, and what the resolver knows of it. Phases are `ports`'s.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use fabric_types::NetworkPolicy;
use ring::digest::{SHA256, digest};

use super::{Owner, unknown};
use crate::conntrack::Connections;
use crate::contract::NetworkFault;
use crate::filter;
use crate::plan::{Number, Plug};
use crate::resolver::Known;
use crate::ruleset::{self, Edition, Pinned};

/// Addresses that one guest's names may have at once.
const PINS_MAX: usize = 2048;

impl Owner {
    pub(super) fn digest(&self, policy: &NetworkPolicy) -> String {
        let policy = serde_json::to_string(policy).unwrap_or_default();
        let hash = digest(&SHA256, format!("{}{policy}", self.salt).as_bytes());
        hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    pub(super) async fn apply(&mut self, plug: Plug, policy: NetworkPolicy) -> Result<(), NetworkFault> {
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

    pub(super) async fn block(&mut self, plug: Plug) -> Result<(), NetworkFault> {
        self.known(plug)?;
        self.shut(plug.number).await
    }

    /// Nothing comes from the port or goes there, and its connections are forgotten.
    pub(super) async fn shut(&mut self, number: Number) -> Result<(), NetworkFault> {
        self.directory.borrow_mut().remove(&number);
        let held = self.ports.get_mut(&number).ok_or_else(|| unknown(number))?;
        self.links.shut_port(number, held.index).await?;
        held.open = false;
        forget(&self.connections, number)
    }

    pub(super) async fn pin(&mut self, number: Number, epoch: u64, pins: Vec<Pinned>) -> bool {
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
}

fn forget(connections: &Connections, number: Number) -> Result<(), NetworkFault> {
    connections.forget(number.mark(), Number::MARK_MASK).map_err(|cause| NetworkFault::System {
        action: format!("forget the connections of port {}", number.0),
        cause: cause.to_string(),
    })
}
