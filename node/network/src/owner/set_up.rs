//! What stands before an owner's first request: the base rules, the namespace's switches, the uplink, the resolver, and
//! the ports that an earlier process left; and how all of it goes.
//!
//! It may touch everything in the guests' namespace: no request runs beside it.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tokio::sync::mpsc;

use super::{Held, Owner, Phase, Request};
use crate::conntrack::Connections;
use crate::contract::{NetworkConfig, NetworkFault, Port};
use crate::crew::Crew;
use crate::filter;
use crate::links::{Links, switch};
use crate::namespace::{self, Place};
use crate::plan::{self, Link, Mac, Number, Tag, UPLINK_DEVICE};
use crate::resolver::{Directory, Resolver};
use crate::ruleset::{self, Pinned, PortFacts};
use crate::uplink::{self, Uplink};

impl Owner {
    pub(super) async fn set_up(
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

    pub(super) async fn remove_all(&mut self) {
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

fn salt(forbidden: &[Ipv4Net], config: &NetworkConfig) -> String {
    format!("{forbidden:?} {} {} ", config.bits_per_second, config.connections)
}
