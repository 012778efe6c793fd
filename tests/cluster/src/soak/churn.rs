//! Create, exec and delete, again and again, while the node and keepers are killed: what was answered holds, what
//! counts goes on, and at the end the mesh uses what it used before.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use gateway_sdk::{Client, ClientError, ListFilter, v1};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tests_harness::{Mesh, Process, Signal, eventually};

use super::level::Level;
use crate::{Counter, Sandbox};

/// A killed node is back and has adopted its sandboxes.
const BACK: Duration = Duration::from_secs(60);
/// A request that a kill fell into is tried again for as long.
const TRIES: Duration = Duration::from_secs(60);
/// After the last delete, until all is taken away and the pool is full.
const REST: Duration = Duration::from_secs(120);
pub(super) const REGION: &str = "fra";

/// How long, and how hard.
#[derive(Debug, Clone, Copy)]
pub struct ChurnOptions {
    /// Sandboxes that are created, used and deleted.
    pub cycles: u32,
    /// Kills of the node among them.
    pub node_kills: u32,
    /// Kills of keepers among them.
    pub keeper_kills: u32,
    /// What chance begins with: the same seed kills at the same cycles.
    pub seed: u64,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Churn {
    /// Cycles that went through at the first try.
    pub smooth: u32,
    /// Cycles in which something had to be tried again.
    pub tried_again: u32,
    /// Creates that were done though their answer was cut off, and that were then deleted.
    pub unanswered: u32,
    /// Survivors of node kills whose counters went on.
    pub went_on: u32,
    /// Sandboxes that a keeper's kill failed, and that were then deleted.
    pub failed: u32,
}

/// What is killed before a cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    Node,
    Keeper,
}

impl Churn {
    /// Runs it on a mesh of one node of one region, with a full pool.
    ///
    /// # Errors
    /// Whatever should have held and didn't.
    pub fn run(mesh: &Mesh, options: ChurnOptions) -> anyhow::Result<Self> {
        let client = mesh.client_of(REGION)?;
        let mut chance = StdRng::seed_from_u64(options.seed);
        let kills = kills(options, &mut chance);
        let mut seen = Self::default();
        at_rest(mesh, &client)?;
        // A few first, so that what is only ever made once is made.
        for _ in 0..5 {
            cycle(mesh, &client)?;
        }
        at_rest(mesh, &client)?;
        let before = Level::of(mesh)?;
        let mut survivor = survivor(mesh)?;
        for number in 0..options.cycles {
            match kills.iter().find(|(at, _)| *at == number).map(|(_, kill)| *kill) {
                Some(Kill::Node) => {
                    let name = mesh.node_names()?.first().cloned().context("a mesh has a node")?;
                    let killed = mesh.kill_node(&name)?;
                    mesh.wait_node_again(&name, &killed, BACK)?;
                    survivor.1 = eventually("the counter goes on", BACK, || survivor.1.has_gone_on(mesh, &survivor.0))?;
                    seen.went_on += 1;
                }
                Some(Kill::Keeper) => {
                    let (sandbox, _) = survivor;
                    kill_keeper_of(mesh, &sandbox)?;
                    eventually("it is told as failed", BACK, || {
                        let state = sandbox.state(mesh)?;
                        ensure!(state == "failed" || state == "error", "it is {state}");
                        Ok(())
                    })?;
                    sandbox.remove(mesh)?;
                    seen.failed += 1;
                    survivor = self::survivor(mesh)?;
                }
                None => {}
            }
            if cycle(mesh, &client)? {
                seen.smooth += 1;
            } else {
                seen.tried_again += 1;
                seen.unanswered += remove_unanswered(mesh, &client, &survivor.0)?;
            }
        }
        survivor.0.remove(mesh)?;
        at_rest(mesh, &client)?;
        eventually("the mesh uses what it used before", REST, || Level::of(mesh)?.is_back_to(&before))?;
        Ok(seen)
    }
}

/// One sandbox from its create to its delete; whether all of it went through at the first try.
fn cycle(mesh: &Mesh, client: &Client) -> anyhow::Result<bool> {
    let mut smooth = true;
    let until = Instant::now() + TRIES;
    let sandbox = mesh.wait(again(&mut smooth, until, async || client.create(&v1::CreateSandbox::default()).await))?;
    let ask = v1::Exec { command: Some("echo $((6*7))".to_owned()), ..v1::Exec::default() };
    let said = mesh.wait(again(&mut smooth, until, async || client.exec(&sandbox.id, &ask).await))?;
    ensure!(said.stdout == "42\n" && said.exit_code == 0, "it said {said:?}");
    mesh.wait(again(&mut smooth, until, async || match client.delete(&sandbox.id).await {
        // A delete that a kill cut off may have been done.
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }))?;
    Ok(smooth)
}

