//! A sandbox as an earlier process of this node left it: what lives is taken over, what is half-made goes.

use std::sync::Arc;

use fabric_types::{FailReason, Phase};
use node_hypervisor::{Vm, VmError, VmState};

use super::driver::{Live, assemble};
use super::swap::SwapRecord;
use super::{Handle, archive};
use crate::context::Context;
use crate::durable::{self, blocking};
use crate::folder::{Home, Life, SandboxRecord};
use crate::{RuntimeError, machine};

/// Takes over the sandbox in `home`. `None` when it was half-made or half-deleted: then nothing is left of it. One whose
/// folder can't be worked with has failed, and can be deleted.
pub(crate) async fn adopt(context: &Arc<Context>, home: Home, record: SandboxRecord) -> Option<Handle> {
    let (same_home, same_record) = (home.clone(), record.clone());
    match try_adopt(context, home, record).await {
        Ok(adopted) => adopted,
        Err(error) => {
            tracing::error!(sandbox_id = %same_record.spec.id, %error, "a sandbox's folder can't be taken over");
            let reason = FailReason::Storage(error.to_string());
            Some(launched(context, same_record, same_home, Phase::Failed { reason }))
        }
    }
}

async fn try_adopt(
    context: &Arc<Context>,
    home: Home,
    mut record: SandboxRecord,
) -> Result<Option<Handle>, RuntimeError> {
    match record.life.clone() {
        Life::Making | Life::Deleting => {
            end(context, &mut record).await?;
            blocking(move || home.remove(None)).await?;
            Ok(None)
        }
        Life::Stopped => {
            end(context, &mut record).await?;
            durable::remove_beside(home.swap()).await;
            Ok(Some(launched(context, record, home, Phase::Stopped)))
        }
        Life::Archived { .. } => {
            end(context, &mut record).await?;
            archive::clear(home.clone()).await;
            Ok(Some(launched(context, record, home, Phase::Archived)))
        }
        Life::Swapped => adopt_swapped(context, home, record).await.map(Some),
        Life::Failed { reason } => {
            end(context, &mut record).await?;
            Ok(Some(launched(context, record, home, Phase::Failed { reason })))
        }
        Life::Running | Life::Paused => adopt_living(context, home, record).await.map(Some),
    }
}

/// One whose memory is on disk: whatever machine there is was being made from it, or had been left for it.
async fn adopt_swapped(context: &Arc<Context>, home: Home, mut record: SandboxRecord) -> Result<Handle, RuntimeError> {
    end(context, &mut record).await?;
    let at = home.clone();
    if let Err(error) = blocking(move || SwapRecord::read(&at)).await {
        tracing::warn!(sandbox_id = %record.spec.id, %error, "a paused sandbox's memory is lost; its disk is kept");
        return stopped(context, home, record).await;
    }
    Ok(launched(context, record, home, Phase::Paused))
}

/// One that has lost its memory.
async fn stopped(context: &Arc<Context>, home: Home, mut record: SandboxRecord) -> Result<Handle, RuntimeError> {
    record.life = Life::Stopped;
    let (at, written) = (home.clone(), record.clone());
    blocking(move || at.write_sandbox(&written)).await?;
    durable::remove_beside(home.swap()).await;
    Ok(launched(context, record, home, Phase::Stopped))
}

async fn adopt_living(context: &Arc<Context>, home: Home, mut record: SandboxRecord) -> Result<Handle, RuntimeError> {
    let id = record.spec.id.clone();
    let (vm, phase) = match take_over(context, &record).await {
        Ok((vm, VmState::Running)) => (vm, Phase::Running),
        Ok((vm, VmState::Paused)) => (vm, Phase::Paused),
        Ok((_, VmState::Ended)) | Err(_) => {
            tracing::warn!(sandbox_id = %id, "a sandbox's machine is gone, and its memory with it; its disk is kept");
            end(context, &mut record).await?;
            return stopped(context, home, record).await;
        }
    };
    // What the kernel filters has outlived the node; what the node itself answers hasn't.
    if let Err(error) = context.network.apply(record.port.as_ref(), &record.spec.network).await {
        tracing::error!(sandbox_id = %id, %error, "an adopted sandbox's network policy can't be put in force again");
    }
    // Left of a memory that came back.
    durable::remove_beside(home.swap()).await;
    tracing::info!(sandbox_id = %id, phase = phase.as_str(), "sandbox adopted");
    let running = phase == Phase::Running;
    record.life = if running { Life::Running } else { Life::Paused };
    let live = Live { vm: vm.clone(), link: None };
    let (handle, mut driver) = assemble(context, record, Some(home), phase, Some(live));
    if running {
        // A new session: the old one may have been in the middle of a message.
        driver.untold = true;
        match driver.reconnect(vm.as_ref()).await {
            Ok(link) => driver.live = Some(Live { vm, link: Some(link) }),
            Err(error) => tracing::warn!(sandbox_id = %id, %error, "an adopted guest doesn't answer yet"),
        }
    }
    driver.launch();
    Ok(handle)
}

fn launched(context: &Arc<Context>, record: SandboxRecord, home: Home, phase: Phase) -> Handle {
    let (handle, driver) = assemble(context, record, Some(home), phase, None);
    driver.launch();
    handle
}

/// The machine and whether it runs. One that was stopped for a snapshot, or not yet resumed, when the node was killed
/// goes on.
async fn take_over(context: &Context, record: &SandboxRecord) -> Result<(Arc<dyn Vm>, VmState), VmError> {
    let Some(folder) = &record.machine else {
        return Err(VmError::Ended { label: record.spec.id.to_string(), how: "it has none".to_owned() });
    };
    let vm: Arc<dyn Vm> = Arc::from(context.driver.adopt(folder).await?);
    let state = vm.state().await?;
    if state == VmState::Paused && record.life == Life::Running {
        vm.resume().await?;
        return Ok((vm, VmState::Running));
    }
    Ok((vm, state))
}

/// Ends whatever machine there is and removes its files, but for the disk.
async fn end(context: &Context, record: &mut SandboxRecord) -> Result<(), RuntimeError> {
    let Some(folder) = record.machine.take() else { return Ok(()) };
    machine::end(None, &folder).await;
    context.network.unplug(record.port.take()).await;
    blocking(move || durable::remove_folder(&folder.run).and_then(|()| durable::remove_folder(&folder.dir))).await
}
