//! The long runs of `soak`, short enough for every day.

use tests_cluster::soak::{Churn, ChurnOptions, Dance, DanceOptions};
use tests_harness::{Footprint, Mesh, MeshOptions, step};

#[test]
fn mesh_is_worn_by_kills_and_random_steps_and_nothing_leaks() -> anyhow::Result<()> {
    let mut mesh = Mesh::start(MeshOptions { regions: vec!["fra".to_owned()], ..MeshOptions::default() })?;
    let mut footprint = Footprint::of(&mesh);
    let seen = step("creates, execs and deletes, with kills", || {
        Churn::run(&mesh, ChurnOptions { cycles: 24, node_kills: 2, keeper_kills: 1, seed: 7 })
    })?;
    anyhow::ensure!(seen.went_on == 2 && seen.failed == 1, "{seen:?}");
    let seen = step("random steps against a model", || Dance::run(&mesh, DanceOptions { steps: 40, seed: 7 }))?;
    anyhow::ensure!(seen.forked > 0 && seen.paused > 0 && seen.bumped > 0, "{seen:?}");
    footprint.look();
    mesh.interrupt()?;
    let leaks = footprint.leaks();
    anyhow::ensure!(leaks.is_empty(), "left behind:\n{}", leaks.join("\n"));
    mesh.stop()
}
