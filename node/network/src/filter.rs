//! Hands transactions to the kernel through `nft`, in the calling thread's network namespace.
//!
//! The crate's own runner is not used: it leaves the program's errors on our standard error, where no caller sees them.

use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command as Program;
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

/// All of it, or nothing.
pub(crate) async fn commit(what: &str, commands: &[Command]) -> Result<(), NetworkFault> {
    let json = serde_json::to_vec(&Transaction { nftables: commands }).map_err(|cause| fault(what, cause))?;
    run(what, &["-j", "-f", "-"], &json).await.map(drop)
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
    let path = std::env::var("PATH").map_or_else(|_| PATHS.to_owned(), |path| format!("{path}:{PATHS}"));
    let mut program = Program::new("nft");
    program.args(arguments).env("PATH", path).kill_on_drop(true);
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|cause| fault(what, format!("`nft` (package nftables) can't be started: {cause}")))?;
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
