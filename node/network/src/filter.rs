//! Hands transactions to the kernel through `nft`, in the calling thread's network namespace.
//!
//! The crate's own runner is not used: it leaves the program's errors on our standard error, where no caller sees them.

use std::cell::RefCell;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command as Program};
use tokio::time::timeout;

use crate::contract::NetworkFault;
use crate::rule::Command;

/// Where administrators' programs are, beside PATH.
const PATHS: &str = "/usr/sbin:/sbin:/usr/bin:/bin";
/// Longest transaction: milliseconds are usual, and thousands of ports take a second.
const NFT_SECONDS_MAX: u64 = 20;
/// How much of the program's complaint goes into an error, bytes.
const COMPLAINT_BYTES_MAX: usize = 400;

#[derive(Serialize)]
struct Transaction<'a> {
    nftables: &'a [Command],
}

fn fault(what: &str, cause: impl ToString) -> NetworkFault {
    NetworkFault::System { action: format!("{what} in the packet filter"), cause: cause.to_string() }
}

thread_local! {
    /// A program that has started already and waits for its transaction. It is of this thread's namespace, and ends by
    /// itself when its input does, also when this process is killed.
    static AHEAD: RefCell<Option<Child>> = const { RefCell::new(None) };
}

/// The arguments of a transaction.
const TRANSACTION: [&str; 3] = ["-j", "-f", "-"];

/// Starts the next transaction's program ahead: starting it is a quarter of what a transaction takes.
pub(crate) fn start_ahead() {
    let started = start(&TRANSACTION);
    AHEAD.with_borrow_mut(|ahead| *ahead = started.ok());
}

/// Ends the program that was started ahead.
pub(crate) fn stop_ahead() {
    AHEAD.with_borrow_mut(|ahead| *ahead = None);
}

/// All of it, or nothing.
pub(crate) async fn commit(what: &str, commands: &[Command]) -> Result<(), NetworkFault> {
    let json = serde_json::to_vec(&Transaction { nftables: commands }).map_err(|cause| fault(what, cause))?;
    // One that has ended meanwhile, killed by someone, is of no use.
    let ahead = AHEAD.with_borrow_mut(Option::take).map(|mut child| (matches!(child.try_wait(), Ok(None)), child));
    match ahead {
        Some((lives, child)) => {
            let child = if lives { Ok(child) } else { start(&TRANSACTION) };
            let done = finish(what, child, &json).await.map(drop);
            start_ahead();
            done
        }
        None => finish(what, start(&TRANSACTION), &json).await.map(drop),
    }
}

/// Whether the kernel and the program know everything that these commands use; changes nothing.
pub(crate) async fn try_out(commands: &[Command]) -> Result<(), NetworkFault> {
    let what = "find what is needed";
    let json = serde_json::to_vec(&Transaction { nftables: commands }).map_err(|cause| fault(what, cause))?;
    run(what, &["-j", "--check", "-f", "-"], &json).await.map(drop)
}

/// What a table has, as the program's JSON; `None` if there is no such table.
pub(crate) async fn list(family: &str, table: &str) -> Result<Option<serde_json::Value>, NetworkFault> {
    let what = "list a table";
    let tables = run(what, &["-j", "list", "tables"], &[]).await?;
    let tables: serde_json::Value = serde_json::from_slice(&tables).map_err(|cause| fault(what, cause))?;
    let is_it = |object: &serde_json::Value| {
        object["table"]["family"].as_str() == Some(family) && object["table"]["name"].as_str() == Some(table)
    };
    if !tables["nftables"].as_array().is_some_and(|all| all.iter().any(is_it)) {
        return Ok(None);
    }
    let listed = run(what, &["-j", "list", "table", family, table], &[]).await?;
    serde_json::from_slice(&listed).map(Some).map_err(|cause| fault(what, cause))
}

async fn run(what: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, NetworkFault> {
    finish(what, start(arguments), input).await
}

fn start(arguments: &[&str]) -> io::Result<Child> {
    let path = std::env::var("PATH").map_or_else(|_| PATHS.to_owned(), |path| format!("{path}:{PATHS}"));
    let mut program = Program::new("nft");
    program.args(arguments).env("PATH", path).kill_on_drop(true);
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

async fn finish(what: &str, child: io::Result<Child>, input: &[u8]) -> Result<Vec<u8>, NetworkFault> {
    let started = |cause| fault(what, format!("`nft` (package nftables) can't be started: {cause}"));
    let mut child = child.map_err(started)?;
    let stdin = child.stdin.take();
    let finished = async {
        if let Some(mut stdin) = stdin {
            // A program that reads nothing has failed, and says why itself.
            let _ = stdin.write_all(input).await;
        }
        child.wait_with_output().await
    };
    let limit = Duration::from_secs(NFT_SECONDS_MAX);
    let output =
        timeout(limit, finished).await.map_err(|_| fault(what, format!("no end after {NFT_SECONDS_MAX} s")))?;
    let output = output.map_err(|cause| fault(what, cause))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let complaint: String = complaint.trim().chars().take(COMPLAINT_BYTES_MAX).collect();
        return Err(fault(what, format!("`nft` ended with {}: {complaint}", output.status)));
    }
    Ok(output.stdout)
}
