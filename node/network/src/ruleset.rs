//! Every rule of the packet filter, as a function of what it depends on. Pure.
//!
//! ```text
//! node's namespace, table inet atoll                        chains of port N are made before its tap is up
//!   raw        any packet -> its guest has a route back? -> @enter -> enter_N: own MAC, own address, rate
//!   forward    to the uplink   -> @up   -> port_N: the policy -> admit_N: limits, mark, accept
//!              from the uplink -> @down -> down_N: rate -> port_N
//!   input      @ask -> ask_N: DNS and ping to the own gateway
//! table arp atoll
//!   input      @speak -> speak_N: own MAC, own address, own gateway
//! uplink's namespace, table inet atoll_TAG: the second wall, which holds if the first falls
//! ```
//!
//! A port is shut while there is no route to its guest: the first rule then drops whatever the guest sends, since nothing
//! could come back. Putting the route in place is the one switch, and needs no transaction here.
//!
//! A connection that a policy let pass carries the mark of port and policy, and later packets pass by that mark. With a
//! new policy the mark is another, so every open connection is judged again at its next packet, whichever way that goes:
//! `ct original` names the address that it was opened to in both directions.

use std::net::Ipv4Addr;

use fabric_types::NetworkPolicy;
use ipnet::Ipv4Net;
use nftables::expr::{FibFlag, FibResult, MetaKey};
use nftables::schema::SetFlag;
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use crate::plan::{Mac, Number, UPLINK_DEVICE, ipv4};
use crate::rule::{
    Command, Hook, In, accept, any_of, by_device, connection, device_in, device_out, drop, field, goto, is, is_not,
    jump, masquerade, meta, number, opened_to, over_bytes, over_connections, over_packets, prohibited, protocol, range,
    reset, route, set_connection_mark, state, text, timed,
};

/// The table in the node's namespace, in both families.
pub(crate) const TABLE: &str = "atoll";
/// New connections a second of one guest, and how many at once: above a busy build, below a scan.
const NEW_CONNECTIONS: (u32, u32) = (200, 400);
/// Packets a second of one guest to its resolver, and how many at once.
const QUESTIONS: (u32, u32) = (500, 500);
/// Refusals a second that the node answers; the rest is dropped without a word, so that a flood costs little.
const REFUSALS: (u32, u32) = (500, 500);
/// What may be sent at once, bytes, beside the second's worth that the kernel's bucket holds anyway (nft_limit): two of
/// the largest segments that a card hands over at once.
const BURST_BYTES: u32 = 128 * 1024;
/// Ports of DNS, plain and over TLS (RFC 1035, RFC 7858).
const DNS_PORTS: [u32; 2] = [53, 853];

/// What a port's chains depend on, beside the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortFacts {
    pub(crate) number: Number,
    pub(crate) mac: Mac,
    /// Bits a second each way; zero for no limit.
    pub(crate) bits_per_second: u64,
    /// Connections open at once.
    pub(crate) connections: u32,
}

/// A policy's place in the succession of a port's policies, as its connections are marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edition(pub(crate) u16);

/// The sets of a port that exist in the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub(crate) allow: bool,
    pub(crate) deny: bool,
    pub(crate) pins: bool,
}

/// An address that a name has, for some seconds more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pinned {
    pub(crate) address: Ipv4Addr,
    pub(crate) name: String,
    pub(crate) seconds: u32,
}

/// The table that holds the ports.
pub(crate) fn inner() -> In {
    In::new(NfFamily::INet, TABLE)
}

fn neighbours() -> In {
    In::new(NfFamily::ARP, TABLE)
}

fn hook(kind: NfChainType, hook: NfHook, priority: i32, policy: NfChainPolicy) -> Option<Hook> {
    Some(Hook { hook, kind, priority, policy })
}

fn filter(at: NfHook, priority: i32) -> Option<Hook> {
    hook(NfChainType::Filter, at, priority, NfChainPolicy::Drop)
}

fn ipv6() -> nftables::stmt::Statement<'static> {
    is(meta(MetaKey::Nfproto), text("ipv6"))
}

/// The names of a port's chains and sets.
fn named(what: &str, number: Number) -> String {
    format!("{what}_{}", number.0)
}

