//! Snapshots: a stop of milliseconds, the files into the store beside the running sandbox; and back to life from one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use fabric_types::{Digest, Fit, Generation, PhaseEvent, Shape, SnapshotId};
use node_hypervisor::{MemorySource, SnapshotFiles, SnapshotTaken, TemplateManifest};
use node_snapshot::{FileName, Kind, Manifest, SandboxInput, SnapshotStore, StoreError, TemplateFiles, TemplateInput};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::Instrument;

use super::driver::Driver;
use super::verbs::micros;
use super::{Reply, Waiting};
use crate::context::Context;
use crate::durable::{self, At, blocking};
use crate::machine;
use crate::room::Making;
use crate::template::Template;
use crate::{RuntimeError, SnapshotOutcome, identity};

/// Newest schema of [`Meta`] that this version reads, and the one that it writes.
const SCHEMA: u32 = 1;

/// The runtime's own part of a manifest: what a guest depends on beside its fit and shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    schema: u32,
    /// The image that its root file system is of.
    image: String,
    /// The contract number of its agent.
    agent_protocol: u32,
}

/// What a snapshot's way into the store needs of the sandbox.
struct Taken {
    id: SnapshotId,
    files: SnapshotTaken,
    into: PathBuf,
    generation: Generation,
    shape: Shape,
    template: String,
}

impl Driver {
    /// Stops the sandbox for a moment, and answers when its memory and disk are in the store; it runs on meanwhile.
    pub(super) async fn snapshot(&mut self, id: SnapshotId, reply: Reply<SnapshotOutcome>, waiting: Waiting) {
        let into = self.context.folders.snapshot(&id);
        let taken = self.take_snapshot(&into).await;
        let taken = match taken {
            Ok(files) => Taken {
                id,
                files,
                into,
                generation: self.record.generation,
                shape: self.record.spec.shape,
                template: self.record.template.clone(),
            },
            Err(error) => {
                durable::remove_beside(into).await;
                drop(waiting);
                // Whoever asked may have gone away; nothing is left.
                let _ = reply.send(Err(error));
                return;
            }
        };
        let context = self.context.clone();
        let store = async move {
            let into = taken.into.clone();
            let outcome = store_snapshot(&context, taken).await;
            durable::remove_beside(into).await;
            drop(waiting);
            // Whoever asked may have gone away; the store collects what no catalog names.
            let _ = reply.send(outcome);
        };
        tokio::spawn(store.in_current_span());
    }

    async fn take_snapshot(&mut self, into: &Path) -> Result<SnapshotTaken, RuntimeError> {
        self.context.admit()?;
        let folder = into.to_owned();
        blocking(move || durable::remove_folder(&folder).and_then(|()| durable::make_folder(&folder))).await?;
        let vm = match &self.live {
            Some(live) => live.vm.clone(),
            None => return Err(RuntimeError::Unknown(self.record.spec.id.clone())),
        };
        self.step(PhaseEvent::Snapshot);
        let taken = vm.snapshot(into).await;
        // The driver lets the machine go on whether the snapshot succeeded or not; one that ended is found by the loop.
        self.step(PhaseEvent::Snapshotted);
        let taken = taken?;
        tracing::debug!(stop_us = taken.stop_us, runs = taken.files.runs.len(), "snapshot taken");
        Ok(taken)
    }

    /// Brings a new sandbox to life from a snapshot whose chunks are here.
    pub(super) async fn begin_from_snapshot(&mut self, digest: Digest) -> Result<(), RuntimeError> {
        let begun = Instant::now();
        let context = self.context.clone();
        let _turn = context.turn().await;
        context.open()?;
        let _berth = context.room.enter(&context.config, Making::Anew)?;
        self.record.machine_id = identity::new_machine_id()?;
        let manifest = context.store.manifest(digest).await.map_err(|error| failed("read its manifest", &error))?;
        self.check_fit(digest, &manifest)?;
        let template = find_template(&context, digest, &manifest).await?;
        let (home, folder) = self.settle(&template).await?;
        let found_us = micros(begun);
        let whole = context
            .store
            .materialize_sandbox(digest, Some(template.disk()), home.restore())
            .await
            .map_err(|error| failed("put it together", &error))?;
        let (from, to) = (whole.disk.clone(), home.disk());
        blocking(move || std::fs::rename(&from, &to).at("move the disk to", &to)).await?;
        let put_together_us = micros(begun);
        let snapshot =
            SnapshotFiles { device_state: whole.device_state, pages: whole.pages, runs: whole.runs, disk: home.disk() };
        let memory = MemorySource::Restore { template: template.dir, snapshot };
        let vm = machine::make(context.driver.as_ref(), self.plan(&home, folder, memory)).await?;
        let made_us = micros(begun);
        self.come_alive(vm).await?;
        // Device state and pages are in the machine now.
        durable::remove_beside(home.restore()).await;
        tracing::debug!(took_us = micros(begun), found_us, put_together_us, made_us, "snapshot resumed");
        Ok(())
    }

