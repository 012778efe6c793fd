//! How long a pool takes to be full again, and what running sandboxes feel of it.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::create::AT_ONCE;
use crate::place::Place;
use crate::statistics::{Fact, Ratio, Row};

/// A pool that isn't full by then has failed.
const LIMIT: Duration = Duration::from_secs(180);

/// What was measured.
#[derive(Debug)]
pub(crate) struct Refilled {
    pub(crate) rows: Vec<Row>,
    pub(crate) ratio: Option<Ratio>,
    pub(crate) facts: Vec<Fact>,
}

/// Takes twenty clones at once, and runs `echo` in another sandbox until the pool is full again.
pub(crate) fn after_twenty(place: &Place, rounds: u32) -> anyhow::Result<Refilled> {
    let neighbour = place.create()?;
    place.wait_for_pool()?;
    let quiet = place.echoes(&neighbour.id, 200)?;
    let (mut busy, mut took) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        place.wait_for_pool()?;
        let mut taken = Vec::new();
        for _ in 0..AT_ONCE {
            taken.push(place.create()?.id);
        }
        let begun = Instant::now();
        while place.lacking_pool()?.is_some() {
            busy.extend(place.echoes(&neighbour.id, 5)?);
            ensure!(begun.elapsed() < LIMIT, "the pool is not full after {} s", LIMIT.as_secs());
        }
        took.push(begun.elapsed());
        for sandbox in taken {
            place.delete(&sandbox)?;
        }
    }
    place.delete(&neighbour.id)?;
    took.sort_unstable();
    let median = took.get(took.len() / 2).copied().unwrap_or_default();
    let ratio = Ratio::of_p99("exec p99 of a neighbour while the pool fills / when it is full", &busy, &quiet, 2.0);
    let rows =
        [Row::of("exec of a neighbour, pool full", quiet), Row::of("exec of a neighbour while the pool fills", busy)];
    let fact = Fact::at_most("pool of 20 full again after 20 creates, median, s", median.as_secs_f64(), 6.0);
    Ok(Refilled { rows: rows.into_iter().flatten().collect(), ratio, facts: vec![fact] })
}
