//! What a guest does once before it is anybody's: the paths of exec and code-run, so that the first command of its
//! owner meets warm caches.
//!
//! Measured under TCG, first and second time in a clone: `sh -c true` 115 and 10 ms, python 370-430 and 80-110 ms, node
//! 2.3 and 2.1 s. So a template runs all three, which brings their pages into the memory that its clones share, and a
//! clone runs what it is faster for. A clone that becomes a checkpoint is paid once for all its copies, which share what its
//! monitor has translated: it runs everything that an owner does first, several times.

use std::time::Duration;

use bytes::Bytes;
use fabric_types::Generation;
use guest_proto::surface::{CodeRunRequest, ExecReply, ExecRequest, Health, IdentityAck};
use http::Method;
use node_hypervisor::Vm;
use node_network::Port;
use tokio::time::Instant;

use crate::guest::{CallError, Link, OPEN_MAX};
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

/// Rounds of a thorough rehearsal: what the translator has met twice it keeps, and what it has met in another order it
/// links anew.
const ROUNDS: usize = 3;
/// Shell commands of each round.
const ROUND_COMMANDS: [&str; 7] = [
    "true",
    "echo hi",
    "echo hi",
    "ls /root",
    "cat /etc/hostname",
    "uname -a; pwd; id; env",
    "echo hi > /tmp/x; rm /tmp/x",
];
/// Where a round's file lies, and what is in it.
const ROUND_FILE: &str = "/v1/files/content?path=/tmp/rehearsal";
const ROUND_FILE_TEXT: &[u8] = b"hi\n";
/// How long a guest that has no session any more runs on before it is written down: it hears of the end, and is at rest.
const REST: Duration = Duration::from_millis(200);

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
    for program in programs {
        run(label, link, *program).await?;
    }
    let programs_ms = begun.elapsed().as_millis();
    // The guest answers when the interpreters that were used up have been replaced: paused in the middle of that, it would go
    // on with it beside its owner's first command.
    identify(label, link, port).await?;
    let parked_ms = begun.elapsed().as_millis();
    for command in COMMANDS {
        exec(label, link, command).await?;
    }
    tracing::debug!(label, programs_ms, parked_ms, took_ms = begun.elapsed().as_millis(), "guest rehearsed");
    Ok(())
}

/// Lets a running guest do several times what owners do first, over several sessions, and leaves it at rest: its
/// interpreters parked, its caches on disk, nobody connected.
pub(crate) async fn thoroughly(label: &str, vm: &dyn Vm, port: Option<&Port>) -> Result<(), RuntimeError> {
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        // Each over a session of its own: opening one is what every copy does first.
        let link = Link::open(vm, OPEN_MAX).await.map_err(|error| failed(label, "open a session", &error))?;
        round(label, &link, port).await?;
        sync(label, &link).await?;
        link.close();
    }
    tokio::time::sleep(REST).await;
    tracing::debug!(label, took_ms = begun.elapsed().as_millis(), "guest rehearsed thoroughly");
    Ok(())
}

/// One program, a passing identity and one command, for a copy that has met everything before it was one.
pub(crate) async fn once(label: &str, link: &Link, port: Option<&Port>) -> Result<(), RuntimeError> {
    run(label, link, PYTHON).await?;
    identify(label, link, port).await?;
    exec(label, link, "echo hi").await
}

async fn round(label: &str, link: &Link, port: Option<&Port>) -> Result<(), RuntimeError> {
    health(label, link).await?;
    for program in [PYTHON, PYTHON, JAVASCRIPT] {
        // Parked again before each: a program that finds no interpreter goes another way than its owner's will.
        identify(label, link, port).await?;
        run(label, link, program).await?;
    }
    for command in ROUND_COMMANDS {
        exec(label, link, command).await?;
    }
    let text = || Bytes::from_static(ROUND_FILE_TEXT);
    let files = [
        (Method::PUT, ROUND_FILE, text()),
        (Method::GET, ROUND_FILE, Bytes::new()),
        (Method::GET, "/v1/files?path=/root", Bytes::new()),
        (Method::DELETE, "/v1/files?path=/tmp/rehearsal", Bytes::new()),
    ];
    for (method, path, body) in files {
        let answer = link.call(method, path, body, NOBODY, COMMAND_MAX).await;
        answer.map_err(|error| failed(label, "handle a rehearsal's file", &error))?;
    }
    stream(label, link, "echo hi").await?;
    identify(label, link, port).await?;
    identify(label, link, port).await
}

async fn run(label: &str, link: &Link, program: Program) -> Result<(), RuntimeError> {
    let Program { language, code } = program;
    let (language, code) = (language.to_owned(), code.to_owned());
    let request = CodeRunRequest { code, language, merge: true, ..CodeRunRequest::default() };
    check(label, "run a rehearsal's program", link.post("/v1/code-run", &request, NOBODY, COMMAND_MAX).await)
}

async fn exec(label: &str, link: &Link, command: &str) -> Result<(), RuntimeError> {
    check(label, "run a rehearsal's command", link.post("/v1/exec", &command_of(command), NOBODY, COMMAND_MAX).await)
}

async fn stream(label: &str, link: &Link, command: &str) -> Result<(), RuntimeError> {
    let body = serde_json::to_vec(&command_of(command)).expect("a request is plain data");
    let answer = link.call(Method::POST, "/v1/exec/stream", body.into(), NOBODY, COMMAND_MAX).await;
    answer.map(drop).map_err(|error| failed(label, "stream a rehearsal's command", &error))
}

fn command_of(command: &str) -> ExecRequest {
    ExecRequest { command: command.to_owned(), merge: true, ..ExecRequest::default() }
}

/// Gives the guest a passing identity; it answers when its interpreters are parked.
pub(crate) async fn identify(label: &str, link: &Link, port: Option<&Port>) -> Result<(), RuntimeError> {
    let identity = identity::rehearsal(port)?;
    let ack: Result<IdentityAck, _> = link.post("/v1/identity", &identity, NOBODY, IDENTITY_MAX).await;
    ack.map(drop).map_err(|error| failed(label, "take its rehearsal's identity", &error))
}

/// Lets the guest write what it has cached to its disk.
pub(crate) async fn sync(label: &str, link: &Link) -> Result<(), RuntimeError> {
    check(label, "write its caches to disk", link.post("/v1/exec", &command_of("sync"), NOBODY, COMMAND_MAX).await)
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
