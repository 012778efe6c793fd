//! A sandbox of a test, through the command line, as a user has it.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tests_harness::{Mesh, Ran};

/// A sandbox that was created.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Its region.
    pub region: String,
}

impl Sandbox {
    /// Creates one in a region and checks what came back.
    pub fn create(mesh: &Mesh, region: &str, more: &[&str]) -> anyhow::Result<Self> {
        let words = [&["create", "--json", "--region", region], more].concat();
        let object = mesh.atoll(&words)?.json()?;
        ensure!(object["region"] == region, "asked for {region}: {object}");
        ensure!(object["state"] == "started", "create answers when it runs: {object}");
        let id = object["id"].as_str().context("an id")?.to_owned();
        let rest = id.strip_prefix(region).with_context(|| format!("{id} doesn't begin with {region}"))?;
        let is_plain = rest.len() == 16 && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        ensure!(is_plain, "{id} is not a region and 16 of [a-z0-9]");
        Ok(Self { id, region: region.to_owned() })
    }

    /// Runs a shell's command line and gives how it ended.
    pub fn shell(&self, mesh: &Mesh, command: &str) -> anyhow::Result<Ran> {
        mesh.atoll(&["exec", &self.id, "-c", command])
    }

    /// What a shell's command line prints; it must end with 0.
    pub fn says(&self, mesh: &Mesh, command: &str) -> anyhow::Result<String> {
        self.shell(mesh, command)?.ok()
    }

    /// What `atoll info --json` prints.
    pub fn info(&self, mesh: &Mesh) -> anyhow::Result<Value> {
        mesh.atoll(&["info", "--json", &self.id])?.json()
    }

    /// Its state.
    pub fn state(&self, mesh: &Mesh) -> anyhow::Result<String> {
        Ok(self.info(mesh)?["state"].as_str().context("a state")?.to_owned())
    }

    /// Deletes it.
    pub fn remove(&self, mesh: &Mesh) -> anyhow::Result<()> {
        mesh.atoll(&["rm", &self.id])?.ok().map(drop)
    }
}
