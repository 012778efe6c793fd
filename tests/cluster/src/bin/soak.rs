//! Long runs against a mesh of its own: `soak --cycles 1000 --node-kills 10 --keeper-kills 5`.

use std::io::Write as _;

use clap::Parser;
use tests_cluster::soak::{Churn, ChurnOptions, Dance, DanceOptions};
use tests_harness::{Footprint, Mesh, MeshOptions, step};

/// Starts a mesh of one node with the atoll beside this program and wears it out. Prints what was seen, and fails on
/// whatever should have held and didn't.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Arguments {
    /// Sandboxes that are created, used and deleted
    #[arg(long, default_value_t = 1000)]
    cycles: u32,
    /// Kills of the node among them
    #[arg(long, default_value_t = 10)]
    node_kills: u32,
    /// Kills of keepers among them
    #[arg(long, default_value_t = 5)]
    keeper_kills: u32,
    /// Random steps of pause, resume, fork, kill and delete against a model
    #[arg(long, default_value_t = 500)]
    steps: u32,
    /// What chance begins with
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Warm clones
    #[arg(long, default_value_t = 2)]
    pool: u32,
}

fn main() -> anyhow::Result<()> {
    let Arguments { cycles, node_kills, keeper_kills, steps, seed, pool } = Arguments::parse();
    let mut mesh = Mesh::start(MeshOptions { regions: vec!["fra".to_owned()], pool, ..MeshOptions::default() })?;
    let mut footprint = Footprint::of(&mesh);
    let seen = step("create, exec and delete, with kills", || {
        Churn::run(&mesh, ChurnOptions { cycles, node_kills, keeper_kills, seed })
    })?;
    writeln!(std::io::stdout(), "{seen:?}")?;
    let seen = step("random steps against a model", || Dance::run(&mesh, DanceOptions { steps, seed }))?;
    writeln!(std::io::stdout(), "{seen:?}")?;
    footprint.look();
    mesh.interrupt()?;
    let leaks = footprint.leaks();
    anyhow::ensure!(leaks.is_empty(), "left behind:\n{}", leaks.join("\n"));
    mesh.stop()?;
    writeln!(
        std::io::stdout(),
        "nothing was left behind: no process, descriptor, file, tap or cgroup, nor memory of the node"
    )?;
    Ok(())
}
