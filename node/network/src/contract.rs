//! The types at this crate's door.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How guests of a node get a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkChoice {
    /// Taps where the node may make them, else `passt` where it is installed, else none.
    #[default]
    Auto,
    /// Taps behind the packet filter, or the node doesn't start.
    Tap,
    /// `passt`, or the node doesn't start.
    Passt,
    /// None.
    None,
}

/// What a node's network is made from.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Tells this node's namespaces, tables and devices from another's on the same host: at most 8 of `[a-z0-9]`.
    pub tag: String,
    /// How guests get a network.
    pub choice: NetworkChoice,
    /// Ports made ahead.
    pub ports_ahead: u32,
    /// The resolvers that the node's own asks; those of /etc/resolv.conf where there are none.
    pub resolvers: Vec<std::net::SocketAddr>,
    /// The namespace in which packets leave the node, as a path that setns(2) takes; the node's own if none is given.
    pub uplink: Option<PathBuf>,
    /// Ranges that no guest reaches, beside those that none ever does: the fabric's public addresses.
    pub forbidden: Vec<ipnet::IpNet>,
    /// Most bits a second of one guest, each way; zero for no limit.
    pub bits_per_second: u64,
    /// Most connections that one guest holds open.
    pub connections: u32,
}

/// One guest's plug: what a machine's card is plugged into. It lets nothing through until it has a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Port {
    /// A tap.
    Tap {
        /// Its number on the node.
        number: u16,
        /// The device's name.
        device: String,
        /// The namespace that it lies in.
        netns: PathBuf,
        /// How the guest sets up its card.
        guest: GuestAddress,
    },
    /// A `passt` process, which the machine's keeper runs.
    Passt {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<String>,
        /// How the guest sets up its card.
        guest: GuestAddress,
    },
}

impl Port {
    /// How the guest sets up its card.
    pub fn guest(&self) -> &GuestAddress {
        match self {
            Self::Tap { guest, .. } | Self::Passt { guest, .. } => guest,
        }
    }
}

/// How a guest sets up its card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestAddress {
    /// The card's MAC, as `02:..`; frames from another one are dropped.
    pub mac: String,
    /// Its address; packets from another one are dropped.
    pub address: Ipv4Addr,
    /// Bits of the address that name its network.
    pub prefix: u8,
    /// Where everything is sent.
    pub gateway: Ipv4Addr,
    /// The only resolver that it reaches.
    pub dns: Ipv4Addr,
    /// Largest packet, bytes.
    pub mtu: u16,
}

/// Why the network refused or failed.
#[derive(Debug, Error)]
pub enum NetworkFault {
    /// This host or way can't enforce what was asked for.
    #[error("this node can't enforce {what}: {why}")]
    Unenforceable {
        /// The part of the policy.
        what: &'static str,
        /// Why, and what to do.
        why: String,
    },
    /// The kernel or a program refused.
    #[error("can't {action}: {cause}")]
    System {
        /// What was tried.
        action: String,
        /// How it failed.
        cause: String,
    },
    /// As many ports as a node may have.
    #[error("this node has {limit} network ports, as many as it may")]
    Full {
        /// The limit.
        limit: u16,
    },
}
