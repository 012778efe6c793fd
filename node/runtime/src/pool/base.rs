//! A home in the pool: what every machine that is made ahead begins from.

use node_hypervisor::{MemorySource, VmFolder};
use node_network::Port;

use crate::context::Context;
use crate::durable::blocking;
use crate::folder::{CloneRecord, Home, SCHEMA};
use crate::machine::{self, Plan};
use crate::template::Template;
use crate::{RuntimeError, identity};

/// A home whose record is on disk, with the port that the record names. Until the record says that it is ready, a start of
/// the node removes all of it.
pub(super) struct Base {
    pub(super) home: Home,
    pub(super) folder: VmFolder,
    pub(super) port: Option<Port>,
    pub(super) record: CloneRecord,
}

impl Base {
    /// Makes the home. On an error nothing is left of it.
    pub(super) async fn make(context: &Context, template: &Template) -> Result<Self, RuntimeError> {
        let home = context.folders.clone_home(identity::chance()?);
        let folder = home.machine(context.folders.run(identity::chance()?));
        let port = context.network.plug().await?;
        let record = CloneRecord {
            schema: SCHEMA,
            machine: folder.clone(),
            port: port.clone(),
            template: template.name.clone(),
            shape: template.shape,
            ready: false,
        };
        let base = Self { home, folder, port, record };
        let (at, record) = (base.home.clone(), base.record.clone());
        match blocking(move || at.make().and_then(|()| at.write_clone(&record))).await {
            Ok(()) => Ok(base),
            Err(error) => {
                base.clear(context).await;
                Err(error)
            }
        }
    }

    pub(super) fn plan(&self, context: &Context, template: &Template) -> Plan {
        let name = self.home.dir().file_name().map_or_else(String::new, |name| name.display().to_string());
        Plan {
            label: format!("pool-{name}"),
            folder: self.folder.clone(),
            shape: template.shape,
            image: context.config.image.clone(),
            disk: self.home.disk(),
            memory: MemorySource::Clone { template: template.dir.clone() },
            checkpoint: None,
            port: self.port.clone(),
            limits: context.config.limits.of(template.shape),
        }
    }

    /// Ends whatever runs in it and removes it.
    pub(super) async fn clear(self, context: &Context) {
        machine::end(None, &self.folder).await;
        context.network.unplug(self.port).await;
        let (home, folder) = (self.home, self.folder);
        if let Err(error) = blocking(move || home.remove(Some(&folder))).await {
            tracing::warn!(%error, "what was begun of a warm clone couldn't be removed; the next start tries again");
        }
    }
}