/// What holds for all ports. Said again over what is there, it changes nothing for the ports that are open.
pub(crate) fn base(forbidden: &[Ipv4Net]) -> Vec<Command> {
    let table = inner();
    let mut all = vec![table.add()];
    all.extend(["enter", "up", "down", "ask"].map(|map| table.verdicts(map)));
    all.push(table.set("forbidden", SetFlag::Interval));
    all.push(table.flush_set("forbidden"));
    all.push(table.elements("forbidden", forbidden.iter().map(range).collect()));
    all.extend(table.chain(
        "refuse",
        None,
        vec![
            vec![device_in(UPLINK_DEVICE), drop()],
            vec![over_packets(REFUSALS.0, REFUSALS.1), drop()],
            vec![protocol(&["tcp"]), reset()],
            vec![prohibited()],
        ],
    ));
    // Before connections are tracked, so that a shut port's flood costs no entry (nf_ip_hook_priorities: raw).
    all.extend(table.chain(
        "raw",
        filter(NfHook::Prerouting, -300),
        vec![
            vec![device_in("lo"), accept()],
            vec![ipv6(), drop()],
            vec![device_in(UPLINK_DEVICE), accept()],
            vec![
                is(route(FibResult::Oif, &[FibFlag::Saddr, FibFlag::Iif]), nftables::expr::Expression::Boolean(false)),
                drop(),
            ],
            vec![by_device(MetaKey::Iifname, "enter")],
        ],
    ));
    all.extend(table.chain(
        "forward",
        filter(NfHook::Forward, 0),
        vec![
            vec![ipv6(), drop()],
            vec![state(&["invalid"]), drop()],
            vec![is_not(meta(MetaKey::L4proto), any_of(["tcp", "udp", "icmp"].map(text).to_vec())), drop()],
            vec![device_in(UPLINK_DEVICE), state(&["established", "related"]), by_device(MetaKey::Oifname, "down")],
            vec![device_out(UPLINK_DEVICE), by_device(MetaKey::Iifname, "up")],
        ],
    ));
    all.extend(table.chain(
        "input",
        filter(NfHook::Input, 0),
        vec![
            vec![device_in("lo"), accept()],
            vec![ipv6(), drop()],
            vec![state(&["invalid"]), drop()],
            vec![by_device(MetaKey::Iifname, "ask")],
        ],
    ));
    // The namespace itself speaks with its guests alone.
    all.extend(table.chain(
        "output",
        filter(NfHook::Output, 0),
        vec![vec![ipv6(), drop()], vec![device_out(UPLINK_DEVICE), drop()], vec![accept()]],
    ));
    let nat = hook(NfChainType::NAT, NfHook::Postrouting, 100, NfChainPolicy::Accept);
    all.extend(table.chain("leave", nat, vec![vec![device_out(UPLINK_DEVICE), masquerade()]]));

    let arp = neighbours();
    all.extend([arp.add(), arp.verdicts("speak")]);
    let heard = vec![vec![device_in(UPLINK_DEVICE), accept()], vec![by_device(MetaKey::Iifname, "speak")]];
    all.extend(arp.chain("input", filter(NfHook::Input, 0), heard));
    all
}

/// The wall in the uplink's namespace: what comes from the node's guests never ends on this host, nor in a forbidden
/// range, whatever addresses the host takes on later; what goes to them answers something.
pub(crate) fn outer(table: &str, device: &str, inner: Ipv4Addr, forbidden: &[Ipv4Net]) -> Vec<Command> {
    let table = In::new(NfFamily::INet, table);
    let accepting = |at, priority| hook(NfChainType::Filter, at, priority, NfChainPolicy::Accept);
    let mut all = vec![table.add(), table.set("forbidden", SetFlag::Interval), table.flush_set("forbidden")];
    all.push(table.elements("forbidden", forbidden.iter().map(range).collect()));
    // Before any redirection that the host may have, which would hide whom the packet was for.
    all.extend(table.chain(
        "raw",
        accepting(NfHook::Prerouting, -300),
        vec![
            vec![is_not(meta(MetaKey::Iifname), text(device)), accept()],
            vec![ipv6(), drop()],
            vec![is_not(field("ip", "saddr"), text(inner.to_string())), drop()],
            vec![is_not(route(FibResult::Type, &[FibFlag::Daddr]), text("unicast")), drop()],
            vec![is(field("ip", "daddr"), text("@forbidden")), drop()],
        ],
    ));
    all.extend(table.chain("input", accepting(NfHook::Input, 0), vec![vec![device_in(device), drop()]]));
    all.extend(table.chain(
        "forward",
        accepting(NfHook::Forward, 0),
        vec![
            vec![device_out(device), state(&["established", "related"]), accept()],
            vec![device_out(device), drop()],
            vec![device_in(device), is(field("ip", "daddr"), text("@forbidden")), drop()],
        ],
    ));
    let nat = hook(NfChainType::NAT, NfHook::Postrouting, 100, NfChainPolicy::Accept);
    let leaving = vec![is(field("ip", "saddr"), text(inner.to_string())), masquerade()];
    all.extend(table.chain("leave", nat, vec![leaving]));
    all
}

