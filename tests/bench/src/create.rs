//! From a create to its first result: from a pool, several at once, without a pool, and by a cold boot.

use std::time::Instant;

use anyhow::ensure;
use futures::future::try_join_all;
use gateway_sdk::v1;

use crate::place::{Place, command, row};
use crate::statistics::Row;

/// Creates at once, from a pool of as many.
pub(crate) const AT_ONCE: u32 = 20;

/// Create, answered, and `echo` run in it: what a user waits for. The pool is full before each.
pub(crate) fn from_pool(place: &Place, count: u32) -> anyhow::Result<Row> {
    row("create to first exec result, from the pool, one at a time", count, || {
        place.wait_for_pool()?;
        place.create_and_exec(&v1::CreateSandbox::default())
    })
}

/// The create alone, so that its part of the whole is seen.
pub(crate) fn create_alone(place: &Place, count: u32) -> anyhow::Result<Row> {
    row("  of which the create's answer", count, || {
        place.wait_for_pool()?;
        let begun = Instant::now();
        let sandbox = place.create()?;
        let took = begun.elapsed();
        place.delete(&sandbox.id)?;
        Ok(took)
    })
}

/// `echo` in a sandbox that runs.
pub(crate) fn exec(place: &Place, count: u32) -> anyhow::Result<Row> {
    let sandbox = place.create()?;
    place.wait_for_pool()?;
    let row = row("exec in a running sandbox", count, || {
        let begun = Instant::now();
        place.echo(&sandbox.id)?;
        Ok(begun.elapsed())
    })?;
    place.delete(&sandbox.id)?;
    Ok(row)
}

/// Twenty creates at once from a pool of twenty, each to its first exec result.
pub(crate) fn at_once(place: &Place, rounds: u32) -> anyhow::Result<Row> {
    let mut samples = Vec::new();
    for _ in 0..rounds {
        place.wait_for_pool()?;
        let client = &place.client;
        let begun = Instant::now();
        let one = || async {
            let sandbox = client.create(&v1::CreateSandbox::default()).await?;
            let result = client.exec(&sandbox.id, &command("echo hi")).await?;
            ensure!(result.stdout == "hi\n", "echo said {:?}", result.stdout);
            Ok((begun.elapsed(), sandbox.id))
        };
        let made = place.mesh.wait(try_join_all((0..AT_ONCE).map(|_| one())))?;
        for (took, sandbox) in made {
            samples.push(took);
            place.delete(&sandbox)?;
        }
    }
    let what = "create to first exec result, 20 at once from a pool of 20";
    Row::of(what, samples).ok_or_else(|| anyhow::anyhow!("{what}: no sample was asked for"))
}

/// The same create where no warm clone waits: a clone of the template is made first.
pub(crate) fn without_pool(place: &Place, count: u32) -> anyhow::Result<Row> {
    row("create to first exec result, cloned without a pool", count, || {
        place.create_and_exec(&v1::CreateSandbox::default())
    })
}

/// A create of a shape that was never seen: the kernel boots, the template is saved, a clone of it is made.
pub(crate) fn of_a_new_shape(place: &Place, count: u32) -> anyhow::Result<Row> {
    // Templates stay beside the image between runs: a size that no earlier run took.
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let mut memory_mib = 400 + i64::try_from(seconds % 400)?;
    row("create to first exec result, cold boot of a new shape", count, || {
        memory_mib += 1;
        let ask = v1::CreateSandbox { memory_mib: Some(memory_mib), ..v1::CreateSandbox::default() };
        place.create_and_exec(&ask)
    })
}
