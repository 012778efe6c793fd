//! What a guest does once before it is anybody's: the paths of exec and code-run, so that the first command of its
//! owner meets warm caches (115-200 ms in a clone that has never run, under TCG).

use std::time::Duration;

use fabric_types::Generation;
use guest_proto::surface::{CodeRunRequest, ExecReply, ExecRequest, Health, IdentityAck};

use crate::guest::{CallError, Link};
use crate::{RuntimeError, identity};

/// Longest wait for one command of a rehearsal: node starts in under 2 s under TCG; a loaded host takes its time.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the rehearsal's identity.
const IDENTITY_MAX: Duration = Duration::from_secs(15);
/// The generation of a guest that is nobody's yet.
const NOBODY: Generation = Generation(0);

/// Shell commands of a rehearsal; the second again, since what a translator has met twice it keeps.
const COMMANDS: [&str; 3] = ["true", "echo hi", "echo hi"];
/// Programs of a rehearsal.
const PROGRAMS: [(&str, &str); 2] = [("python", "print('hi')"), ("javascript", "console.log('hi')")];

/// Gives the guest a passing identity and lets it run each path once.
pub(crate) async fn rehearse(label: &str, link: &Link) -> Result<(), RuntimeError> {
    let identity = identity::rehearsal()?;
    let _: IdentityAck = link
        .post("/v1/identity", &identity, NOBODY, IDENTITY_MAX)
        .await
        .map_err(|error| failed(label, "take its rehearsal's identity", &error))?;
    for command in COMMANDS {
        let request = ExecRequest { command: command.to_owned(), merge: true, ..ExecRequest::default() };
        let reply = link.post("/v1/exec", &request, NOBODY, COMMAND_MAX).await;
        check(label, "run a rehearsal's command", reply)?;
    }
    for (language, code) in PROGRAMS {
        let (language, code) = (language.to_owned(), code.to_owned());
        let request = CodeRunRequest { code, language, merge: true, ..CodeRunRequest::default() };
        let reply = link.post("/v1/code-run", &request, NOBODY, COMMAND_MAX).await;
        check(label, "run a rehearsal's program", reply)?;
    }
    Ok(())
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
