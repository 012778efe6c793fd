//! Pause, resume and fork of a sandbox that runs.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use gateway_sdk::v1;

use crate::place::{Place, row};
use crate::statistics::Row;

/// Pause and resume of a running sandbox, through the API.
pub(crate) fn pause_and_resume(place: &Place, count: u32) -> anyhow::Result<Vec<Row>> {
    let sandbox = place.create()?;
    place.wait_for_pool()?;
    let (mut pauses, mut resumes) = (Vec::new(), Vec::new());
    row("pause and resume", count, || {
        let begun = Instant::now();
        place.mesh.wait(place.client.pause(&sandbox.id))?;
        pauses.push(begun.elapsed());
        let resumed = Instant::now();
        place.mesh.wait(place.client.resume(&sandbox.id))?;
        resumes.push(resumed.elapsed());
        Ok(begun.elapsed())
    })?;
    place.echo(&sandbox.id)?;
    place.delete(&sandbox.id)?;
    Ok([Row::of("pause", pauses), Row::of("resume", resumes)].into_iter().flatten().collect())
}

/// Children of each fork.
const CHILDREN: i64 = 3;
/// Holds 100 MiB that nothing else has, in a process that lives on.
const DIRTY: &str = "nohup setsid python3 -c 'import os,time; held=os.urandom(100<<20); open(\"/root/held\",\"w\").close(); \
    time.sleep(9999)' >/dev/null 2>&1 & until [ -e /root/held ]; do sleep 0.1; done";

/// Forks of a sandbox that has dirtied 100 MiB: its stop, and from the ask until each child has answered.
pub(crate) fn fork(place: &Place, rounds: u32) -> anyhow::Result<Vec<Row>> {
    let parent = place.create()?;
    place.run(&parent.id, DIRTY)?;
    place.wait_for_pool()?;
    let (mut stops, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begun = Instant::now();
        let ask = v1::Fork { count: Some(CHILDREN), names: Vec::new() };
        let forked = place.mesh.wait(place.client.fork(&parent.id, &ask))?;
        stops.push(Duration::from_micros(forked.stop_ms.micros));
        for child in &forked.items {
            place.echo(&child.id)?;
            answers.push(begun.elapsed());
        }
        for child in &forked.items {
            place.delete(&child.id)?;
        }
        place.wait_for_pool()?;
    }
    place.delete(&parent.id)?;
    let rows = [
        Row::of("stopped for a fork into 3, 100 MiB dirtied", stops),
        Row::of("fork into 3 to each child's first exec result, 100 MiB dirtied", answers),
    ];
    let rows: Vec<Row> = rows.into_iter().flatten().collect();
    rows.first().context("no fork was asked for")?;
    Ok(rows)
}