    fn check_fit(&self, digest: Digest, manifest: &Manifest) -> Result<(), RuntimeError> {
        let config = &self.context.config;
        let header = manifest.header();
        let unfit = |needs: String, has: String| Err(RuntimeError::Unfit { manifest: digest, needs, has });
        if header.kind != Kind::Sandbox {
            return unfit(format!("no resume: it is a {:?}", header.kind), "no use for it here".to_owned());
        }
        let meta = Meta::read(&header.meta).map_err(|cause| failed("read its manifest", &cause))?;
        let here = self.context.driver.fit();
        if header.fit != *here {
            return unfit(fit_text(&header.fit), fit_text(here));
        }
        if header.shape != self.record.spec.shape {
            return unfit(format!("shape {}", header.shape), format!("been asked for {}", self.record.spec.shape));
        }
        if meta.image != config.image_digest {
            return unfit(format!("image {}", meta.image), format!("image {}", config.image_digest));
        }
        if meta.agent_protocol > config.agent_protocol {
            return unfit(format!("agent contract {}", meta.agent_protocol), format!("{}", config.agent_protocol));
        }
        Ok(())
    }
}

impl Meta {
    fn of(context: &Context) -> Result<serde_json::Value, RuntimeError> {
        let config = &context.config;
        let meta = Self { schema: SCHEMA, image: config.image_digest.clone(), agent_protocol: config.agent_protocol };
        serde_json::to_value(meta).map_err(|error| failed("describe it", &error))
    }

    fn read(value: &serde_json::Value) -> Result<Self, String> {
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            Some(schema) if schema <= u64::from(SCHEMA) => {
                serde_json::from_value(value.clone()).map_err(|error| error.to_string())
            }
            Some(schema) => Err(format!("the runtime's part has schema {schema}; this version reads up to {SCHEMA}")),
            None => Err("the runtime's part has no schema".to_owned()),
        }
    }
}

async fn store_snapshot(context: &Context, taken: Taken) -> Result<SnapshotOutcome, RuntimeError> {
    let begun = Instant::now();
    let name = taken.template.clone();
    let template = context.templates.by_name(&name, taken.shape).await;
    let template = template.ok_or_else(|| failed("store it", &format!("its template {name} is not here any more")))?;
    let parent = store_template(context, &template).await?;
    let parent_us = micros(begun);
    let SnapshotTaken { files, stop_us } = taken.files;
    let input = SandboxInput {
        fit: context.driver.fit().clone(),
        shape: taken.shape,
        generation: taken.generation,
        meta: Meta::of(context)?,
        template: Some(TemplateFiles {
            manifest: parent,
            memory: Some(template.memory()),
            disk: Some(template.disk()),
        }),
        device_state: files.device_state,
        pages: files.pages,
        runs: files.runs,
        disk: files.disk,
    };
    let stored = context.store.ingest_sandbox(input).await.map_err(|error| failed("store it", &error))?;
    let id = taken.id;
    tracing::info!(
        snapshot_id = %id, manifest = %stored.manifest, stop_us, parent_us, took_us = micros(begun),
        stored_bytes = stored.stored_bytes, "snapshot stored"
    );
    Ok(SnapshotOutcome {
        id,
        manifest: stored.manifest,
        size_bytes: stored.size_bytes,
        stored_bytes: stored.stored_bytes,
        stop_us,
        fit: context.driver.fit().clone(),
    })
}