/// A port of a guest to come, with the policy that most guests have. Shut until its guest has a route.
pub(crate) fn port(facts: &PortFacts, digest: &str) -> Vec<Command> {
    let number_of = facts.number;
    let device = number_of.device();
    let mac = facts.mac.to_string();
    let (guest, gateway) = (number_of.guest().to_string(), number_of.gateway().to_string());
    let rate = rate(facts.bits_per_second);
    let limited = |rules: &mut Vec<_>| rules.extend(rate.map(|(rate, burst)| vec![over_bytes(rate, burst), drop()]));
    let table = inner();

    let mut enter = vec![
        vec![is_not(field("ether", "saddr"), text(mac.clone())), drop()],
        vec![is_not(field("ip", "saddr"), text(guest.clone())), drop()],
    ];
    limited(&mut enter);
    enter.push(vec![accept()]);
    let mut all = table.chain(&named("enter", number_of), None, enter);

    let mark = || set_connection_mark(number_of.mark());
    all.extend(table.chain(
        &named("ask", number_of),
        None,
        vec![
            vec![is_not(field("ip", "daddr"), text(gateway.clone())), drop()],
            vec![over_packets(QUESTIONS.0, QUESTIONS.1), drop()],
            vec![protocol(&["tcp", "udp"]), is(field("th", "dport"), number(DNS_PORTS[0])), mark(), accept()],
            vec![is(field("icmp", "type"), text("echo-request")), mark(), accept()],
        ],
    ));
    all.extend(table.chain(
        &named("limits", number_of),
        None,
        vec![
            vec![state(&["new"]), over_packets(NEW_CONNECTIONS.0, NEW_CONNECTIONS.1), drop()],
            vec![over_connections(facts.connections), goto("refuse")],
        ],
    ));
    all.extend(table.chain(&named("admit", number_of), None, Vec::new()));
    all.extend(policy(number_of, &NetworkPolicy::default(), Edition(1), digest, &mut Sets::default(), &[]));
    let mut down = Vec::new();
    limited(&mut down);
    down.push(vec![goto(&named("port", number_of))]);
    all.extend(table.chain(&named("down", number_of), None, down));
    for (map, chain) in [("enter", "enter"), ("ask", "ask"), ("up", "port"), ("down", "down")] {
        all.push(table.verdict(map, &device, &named(chain, number_of)));
    }

    let arp = neighbours();
    all.extend(arp.chain(
        &named("speak", number_of),
        None,
        vec![vec![
            is(field("arp", "saddr ether"), text(mac)),
            is(field("arp", "saddr ip"), text(guest)),
            is(field("arp", "daddr ip"), text(gateway)),
            accept(),
        ]],
    ));
    all.push(arp.verdict("speak", &device, &named("speak", number_of)));
    all
}

/// Takes a port out, and with it all counts, buckets and addresses of its guest.
pub(crate) fn remove(number: Number, sets: Sets) -> Vec<Command> {
    let (table, arp, device) = (inner(), neighbours(), number.device());
    let mut all = Vec::new();
    for (map, chain) in [("enter", "enter"), ("ask", "ask"), ("up", "port"), ("down", "down")] {
        all.push(table.delete_verdict(map, &device, &named(chain, number)));
    }
    // Whoever goes to another goes first.
    all.extend(
        ["enter", "ask", "down", "port", "admit", "limits"].map(|chain| table.delete_chain(&named(chain, number))),
    );
    let sets = [("allow", sets.allow), ("deny", sets.deny), ("pins", sets.pins)];
    all.extend(sets.iter().filter(|set| set.1).map(|set| table.delete_set(&named(set.0, number))));
    all.push(arp.delete_verdict("speak", &device, &named("speak", number)));
    all.push(arp.delete_chain(&named("speak", number)));
    all
}

