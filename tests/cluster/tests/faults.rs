//! Processes killed at any moment: what was acknowledged stays, what runs goes on, and at the end nothing is left.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tests_cluster::{Counter, Sandbox};
use tests_harness::{Footprint, Mesh, MeshOptions, eventually, step};

/// A killed node starts again after 1 s, recovers its groups, and adopts its sandboxes.
const NODE_BACK: Duration = Duration::from_secs(30);
/// Until creates in other regions go on, where the catalog lost its leader.
const CREATES_GO_ON: Duration = Duration::from_secs(10);
/// Creates that a kill falls into, and how long after the first it comes.
const CREATES_AROUND_A_KILL: usize = 8;
const KILL_AFTER: Duration = Duration::from_millis(250);
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
    ensure!(machines.len() >= running.len() * 2, "a keeper and a machine for each: {} processes", machines.len());
    step("a second atoll dev on the same folder is refused", || a_second_one_is_refused(&mesh))?;
    step("a killed node comes back with its sandboxes", || {
        a_node_is_killed(&mesh, "fra-1", &["iad", "sin"], &running)
    })?;
    step("so does the leader of the catalog", || {
        let leader = leader_of(&mesh, "catalog")?;
        let others: Vec<&str> = mesh.regions().iter().map(String::as_str).filter(|r| !leader.starts_with(r)).collect();
        a_node_is_killed(&mesh, &leader, &others, &running)
    })?;
    step("creates that were acknowledged around a kill are all there", || acknowledged_creates_stay(&mesh, "fra"))?;
    footprint.look();
    step("everything is killed at once, keepers aside", || {
        mesh.kill_everything_but_keepers()?;
        mesh.start_supervisor()
    })?;
    step("and everything goes on", || all_go_on(&mesh, &running))?;
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
    all_go_on(mesh, running)
}

/// Creates go on in a region while its node is killed in the middle of them; each that was answered must be there after.
fn acknowledged_creates_stay(mesh: &Mesh, region: &str) -> anyhow::Result<()> {
    let name = format!("{region}-1");
    let (acknowledged, killed) = std::thread::scope(|scope| {
        let creating = scope.spawn(|| {
            let made = (0..CREATES_AROUND_A_KILL).map(|_| Sandbox::create(mesh, region, &[]));
            made.filter_map(Result::ok).collect::<Vec<_>>()
        });
        std::thread::sleep(KILL_AFTER);
        let killed = mesh.kill_node(&name);
        (creating.join(), killed)
    });
    let acknowledged = acknowledged.map_err(|_| anyhow::anyhow!("the thread that creates panicked"))?;
    mesh.wait_node_again(&name, &killed?, NODE_BACK)?;
    for sandbox in &acknowledged {
        eventually(&format!("{} is served again", sandbox.id), NODE_BACK, || sandbox.says(mesh, "true"))?;
    }
    // What was not answered may have been made all the same; it too can be seen and deleted.
    eventually("all are listed", NODE_BACK, || {
        let list = mesh.atoll(&["ls", "--json", "--region", region])?.json()?;
        let ids: Vec<&str> =
            list["items"].as_array().context("items")?.iter().filter_map(|item| item["id"].as_str()).collect();
        let missing: Vec<&Sandbox> =
            acknowledged.iter().filter(|sandbox| !ids.contains(&sandbox.id.as_str())).collect();
        ensure!(missing.is_empty(), "acknowledged and missing: {missing:?} in {ids:?}");
        Ok(())
    })?;
    acknowledged.iter().try_for_each(|sandbox| sandbox.remove(mesh))
}

/// Every acknowledged sandbox is there and runs; its counter says that it is the very machine that it was.
fn all_go_on(mesh: &Mesh, running: &[(Sandbox, Counter)]) -> anyhow::Result<()> {
    for (sandbox, counter) in running {
        eventually(&format!("{} is served again", sandbox.id), NODE_BACK, || {
            let state = sandbox.state(mesh)?;
            ensure!(state == "started", "{} is {state}", sandbox.id);
            sandbox.says(mesh, "true")
        })?;
        counter.has_gone_on(mesh, sandbox)?;
    }
    Ok(())
}

fn leader_of(mesh: &Mesh, group: &str) -> anyhow::Result<String> {
    eventually(&format!("{group} has a leader"), NODE_BACK, || {
        let seen = mesh.wait(mesh.client()?.mesh())?;
        let found = seen.groups.iter().find(|status| status.group == group).context("it isn't told")?;
        Ok(found.leader.as_ref().context("nobody leads it")?.to_string())
    })
}

/// A region of three voters goes on without its leader: commits need two of three, and any gateway serves.
#[test]
fn mesh_region_of_three_goes_on_without_its_leader() -> anyhow::Result<()> {
    let options = MeshOptions { regions: vec!["fra".to_owned()], nodes_per_region: 3, pool: 1, ..Default::default() };
    let mesh = Mesh::start(options)?;
    let running = step("sandboxes that count, on several nodes", || {
        (0..4).map(|_| counting(&mesh, "fra")).collect::<anyhow::Result<Vec<_>>>()
    })?;
    let home = |sandbox: &Sandbox| -> anyhow::Result<String> {
        Ok(sandbox.info(&mesh)?["node"].as_str().context("a node")?.to_owned())
    };
    let homes = running.iter().map(|(sandbox, _)| home(sandbox)).collect::<anyhow::Result<Vec<_>>>()?;
    let leader = leader_of(&mesh, "placement-fra")?;
    let killed = mesh.kill_node(&leader)?;
    step(&format!("what isn't on {leader} is served meanwhile, creates go on"), || {
        let survivors: Vec<u16> = (0..3).filter(|number| leader != format!("fra-{}", number + 1)).collect();
        for number in survivors {
            let port = mesh.port_base() + number;
            let client = gateway_sdk::Client::new(&format!("http://127.0.0.1:{port}"), mesh.key())?;
            let made = eventually(&format!("a create through port {port}"), CREATES_GO_ON, || {
                Ok(mesh.wait(client.create(&gateway_sdk::v1::CreateSandbox::default()))?)
            })?;
            let ask = gateway_sdk::v1::Exec { command: Some("echo hi".into()), ..Default::default() };
            let near =
                running.iter().zip(&homes).filter(|(_, home)| **home != leader).map(|((sandbox, _), _)| &sandbox.id);
            for id in near.chain([&made.id]) {
                let said = mesh.wait(client.exec(id, &ask)).with_context(|| format!("{id} through port {port}"))?;
                ensure!(said.stdout == "hi\n", "{id}: {said:?}");
            }
            mesh.wait(client.delete(&made.id))?;
        }
        Ok(())
    })?;
    step("the killed one comes back with its sandboxes", || {
        mesh.wait_node_again(&leader, &killed, NODE_BACK)?;
        all_go_on(&mesh, &running)
    })?;
    mesh.stop()
}
