//! Processes killed at any moment: what was acknowledged stays, what runs goes on, and at the end nothing is left.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tests_cluster::{Counter, Sandbox};
use tests_harness::{Footprint, Mesh, MeshOptions, Process, eventually, step};

/// A killed node starts again after 1 s, recovers its groups, and adopts its sandboxes.
const NODE_BACK: Duration = Duration::from_secs(30);
/// Until creates in other regions go on, where the catalog lost its leader.
const CREATES_GO_ON: Duration = Duration::from_secs(10);
/// Creates and deletes before the Ctrl-C that must leave nothing.
const ROUNDS: usize = 20;

#[test]
fn mesh_goes_on_after_kills_and_leaves_nothing() -> anyhow::Result<()> {
    let mut mesh = Mesh::start(MeshOptions::default())?;
    let mut footprint = Footprint::of(&mesh);
    let running = step("sandboxes that count", || {
        let regions = ["fra", "fra", "iad", "sin"];
        regions.iter().map(|region| counting(&mesh, region)).collect::<anyhow::Result<Vec<_>>>()
    })?;
    let machines = mesh.keepers_and_machines();
    ensure!(machines.len() >= running.len() * 2, "a keeper and a machine for each: {machines:?}");
    step("a second atoll dev on the same folder is refused", || a_second_one_is_refused(&mesh))?;
    step("a killed node comes back with its sandboxes", || {
        a_node_is_killed(&mesh, "fra-1", &["iad", "sin"], &running)
    })?;
    step("so does the leader of the catalog", || {
        let leader = catalog_leader(&mesh)?;
        let others: Vec<&str> = mesh.regions().iter().map(String::as_str).filter(|r| !leader.starts_with(r)).collect();
        a_node_is_killed(&mesh, &leader, &others, &running)
    })?;
    footprint.look();
    let living = step("everything is killed at once, keepers aside", || {
        let before = mesh.keepers_and_machines();
        mesh.kill_everything_but_keepers()?;
        mesh.start_supervisor()?;
        Ok(before)
    })?;
    step("and everything goes on", || all_go_on(&mesh, &running, &living))?;
    step("creates and deletes", || {
        for round in 0..ROUNDS {
            let region = &mesh.regions()[round % mesh.regions().len()];
            let sandbox = Sandbox::create(&mesh, region, &[])?;
            sandbox.says(&mesh, "true")?;
            sandbox.remove(&mesh)?;
        }
        footprint.look();
        Ok(())
    })?;
    step("Ctrl-C ends all", || {
        footprint.look();
        ensure!(footprint.processes_seen() > 4, "the footprint was seen: {footprint:?}");
        let status = mesh.interrupt()?;
        ensure!(status.success(), "atoll dev ended with {status}");
        let leaks = footprint.leaks();
        ensure!(leaks.is_empty(), "left behind:\n{}", leaks.join("\n"));
        ensure!(!mesh.data().join("env").exists(), "the env file of a mesh that is gone");
        Ok(())
    })?;
    step("the next start finds a clean mesh", || {
        mesh.start_supervisor()?;
        let list = mesh.atoll(&["ls", "--json"])?.json()?;
        ensure!(list["items"].as_array().is_some_and(Vec::is_empty), "{list}");
        Sandbox::create(&mesh, "fra", &[])?.says(&mesh, "true").map(drop)
    })?;
    mesh.stop()
}

fn counting(mesh: &Mesh, region: &str) -> anyhow::Result<(Sandbox, Counter)> {
    let sandbox = Sandbox::create(mesh, region, &[])?;
    let counter = Counter::start(mesh, &sandbox)?;
    Ok((sandbox, counter))
}

fn a_second_one_is_refused(mesh: &Mesh) -> anyhow::Result<()> {
    let mut command = mesh.command();
    command.args(["dev", "--data"]).arg(mesh.data());
    let output = command.output().context("can't run atoll dev")?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && words.contains("in use"), "{}: {words}", output.status);
    ensure!(mesh.data().join("env").is_file(), "it removed the first one's env file");
    Ok(())
}

fn a_node_is_killed(mesh: &Mesh, name: &str, elsewhere: &[&str], running: &[(Sandbox, Counter)]) -> anyhow::Result<()> {
    let machines = mesh.keepers_and_machines();
    let killed = mesh.kill_node(name)?;
    for region in elsewhere {
        let begun = Instant::now();
        let made = eventually(&format!("a create in {region} while {name} is dead"), CREATES_GO_ON, || {
            Sandbox::create(mesh, region, &[])
        })?;
        ensure!(begun.elapsed() < CREATES_GO_ON, "a create in {region} took {:?}", begun.elapsed());
        made.says(mesh, "true")?;
        made.remove(mesh)?;
    }
    mesh.wait_node_again(name, &killed, NODE_BACK)?;
    all_go_on(mesh, running, &machines)
}

/// Every acknowledged sandbox is there, runs, and is the very machine that it was.
fn all_go_on(mesh: &Mesh, running: &[(Sandbox, Counter)], machines: &[Process]) -> anyhow::Result<()> {
    for (sandbox, counter) in running {
        eventually(&format!("{} is served again", sandbox.id), NODE_BACK, || {
            let state = sandbox.state(mesh)?;
            ensure!(state == "started", "{} is {state}", sandbox.id);
            sandbox.says(mesh, "true")
        })?;
        counter.has_gone_on(mesh, sandbox)?;
    }
    // Pooled clones may be replaced; the machines of sandboxes may not, and their counters said that they weren't.
    let gone: Vec<&Process> = machines.iter().filter(|machine| !machine.lives()).collect();
    ensure!(gone.len() * 2 <= machines.len(), "most keepers or machines are gone: {gone:?}");
    Ok(())
}

fn catalog_leader(mesh: &Mesh) -> anyhow::Result<String> {
    eventually("the catalog has a leader", NODE_BACK, || {
        let seen = mesh.wait(mesh.client()?.mesh())?;
        let catalog = seen.groups.iter().find(|group| group.group == "catalog").context("no catalog group is told")?;
        Ok(catalog.leader.as_ref().context("nobody leads the catalog")?.to_string())
    })
}
