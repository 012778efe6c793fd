//! `atoll node`: one node of a mesh. Configuration in, build, run, drain.
//!
//! ```text
//! build     opens every part in order and joins them
//! upkeep    keeps groups, catalog and runtime in step with each other
//! publish   says by gossip and in status.json what this node is
//! empty     deletes what lives here, as SIGUSR1 asks
//! status    status.json
//! clock     the wall clock
//! ```

mod build;
pub(crate) mod clock;
mod empty;
mod publish;
pub(crate) mod status;
mod upkeep;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::NodeConfig;

/// A node that was told to end: requests in progress are finished for so long.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Runs a node until SIGTERM or SIGINT: both drain and leave its sandboxes to their keepers. SIGUSR1 deletes its
/// sandboxes and pool first, and goes on.
pub(crate) fn run(config: &Path) -> anyhow::Result<()> {
    let config = NodeConfig::load(config)?;
    log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("atoll-node")
        .build()
        .context("can't start the asynchronous runtime")?;
    let outcome = runtime.block_on(serve(config));
    // What still blocks a thread (a hash, a copy) isn't waited for: it is repaired by the next start.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(config: NodeConfig) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for SIGTERM")?;
    let mut empty = signal(SignalKind::user_defined1()).context("can't listen for SIGUSR1")?;
    let building = build::Node::build(config);
    let node = tokio::select! {
        node = building => node?,
        _ = interrupt.recv() => anyhow::bail!("told to end while starting"),
        _ = terminate.recv() => anyhow::bail!("told to end while starting"),
    };
    let outcome = loop {
        tokio::select! {
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            _ = empty.recv() => node.empty().await,
            failed = node.failed() => break Err(failed),
        }
    };
    node.drain(DRAIN_LIMIT).await;
    outcome
}

/// Lines on standard output, which the node's starter has made a log; `ATOLL_LOG` sets what is logged.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ATOLL_LOG").unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new("info,openraft=error,chitchat=warn,quinn=warn,sled=warn")
    });
    let json = std::env::var_os("ATOLL_LOG_JSON").is_some();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_target(true);
    let set = if json { lines.json().try_init() } else { lines.try_init() };
    if set.is_err() {
        tracing::debug!("a log is set up already");
    }
}
