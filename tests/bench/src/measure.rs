//! What is measured: one thing at a time, through the API of one region, each sandbox deleted before the next.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use gateway_sdk::{Client, v1};
use tests_harness::{Mesh, eventually};

use crate::statistics::Row;

/// Until a pool is full again: each clone is made, exercised and paused, on cores that the others use too.
const FILL_LIMIT: Duration = Duration::from_secs(120);
/// After a pool is full, so that what filled it has come to rest.
const REST: Duration = Duration::from_millis(200);
const HOME: &str = "fra";
const NEXT: &str = "iad";

/// Create, answered, and `echo` run in it: what a user waits for. The pool is full before each.
pub(crate) fn create_from_pool(mesh: &Mesh, count: u32) -> anyhow::Result<Row> {
    let client = mesh.client_of(HOME)?;
    let sample = || {
        wait_for_pool(mesh, &client)?;
        create_and_exec(mesh, &client, &v1::CreateSandbox::default())
    };
    row("create to first exec, from the pool", count, sample)
}

/// `echo` in a sandbox that runs.
pub(crate) fn exec(mesh: &Mesh, count: u32) -> anyhow::Result<Row> {
    let client = mesh.client_of(HOME)?;
    let sandbox = mesh.wait(client.create(&v1::CreateSandbox::default()))?;
    wait_for_pool(mesh, &client)?;
    let row =
        row("exec in a running sandbox", count, || timed(|| echo(mesh, &client, &sandbox.id)).map(|(took, ())| took))?;
    mesh.wait(client.delete(&sandbox.id))?;
    Ok(row)
}

/// The same create where no warm clone waits: a clone of the template is made first.
pub(crate) fn create_without_pool(mesh: &Mesh, count: u32) -> anyhow::Result<Row> {
    let client = mesh.client_of(HOME)?;
    row("create to first exec, cloned without a pool", count, || {
        create_and_exec(mesh, &client, &v1::CreateSandbox::default())
    })
}

/// A create of a shape that was never seen: the kernel boots, the template is saved, a clone of it is made.
pub(crate) fn create_of_a_new_shape(mesh: &Mesh, count: u32) -> anyhow::Result<Row> {
    let client = mesh.client_of(HOME)?;
    // Templates stay beside the image between runs: a size that no earlier run took.
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let first = 400 + (seconds % 400) as i64;
    let mut memory_mib = first;
    row("create to first exec, cold boot of a new shape", count, || {
        memory_mib += 1;
        let ask = v1::CreateSandbox { memory_mib: Some(memory_mib), ..v1::CreateSandbox::default() };
        create_and_exec(mesh, &client, &ask)
    })
}

/// How long a sandbox stands still while it is snapshotted, as the mesh says.
pub(crate) fn snapshot_stop(mesh: &Mesh, count: u32) -> anyhow::Result<Row> {
    let client = mesh.client_of(HOME)?;
    let sandbox = mesh.wait(client.create(&v1::CreateSandbox::default()))?;
    echo(mesh, &client, &sandbox.id)?;
    let row = row("stopped for a snapshot", count, || {
        wait_for_pool(mesh, &client)?;
        let snapshot = mesh.wait(client.snapshot(&sandbox.id, &v1::CreateSnapshot::default()))?;
        mesh.wait(client.delete_snapshot(&snapshot.id))?;
        Ok(Duration::from_micros(snapshot.stop_ms.micros))
    })?;
    mesh.wait(client.delete(&sandbox.id))?;
    Ok(row)
}

/// A snapshot of one region restored in the next, its chunks pulled over the fabric, to the first exec there.
pub(crate) fn restore_in_the_next_region(mesh: &Mesh, count: u32) -> anyhow::Result<Row> {
    let (home, next) = (mesh.client_of(HOME)?, mesh.client_of(NEXT)?);
    let sandbox = mesh.wait(home.create(&v1::CreateSandbox::default()))?;
    let mut round = 0;
    let row = row("restore in the next region to first exec", count, || {
        round += 1;
        // Something new each time, so that there are chunks to pull.
        let write = format!("head -c 4000000 /dev/urandom > /root/round-{round}; sync");
        run(mesh, &home, &sandbox.id, &write)?;
        wait_for_pool(mesh, &next)?;
        let snapshot = mesh.wait(home.snapshot(&sandbox.id, &v1::CreateSnapshot::default()))?;
        let (took, restored) = timed(|| {
            let ask = v1::RestoreSnapshot { region: Some(NEXT.to_owned()), name: None };
            let restored = mesh.wait(next.restore(&snapshot.id, &ask))?;
            echo(mesh, &next, &restored.id)?;
            Ok(restored)
        })?;
        mesh.wait(next.delete(&restored.id))?;
        mesh.wait(home.delete_snapshot(&snapshot.id))?;
        Ok(took)
    })?;
    mesh.wait(home.delete(&sandbox.id))?;
    Ok(row)
}

fn create_and_exec(mesh: &Mesh, client: &Client, ask: &v1::CreateSandbox) -> anyhow::Result<Duration> {
    let (took, sandbox) = timed(|| {
        let sandbox = mesh.wait(client.create(ask))?;
        echo(mesh, client, &sandbox.id)?;
        Ok(sandbox)
    })?;
    mesh.wait(client.delete(&sandbox.id))?;
    Ok(took)
}

fn echo(mesh: &Mesh, client: &Client, sandbox: &str) -> anyhow::Result<()> {
    let said = run(mesh, client, sandbox, "echo hi")?;
    ensure!(said == "hi\n", "echo said {said:?}");
    Ok(())
}

fn run(mesh: &Mesh, client: &Client, sandbox: &str, command: &str) -> anyhow::Result<String> {
    let ask = v1::Exec { command: Some(command.to_owned()), ..v1::Exec::default() };
    let result = mesh.wait(client.exec(sandbox, &ask))?;
    ensure!(result.exit_code == 0, "`{command}` ended with {}: {}", result.exit_code, result.stderr);
    Ok(result.stdout)
}

/// Waits until every pool of the mesh is full: all its nodes share this machine's cores.
fn wait_for_pool(mesh: &Mesh, client: &Client) -> anyhow::Result<()> {
    eventually("every pool is full", FILL_LIMIT, || {
        let seen = mesh.wait(client.mesh())?;
        let lacking = seen.nodes.iter().flat_map(|node| &node.pools).find(|pool| pool.warm < pool.target);
        ensure!(lacking.is_none(), "not full: {lacking:?}");
        Ok(())
    })?;
    std::thread::sleep(REST);
    Ok(())
}

fn timed<T>(body: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(Duration, T)> {
    let begun = Instant::now();
    let value = body()?;
    Ok((begun.elapsed(), value))
}

fn row(what: &'static str, count: u32, mut sample: impl FnMut() -> anyhow::Result<Duration>) -> anyhow::Result<Row> {
    let samples = (0..count).map(|_| sample()).collect::<anyhow::Result<Vec<_>>>().context(what)?;
    Row::of(what, samples).with_context(|| format!("{what}: no sample was asked for"))
}
