//! Snapshots: how long a sandbox stands still, and how long a restore in the next region takes.

use std::time::Duration;

use gateway_sdk::v1;

use crate::place::{Place, row, timed};
use crate::statistics::Row;

const NEXT: &str = "iad";

/// How long a sandbox stands still while it is snapshotted, as the mesh says.
pub(crate) fn stop(place: &Place, count: u32) -> anyhow::Result<Row> {
    let sandbox = place.create()?;
    place.echo(&sandbox.id)?;
    let row = row("stopped for a snapshot", count, || {
        place.wait_for_pool()?;
        let snapshot = place.mesh.wait(place.client.snapshot(&sandbox.id, &v1::CreateSnapshot::default()))?;
        place.mesh.wait(place.client.delete_snapshot(&snapshot.id))?;
        Ok(Duration::from_micros(snapshot.stop_ms.micros))
    })?;
    place.delete(&sandbox.id)?;
    Ok(row)
}

/// A snapshot of one region restored in the next, its chunks pulled over the fabric, to the first exec there.
pub(crate) fn restore_in_the_next_region(place: &Place, count: u32) -> anyhow::Result<Row> {
    let next = place.client_of(NEXT)?;
    let sandbox = place.create()?;
    let mut round = 0;
    let row = row("restore in the next region to first exec", count, || {
        round += 1;
        // Something new each time, so that there are chunks to pull.
        place.run(&sandbox.id, &format!("head -c 4000000 /dev/urandom > /root/round-{round}; sync"))?;
        place.wait_for_pool()?;
        let snapshot = place.mesh.wait(place.client.snapshot(&sandbox.id, &v1::CreateSnapshot::default()))?;
        let (took, restored) = timed(|| {
            let ask = v1::RestoreSnapshot { region: Some(NEXT.to_owned()), name: None };
            let restored = place.mesh.wait(next.restore(&snapshot.id, &ask))?;
            let result = place.mesh.wait(next.exec(&restored.id, &crate::place::command("echo hi")))?;
            anyhow::ensure!(result.stdout == "hi\n", "echo said {:?}", result.stdout);
            Ok(restored)
        })?;
        place.mesh.wait(next.delete(&restored.id))?;
        place.mesh.wait(place.client.delete_snapshot(&snapshot.id))?;
        Ok(took)
    })?;
    place.delete(&sandbox.id)?;
    Ok(row)
}
