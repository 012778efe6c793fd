//! Which measurements, in which mesh, in which order: what needs the same mesh stands together.

use std::io::Write as _;

use clap::ValueEnum;

use crate::conditions::Conditions;
use crate::create::AT_ONCE;
use crate::place::Place;
use crate::report::Report;
use crate::statistics::{Fact, Row};
use crate::{Arguments, code, compare, create, density, life, neighbours, refill, snapshots};

/// A group of measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// Creates from a pool, and exec
    Create,
    /// Twenty creates at once, and the pool's refill
    Refill,
    /// Creates beside containers, and cold boots
    Compare,
    /// Interpreters
    Code,
    /// Pause, resume, fork
    Life,
    /// A sandbox beside one that misbehaves
    Neighbours,
    /// Memory of idle clones
    Density,
    /// Snapshots and restores in the next region
    Snapshots,
}

#[derive(Debug, Default)]
struct Results {
    conditions: Option<Conditions>,
    rows: Vec<Row>,
    facts: Vec<Fact>,
    /// What couldn't be measured, and why.
    failed: Vec<String>,
}

impl Results {
    /// Does one part of it, and notes how it failed.
    fn attempt(&mut self, what: &str, part: impl FnOnce(&mut Self) -> anyhow::Result<()>) {
        say(what);
        if let Err(error) = part(self) {
            say(&format!("{what} failed: {error:#}"));
            self.failed.push(format!("{what}: {error:#}"));
        }
    }

    /// Adds a row, and what is asked of its percentiles.
    fn add(&mut self, row: Row, p50: Option<f64>, p95: Option<f64>, p99: Option<f64>) {
        let asked = [(p50, row.p50_ms, "p50"), (p95, row.p95_ms, "p95"), (p99, row.p99_ms, "p99")];
        for (limit, value, which) in asked {
            let what = || format!("{}, {which}, ms", row.what.trim());
            self.facts.extend(limit.map(|limit| Fact::at_most(what(), value, limit)));
        }
        self.rows.push(row);
    }

    fn conditions_of(&mut self, place: &Place, pool: u32) -> anyhow::Result<()> {
        if self.conditions.is_none() {
            self.conditions = Some(Conditions::of(&place.mesh, pool)?);
        }
        Ok(())
    }
}

/// Measures what was asked for. What fails is told with the rest: minutes of measuring aren't thrown away for it.
pub(crate) fn carry_out(arguments: &Arguments) -> anyhow::Result<Report> {
    let wants = |section: Section| arguments.only.is_empty() || arguments.only.contains(&section);
    let mut results = Results::default();
    if [Section::Create, Section::Compare, Section::Code, Section::Life].into_iter().any(wants) {
        results.attempt("one at a time", |results| {
            let warm = Place::alone(arguments.pool, &[])?;
            results.conditions_of(&warm, arguments.pool)?;
            results.attempt("creates, programs and life", |results| one_at_a_time(arguments, &warm, results, &wants));
            if wants(Section::Compare) {
                results.attempt("beside containers", |results| beside_containers(arguments, &warm, results));
            }
            warm.stop()
        });
    }
    if wants(Section::Refill) {
        results.attempt("a pool of twenty", |results| {
            let place = Place::alone(AT_ONCE, &[])?;
            results.conditions_of(&place, AT_ONCE)?;
            results.add(create::at_once(&place, arguments.rounds)?, None, Some(250.0), None);
            let refilled = refill::after_twenty(&place, arguments.rounds)?;
            results.rows.extend(refilled.rows);
            results.facts.extend(refilled.facts);
            results.facts.extend(refilled.ratio.map(|ratio| ratio.0));
            place.stop()
        });
    }
    if wants(Section::Neighbours) {
        results.attempt("neighbours of what misbehaves", |results| {
            let place = Place::alone(2, &[])?;
            results.conditions_of(&place, 2)?;
            let (rows, facts) = neighbours::beside_abuse(&place)?;
            results.rows.extend(rows);
            results.facts.extend(facts);
            place.stop()
        });
    }
    if wants(Section::Density) {
        results.attempt("density", |results| {
            let place = Place::alone(arguments.clones, &[])?;
            results.conditions_of(&place, arguments.clones)?;
            results.facts.extend(density::idle(&place, arguments.clones)?);
            place.stop()
        });
    }
    if wants(Section::Snapshots) {
        results.attempt("snapshots", |results| {
            let place = Place::of_three(arguments.pool)?;
            results.conditions_of(&place, arguments.pool)?;
            results.rows.push(snapshots::stop(&place, arguments.rounds.max(10))?);
            results.rows.push(snapshots::restore_in_the_next_region(&place, arguments.rounds.max(10))?);
            place.stop()
        });
    }
    let Results { conditions, rows, facts, failed } = results;
    let conditions = conditions.ok_or_else(|| anyhow::anyhow!("nothing could be measured: {}", failed.join("; ")))?;
    Ok(Report { conditions, rows, facts, failed })
}

fn one_at_a_time(
    arguments: &Arguments,
    warm: &Place,
    results: &mut Results,
    wants: &impl Fn(Section) -> bool,
) -> anyhow::Result<()> {
    if wants(Section::Create) {
        say("creates from a pool");
        results.add(create::from_pool(warm, arguments.samples)?, Some(20.0), None, Some(60.0));
        results.rows.push(create::create_alone(warm, arguments.samples)?);
        results.rows.push(create::exec(warm, arguments.samples)?);
    }
    if wants(Section::Code) {
        say("interpreters");
        results.add(code::python(warm, arguments.samples)?, Some(10.0), None, None);
        results.add(code::javascript(warm, arguments.samples.min(30))?, Some(40.0), None, None);
        results.rows.push(code::typescript(warm, arguments.samples.min(30))?);
        let (rows, facts) = code::back_to_back(warm, arguments.samples.min(50))?;
        results.rows.extend(rows);
        results.facts.extend(facts);
    }
    if wants(Section::Life) {
        say("pause and resume");
        for row in life::pause_and_resume(warm, arguments.samples)? {
            results.add(row, Some(10.0), None, None);
        }
        say("forks");
        let [stop, answer] = life::fork(warm, arguments.rounds)?.try_into().map_err(|_| anyhow::anyhow!("two rows"))?;
        results.add(stop, Some(100.0), None, None);
        results.add(answer, Some(400.0), None, None);
    }
    Ok(())
}

fn beside_containers(arguments: &Arguments, warm: &Place, results: &mut Results) -> anyhow::Result<()> {
    say("beside containers");
    let cold = Place::alone(0, &[])?;
    let compared = compare::rounds(warm, &cold, arguments.rounds.max(15))?;
    results.rows.extend(compared.rows);
    results.facts.extend(compared.ratios.into_iter().map(|ratio| ratio.0));
    say("without a pool, and cold");
    let unpooled = create::without_pool(&cold, arguments.rounds.max(10))?;
    let booted = create::of_a_new_shape(&cold, arguments.boots)?;
    let share = Fact::at_most(
        "unpooled create / cold boot of a new shape, of p50",
        unpooled.p50_ms / booted.p50_ms,
        1.0 / 15.0,
    );
    results.facts.push(share);
    results.rows.extend([unpooled, booted]);
    cold.stop()
}

fn say(what: &str) {
    // Nobody may be reading.
    let _ = writeln!(std::io::stderr(), "bench: {what}");
}
