//! Numbers to names and addresses: what a port's device, card and marks are called, and what no guest ever reaches. Pure.
//!
//! Every node has a namespace of its own, so all nodes number their guests alike. Only the link between that namespace
//! and the uplink lies where nodes meet; its addresses are looked for from a place that the node's tag decides.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

use crate::contract::{GuestAddress, NetworkFault, Port};

/// Most ports of one node. Each has a device, some chains and 4 addresses; a host runs fewer machines than this.
pub(crate) const PORTS_MAX: u16 = 4096;
/// Largest packet, bytes: Ethernet's.
pub(crate) const MTU: u16 = 1500;
/// Bits that name a guest's network: itself and its gateway.
const GUEST_PREFIX: u8 = 30;
/// Addresses of one guest's network, and of one link's.
const NET_SIZE: u32 = 4;
/// Where the guests' networks begin. Shared address space (RFC 6598) is no guest's destination, so nothing is hidden by it.
const GUESTS_FROM: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 0);
/// Where the links' networks begin.
const LINKS_FROM: Ipv4Addr = Ipv4Addr::new(100, 127, 0, 0);
/// Networks in the range of the links.
const LINKS: u32 = 0x1_0000 / NET_SIZE;
/// Longest tag: the device's name, `atoll-` and it, has to fit 15 bytes (IFNAMSIZ).
const TAG_BYTES_MAX: usize = 8;
/// Where the namespaces are bound, so that they outlive the process; `ip netns` looks there too.
const NAMESPACES: &str = "/run/netns";
/// The uplink's end inside of the node's namespace.
pub(crate) const UPLINK_DEVICE: &str = "uplink";

/// What no guest ever reaches over IPv4, beside its host's addresses: RFC 6890's special ranges, and multicast.
const NEVER: [&str; 16] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
];

/// A node's names on its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tag(String);

impl Tag {
    /// Refuses what would not fit a device's name.
    pub(crate) fn parse(text: &str) -> Result<Self, NetworkFault> {
        let fits = (1..=TAG_BYTES_MAX).contains(&text.len());
        if !fits || !text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            return Err(NetworkFault::System {
                action: "name this node's network".to_owned(),
                cause: format!("'{text}' is no tag of 1 to {TAG_BYTES_MAX} of a-z and 0-9"),
            });
        }
        Ok(Self(text.to_owned()))
    }

    /// The namespace of this node's guests.
    pub(crate) fn namespace(&self) -> PathBuf {
        PathBuf::from(format!("{NAMESPACES}/atoll-{}", self.0))
    }

    /// The link's end in the uplink's namespace.
    pub(crate) fn outer_device(&self) -> String {
        format!("atoll-{}", self.0)
    }

    /// The table in the uplink's namespace.
    pub(crate) fn outer_table(&self) -> String {
        format!("atoll_{}", self.0)
    }

    /// The addresses of the link's ends, outer and inner, that nothing in `taken` holds.
    pub(crate) fn link(&self, taken: &[Ipv4Addr]) -> Option<Link> {
        // FNV-1a: the same tag finds the same place in every version of the program.
        let start =
            self.0.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        (0..LINKS).map(|step| Link::at(start.wrapping_add(step) % LINKS)).find(|link| {
            let net = Ipv4Net::new(link.outer, Link::PREFIX).map(|net| net.trunc());
            net.is_ok_and(|net| !taken.iter().any(|address| net.contains(address)))
        })
    }
}

/// The addresses of the link between a node's namespace and its uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    /// In the uplink's namespace.
    pub(crate) outer: Ipv4Addr,
    /// In the node's.
    pub(crate) inner: Ipv4Addr,
}

impl Link {
    /// Bits that name the link's network.
    pub(crate) const PREFIX: u8 = 30;

    fn at(place: u32) -> Self {
        let net = u32::from(LINKS_FROM) + place * NET_SIZE;
        Self { outer: (net + 1).into(), inner: (net + 2).into() }
    }