/// The template's name in the store, which takes it in at its first snapshot.
async fn store_template(context: &Context, template: &Template) -> Result<Digest, RuntimeError> {
    if let Some(digest) = context.templates.manifest_of(&template.name).await?
        && is_whole(&context.store, digest).await?
    {
        return Ok(digest);
    }
    let begun = Instant::now();
    let dir = template.dir.clone();
    let (shape, files) = blocking(move || -> Result<_, RuntimeError> {
        // Its own shape: the sandbox's disk may have grown since it came from it, and a template has one name everywhere.
        Ok((TemplateManifest::read(&dir)?.shape, template_files(&dir)?))
    })
    .await?;
    let input = TemplateInput { fit: context.driver.fit().clone(), shape, meta: Meta::of(context)?, files };
    let stored = context.store.ingest_template(input).await.map_err(|error| failed("store its template", &error))?;
    context.templates.set_manifest(&template.name, stored.manifest).await?;
    let took_us = micros(begun);
    tracing::info!(template = template.name, manifest = %stored.manifest, took_us, "template stored");
    Ok(stored.manifest)
}

async fn is_whole(store: &SnapshotStore, digest: Digest) -> Result<bool, RuntimeError> {
    match store.missing(digest).await {
        Ok(missing) => Ok(missing.chunks == 0),
        Err(StoreError::NoManifest(_) | StoreError::Damaged { .. }) => Ok(false),
        Err(error) => Err(failed("look for its template", &error)),
    }
}

/// The very template that a snapshot was cloned from: this host's, or put together from the store.
async fn find_template(context: &Context, digest: Digest, manifest: &Manifest) -> Result<Template, RuntimeError> {
    let (parent, shape) = (manifest.header().parent, manifest.header().shape);
    let Some(parent) = parent else {
        return Err(failed("resume it", &format!("manifest {digest} names no template")));
    };
    if let Some(template) = context.templates.by_manifest(parent, shape).await {
        return Ok(template);
    }
    let name = format!("m-{parent}");
    let _lock = context.templates.lock(&name).await?;
    if let Some(template) = context.templates.by_name(&name, shape).await {
        return Ok(template);
    }
    let begun = Instant::now();
    let into = context.config.templates.join(&name);
    durable::remove_beside(into.clone()).await;
    let made = context.store.materialize_folder(parent, into).await;
    made.map_err(|error| failed("put its template together", &error))?;
    context.templates.set_manifest(&name, parent).await?;
    tracing::info!(template = name, took_us = micros(begun), "template put together from the snapshot store");
    let template = context.templates.by_name(&name, shape).await;
    template.ok_or_else(|| failed("resume it", &format!("its template {parent} doesn't fit this node")))
}

fn template_files(dir: &Path) -> Result<BTreeMap<FileName, PathBuf>, RuntimeError> {
    let list = || -> std::io::Result<BTreeMap<FileName, PathBuf>> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = FileName::from_str(&name.to_string_lossy()).map_err(std::io::Error::other)?;
            if entry.file_type()?.is_file() {
                files.insert(name, entry.path());
            }
        }
        Ok(files)
    };
    list().at("list", dir)
}

fn fit_text(fit: &Fit) -> String {
    let Fit { hypervisor, version, machine, accelerator, cpu_model, .. } = fit;
    format!("{} {version}, {machine}, {}, {cpu_model}", hypervisor.as_str(), accelerator.as_str())
}

pub(super) fn failed(what: &str, cause: &dyn std::fmt::Display) -> RuntimeError {
    RuntimeError::Snapshot { what: what.to_owned(), cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_runtimes_part_of_a_manifest_keeps_its_bytes_and_refuses_a_newer_one() {
        let written = json!({ "schema": 1, "image": "abc", "agentProtocol": 1 });
        let meta = Meta { schema: 1, image: "abc".to_owned(), agent_protocol: 1 };
        assert_eq!(serde_json::to_value(&meta).expect("written"), written);
        assert_eq!(Meta::read(&written), Ok(meta));
        let newer = Meta::read(&json!({ "schema": 2 })).expect_err("newer");
        assert_eq!(newer, "the runtime's part has schema 2; this version reads up to 1");
        assert!(Meta::read(&json!(null)).is_err());
    }
}