/// Deletes what a create made whose answer never came: only its client knows that nobody waits for it.
fn remove_unanswered(mesh: &Mesh, client: &Client, survivor: &Sandbox) -> anyhow::Result<u32> {
    let list = mesh.wait(client.sandboxes(&ListFilter::default()))?;
    let unknown: Vec<_> = list.items.into_iter().filter(|sandbox| sandbox.id != survivor.id).collect();
    for sandbox in &unknown {
        mesh.wait(client.delete(&sandbox.id))?;
    }
    Ok(u32::try_from(unknown.len())?)
}

/// Tries again while the node is away.
async fn again<T>(
    smooth: &mut bool,
    until: Instant,
    mut attempt: impl AsyncFnMut() -> Result<T, ClientError>,
) -> anyhow::Result<T> {
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= until => return Err(error.into()),
            Err(_) => {
                *smooth = false;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Which cycles begin with a kill: spread evenly, in an order of chance.
fn kills(options: ChurnOptions, chance: &mut StdRng) -> Vec<(u32, Kill)> {
    let all = options.node_kills + options.keeper_kills;
    let mut left = (options.node_kills, options.keeper_kills);
    (0..all)
        .map(|number| {
            let at = (number + 1) * options.cycles / (all + 1);
            let node = chance.random_range(0..left.0 + left.1) < left.0;
            if node {
                left.0 -= 1;
                (at, Kill::Node)
            } else {
                left.1 -= 1;
                (at, Kill::Keeper)
            }
        })
        .collect()
}

/// A sandbox whose counter has to go on through whatever the others see.
fn survivor(mesh: &Mesh) -> anyhow::Result<(Sandbox, Counter)> {
    eventually("a sandbox that counts", TRIES, || {
        let sandbox = Sandbox::create(mesh, REGION, &[])?;
        let counter = Counter::start(mesh, &sandbox)?;
        Ok((sandbox, counter))
    })
}

/// Kills the keeper of a sandbox's machine: its record names the machine's folder, the keeper's words do too.
fn kill_keeper_of(mesh: &Mesh, sandbox: &Sandbox) -> anyhow::Result<()> {
    let keeper = keeper_of(mesh, sandbox)?;
    keeper.signal(Signal::SIGKILL);
    ensure!(keeper.ends_within(Duration::from_secs(10)), "a keeper lives on after SIGKILL");
    Ok(())
}

/// The keeper of a sandbox's machine.
pub(super) fn keeper_of(mesh: &Mesh, sandbox: &Sandbox) -> anyhow::Result<Process> {
    let names = mesh.node_names()?;
    let name = names.first().context("a mesh has a node")?;
    for room in ["sandboxes", "pool"] {
        for home in std::fs::read_dir(mesh.data().join(name).join(room)).into_iter().flatten().flatten() {
            let record = std::fs::read_to_string(home.path().join("sandbox.json")).unwrap_or_default();
            // A fork's child names its parent in its record too.
            let record: serde_json::Value = serde_json::from_str(&record).unwrap_or_default();
            if record["spec"]["id"] != sandbox.id.as_str() {
                continue;
            }
            let home = home.path().to_string_lossy().into_owned();
            let of_it = |process: &Process| process.command.contains(" keeper ") && process.command.contains(&home);
            if let Some(keeper) = mesh.keepers_and_machines().into_iter().find(of_it) {
                return Ok(keeper);
            }
        }
    }
    bail!("no keeper of {} was found", sandbox.id)
}

/// Waits until no sandbox but those given is listed, and every pool is full.
pub(super) fn at_rest(mesh: &Mesh, client: &Client) -> anyhow::Result<()> {
    eventually("the mesh is at rest", REST, || {
        let seen = mesh.wait(client.mesh())?;
        let lacking = seen.nodes.iter().flat_map(|node| &node.pools).find(|pool| pool.warm != pool.target);
        ensure!(lacking.is_none(), "a pool isn't full: {lacking:?}");
        let list = mesh.wait(client.sandboxes(&ListFilter::default()))?;
        let ids: BTreeSet<&str> = list.items.iter().map(|sandbox| sandbox.id.as_str()).collect();
        ensure!(ids.is_empty(), "sandboxes are left: {ids:?}");
        Ok(())
    })
}
