//! Measurements of a running mesh, printed with their conditions.
//!
//! ```text
//! measure      what is measured, one thing at a time, through the API
//! statistics   percentiles
//! conditions   the machine, the versions and the isolation under which it was measured
//! report       a table for the README, or one JSON object
//! ```

mod conditions;
mod measure;
mod report;
mod statistics;

use std::io::Write as _;

use clap::Parser;
use tests_harness::{Mesh, MeshOptions};

use crate::conditions::Conditions;
use crate::report::Report;

/// Starts meshes of its own with the atoll beside it, measures, and prints a table.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Creates with their first exec, one at a time from a filled pool
    #[arg(long, default_value_t = 100)]
    creates: u32,
    /// Repetitions of everything else
    #[arg(long, default_value_t = 10)]
    repeats: u32,
    /// Boots of a shape that was never seen, each of which stays as a template on the disk
    #[arg(long, default_value_t = 3)]
    boots: u32,
    /// Warm clones on each node
    #[arg(long, default_value_t = 4)]
    pool: u32,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mesh = Mesh::start(MeshOptions { pool: arguments.pool, ..MeshOptions::default() })?;
    let conditions = Conditions::of(&mesh, arguments.pool)?;
    let mut rows = vec![
        measure::create_from_pool(&mesh, arguments.creates)?,
        measure::exec(&mesh, arguments.creates)?,
        measure::snapshot_stop(&mesh, arguments.repeats)?,
        measure::restore_in_the_next_region(&mesh, arguments.repeats)?,
    ];
    mesh.stop()?;
    let mesh = Mesh::start(MeshOptions { pool: 0, ..MeshOptions::default() })?;
    rows.insert(2, measure::create_without_pool(&mesh, arguments.repeats)?);
    rows.insert(3, measure::create_of_a_new_shape(&mesh, arguments.boots)?);
    mesh.stop()?;
    let report = Report { conditions, rows };
    let text = if arguments.json { serde_json::to_string(&report)? } else { report.markdown() };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}
