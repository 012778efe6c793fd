//! The guests' network on one node.
//!
//! With the right to administer the network, a node has a namespace of its own with a tap for each guest, behind the
//! packet filter; what guests may never reach is refused there, and a second time where packets leave. Without it guests
//! have no network, unless the configuration asks for `passt`, which promises nothing: even the host's loopback is
//! reached by a guest that forges frames, though the gateway is not mapped there. Guests have no IPv6: every frame of it is dropped, v4-mapped addresses with them.
//!
//! ```text
//! networks   the door: a handle to the owner          names      what the resolver says (pure)
//! contract   the types at this crate's door           resolver   answers the guests' questions, pins what it says
//! owner      the one owner of ports and policies      uplink     the link out, the second wall, questions to others
//! crew       makes and removes ports beside it        filter     transactions, through `nft`
//! found      reads an earlier process's ports (pure)  links      links, addresses, routes, switches
//! plan       numbers, names, addresses (pure)         conntrack  forgets a port's connections
//! ruleset    every rule, from what it depends on      namespace  namespaces, and threads that live in one
//!            (pure), in the words of `rule`           passt      the way without taps
//! ```
//!
//! What has to hold on the host: root or CAP_NET_ADMIN with CAP_SYS_ADMIN, `nft`, and a kernel with nftables (fib, ct,
//! limit, NAT), nf_conntrack_netlink, veth and tun. Forwarding is switched on in the uplink's namespace; a host whose own
//! rules drop forwarded packets (as container engines set up) has to let those of the device `atoll-TAG` pass.

mod conntrack;
mod contract;
mod crew;
mod filter;
mod found;
mod links;
mod names;
mod namespace;
mod networks;
mod owner;
mod passt;
mod plan;
mod resolver;
mod rule;
mod ruleset;
mod sys;
mod uplink;

pub use contract::*;
pub use networks::Networks;
