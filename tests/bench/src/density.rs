//! What an idle clone costs its host: memory private to its keeper and monitor, as the kernel counts it.

use std::fs;

use anyhow::ensure;

use crate::place::Place;
use crate::statistics::Fact;

/// Private memory of `count` idle sandboxes of the default shape, a clone's share of it.
pub(crate) fn idle(place: &Place, count: u32) -> anyhow::Result<Vec<Fact>> {
    let before = private_kib(place)?;
    let mut sandboxes = Vec::new();
    for _ in 0..count {
        sandboxes.push(place.create()?.id);
    }
    place.wait_for_pool()?;
    let after = private_kib(place)?;
    for sandbox in sandboxes {
        place.delete(&sandbox)?;
    }
    let count = f64::from(count);
    let each = |after: u64, before: u64| after.saturating_sub(before) as f64 / count / 1000.0 * 1.024;
    Ok(vec![
        Fact::at_most("private memory of an idle clone, all in, MB", each(after.private, before.private), 40.0),
        Fact::plain("  of which written to, MB", each(after.dirty, before.dirty)),
        Fact::plain("  of which the keeper's, MB", each(after.keepers, before.keepers)),
    ])
}

#[derive(Debug, Clone, Copy, Default)]
struct Private {
    private: u64,
    dirty: u64,
    keepers: u64,
}

/// Sums over the keepers and monitors of the mesh, KiB.
fn private_kib(place: &Place) -> anyhow::Result<Private> {
    let mut sum = Private::default();
    for process in place.mesh.keepers_and_machines() {
        // It may have ended since.
        let Ok(text) = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid)) else { continue };
        let (clean, dirty) = (field(&text, "Private_Clean:"), field(&text, "Private_Dirty:"));
        sum.private += clean + dirty;
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
