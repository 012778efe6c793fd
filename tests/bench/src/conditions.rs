//! The machine, the versions and the isolation under which something was measured.

use std::fs;

use anyhow::Context as _;
use serde::Serialize;
use tests_harness::Mesh;

/// The conditions; all as text, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Conditions {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: u64,
    pub(crate) kernel: String,
    pub(crate) hypervisor: String,
    pub(crate) accelerator: String,
    pub(crate) isolation: String,
    pub(crate) atoll: String,
    pub(crate) mesh: String,
    pub(crate) pool: u32,
}

impl Conditions {
    /// The conditions of a mesh on this machine.
    pub(crate) fn of(mesh: &Mesh, pool: u32) -> anyhow::Result<Self> {
        let seen = mesh.wait(mesh.client()?.mesh())?;
        let node = seen.nodes.first().context("a mesh has a node")?;
        Ok(Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: field("/proc/meminfo", "MemTotal").and_then(|text| kib(&text)).unwrap_or(0) >> 20,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            hypervisor: format!("{} {}", node.isolation.hypervisor.as_str(), node.fit.version),
            accelerator: node.isolation.accelerator.as_str().to_owned(),
            isolation: node.isolation.reason.clone(),
            atoll: seen.version.clone(),
            mesh: format!("{} nodes in {} regions on this machine", seen.nodes.len(), seen.regions.len()),
            pool,
        })
    }

    /// Names and values, in the order of the report.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("processor", format!("{}, {} cores", self.processor, self.cores)),
            ("memory", format!("{} GiB", self.memory_gib)),
            ("kernel", self.kernel.clone()),
            ("guests", format!("{} with {}: {}", self.hypervisor, self.accelerator, self.isolation)),
            ("mesh", format!("atoll {}, {}, pool of {}", self.atoll, self.mesh, self.pool)),
        ]
    }
}

/// The value of the first line `NAME : VALUE` of a file.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn kib(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}
