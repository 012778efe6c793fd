//! Templates: a guest of one image and shape boots once, warms up, and its memory is saved for all its clones.
//!
//! ```text
//! <templates>/<id>/              a sealed template, written by the driver; its own manifest says that it is complete
//! <templates>/<id>.lock          held while one process makes it: the nodes of a host share
//! <templates>/<id>.boot.json     where the machine lives that is becoming it
//! <templates>/<id>.manifest.json its name in snapshot stores, once one has taken it in
//! ```
//! The id of a booted template is a hash of image, agent contract, shape and fit; a template that came out of a snapshot
//! store is named by its manifest. The memory of two boots differs, so a snapshot names the very template by its manifest.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fabric_types::{Digest, Fit, Shape};
use guest_proto::surface::Health;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use node_hypervisor::{
    Hypervisor, MemorySource, TemplateManifest, Vm, VmError, VmFolder, end_machine, make_disk, template_disk,
    template_memory,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::durable::{self, At, blocking};
use crate::guest::Link;
use crate::machine::{self, Plan};
use crate::{RuntimeConfig, RuntimeError, rehearsal};

/// Newest schema of this file's records that this version reads, and the one that it writes.
const SCHEMA: u32 = 1;
/// Hexadecimal digits of a template's folder name: 64 bits, among a handful.
const ID_DIGITS: usize = 16;
/// How long one process waits for another that makes the same template: a boot under TCG on a loaded host, twice.
const LOCK_MAX: Duration = Duration::from_secs(300);
/// How often it looks.
const LOCK_EVERY: Duration = Duration::from_millis(100);
/// Longest boot until the agent answers: 3 s under TCG on an idle host.
const BOOT_MAX: Duration = Duration::from_secs(90);

/// A sealed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    /// Its folder's name.
    pub(crate) name: String,
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// Its shape.
    pub(crate) shape: Shape,
}

impl Template {
    /// The disk that its clones start from.
    pub(crate) fn disk(&self) -> PathBuf {
        template_disk(&self.dir)
    }

    /// Its memory.
    pub(crate) fn memory(&self) -> PathBuf {
        template_memory(&self.dir)
    }
}

/// All templates of the host.
pub(crate) struct Templates {
    config: RuntimeConfig,
    driver: Arc<dyn Hypervisor>,
}

#[derive(Serialize, Deserialize)]
struct BootRecord {
    schema: u32,
    machine: VmFolder,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestRecord {
    schema: u32,
    manifest: Digest,
}

impl Templates {
    pub(crate) fn new(config: RuntimeConfig, driver: Arc<dyn Hypervisor>) -> Self {
        Self { config, driver }
    }

    /// The folder name of the template of a shape on this node.
    pub(crate) fn name_of(&self, shape: Shape) -> String {
        template_id(&self.config.image_digest, self.config.agent_protocol, shape, self.driver.fit())
    }

    /// A template by its folder's name, if it is sealed and fits this node.
    pub(crate) async fn by_name(&self, name: &str, shape: Shape) -> Option<Template> {
        let template = Template { name: name.to_owned(), dir: self.config.templates.join(name), shape };
        let (dir, fit, image) = (template.dir.clone(), self.driver.fit().clone(), self.config.image.clone());
        let sealed = blocking(move || TemplateManifest::read(&dir)?.check(&dir, &fit, shape, &image)).await;
        match sealed {
            Ok(()) => Some(template),
            Err(error) => {
                tracing::debug!(template = name, %error, "not a template to clone");
                None
            }
        }
    }