    /// The link that an outer address belongs to, if it is one of ours.
    pub(crate) fn of_outer(outer: Ipv4Addr) -> Option<Self> {
        let place = u32::from(outer).checked_sub(u32::from(LINKS_FROM))? / NET_SIZE;
        Some(Self::at(place)).filter(|link| place < LINKS && link.outer == outer)
    }
}

/// A port's number on its node; everything about it but the card's address follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Number(pub(crate) u16);

impl Number {
    fn net(self) -> u32 {
        u32::from(GUESTS_FROM) + u32::from(self.0) * NET_SIZE
    }

    /// The guest's gateway and only resolver: the node's end.
    pub(crate) fn gateway(self) -> Ipv4Addr {
        (self.net() + 1).into()
    }

    /// The guest's address.
    pub(crate) fn guest(self) -> Ipv4Addr {
        (self.net() + 2).into()
    }

    /// The tap's name.
    pub(crate) fn device(self) -> String {
        format!("tap{}", self.0)
    }

    /// The port that a tap's name means.
    pub(crate) fn of_device(name: &str) -> Option<Self> {
        let number = name.strip_prefix("tap")?.parse().ok()?;
        (number < PORTS_MAX).then_some(Self(number))
    }

    /// The port whose guest has an address.
    pub(crate) fn of_guest(address: Ipv4Addr) -> Option<Self> {
        let place = u32::from(address).checked_sub(u32::from(GUESTS_FROM))? / NET_SIZE;
        let number = Self(u16::try_from(place).ok().filter(|&number| number < PORTS_MAX)?);
        (number.guest() == address).then_some(number)
    }

    /// The mark of the port's connections, whatever policy let them pass; zero marks no port's.
    pub(crate) fn mark(self) -> u32 {
        (u32::from(self.0) + 1) << 16
    }

    /// The part of a mark that names the port.
    pub(crate) const MARK_MASK: u32 = 0xffff_0000;

    /// How the guest sets up its card.
    pub(crate) fn guest_address(self, mac: Mac) -> GuestAddress {
        GuestAddress {
            mac: mac.to_string(),
            address: self.guest(),
            prefix: GUEST_PREFIX,
            gateway: self.gateway(),
            dns: self.gateway(),
            mtu: MTU,
        }
    }

    /// The port, as others see it.
    pub(crate) fn port(self, netns: PathBuf, mac: Mac) -> Port {
        Port::Tap { number: self.0, device: self.device(), netns, guest: self.guest_address(mac) }
    }
}

/// A card's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mac([u8; 6]);

impl Mac {
    /// A locally administered address of one card (IEEE 802: bit 1 set and bit 0 clear in the first byte).
    pub(crate) fn from_chance(chance: [u8; 5]) -> Self {
        let [a, b, c, d, e] = chance;
        Self([0x02, a, b, c, d, e])
    }
}

impl FromStr for Mac {
    type Err = NetworkFault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes: Vec<u8> = text.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let wrong =
            |_| NetworkFault::System { action: "read a card's address".to_owned(), cause: format!("'{text}' is none") };
        bytes.try_into().map(Self).map_err(wrong)
    }
}

/// One guest's port: the number is used again, the card's address is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plug {
    pub(crate) number: Number,
    pub(crate) mac: Mac,
}

