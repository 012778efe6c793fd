//! Stateful python interpreters: contexts by their ids, each a process with a task that owns it.
//!
//! ```text
//! execute -> queue of the context -> task: tells its process, passes on what comes back -> events
//!                                    { output | reply | interrupt | timeout -> SIGINT -> 2 s -> SIGKILL | its end }
//! ```
//!
//! `context.py` is the process's side.

mod execution;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest_proto::surface::{
    AgentErrorCode, CONTEXTS_MAX, CodeRunRequest, Context, ContextList, InterpreterEvent, InterpreterOutcome,
    InterpreterRequest, NewContext,
};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::exec::{Engine, Language, prepare_code, stored, timeout};
use crate::refusal::{Answer, bad_request, refuse};
use crate::warm::{Kind, Parked, Place, Warm};
use execution::{Execution, Process};

/// The process's side.
const SCRIPT: &str = include_str!("context.py");
/// The context of who names none.
const DEFAULT: &str = "default";
/// Executions that wait for one context.
const QUEUE_MAX: usize = 16;
/// Events on their way to a slow reader; a full queue holds the context back by its pipe.
const EVENTS_MAX: usize = 8;
/// How long a context's process may take to be ready: python's start under emulation on a busy host.
const READY_MAX: Duration = Duration::from_secs(30);

/// The contexts; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contexts(Arc<Table>);

#[derive(Debug, Default)]
struct Table {
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Numbers contexts by age.
    next: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    age: u64,
    cwd: String,
    created_at: i64,
    busy: Arc<AtomicBool>,
    group: Pid,
    queue: mpsc::Sender<Execution>,
}

/// What contexts are started with.
pub(crate) struct Means<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) warm: &'a Warm,
    pub(crate) place: &'a Place,
    pub(crate) environment: &'a BTreeMap<String, String>,
}

impl Contexts {
    /// Makes a context.
    pub(crate) async fn create(&self, means: &Means<'_>, request: NewContext) -> Answer<Context> {
        if !matches!(request.language.as_str(), "" | "python") {
            return Err(bad_request(format!("there are no contexts of '{}'; known is: python", request.language)));
        }
        let age = self.0.next.fetch_add(1, Ordering::Relaxed);
        let mut random = [0; 8];
        crate::sys::random(&mut random)
            .map_err(|error| refuse(AgentErrorCode::Internal, format!("can't name a context: {error}")))?;
        let id = random.iter().map(|byte| format!("{byte:02x}")).collect();
        self.start(means, id, age, request.cwd).await
    }

    /// The contexts, by age.
    pub(crate) fn list(&self) -> ContextList {
        let entries = self.lock();
        let mut by_age: Vec<(&String, &Entry)> = entries.iter().collect();
        by_age.sort_by_key(|(_, entry)| entry.age);
        ContextList { contexts: by_age.into_iter().map(|(id, entry)| entry.told(id)).collect() }
    }

    /// Ends a context, whatever runs in it.
    pub(crate) fn delete(&self, id: &str) -> Answer<()> {
        let entry = self.lock().remove(id).ok_or_else(|| unknown(id))?;
        // It may have ended by itself.
        let _ = killpg(entry.group, Signal::SIGKILL);
        Ok(())
    }

    /// Interrupts what runs in a context, if anything does.
    pub(crate) fn interrupt(&self, id: &str) -> Answer<()> {
        let entries = self.lock();
        let entry = entries.get(id).ok_or_else(|| unknown(id))?;
        if entry.busy.load(Ordering::Relaxed) {
            // It may have ended by itself.
            let _ = killpg(entry.group, Signal::SIGINT);
        }
        Ok(())
    }

    /// Runs a text in a context and gives its events as they come; the last is `End`.
    pub(crate) async fn execute(
        &self,
        means: &Means<'_>,
        request: InterpreterRequest,
    ) -> Answer<mpsc::Receiver<InterpreterEvent>> {
        let limit = timeout(request.timeout_seconds)?;
        let deadline = limit.map(|limit| Instant::now() + limit);
        let id = request.context_id.unwrap_or_else(|| DEFAULT.to_owned());
        if id == DEFAULT && !self.lock().contains_key(DEFAULT) {
            let age = self.0.next.fetch_add(1, Ordering::Relaxed);
            match self.start(means, id.clone(), age, None).await {
                Ok(_) => {}
                // Another execution made it meanwhile.
                Err(error) if error.code == AgentErrorCode::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (begun, begins) = oneshot::channel();
        let execution =
            Execution { code: request.code, env: request.env, limit, deadline, events: events.clone(), begun };
        {
            let entries = self.lock();
            let entry = entries.get(&id).ok_or_else(|| unknown(&id))?;
            entry.queue.try_send(execution).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => {
                    refuse(AgentErrorCode::Busy, format!("{QUEUE_MAX} executions wait for the context {id} already"))
                }
                mpsc::error::TrySendError::Closed(_) => unknown(&id),
            })?;
        }
        if let Some(deadline) = deadline {
            tokio::spawn(give_up(begins, deadline, events));
        }
        Ok(receiver)
    }

