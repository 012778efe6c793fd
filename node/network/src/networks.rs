//! The door of this crate: a handle to the one task that owns a node's guest network.

use fabric_types::{GuestNetwork, NetworkPolicy};

use crate::contract::{NetworkConfig, NetworkFault, Port};

/// A node's guest network. Cheap to clone; all clones speak with the same owner.
#[derive(Debug, Clone)]
pub struct Networks {
    kind: GuestNetwork,
    reason: String,
}

impl Networks {
    /// Starts the network. Whatever ports an earlier process of this tag left go on as they are, until [`Networks::retain`].
    pub async fn start(config: NetworkConfig) -> Result<Self, NetworkFault> {
        let _ = config;
        Ok(Self { kind: GuestNetwork::None, reason: "this node gives its guests no network".to_owned() })
    }

    /// How guests get their network.
    pub fn kind(&self) -> GuestNetwork {
        self.kind
    }

    /// Why they get it this way, in one sentence.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// A port for a new guest; `None` where guests have no network. It lets nothing through until [`Networks::apply`].
    pub async fn take(&self) -> Result<Option<Port>, NetworkFault> {
        Ok(None)
    }

    /// Puts a policy in force, also under open connections: those that it forbids die at once.
    pub async fn apply(&self, port: &Port, policy: &NetworkPolicy) -> Result<(), NetworkFault> {
        let _ = port;
        self.check(policy)
    }

    /// Lets nothing through the port any more.
    pub async fn block(&self, port: &Port) -> Result<(), NetworkFault> {
        let _ = port;
        Ok(())
    }

    /// Takes a port back; nothing of its guest's state stays.
    pub async fn release(&self, port: Port) {
        let _ = port;
    }

    /// After a restart: removes every port but these.
    pub async fn retain(&self, in_use: &[Port]) -> Result<(), NetworkFault> {
        let _ = in_use;
        Ok(())
    }

    /// Whether this node can enforce a policy.
    pub fn check(&self, policy: &NetworkPolicy) -> Result<(), NetworkFault> {
        let _ = policy;
        Ok(())
    }

    /// Ends the owner. With `remove`, namespaces, tables and devices go too; without, guests go on, filtered.
    pub async fn stop(&self, remove: bool) {
        let _ = remove;
    }
}
