//! What a guest does once before it is anybody's: the paths of exec and code-run, so that the first command of its
//! owner meets warm caches.
//!
//! Measured under TCG, first and second time in a clone: `sh -c true` 115 and 10 ms, python 370-430 and 80-110 ms, node
//! 2.3 and 2.1 s. So a template runs all three, which brings their pages into the memory that its clones share, and a
//! clone runs what it is faster for.

use std::time::Duration;

use fabric_types::Generation;
use guest_proto::surface::{CodeRunRequest, ExecReply, ExecRequest, Health, IdentityAck};
use node_network::Port;
use tokio::time::Instant;

use crate::guest::{CallError, Link};
use crate::{RuntimeError, identity};

/// Longest wait for one command of a rehearsal: node starts in 2 s under TCG; a loaded host takes its time.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the rehearsal's identity: the guest waits 12 s for its interpreters to be parked, and on a loaded host
/// under TCG everything around it takes its time.
const IDENTITY_MAX: Duration = Duration::from_secs(60);
/// The generation of a guest that is nobody's yet.
const NOBODY: Generation = Generation(0);

/// Shell commands of a rehearsal; the last again, since the translator keeps what it has met twice.
const COMMANDS: [&str; 3] = ["true", "echo hi", "echo hi"];

/// A program of a rehearsal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    language: &'static str,
    code: &'static str,
}

const PYTHON: Program = Program { language: "python", code: "print('hi')" };
const JAVASCRIPT: Program = Program { language: "javascript", code: "console.log('hi')" };
/// Programs of a template.
pub(crate) const TEMPLATE: &[Program] = &[PYTHON, JAVASCRIPT];
/// Programs of a warm clone.
pub(crate) const CLONE: &[Program] = &[PYTHON];

/// Gives the guest a passing identity, with the card of the port that it has, and lets it run each path once.
pub(crate) async fn rehearse(
    label: &str,
    link: &Link,
    port: Option<&Port>,
    programs: &[Program],
) -> Result<(), RuntimeError> {
    let begun = Instant::now();
    identify(label, link, port).await?;
    for Program { language, code } in programs {
        let (language, code) = ((*language).to_owned(), (*code).to_owned());
        let request = CodeRunRequest { code, language, merge: true, ..CodeRunRequest::default() };
        let reply = link.post("/v1/code-run", &request, NOBODY, COMMAND_MAX).await;
        check(label, "run a rehearsal's program", reply)?;
    }
    let programs_ms = begun.elapsed().as_millis();
    // The guest answers when the interpreters that were used up have been replaced: paused in the middle of that, it would go
    // on with it beside its owner's first command.
    identify(label, link, port).await?;
    let parked_ms = begun.elapsed().as_millis();
    for command in COMMANDS {
        let request = ExecRequest { command: command.to_owned(), merge: true, ..ExecRequest::default() };
        let reply = link.post("/v1/exec", &request, NOBODY, COMMAND_MAX).await;
        check(label, "run a rehearsal's command", reply)?;
    }
    tracing::debug!(label, programs_ms, parked_ms, took_ms = begun.elapsed().as_millis(), "guest rehearsed");
    Ok(())
}

/// Gives the guest a passing identity; it answers when its interpreters are parked.
async fn identify(label: &str, link: &Link, port: Option<&Port>) -> Result<(), RuntimeError> {
    let identity = identity::rehearsal(port)?;
    let ack: Result<IdentityAck, _> = link.post("/v1/identity", &identity, NOBODY, IDENTITY_MAX).await;
    ack.map(drop).map_err(|error| failed(label, "take its rehearsal's identity", &error))
}

/// Lets the guest write what it has cached to its disk.
pub(crate) async fn sync(label: &str, link: &Link) -> Result<(), RuntimeError> {
    let request = ExecRequest { command: "sync".to_owned(), merge: true, ..ExecRequest::default() };
    check(label, "write its caches to disk", link.post("/v1/exec", &request, NOBODY, COMMAND_MAX).await)
}

/// What the agent says of itself.
pub(crate) async fn health(label: &str, link: &Link) -> Result<Health, RuntimeError> {
    link.get("/v1/health", NOBODY, IDENTITY_MAX).await.map_err(|error| failed(label, "say how it is", &error))
}

fn check(label: &str, action: &'static str, reply: Result<ExecReply, CallError>) -> Result<(), RuntimeError> {
    match reply {
        Ok(reply) if reply.exit_code == 0 => Ok(()),
        Ok(reply) => {
            let cause = format!("it exited with {}", reply.exit_code);
            Err(RuntimeError::Guest { id: label.to_owned(), action, cause })
        }
        Err(error) => Err(failed(label, action, &error)),
    }
}

fn failed(label: &str, action: &'static str, error: &CallError) -> RuntimeError {
    RuntimeError::Guest { id: label.to_owned(), action, cause: error.to_string() }
}