    async fn start(&self, means: &Means<'_>, id: String, age: u64, cwd: Option<String>) -> Answer<Context> {
        let full = |entries: usize| {
            (entries >= CONTEXTS_MAX).then(|| {
                refuse(AgentErrorCode::Busy, format!("there are {CONTEXTS_MAX} contexts already; delete some"))
            })
        };
        if let Some(refusal) = full(self.lock().len()) {
            return Err(refusal);
        }
        let process = Process::start(means, cwd).await?;
        let (queue, executions) = mpsc::channel(QUEUE_MAX);
        let busy = Arc::new(AtomicBool::new(false));
        let created_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let entry = Entry {
            age,
            cwd: process.cwd().to_owned(),
            created_at: i64::try_from(created_at).unwrap_or(i64::MAX),
            busy: Arc::clone(&busy),
            group: process.group(),
            queue,
        };
        let told = entry.told(&id);
        {
            let mut entries = self.lock();
            let refusal = full(entries.len()).or_else(|| {
                entries
                    .contains_key(&id)
                    .then(|| refuse(AgentErrorCode::Conflict, format!("the context {id} is there")))
            });
            if let Some(refusal) = refusal {
                drop(entries);
                process.kill();
                return Err(refusal);
            }
            entries.insert(id.clone(), entry);
        }
        let table = self.clone();
        tokio::spawn(async move {
            process.serve(executions, &busy).await;
            let mut entries = table.lock();
            // One of the same name may have taken its place.
            if entries.get(&id).is_some_and(|entry| entry.age == age) {
                entries.remove(&id);
            }
        });
        Ok(told)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn told(&self, id: &str) -> Context {
        Context {
            id: id.to_owned(),
            language: "python".to_owned(),
            cwd: self.cwd.clone(),
            created_at: self.created_at,
            busy: self.busy.load(Ordering::Relaxed),
        }
    }
}

/// Tells the end of an execution whose timeout passed before its turn came.
async fn give_up(begins: oneshot::Receiver<()>, deadline: Instant, events: mpsc::Sender<InterpreterEvent>) {
    if tokio::time::timeout_at(deadline, begins).await.is_err() {
        let outcome = InterpreterOutcome::TimedOut;
        // A reader that is gone needs no end.
        let _ = events.send(InterpreterEvent::End { outcome, execution_count: 0, truncated: false }).await;
    }
}

fn unknown(id: &str) -> guest_proto::surface::AgentError {
    refuse(AgentErrorCode::NotFound, format!("there is no context '{}'", id.escape_debug()))
}

/// The command of a context's process; `channels` are its arguments.
fn command(means: &Means<'_>, cwd: Option<String>, channels: Vec<String>) -> Answer<crate::exec::Command> {
    let request = CodeRunRequest { code: SCRIPT.to_owned(), argv: channels, ..CodeRunRequest::default() };
    let Place { home, .. } = means.place;
    let mut command = prepare_code(Language::Python, request, means.environment, home)?;
    if let Some(cwd) = cwd.filter(|cwd| !cwd.is_empty()) {
        command.cwd = home.join(cwd);
        if !command.cwd.is_dir() {
            let message = format!("the working directory {} is not there or is no folder", command.cwd.display());
            return Err(bad_request(message));
        }
    }
    Ok(command)
}

/// Starts a context's process. Gives its program's file too.
async fn launch(means: &Means<'_>, command: crate::exec::Command) -> Answer<(crate::exec::Running, Option<PathBuf>)> {
    let parked = means.warm.take_for(means.place, Kind::Python, &command).await;
    let command = stored(command, parked.as_ref().and_then(Parked::program), &means.place.scratch)?;
    let running = means.engine.begin(parked, &command);
    means.warm.refill(Kind::Python);
    Ok((running?, command.scratch))
}
