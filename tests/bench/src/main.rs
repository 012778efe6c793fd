//! Measurements of running meshes, printed with their conditions and with what is asked of them.
//!
//! ```text
//! place        a mesh to measure in, and the steps that every measurement makes
//! create       from a create to its first result
//! compare      the same beside a container, taking turns; container runs those
//! code         programs for interpreters
//! life         pause, resume, fork
//! refill       how the pool fills again, and what neighbours feel
//! neighbours   a sandbox beside one that misbehaves
//! density      memory of idle clones
//! snapshots    stop, and restore in the next region
//! plan         which of them, in which mesh, in which order
//! statistics   percentiles, ratios
//! conditions   the machine, the versions and the isolation under which it was measured
//! report       a table for the README, or one JSON object
//! ```

mod code;
mod compare;
mod conditions;
mod container;
mod create;
mod density;
mod life;
mod neighbours;
mod place;
mod plan;
mod refill;
mod report;
mod snapshots;
mod statistics;

use std::io::Write as _;

use clap::Parser;

use crate::plan::Section;

/// Starts meshes of its own with the atoll beside it, measures, and prints tables. Minutes; progress on standard error.
#[derive(Debug, Parser)]
#[command(name = "bench")]
pub(crate) struct Arguments {
    /// Samples of what is measured one at a time
    #[arg(long, default_value_t = 100)]
    samples: u32,
    /// Rounds of what takes turns, and repetitions of what takes seconds
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Boots of a shape that was never seen, each of which stays as a template on the disk
    #[arg(long, default_value_t = 3)]
    boots: u32,
    /// Idle clones whose memory is counted
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=64))]
    clones: u32,
    /// Warm clones in the meshes that have a pool
    #[arg(long, default_value_t = 4)]
    pool: u32,
    /// Only these sections; all by default
    #[arg(long, value_delimiter = ',')]
    only: Vec<Section>,
    /// Print one JSON object instead of the tables
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let report = plan::carry_out(&arguments)?;
    let text = if arguments.json { serde_json::to_string(&report)? } else { report.markdown() };
    writeln!(std::io::stdout(), "{text}")?;
    anyhow::ensure!(report.failed.is_empty(), "not all could be measured: {}", report.failed.join("; "));
    Ok(())
}
