//! The end of a development mesh: sandboxes deleted, then processes, sockets and run folders gone.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use node_hypervisor::atomic_files;
use node_network::Networks;

use super::layout::{Layout, Member};
use super::process::{NodeProcess, config_file};
use super::say;
use crate::config::NodeConfig;
use crate::engine;
use crate::node::status::Status;

/// Deleting every sandbox and the pool of a node: at most so long, then the sweep below does it.
const EMPTY_LIMIT: Duration = Duration::from_secs(30);
/// A node that has been told to end.
const TERM_LIMIT: Duration = Duration::from_secs(10);
/// After SIGKILL only the kernel is waited for.
const KILL_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// Empties and ends every node, then sweeps what a killed one left behind.
pub(crate) fn all(layout: &Layout, run: &Path) -> anyhow::Result<()> {
    atomic_files::remove_file(&layout.env_file())?;
    empty(layout);
    end_nodes(layout);
    sweep(layout)?;
    Ok(atomic_files::remove_folder(run)?)
}

/// Ends nodes that an earlier supervisor left, without touching their sandboxes: those are adopted.
pub(crate) fn end_nodes(layout: &Layout) {
    let living: Vec<(&Member, NodeProcess)> = living(layout);
    for (_, process) in &living {
        process.signal(Signal::SIGTERM);
    }
    for (member, process) in living {
        if !process.wait_end(&member.folder, TERM_LIMIT) {
            say::line(&format!("{} has not ended in {} s: killed", member.id, TERM_LIMIT.as_secs()));
            process.signal(Signal::SIGKILL);
            process.wait_end(&member.folder, KILL_LIMIT);
        }
        if let Err(error) = atomic_files::remove_file(&member.folder.join("pid")) {
            say::line(&format!("{error:#}"));
        }
    }
}

/// Asks every node to delete its sandboxes while all groups still have their voters.
fn empty(layout: &Layout) {
    let mut waiting = living(layout);
    for (_, process) in &waiting {
        process.signal(Signal::SIGUSR1);
    }
    let until = Instant::now() + EMPTY_LIMIT;
    while !waiting.is_empty() && Instant::now() < until {
        waiting.retain(|(member, process)| {
            let emptied = Status::load(&member.folder).is_some_and(|status| status.emptied);
            !emptied && !process.wait_end(&member.folder, Duration::ZERO)
        });
        std::thread::sleep(POLL);
    }
    for (member, _) in waiting {
        say::line(&format!("{} has not deleted its sandboxes in {} s: ending them", member.id, EMPTY_LIMIT.as_secs()));
    }
}

/// Ends keepers whose node is gone, and removes what is left of their sandboxes.
fn sweep(layout: &Layout) -> anyhow::Result<()> {
    for member in &layout.members {
        let ended = node_runtime::end_machines(&member.folder);
        if ended > 0 {
            say::line(&format!("{}: ended {ended} machines that it had left", member.id));
        }
        for room in ["sandboxes", "pool"] {
            atomic_files::remove_folder(&member.folder.join(room))?;
        }
        if !Status::load(&member.folder).is_some_and(|status| status.emptied) {
            sweep_network(member);
        }
    }
    Ok(())
}

/// Removes the namespaces, devices and rules of a node that was killed before it could: its next owner finds them by
/// the node's tag, and ends at once.
fn sweep_network(member: &Member) {
    let Ok(config) = NodeConfig::load(&config_file(&member.folder)) else { return };
    let ended = || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let networks = Networks::start(engine::network(&config)).await?;
            networks.stop(true).await;
            anyhow::Ok(())
        })
    };
    if let Err(error) = ended() {
        say::line(&format!("{}: its guests' network may be left behind: {error:#}", member.id));
    }
}

fn living(layout: &Layout) -> Vec<(&Member, NodeProcess)> {
    layout.members.iter().filter_map(|member| Some((member, NodeProcess::of(&member.folder)?))).collect()
}
