//! The guests' network as this crate sees it: a port for each machine, and what its guest may reach.
//!
//! ```text
//!   plug ---> (port, nothing passes) --- apply policy ---> (port, its guest reaches what it may) ---> unplug
//! ```
//! A port is written into its home's record before a machine is plugged into it, so that a start of the node knows all
//! ports that are in use; every other one is taken away then. A node without a network plugs nothing, and its guests
//! reach nothing, whatever their policies say.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use fabric_types::NetworkPolicy;
use guest_proto::surface::GuestNetwork;
use node_hypervisor::NetworkDevice;
use node_network::{NetworkFault, Networks, Port};

/// What makes ports and holds guests to their policies.
#[async_trait]
pub(crate) trait Plugs: Send + Sync + 'static {
    /// Whether a policy can be enforced here.
    fn check(&self, policy: &NetworkPolicy) -> Result<(), NetworkFault>;
    /// A port through which nothing passes; none where guests have no network.
    async fn take(&self) -> Result<Option<Port>, NetworkFault>;
    /// Puts a policy in force, now, for connections that are open too.
    async fn apply(&self, port: &Port, policy: &NetworkPolicy) -> Result<(), NetworkFault>;
    /// Takes a port back. Idempotent.
    async fn release(&self, port: Port);
    /// Takes every port back that isn't among these.
    async fn retain(&self, ports: &[Port]) -> Result<(), NetworkFault>;
}

#[async_trait]
impl Plugs for Networks {
    fn check(&self, policy: &NetworkPolicy) -> Result<(), NetworkFault> {
        Self::check(self, policy)
    }

    async fn take(&self) -> Result<Option<Port>, NetworkFault> {
        Self::take(self).await
    }

    async fn apply(&self, port: &Port, policy: &NetworkPolicy) -> Result<(), NetworkFault> {
        Self::apply(self, port, policy).await
    }

    async fn release(&self, port: Port) {
        Self::release(self, port).await;
    }

    async fn retain(&self, ports: &[Port]) -> Result<(), NetworkFault> {
        Self::retain(self, ports).await
    }
}

/// The node's network, if it has one.
#[derive(Clone, Default)]
pub(crate) struct Network {
    plugs: Option<Arc<dyn Plugs>>,
    /// The kind of its ports: the same for all that one process makes.
    kind: Arc<OnceLock<Plug>>,
}

impl Network {
    pub(crate) fn new(plugs: Option<Arc<dyn Plugs>>) -> Self {
        Self { plugs, kind: Arc::default() }
    }

    /// Of which kind the next port is; none while this process hasn't made any.
    pub(crate) fn kind(&self) -> Option<Plug> {
        if self.plugs.is_none() { Some(Plug::None) } else { self.kind.get().copied() }
    }

    /// Refuses a policy that can't be enforced here.
    pub(crate) fn check(&self, policy: &NetworkPolicy) -> Result<(), NetworkFault> {
        self.plugs.as_ref().map_or(Ok(()), |plugs| plugs.check(policy))
    }

    /// A port for a new machine; none where the node has no network.
    pub(crate) async fn plug(&self) -> Result<Option<Port>, NetworkFault> {
        let Some(plugs) = &self.plugs else { return Ok(None) };
        let port = plugs.take().await?;
        self.kind.get_or_init(|| Plug::of(port.as_ref()));
        Ok(port)
    }

    /// Puts a sandbox's policy in force.
    pub(crate) async fn apply(&self, port: Option<&Port>, policy: &NetworkPolicy) -> Result<(), NetworkFault> {
        match (&self.plugs, port) {
            (Some(plugs), Some(port)) => plugs.apply(port, policy).await,
            // Without a port there is nothing that could pass.
            (None, _) | (_, None) => Ok(()),
        }
    }

    /// Takes the port of an ended machine back. Idempotent.
    pub(crate) async fn unplug(&self, port: Option<Port>) {
        if let (Some(plugs), Some(port)) = (&self.plugs, port) {
            plugs.release(port).await;
        }
    }

    /// Takes every port back that isn't among these: what an earlier process of the node left.
    pub(crate) async fn retain(&self, ports: &[Port]) -> Result<(), NetworkFault> {
        match &self.plugs {
            Some(plugs) => plugs.retain(ports).await,
            None => Ok(()),
        }
    }
}

/// Into what kind of thing a machine's card is plugged: a copy of a machine has the kind that the machine had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Plug {
    /// Nothing.
    None,
    /// A tap.
    Tap,
    /// A `passt` process.
    Passt,
}

impl Plug {
    /// The kind of a port.
    pub(crate) fn of(port: Option<&Port>) -> Self {
        match port {
            None => Self::None,
            Some(Port::Tap { .. }) => Self::Tap,
            Some(Port::Passt { .. }) => Self::Passt,
        }
    }

    /// Its name in the names of files.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tap => "tap",
            Self::Passt => "passt",
        }
    }
}

/// What a machine's card is plugged into.
pub(crate) fn device(port: Option<&Port>) -> NetworkDevice {
    match port {
        None => NetworkDevice::None,
        Some(Port::Tap { device, netns, .. }) => {
            NetworkDevice::Tap { name: device.clone(), netns: Some(netns.clone()) }
        }
        Some(Port::Passt { program, arguments, .. }) => {
            NetworkDevice::Passt { program: program.clone(), arguments: arguments.clone() }
        }
    }
}

/// How the guest sets up its card: the MAC and the rest.
pub(crate) fn guest(port: &Port) -> (String, GuestNetwork) {
    let guest = port.guest();
    let network = GuestNetwork {
        address: guest.address,
        prefix: guest.prefix,
        gateway: guest.gateway,
        dns: guest.dns,
        mtu: guest.mtu,
    };
    (guest.mac.clone(), network)
}
