//! How a stopped sandbox starts: its disk, from the archive if it lies there, and a kernel that boots over a blank template.
//!
//! A blank template is memory that is all holes. A machine booted over it differs from it by the pages that the guest has
//! written, so a sandbox that was started is frozen, forked, swapped out and snapshotted like a clone.

use std::sync::Arc;

use fabric_types::{FailReason, PhaseEvent};
use node_hypervisor::{MemorySource, Vm, VmError, make_blank_template};
use tokio::time::Instant;

use super::driver::{Driver, Live};
use super::verbs::micros;
use crate::durable::blocking;
use crate::folder::{Home, Life};
use crate::room::Making;
use crate::template::{Template, connect_booted};
use crate::{RuntimeError, machine};

impl Driver {
    /// Boots a stopped sandbox from its disk, which comes back from the archive first if it lies there.
    pub(super) async fn start(&mut self) -> Result<(), RuntimeError> {
        self.context.admit()?;
        let begun = Instant::now();
        self.step(PhaseEvent::Start);
        let booted = match self.record.life.archive() {
            Some(manifest) => match self.bring_disk_back(manifest).await {
                Ok(()) => self.boot().await,
                Err(error) => Err(error),
            },
            None => self.boot().await,
        };
        match booted {
            Ok(()) => {
                tracing::debug!(took_us = micros(begun), "sandbox booted from its disk");
                self.step(PhaseEvent::Started);
                Ok(())
            }
            Err(error) => {
                self.end_machine().await;
                // Its disk is whole, here or in the store: a later start of the node may find what was lacking.
                if self.record.life.archive().is_none() {
                    self.note(Life::Stopped).await;
                }
                self.fail(FailReason::Start(error.to_string()));
                Err(error)
            }
        }
    }

    async fn boot(&mut self) -> Result<(), RuntimeError> {
        let id = self.record.spec.id.clone();
        let Some(home) = self.home.clone() else { return Err(RuntimeError::Unknown(id)) };
        let context = self.context.clone();
        let _turn = context.turn().await;
        context.open()?;
        let _berth = context.room.enter(&context.config, Making::Anew)?;
        self.grow_before_boot(&home).await?;
        let blank = self.blank_template().await?;
        let vm = self.boot_over(&home, blank).await?;
        self.live = Some(Live { vm: vm.clone(), link: None });
        vm.resume().await?;
        let (link, _) = connect_booted(id.as_str(), vm.as_ref()).await?;
        self.live = Some(Live { vm, link: Some(link.clone()) });
        self.identify(&link).await?;
        if self.record.disk_grew {
            self.grow_file_system(&link).await?;
            self.record.disk_grew = false;
        }
        self.write(Life::Running).await
    }

    /// A machine at its first instruction. A driver that can't boot over a template boots without one: its machine can't be
    /// snapshotted, and says so when it is asked.
    async fn boot_over(&mut self, home: &Home, blank: Template) -> Result<Arc<dyn Vm>, RuntimeError> {
        let folder = self.place_machine(home).await?;
        self.record.template = blank.name;
        self.write(Life::Stopped).await?;
        let driver = self.context.driver.clone();
        let over = self.plan(home, folder.clone(), MemorySource::BootOver { template: blank.dir });
        match machine::make(driver.as_ref(), over).await {
            Err(RuntimeError::Machine(VmError::Unsupported { why, .. })) => {
                tracing::info!(why, "booted without a template");
                machine::make(driver.as_ref(), self.plan(home, folder, MemorySource::Boot)).await
            }
            made => made,
        }
    }

    /// The blank template of this sandbox's shape, made where this host has none.
    async fn blank_template(&self) -> Result<Template, RuntimeError> {
        let (templates, shape) = (&self.context.templates, self.record.spec.shape);
        let name = format!("blank-{}", templates.name_of(shape));
        if let Some(template) = templates.by_name(&name, shape).await {
            return Ok(template);
        }
        let _lock = templates.lock(&name).await?;
        if let Some(template) = templates.by_name(&name, shape).await {
            return Ok(template);
        }
        let config = &self.context.config;
        let (dir, fit, image) = (config.templates.join(&name), self.context.driver.fit().clone(), config.image.clone());
        let made = dir.clone();
        blocking(move || make_blank_template(&made, &fit, shape, &image)).await?;
        Ok(Template { name, dir, shape })
    }
}
