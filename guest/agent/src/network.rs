//! The guest's network card: set up by one identity, taken down by one without a network. No process is started for it.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use guest_proto::surface::GuestNetwork;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::console::say;
use crate::sys;

/// The resolver's configuration, resolv.conf(5).
const RESOLVER: &str = "/etc/resolv.conf";
/// Where the kernel shows network interfaces.
const INTERFACES: &str = "/sys/class/net";
/// The interface that isn't a card.
const LOOPBACK: &str = "lo";
/// Least largest packet: what every IPv4 host must take (RFC 791, section 3.1).
pub(crate) const MTU_MIN: u16 = 576;

/// What doesn't depend on an identity: the loopback is up; IPv6, which the host routes nowhere, is off on cards.
pub(crate) fn prepare() -> io::Result<()> {
    if let Err(error) = control_socket().and_then(|socket| sys::interface_up(socket.as_raw_fd(), LOOPBACK, true)) {
        say(&format!("can't bring up the loopback interface: {error}"));
    }
    for interface in ["default".to_owned()].into_iter().chain(card()) {
        // A kernel without IPv6 has no such file, and nothing to switch off.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1");
    }
    fs::write(RESOLVER, "")
}

/// Puts a network in force, or none. A MAC without a card is nobody's; a network without one is an error.
pub(crate) fn set(mac: Option<[u8; 6]>, network: Option<&GuestNetwork>) -> io::Result<()> {
    let Some(card) = card() else {
        return match network {
            Some(_) => Err(io::Error::new(io::ErrorKind::NotFound, "the machine has no network card")),
            None => super::machine::rewrite(RESOLVER, ""),
        };
    };
    let socket = control_socket()?;
    let socket = socket.as_raw_fd();
    // Down first: that takes its address and routes away, and some cards change their MAC only then.
    sys::interface_up(socket, &card, false)?;
    if let Some(mac) = mac {
        sys::interface_mac(socket, &card, mac)?;
    }
    let Some(network) = network else {
        return super::machine::rewrite(RESOLVER, "");
    };
    sys::interface_mtu(socket, &card, network.mtu)?;
    sys::interface_address(socket, &card, network.address, mask(network.prefix))?;
    sys::interface_up(socket, &card, true)?;
    sys::default_route(socket, network.gateway)?;
    super::machine::rewrite(RESOLVER, &format!("nameserver {}\n", network.dns))
}

/// Why a network can't be meant; `None` if it can.
pub(crate) fn fault(network: &GuestNetwork) -> Option<String> {
    let GuestNetwork { address, prefix, gateway, dns, mtu } = network;
    if !(1..=31).contains(prefix) {
        return Some(format!("a prefix of {prefix} bits is not between 1 and 31"));
    }
    let mask = mask(*prefix);
    if *address & mask != *gateway & mask || address == gateway {
        return Some(format!("the gateway {gateway} is no other host of {address}/{prefix}"));
    }
    let hosts = [address, gateway, dns];
    if let Some(odd) = hosts.iter().find(|host| host.is_unspecified() || host.is_multicast() || host.is_loopback()) {
        return Some(format!("{odd} is no address of a host"));
    }
    (*mtu < MTU_MIN).then(|| format!("an MTU of {mtu} is less than {MTU_MIN}"))
}

/// The mask with `prefix` bits.
fn mask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0))
}

/// The guest's only card, if it has one.
fn card() -> Option<String> {
    let entries = fs::read_dir(INTERFACES).ok()?;
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).find(|name| name != LOOPBACK)
}

/// A socket to ask for interfaces by (netdevice(7)).
fn control_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> GuestNetwork {
        GuestNetwork {
            address: Ipv4Addr::new(10, 77, 0, 2),
            prefix: 30,
            gateway: Ipv4Addr::new(10, 77, 0, 1),
            dns: Ipv4Addr::new(10, 77, 0, 1),
            mtu: 1500,
        }
    }

    #[test]
    fn a_network_that_cannot_work_is_named() {
        assert_eq!(fault(&network()), None);
        let bad = [
            GuestNetwork { prefix: 0, ..network() },
            GuestNetwork { prefix: 32, ..network() },
            GuestNetwork { gateway: Ipv4Addr::new(10, 77, 0, 5), ..network() },
            GuestNetwork { gateway: Ipv4Addr::new(10, 77, 0, 2), ..network() },
            GuestNetwork { dns: Ipv4Addr::UNSPECIFIED, ..network() },
            GuestNetwork { dns: Ipv4Addr::LOCALHOST, ..network() },
            GuestNetwork { mtu: 68, ..network() },
        ];
        for network in bad {
            assert!(fault(&network).is_some(), "{network:?}");
        }
    }

    #[test]
    fn masks_have_as_many_bits_as_asked_for() {
        assert_eq!(mask(30), Ipv4Addr::new(255, 255, 255, 252));
        assert_eq!(mask(1), Ipv4Addr::new(128, 0, 0, 0));
    }
}
