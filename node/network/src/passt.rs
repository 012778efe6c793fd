//! `passt`, where no tap may be made: a process of the machine's own that turns its frames into sockets of the host.
//!
//! It filters nothing. What its guests reach is what any process of its user reaches, so it is never chosen by itself,
//! and no policy that says more than the default is accepted.

use std::env;
use std::path::{Path, PathBuf};

use fabric_types::NetworkPolicy;

use crate::contract::{GuestAddress, NetworkFault, Port};
use crate::plan::{Mac, Number};

/// The program's name.
const PROGRAM: &str = "passt";
/// Where administrators' programs are, beside PATH.
const PATHS: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/sbin"];
/// What a guest behind it is like: each has a process of its own, so all may be alike but for the card.
const ALIKE: Number = Number(0);

/// What its guests reach that no guest should, in one sentence. Its gateway is not the host's loopback, but a guest that
/// forges a frame to 127.0.0.1 has it connect there, as it does to every other address (measured with the one of 2023).
pub(crate) const REACHED: &str = "guests have a network through `passt`, as this node's configuration asks: it enforces no \
    rule, so they reach this host and its loopback, and the private, shared and metadata ranges that it reaches";

/// The program, if it is installed.
pub(crate) fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(PATHS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(PROGRAM)).find(|program| program.is_file())
}

/// A port behind it. The keeper adds the socket.
pub(crate) fn port(program: &Path, mac: Mac) -> Port {
    let guest = ALIKE.guest_address(mac);
    Port::Passt { program: program.to_owned(), arguments: arguments(&guest), guest }
}

fn arguments(guest: &GuestAddress) -> Vec<String> {
    let (address, gateway, prefix) = (guest.address.to_string(), guest.gateway.to_string(), guest.prefix.to_string());
    let dns = guest.dns.to_string();
    let mtu = guest.mtu.to_string();
    // No way in, no IPv6, no gateway that is the host's loopback; the guest is told its address by us alone.
    let flags =
        ["--foreground", "--quiet", "--one-off", "--ipv4-only", "--no-map-gw", "--no-dhcp", "--no-ndp", "--no-ra"];
    let values = [
        ("--tcp-ports", "none"),
        ("--udp-ports", "none"),
        ("--address", &address),
        ("--netmask", &prefix),
        ("--gateway", &gateway),
        ("--dns-forward", &dns),
        ("--mtu", &mtu),
    ];
    let values = values.iter().flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()]);
    flags.iter().map(|flag| (*flag).to_owned()).chain(values).collect()
}

/// Only the default policy is accepted, since nothing else would hold.
pub(crate) fn check(policy: &NetworkPolicy) -> Result<(), NetworkFault> {
    let asked = [
        ("a blocked network", policy.block_all),
        ("allowed ranges", !policy.allow.is_empty()),
        ("denied ranges", !policy.deny.is_empty()),
        ("allowed domains", !policy.allow_domains.is_empty()),
        ("denied domains", !policy.deny_domains.is_empty()),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((what, _)) => Err(NetworkFault::Unenforceable {
            what,
            why: "its guests' network is `passt`, which filters nothing; use a node with taps (root, nftables)"
                .to_owned(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_default_is_promised() {
        assert!(check(&NetworkPolicy::default()).is_ok());
        for text in [
            r#"{"blockAll":true}"#,
            r#"{"blockAll":false,"allow":["1.0.0.0/8"]}"#,
            r#"{"blockAll":false,"deny":["1.0.0.0/8"]}"#,
            r#"{"blockAll":false,"allowDomains":["a.com"]}"#,
            r#"{"blockAll":false,"denyDomains":["a.com"]}"#,
        ] {
            let policy = serde_json::from_str(text).expect("a policy");
            assert!(matches!(check(&policy), Err(NetworkFault::Unenforceable { .. })), "{text}");
        }
    }

    #[test]
    fn the_gateway_is_never_the_hosts_loopback() {
        let Port::Passt { arguments, guest, .. } = port(Path::new("/usr/bin/passt"), Mac::from_chance([1; 5])) else {
            panic!("another kind of port");
        };
        assert!(arguments.contains(&"--no-map-gw".to_owned()));
        assert!(arguments.windows(2).any(|pair| pair == ["--tcp-ports", "none"]));
        assert!(arguments.windows(2).any(|pair| pair == ["--address".to_owned(), guest.address.to_string()]));
    }
}
