//! Pause, resume and fork of a sandbox that runs.

use std::time::Instant;

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
