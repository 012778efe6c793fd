//! Making and ending machines: each function leaves a machine or nothing.

use std::path::PathBuf;
use std::sync::Arc;

use fabric_types::Shape;
use node_hypervisor::{
    Hypervisor, ImagePaths, MachineLimits, MemorySource, Spare, Vm, VmError, VmFolder, VmSpec, checkpoint_disk,
    copy_sparse, end_machine,
};
use node_network::Port;
use tokio::time::Instant;

use crate::durable::{blocking, make_folder};
use crate::template::Template;
use crate::{RuntimeError, network};

/// A machine to be made.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// For logs and process titles.
    pub(crate) label: String,
    /// Where its files and sockets lie.
    pub(crate) folder: VmFolder,
    /// vCPU and memory.
    pub(crate) shape: Shape,
    /// The image.
    pub(crate) image: ImagePaths,
    /// Its own disk.
    pub(crate) disk: PathBuf,
    /// Where its memory comes from.
    pub(crate) memory: MemorySource,
    /// The checkpoint that it is a copy of.
    pub(crate) checkpoint: Option<PathBuf>,
    /// What its network card is plugged into.
    pub(crate) port: Option<Port>,
    /// What the host lets it use.
    pub(crate) limits: MachineLimits,
}

impl Plan {
    fn spec(self) -> VmSpec {
        VmSpec {
            label: self.label,
            folder: self.folder,
            shape: self.shape,
            image: self.image,
            disk: self.disk,
            memory: self.memory,
            checkpoint: self.checkpoint,
            network: network::device(self.port.as_ref()),
            limits: self.limits,
        }
    }
}

/// Makes the machine, paused. On an error, or when the future is dropped and [`end`] is called after it, nothing of it runs.
pub(crate) async fn make(driver: &dyn Hypervisor, plan: Plan) -> Result<Arc<dyn Vm>, RuntimeError> {
    let folder = plan.folder.clone();
    blocking(move || make_folder(&folder.dir).and_then(|()| make_folder(&folder.run))).await?;
    Ok(Arc::from(driver.create(plan.spec()).await?))
}

/// A clone of `template`: its disk is a copy of the template's.
pub(crate) async fn make_clone(
    driver: &dyn Hypervisor,
    template: &Template,
    mut plan: Plan,
) -> Result<Arc<dyn Vm>, RuntimeError> {
    let (from, to) = (template.disk(), plan.disk.clone());
    blocking(move || copy_sparse(&from, &to)).await?;
    plan.memory = MemorySource::Clone { template: template.dir.clone() };
    make(driver, plan).await
}

/// A copy of the machine in `checkpoint`, whose memory began from `template`: its disk is a copy of the one there.
pub(crate) async fn make_copy(
    driver: &dyn Hypervisor,
    template: &Template,
    checkpoint: PathBuf,
    mut plan: Plan,
) -> Result<Arc<dyn Vm>, RuntimeError> {
    let begun = Instant::now();
    let (from, to) = (checkpoint_disk(&checkpoint), plan.disk.clone());
    blocking(move || copy_sparse(&from, &to)).await?;
    let disk_us = begun.elapsed().as_micros();
    plan.memory = MemorySource::Clone { template: template.dir.clone() };
    plan.checkpoint = Some(checkpoint);
    let vm = make(driver, plan).await?;
    tracing::debug!(label = vm.spec().label, disk_us, took_us = begun.elapsed().as_micros(), "copied a checkpoint");
    Ok(vm)
}

/// Everything that a clone of `template` needs but its guest: folders, disk, and its monitor where the driver can start
/// one ahead.
pub(crate) async fn start_ahead(
    driver: &dyn Hypervisor,
    template: &Template,
    plan: Plan,
) -> Result<Option<Box<dyn Spare>>, RuntimeError> {
    let (from, to, folder) = (template.disk(), plan.disk.clone(), plan.folder.clone());
    blocking(move || -> Result<(), RuntimeError> {
        copy_sparse(&from, &to)?;
        make_folder(&folder.dir)?;
        make_folder(&folder.run)
    })
    .await?;
    match driver.spare(plan.spec()).await {
        Ok(spare) => Ok(Some(spare)),
        Err(VmError::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Ends a machine by whatever means are left. Idempotent; up to 9 s where it doesn't answer.
pub(crate) async fn end(vm: Option<&dyn Vm>, folder: &VmFolder) {
    if let Some(vm) = vm {
        match vm.shutdown().await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "a machine didn't end when asked; ending it by force"),
        }
    }
    let folder = folder.clone();
    blocking(move || end_machine(&folder)).await;
}
