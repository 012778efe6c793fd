//! What an idle clone costs its host: memory private to its keeper and monitor, as the kernel counts it.

use std::fs;

use anyhow::ensure;

use crate::place::Place;
use crate::statistics::Fact;

/// Private memory of the clones of a full pool of `count`, each exercised and idle: a clone's share of it.
pub(crate) fn idle(place: &Place, count: u32) -> anyhow::Result<Vec<Fact>> {
    place.wait_for_pool()?;
    let all = private_kib(place)?;
    ensure!(all.processes >= count, "{} keepers and monitors are not {count} clones", all.processes);
    let each = |kib: u64| kib as f64 / f64::from(count) / 1000.0 * 1.024;
    let what = format!("private memory of each of {count} idle clones, all in, MB");
    Ok(vec![
        Fact::at_most(what, each(all.private), 40.0),
        Fact::plain("  of which written to, MB", each(all.dirty)),
        Fact::plain("  of which the keepers', MB", each(all.keepers)),
    ])
}

#[derive(Debug, Clone, Copy, Default)]
struct Private {
    private: u64,
    dirty: u64,
    keepers: u64,
    processes: u32,
}

/// Sums over the keepers and monitors of the mesh, KiB.
fn private_kib(place: &Place) -> anyhow::Result<Private> {
    let mut sum = Private::default();
    for process in place.mesh.keepers_and_machines() {
        // It may have ended since.
        let Ok(text) = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid)) else { continue };
        let (clean, dirty) = (field(&text, "Private_Clean:"), field(&text, "Private_Dirty:"));
        sum.private += clean + dirty;
        sum.processes += 1;
        sum.dirty += dirty;
        if process.command.contains("keeper") {
            sum.keepers += clean + dirty;
        }
    }
    ensure!(sum.private > 0, "no keeper or monitor of this mesh was found");
    Ok(sum)
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