impl Plug {
    /// Of a tap; there is none behind `passt`.
    pub(crate) fn of(port: &Port) -> Result<Option<Self>, NetworkFault> {
        match port {
            Port::Tap { number, guest, .. } => Ok(Some(Self { number: Number(*number), mac: guest.mac.parse()? })),
            Port::Passt { .. } => Ok(None),
        }
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A range as the filter sees it: an IPv4 one, also where it is written as v4-mapped IPv6. Guests have no IPv6, so other
/// IPv6 ranges name nothing that they could reach.
pub(crate) fn ipv4(net: &IpNet) -> Option<Ipv4Net> {
    match net {
        IpNet::V4(net) => Some(net.trunc()),
        IpNet::V6(net) => {
            let prefix = net.prefix_len().checked_sub(96)?;
            Ipv4Net::new(net.addr().to_ipv4_mapped()?, prefix).ok().map(|net| net.trunc())
        }
    }
}

/// What no guest of this node reaches, without overlaps.
pub(crate) fn forbidden(more: &[IpNet]) -> Vec<Ipv4Net> {
    let never = NEVER.iter().filter_map(|text| text.parse::<Ipv4Net>().ok());
    Ipv4Net::aggregate(&never.chain(more.iter().filter_map(ipv4)).collect())
}

/// Whether an address lies in what no guest reaches.
pub(crate) fn is_forbidden(forbidden: &[Ipv4Net], address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => forbidden.iter().any(|net| net.contains(&address)),
        IpAddr::V6(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_device_and_by_its_guest() {
        for number in [0, 1, 63, 64, 4095] {
            let number = Number(number);
            assert_eq!(Number::of_device(&number.device()), Some(number));
            assert_eq!(Number::of_guest(number.guest()), Some(number));
            assert_eq!(Number::of_guest(number.gateway()), None);
        }
        assert_eq!(Number::of_device("tap4096"), None);
        assert_eq!(Number::of_device("eth0"), None);
        assert_eq!(Number::of_guest(Ipv4Addr::new(8, 8, 8, 8)), None);
        assert_eq!(Number(1).guest(), Ipv4Addr::new(100, 96, 0, 6));
    }

    #[test]
    fn every_range_that_is_never_reached_is_parsed() {
        let all = forbidden(&[]);
        for text in NEVER {
            let net: Ipv4Net = text.parse().expect("a range");
            assert!(all.iter().any(|one| one.contains(&net)), "{text}");
        }
        for text in
            ["127.0.0.1", "169.254.169.254", "10.1.2.3", "100.96.0.2", "255.255.255.255", "239.1.1.1", "0.0.0.0"]
        {
            assert!(is_forbidden(&all, text.parse().expect("an address")), "{text}");
        }
        assert!(!is_forbidden(&all, "8.8.8.8".parse().expect("an address")));
        assert!(is_forbidden(&all, "2001:4860::1".parse().expect("an address")));
    }

    #[test]
    fn a_cards_address_reads_as_it_is_written() {
        let mac = Mac::from_chance([0xab, 1, 2, 3, 0xff]);
        assert_eq!(mac.to_string(), "02:ab:01:02:03:ff");
        assert_eq!(mac.to_string().parse::<Mac>().ok(), Some(mac));
        for wrong in ["", "02:ab:01:02:03", "02:ab:01:02:03:ff:00", "02:ab:01:02:03:xx"] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mapped_range_is_its_ipv4_kin_and_other_ipv6_is_nothing() {
        let mapped: IpNet = "::ffff:8.8.8.0/120".parse().expect("a range");
        assert_eq!(ipv4(&mapped), "8.8.8.0/24".parse().ok());
        assert_eq!(ipv4(&"2001:db8::/32".parse().expect("a range")), None);
        assert_eq!(ipv4(&"::/0".parse().expect("a range")), None);
    }

    #[test]
    fn links_of_nodes_on_one_host_are_apart() {
        let tag = Tag::parse("a").expect("a tag");
        let first = tag.link(&[]).expect("a link");
        assert_eq!(tag.link(&[]), Some(first));
        let second = tag.link(&[first.outer]).expect("another link");
        assert_ne!(first, second);
        assert_eq!(Link::of_outer(second.outer), Some(second));
        assert_eq!(Link::of_outer(second.inner), None);
        for wrong in ["", "ninechars", "Up", "a-b"] {
            assert!(Tag::parse(wrong).is_err(), "{wrong}");
        }
    }
}
