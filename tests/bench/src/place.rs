//! Where things are measured: a mesh, the client of one of its regions, and the small steps that every measurement makes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use gateway_sdk::{Client, ExecEvent, v1};
use tests_harness::{Mesh, MeshOptions, eventually};

use crate::statistics::Row;

/// Until a pool is full again: each clone is made, exercised and paused, on cores that the others use too.
const FILL_LIMIT: Duration = Duration::from_secs(180);
/// After a pool is full, so that what filled it has come to rest.
const REST: Duration = Duration::from_millis(200);

/// A mesh and the client of its first region.
pub(crate) struct Place {
    pub(crate) mesh: Mesh,
    pub(crate) client: Client,
}

impl Place {
    /// A mesh of one region and one node, so that all that is measured is one node's.
    pub(crate) fn alone(pool: u32, more: &[&str]) -> anyhow::Result<Self> {
        let more = more.iter().map(|&word| word.to_owned()).collect();
        Self::of(MeshOptions { regions: vec!["fra".to_owned()], pool, more, ..MeshOptions::default() })
    }

    /// A mesh of three regions.
    pub(crate) fn of_three(pool: u32) -> anyhow::Result<Self> {
        Self::of(MeshOptions { pool, ..MeshOptions::default() })
    }

    fn of(options: MeshOptions) -> anyhow::Result<Self> {
        let home = options.regions.first().context("a mesh has a region")?.clone();
        let mesh = Mesh::start(options)?;
        let client = mesh.client_of(&home)?;
        Ok(Self { mesh, client })
    }

    /// A client of another of its regions.
    pub(crate) fn client_of(&self, region: &str) -> anyhow::Result<Client> {
        self.mesh.client_of(region)
    }

    /// Ends the mesh.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        self.mesh.stop()
    }

    /// A sandbox of the default shape.
    pub(crate) fn create(&self) -> anyhow::Result<v1::Sandbox> {
        Ok(self.mesh.wait(self.client.create(&v1::CreateSandbox::default()))?)
    }

    /// Removes a sandbox.
    pub(crate) fn delete(&self, sandbox: &str) -> anyhow::Result<()> {
        self.mesh.wait(self.client.delete(sandbox))?;
        Ok(())
    }

    /// Creates, runs `echo`, and deletes: what a user waits for is timed, the delete isn't.
    pub(crate) fn create_and_exec(&self, ask: &v1::CreateSandbox) -> anyhow::Result<Duration> {
        let (took, sandbox) = timed(|| {
            let sandbox = self.mesh.wait(self.client.create(ask))?;
            self.echo(&sandbox.id)?;
            Ok(sandbox)
        })?;
        self.delete(&sandbox.id)?;
        Ok(took)
    }

    /// Creates, and runs `echo` up to the first byte of its output.
    pub(crate) fn create_to_first_byte(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let sandbox = self.create()?;
        let first = self.mesh.wait(async {
            let mut stream = self.client.exec_stream(&sandbox.id, &command("echo hi")).await?;
            while let Some(event) = stream.next().await {
                if let ExecEvent::Stdout(_) = event? {
                    return anyhow::Ok(begun.elapsed());
                }
            }
            anyhow::bail!("`echo` said nothing")
        })?;
        self.delete(&sandbox.id)?;
        Ok(first)
    }

    /// `echo` in a sandbox.
    pub(crate) fn echo(&self, sandbox: &str) -> anyhow::Result<()> {
        let said = self.run(sandbox, "echo hi")?;
        ensure!(said == "hi\n", "echo said {said:?}");
        Ok(())
    }

    /// A command in a sandbox, which has to succeed.
    pub(crate) fn run(&self, sandbox: &str, text: &str) -> anyhow::Result<String> {
        let result = self.mesh.wait(self.client.exec(sandbox, &command(text)))?;
        ensure!(result.exit_code == 0, "`{text}` ended with {}: {}", result.exit_code, result.stderr);
        Ok(result.stdout)
    }

    /// `echo` in a sandbox, so many times, each timed.
    pub(crate) fn echoes(&self, sandbox: &str, count: u32) -> anyhow::Result<Vec<Duration>> {
        (0..count).map(|_| timed(|| self.echo(sandbox)).map(|(took, ())| took)).collect()
    }

    /// A pool of the mesh that isn't full, if there is one.
    pub(crate) fn lacking_pool(&self) -> anyhow::Result<Option<v1::Pool>> {
        let seen = self.mesh.wait(self.client.mesh())?;
        Ok(seen.nodes.into_iter().flat_map(|node| node.pools).find(|pool| pool.warm < pool.target))
    }

    /// Waits until every pool of the mesh is full: all its nodes share this machine's cores.
    pub(crate) fn wait_for_pool(&self) -> anyhow::Result<()> {
        eventually("every pool is full", FILL_LIMIT, || {
            let lacking = self.lacking_pool()?;
            ensure!(lacking.is_none(), "not full: {lacking:?}");
            Ok(())
        })?;
        std::thread::sleep(REST);
        Ok(())
    }
}

/// A shell command.
pub(crate) fn command(text: &str) -> v1::Exec {
    v1::Exec { command: Some(text.to_owned()), ..v1::Exec::default() }
}

/// How long something took, and what it gave.
pub(crate) fn timed<T>(body: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(Duration, T)> {
    let begun = Instant::now();
    let value = body()?;
    Ok((begun.elapsed(), value))
}

/// A row of `count` samples.
pub(crate) fn row(
    what: &'static str,
    count: u32,
    mut sample: impl FnMut() -> anyhow::Result<Duration>,
) -> anyhow::Result<Row> {
    let samples = (0..count).map(|_| sample()).collect::<anyhow::Result<Vec<_>>>().context(what)?;
    Row::of(what, samples).with_context(|| format!("{what}: no sample was asked for"))
}
