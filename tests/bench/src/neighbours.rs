//! What a sandbox feels of another one that misbehaves.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::future::{Either, select};
use gateway_sdk::{ClientError, v1};

use crate::place::{Place, command};
use crate::statistics::{Fact, Ratio, Row};

/// Commands of the neighbour while the other one misbehaves: enough for a 99th percentile.
const SAMPLES: u32 = 400;
/// How long what misbehaves may go on.
const ABUSE_SECONDS: u32 = 30;

/// A way to misbehave.
struct Abuse {
    name: &'static str,
    command: &'static str,
}

const ABUSES: &[Abuse] = &[
    Abuse { name: "a fork bomb", command: "f() { f | f & }; f; sleep 20" },
    Abuse { name: "a memory hog", command: "python3 -c 'x=[]\nwhile True: x.append(bytearray(1<<20))'" },
    Abuse { name: "a full disk", command: "dd if=/dev/zero of=/root/fill bs=1M" },
    Abuse { name: "a log flood", command: "timeout 20 sh -c 'yes a line of a flood > /dev/console'" },
    Abuse { name: "a busy loop", command: "timeout 20 sh -c 'while :; do :; done'" },
];

/// Rows of a neighbour's exec, alone and beside each abuse, and the ratios of their 99th percentiles.
pub(crate) fn beside_abuse(place: &Place) -> anyhow::Result<(Vec<Row>, Vec<Fact>)> {
    let neighbour = place.create()?;
    place.wait_for_pool()?;
    let alone = place.echoes(&neighbour.id, SAMPLES)?;
    let mut rows = vec![Row::of("exec of a neighbour, alone", alone.clone())];
    let mut facts = Vec::new();
    for abuse in ABUSES {
        let other = place.create()?;
        place.wait_for_pool()?;
        let samples = beside(place, &neighbour.id, &other.id, abuse)?;
        let what = format!("exec p99 beside {} / alone", abuse.name);
        facts.extend(Ratio::of_p99(&what, &samples, &alone, 2.0).map(|ratio| ratio.0));
        rows.push(Row::of(abuse.name, samples));
        // What misbehaved still answers, be it with a sentence on which limit it has reached, and is taken away as any other.
        match place.mesh.wait(place.client.exec(&other.id, &command("rm -f /root/fill; echo hi"))) {
            // A shell that is refused a process says so.
            Ok(result) => {
                let answered = result.stdout == "hi\n" || !result.stderr.is_empty();
                ensure!(answered, "after {} it said {result:?}", abuse.name);
            }
            Err(ClientError::Api(_)) => {}
            Err(error) => return Err(error.into()),
        }
        place.delete(&other.id)?;
        place.wait_for_pool()?;
    }
    place.delete(&neighbour.id)?;
    Ok((rows.into_iter().flatten().collect(), facts))
}

/// Samples of the neighbour while the other one misbehaves.
fn beside(place: &Place, neighbour: &str, other: &str, abuse: &Abuse) -> anyhow::Result<Vec<Duration>> {
    let bad = v1::Exec { timeout_seconds: Some(ABUSE_SECONDS), ..command(abuse.command) };
    let good = command("echo hi");
    let (client, mut samples) = (&place.client, Vec::new());
    place.mesh.wait(async {
        // However it ends (killed, refused, timed out), it ends with an answer, and begins again: each sample is beside it.
        let abusing = Box::pin(async {
            loop {
                match client.exec(other, &bad).await {
                    Ok(_) | Err(ClientError::Api(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
                    Err(error) => return anyhow::Error::from(error),
                }
            }
        });
        let asking = Box::pin(async {
            // It needs a moment to begin.
            tokio::time::sleep(Duration::from_millis(500)).await;
            for _ in 0..SAMPLES {
                let begun = Instant::now();
                let result = client.exec(neighbour, &good).await?;
                ensure!(result.stdout == "hi\n", "the neighbour said {:?}", result.stdout);
                samples.push(begun.elapsed());
            }
            Ok(())
        });
        match select(abusing, asking).await {
            Either::Left((error, _)) => Err(error.context(abuse.name)),
            Either::Right((asked, _)) => asked,
        }
    })?;
    Ok(samples)
}