/// Puts a policy in force, in one transaction. `sets` is what the port has, and is left as what it will have; `pins` are
/// the names' addresses that the new policy covers still.
pub(crate) fn policy(
    number_of: Number,
    policy: &NetworkPolicy,
    edition: Edition,
    digest: &str,
    sets: &mut Sets,
    pins: &[Pinned],
) -> Vec<Command> {
    let table = inner();
    let (port, admit) = (named("port", number_of), named("admit", number_of));
    let mark = number_of.mark() | u32::from(edition.0);
    let refuse = || goto("refuse");
    let listed = |nets: &[ipnet::IpNet]| Ipv4Net::aggregate(&nets.iter().filter_map(ipv4).collect());
    let (allow, deny) = match policy.block_all {
        true => (Vec::new(), Vec::new()),
        false => (listed(&policy.allow), listed(&policy.deny)),
    };
    let wanted = Sets {
        allow: !allow.is_empty(),
        deny: !deny.is_empty(),
        pins: !policy.block_all && !policy.allow_domains.is_empty(),
    };

    // The old rules go first, since a set can't go while a rule names it.
    let mut all = table.chain(&port, None, Vec::new());
    for (name, has, wants) in
        [("allow", sets.allow, wanted.allow), ("deny", sets.deny, wanted.deny), ("pins", sets.pins, wanted.pins)]
    {
        let name = named(name, number_of);
        let flag = if name.starts_with("pins") { SetFlag::Timeout } else { SetFlag::Interval };
        match (has, wants) {
            (true, true) => all.push(table.flush_set(&name)),
            (true, false) => all.push(table.delete_set(&name)),
            (false, true) => all.push(table.set(&name, flag)),
            (false, false) => {}
        }
    }
    for (name, nets) in [("allow", &allow), ("deny", &deny)] {
        if !nets.is_empty() {
            all.push(table.elements(&named(name, number_of), nets.iter().map(range).collect()));
        }
    }
    if wanted.pins && !pins.is_empty() {
        all.push(table.elements(&named("pins", number_of), pins.iter().map(pinned).collect()));
    }
    *sets = wanted;

    let comment = Some(comment(edition, digest));
    if policy.block_all {
        all.push(table.rule(&port, vec![refuse()], comment));
        return all;
    }
    all.push(table.rule(&port, vec![is(connection("mark"), number(mark)), accept()], comment));
    let mut rules = vec![vec![is(opened_to(), text("@forbidden")), refuse()]];
    if wanted.deny {
        rules.push(vec![is(opened_to(), text(format!("@{}", named("deny", number_of)))), refuse()]);
    }
    if !policy.allow_domains.is_empty() || !policy.deny_domains.is_empty() {
        let ports = || any_of(DNS_PORTS.map(number).to_vec());
        let device = number_of.device();
        let asked = vec![device_in(&device), protocol(&["tcp", "udp"]), is(field("th", "dport"), ports()), refuse()];
        let answered =
            vec![device_out(&device), protocol(&["tcp", "udp"]), is(field("th", "sport"), ports()), refuse()];
        rules.extend([asked, answered]);
    }
    for (name, has) in [("allow", wanted.allow), ("pins", wanted.pins)] {
        if has {
            rules.push(vec![is(opened_to(), text(format!("@{}", named(name, number_of)))), goto(&admit)]);
        }
    }
    rules.push(vec![if policy.is_closed() { refuse() } else { goto(&admit) }]);
    all.extend(rules.into_iter().map(|rule| table.rule(&port, rule, None)));
    let admitted = vec![vec![jump(&named("limits", number_of))], vec![set_connection_mark(mark), accept()]];
    all.extend(table.rules(&admit, admitted));
    all
}

/// Lets a name's addresses pass from now on for so long. An element that is there keeps its old end (nft before 1.1.4),
/// so each is taken out and put in again; one that is not there can't be taken out, so it is put in before.
pub(crate) fn pin(number: Number, pins: &[Pinned]) -> Vec<Command> {
    let (table, set) = (inner(), named("pins", number));
    let addresses = || pins.iter().map(|pin| text(pin.address.to_string())).collect();
    vec![
        table.elements(&set, addresses()),
        table.delete_elements(&set, addresses()),
        table.elements(&set, pins.iter().map(pinned).collect()),
    ]
}

fn pinned(pin: &Pinned) -> nftables::expr::Expression<'static> {
    timed(text(pin.address.to_string()), pin.seconds, pin.name.clone())
}

/// How the kernel remembers which policy is in force, for the next process.
fn comment(edition: Edition, digest: &str) -> String {
    format!("policy {} {digest}", edition.0)
}

/// What such a remark says.
pub(crate) fn read_comment(comment: &str) -> Option<(Edition, String)> {
    let mut words = comment.strip_prefix("policy ")?.splitn(2, ' ');
    let edition = words.next()?.parse().ok()?;
    Some((Edition(edition), words.next()?.to_owned()))
}

/// Bytes a second and bytes at once.
fn rate(bits_per_second: u64) -> Option<(u32, u32)> {
    let rate = u32::try_from(bits_per_second / 8).unwrap_or(u32::MAX);
    (rate > 0).then_some((rate, BURST_BYTES))
}

#[cfg(test)]
#[path = "ruleset_tests.rs"]
mod tests;