    /// The template of a shape, booted if it isn't there, with `run` for its sockets. Takes seconds then, or waits for the
    /// process that boots it. When cancelled or failed, what it began is ended.
    pub(crate) async fn ensure(
        &self,
        shape: Shape,
        run: PathBuf,
        cancel: &CancellationToken,
    ) -> Result<Template, RuntimeError> {
        let name = self.name_of(shape);
        if let Some(template) = self.by_name(&name, shape).await {
            return Ok(template);
        }
        let lock = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(RuntimeError::Stopping),
            lock = self.lock(&name) => lock?,
        };
        if let Some(template) = self.by_name(&name, shape).await {
            return Ok(template);
        }
        self.clear_half_made(&name).await?;
        let folder = VmFolder { dir: self.config.templates.join(format!("{name}.vm")), run };
        let made = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(RuntimeError::Stopping),
            made = self.boot(&name, shape, folder.clone()) => made,
        };
        if made.is_err() {
            self.clear_half_made(&name).await?;
        } else {
            self.clear_boot(&name, folder).await?;
        }
        drop(lock);
        made?;
        self.by_name(&name, shape).await.ok_or_else(|| RuntimeError::NoTemplate(self.config.template.clone()))
    }

    /// The template that a snapshot store knows by `manifest`, if this host has it.
    pub(crate) async fn by_manifest(&self, manifest: Digest, shape: Shape) -> Option<Template> {
        let templates = self.config.templates.clone();
        let names = blocking(move || names_of(&templates, manifest)).await;
        for name in names {
            if let Some(template) = self.by_name(&name, shape).await {
                return Some(template);
            }
        }
        None
    }

    /// The name that a snapshot store gave to a template.
    pub(crate) async fn manifest_of(&self, name: &str) -> Result<Option<Digest>, RuntimeError> {
        let path = self.config.templates.join(format!("{name}.manifest.json"));
        let record = blocking(move || durable::read::<ManifestRecord>(&path, SCHEMA)).await?;
        Ok(record.map(|record| record.manifest))
    }

    /// Notes the name that a snapshot store gave to a template.
    pub(crate) async fn set_manifest(&self, name: &str, manifest: Digest) -> Result<(), RuntimeError> {
        let path = self.config.templates.join(format!("{name}.manifest.json"));
        blocking(move || durable::write(&path, &ManifestRecord { schema: SCHEMA, manifest })).await
    }

    /// Holds off every other process that would make this template.
    pub(crate) async fn lock(&self, name: &str) -> Result<Flock<File>, RuntimeError> {
        let path = self.config.templates.join(format!("{name}.lock"));
        let deadline = Instant::now() + LOCK_MAX;
        durable::make_folder(&self.config.templates)?;
        let mut file = File::create(&path).at("create", &path)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                    file = back;
                    tokio::time::sleep(LOCK_EVERY).await;
                }
                Err((_, error)) => return Err(std::io::Error::from(error)).at("lock", &path),
            }
        }
    }

    async fn boot(&self, name: &str, shape: Shape, folder: VmFolder) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let dir = self.config.templates.join(name);
        let record = self.config.templates.join(format!("{name}.boot.json"));
        let machine = folder.clone();
        let disk = template_disk(&dir);
        let (made_dir, made_disk) = (dir.clone(), disk.clone());
        blocking(move || -> Result<(), RuntimeError> {
            durable::write(&record, &BootRecord { schema: SCHEMA, machine })?;
            durable::make_folder(&made_dir)?;
            Ok(make_disk(&made_disk, shape.disk())?)
        })
        .await?;
        let label = format!("template-{name}");
        let plan = Plan {
            label: label.clone(),
            folder,
            shape,
            image: self.config.image.clone(),
            disk,
            memory: MemorySource::BootTemplate { template: dir },
            checkpoint: None,
            port: None,
            limits: self.config.limits.of(shape),
        };
        let vm = machine::make(self.driver.as_ref(), plan).await?;
        vm.resume().await?;
        let (link, health) = connect_booted(&label, vm.as_ref()).await?;
        self.check_agent(&label, &health)?;
        let booted_ms = begun.elapsed().as_millis();
        rehearsal::rehearse(&label, &link, None, rehearsal::TEMPLATE).await?;
        rehearsal::sync(&label, &link).await?;
        link.close();
        vm.save_template().await?;
        machine::end(Some(vm.as_ref()), &vm.spec().folder).await;
        tracing::info!(template = name, %shape, booted_ms, took_ms = begun.elapsed().as_millis(), "template made");
        Ok(())
    }

    fn check_agent(&self, label: &str, health: &Health) -> Result<(), RuntimeError> {
        if health.protocol == self.config.agent_protocol {
            return Ok(());
        }
        let cause = format!("its contract is {}, the image's is {}", health.protocol, self.config.agent_protocol);
        Err(RuntimeError::Guest { id: label.to_owned(), action: "speak the image's contract", cause })
    }

    /// Ends what became of an earlier try and removes its files. Only under the lock.
    async fn clear_half_made(&self, name: &str) -> Result<(), RuntimeError> {
        let record = self.config.templates.join(format!("{name}.boot.json"));
        let dir = self.config.templates.join(name);
        blocking(move || {
            if let Ok(Some(BootRecord { machine, .. })) = durable::read::<BootRecord>(&record, SCHEMA) {
                end_machine(&machine);
                durable::remove_folder(&machine.dir)?;
                durable::remove_folder(&machine.run)?;
            }
            durable::remove_folder(&dir)?;
            durable::remove_file(&record)
        })
        .await
    }

    async fn clear_boot(&self, name: &str, folder: VmFolder) -> Result<(), RuntimeError> {
        let record = self.config.templates.join(format!("{name}.boot.json"));
        blocking(move || {
            durable::remove_folder(&folder.dir)?;
            durable::remove_folder(&folder.run)?;
            durable::remove_file(&record)
        })
        .await
    }
}

