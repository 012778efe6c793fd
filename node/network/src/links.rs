//! Links, addresses, routes and switches of the kernel, in the calling thread's network namespace.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::{Error, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::contract::NetworkFault;
use crate::plan::{Link, MTU, Number};

/// The links of one namespace.
#[derive(Clone)]
pub(crate) struct Links {
    handle: Handle,
}

/// A link's index and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) index: u32,
    pub(crate) name: String,
}

fn fault(action: impl Into<String>, cause: impl ToString) -> NetworkFault {
    NetworkFault::System { action: action.into(), cause: cause.to_string() }
}

/// Whether the kernel refused because it is so already, or has no such thing.
fn is(error: &Error, codes: &[i32]) -> bool {
    matches!(error, Error::NetlinkError(message) if message.code.is_some_and(|code| codes.contains(&-code.get())))
}

/// Sets one of the kernel's switches, `net/..` under /proc/sys, of the calling thread's namespace.
pub(crate) fn switch(name: &str, value: &str) -> Result<(), NetworkFault> {
    let path = format!("/proc/sys/net/{name}");
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|cause: io::Error| fault(format!("set {path} to {value}"), cause))
}

impl Links {
    /// Those of the calling thread's namespace. Has to be called on a [`tokio::task::LocalSet`].
    pub(crate) fn open() -> Result<Self, NetworkFault> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|cause| fault("speak with the kernel", cause))?;
        tokio::task::spawn_local(connection);
        Ok(Self { handle })
    }

    /// All of them.
    pub(crate) async fn all(&self) -> Result<Vec<Found>, NetworkFault> {
        let links = self.handle.link().get().execute().try_collect::<Vec<_>>().await;
        let links = links.map_err(|cause| fault("list the links", cause))?;
        let name = |attributes: Vec<LinkAttribute>| {
            attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
        };
        let found = |link: rtnetlink::packet_route::link::LinkMessage| {
            name(link.attributes).map(|name| Found { index: link.header.index, name })
        };
        Ok(links.into_iter().filter_map(found).collect())
    }

    /// The index of one, if it is there.
    pub(crate) async fn index(&self, name: &str) -> Result<Option<u32>, NetworkFault> {
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if is(&error, &[libc::ENODEV]) => Ok(None),
            Err(cause) => Err(fault(format!("find the link {name}"), cause)),
        }
    }

    /// Whether someone holds a tap open. Of one that can't be told, someone does.
    pub(crate) async fn is_held(&self, index: u32) -> bool {
        let link = self.handle.link().get().match_index(index).execute().try_next().await;
        let carrier = link.ok().flatten().and_then(|link| {
            link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::Carrier(carrier) => Some(carrier),
                _ => None,
            })
        });
        carrier != Some(0)
    }

    /// Every IPv4 address, with its link's index.
    pub(crate) async fn addresses(&self) -> Result<Vec<(u32, Ipv4Addr)>, NetworkFault> {
        let all = self.handle.address().get().execute().try_collect::<Vec<_>>().await;
        let all = all.map_err(|cause| fault("list the addresses", cause))?;
        let of = |message: rtnetlink::packet_route::address::AddressMessage| {
            let local = message.attributes.into_iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(address),
                _ => None,
            });
            local.map(|address| (message.header.index, address))
        };
        Ok(all.into_iter().filter_map(of).collect())
    }

    /// The ports whose guests have a route: the open ones.
    pub(crate) async fn open_ports(&self) -> Result<Vec<Number>, NetworkFault> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        let all = self.handle.route().get(request).execute().try_collect::<Vec<_>>().await;
        let all = all.map_err(|cause| fault("list the routes", cause))?;
        let of = |route: RouteMessage| {
            route.attributes.into_iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => Number::of_guest(address),
                _ => None,
            })
        };
        Ok(all.into_iter().filter_map(of).collect())
    }

    /// Makes a pair of ends, one of them in another namespace: made there, since its name is every node's, and two that
    /// start at once would meet in this one.
    pub(crate) async fn pair(&self, here: &str, there: &str, namespace: RawFd) -> Result<(), NetworkFault> {
        let other = LinkMessageBuilder::<LinkUnspec>::new().name(there).setns_by_fd(namespace).build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(here)
            .mtu(u32::from(MTU))
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
            .build();
        let made = self.handle.link().add(pair).execute().await;
        made.map_err(|cause| fault(format!("make the link {here}"), cause))
    }

    /// Gives a link an address and brings it up. That it has it already is no error.
    pub(crate) async fn bring_up(&self, index: u32, address: Option<(Ipv4Addr, u8)>) -> Result<(), NetworkFault> {
        if let Some((address, prefix)) = address {
            match self.handle.address().add(index, address.into(), prefix).execute().await {
                Err(error) if !is(&error, &[libc::EEXIST]) => {
                    return Err(fault(format!("set the address {address}"), error));
                }
                _ => {}
            }
        }
        let up = LinkUnspec::new_with_index(index).up().mtu(u32::from(MTU)).build();
        let up = if address.is_none() { LinkUnspec::new_with_index(index).up().build() } else { up };
        self.handle.link().set(up).execute().await.map_err(|cause| fault("bring a link up", cause))
    }

    /// Everything that is not near goes through the uplink.
    pub(crate) async fn default_route(&self, link: &Link) -> Result<(), NetworkFault> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(link.outer).build();
        self.handle.route().add(route).replace().execute().await.map_err(|cause| fault("set the default route", cause))
    }

    fn route_to(number: Number, index: u32) -> RouteMessage {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(number.guest(), 32)
            .output_interface(index)
            .pref_source(number.gateway())
            .scope(RouteScope::Link)
            .build()
    }

    /// The switch of a port: with a route its guest is heard.
    pub(crate) async fn open_port(&self, number: Number, index: u32) -> Result<(), NetworkFault> {
        let route = Self::route_to(number, index);
        let added = self.handle.route().add(route).replace().execute().await;
        added.map_err(|cause| fault(format!("open port {}", number.0), cause))
    }

    /// Without one it is not.
    pub(crate) async fn shut_port(&self, number: Number, index: u32) -> Result<(), NetworkFault> {
        match self.handle.route().del(Self::route_to(number, index)).execute().await {
            Err(error) if !is(&error, &[libc::ESRCH, libc::ENODEV]) => {
                Err(fault(format!("shut port {}", number.0), error))
            }
            _ => Ok(()),
        }
    }

    /// Removes a link. That it is gone is no error.
    pub(crate) async fn remove(&self, index: u32) -> Result<(), NetworkFault> {
        match self.handle.link().del(index).execute().await {
            Err(error) if !is(&error, &[libc::ENODEV]) => Err(fault("remove a link", error)),
            _ => Ok(()),
        }
    }
}