/// Opens a session with an agent that is only just booting.
pub(crate) async fn connect_booted(label: &str, vm: &dyn Vm) -> Result<(Link, Health), RuntimeError> {
    let connect = async {
        let link = Link::open(vm, BOOT_MAX).await.map_err(|error| RuntimeError::Guest {
            id: label.to_owned(),
            action: "answer after its boot",
            cause: error.to_string(),
        })?;
        let health = rehearsal::health(label, &link).await?;
        Ok((link, health))
    };
    tokio::select! {
        biased;
        how = vm.ended() => Err(RuntimeError::Machine(VmError::Ended { label: label.to_owned(), how })),
        connected = connect => connected,
    }
}

fn names_of(templates: &std::path::Path, manifest: Digest) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(templates) else { return Vec::new() };
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| file.strip_suffix(".manifest.json").map(str::to_owned))
        .filter(|name| {
            let record = durable::read::<ManifestRecord>(&templates.join(format!("{name}.manifest.json")), SCHEMA);
            matches!(record, Ok(Some(record)) if record.manifest == manifest)
        })
        .collect();
    names.sort();
    names
}

/// The folder name of a template: a hash of everything that its guest depends on.
fn template_id(image: &str, agent_protocol: u32, shape: Shape, fit: &Fit) -> String {
    let fit = serde_json::to_string(fit).expect("a fit is plain data");
    let text = format!("{image}\n{agent_protocol}\n{shape}\n{fit}\n");
    let mut id = blake3::hash(text.as_bytes()).to_hex().to_string();
    id.truncate(ID_DIGITS);
    id
}

#[cfg(test)]
mod tests {
    use fabric_types::{Accelerator, HypervisorKind};

    use super::*;

    fn fit() -> Fit {
        Fit {
            hypervisor: HypervisorKind::Qemu,
            version: "7.2".to_owned(),
            machine: "pc".to_owned(),
            accelerator: Accelerator::Tcg,
            cpu_model: "max".to_owned(),
            cpu_features: Vec::new(),
        }
    }

    #[test]
    fn everything_that_a_guest_depends_on_names_another_template() {
        let base = template_id("image", 1, Shape::DEFAULT, &fit());
        assert_eq!(base.len(), ID_DIGITS);
        assert_eq!(base, template_id("image", 1, Shape::DEFAULT, &fit()));
        let larger = Shape::new(1, 1024, 4).expect("a shape");
        let others = [
            template_id("image2", 1, Shape::DEFAULT, &fit()),
            template_id("image", 2, Shape::DEFAULT, &fit()),
            template_id("image", 1, larger, &fit()),
            template_id("image", 1, Shape::DEFAULT, &Fit { version: "8.0".to_owned(), ..fit() }),
        ];
        for other in others {
            assert_ne!(base, other);
        }
    }
}
