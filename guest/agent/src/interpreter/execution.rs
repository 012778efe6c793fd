//! A context's process, and the executions in it, one after another.

use std::collections::BTreeMap;
use std::io::{self, PipeWriter};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use guest_proto::surface::{AgentErrorCode, InterpreterEvent, InterpreterOutcome, OUTPUT_BYTES_MAX};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::codec::{FramedRead, LinesCodec};

use super::text::Text;
use super::{Means, READY_MAX, command, launch};
use crate::exec::Running;
use crate::refusal::{Answer, file_error, refuse};

/// How long an interrupted execution may take to end.
const INTERRUPT_WAIT: Duration = Duration::from_secs(2);
/// Longest line of a process's replies: a traceback and its message at their limits, each character escaped.
const REPLY_BYTES_MAX: usize = 16 << 20;

/// A text that waits to be run.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) code: String,
    pub(super) env: BTreeMap<String, String>,
    pub(super) limit: Option<Duration>,
    pub(super) deadline: Option<Instant>,
    pub(super) events: mpsc::Sender<InterpreterEvent>,
    /// Told when its turn has come; nobody hears it who has given up.
    pub(super) begun: oneshot::Sender<()>,
}

#[derive(Serialize)]
struct Request<'a> {
    code: &'a str,
    env: &'a BTreeMap<String, String>,
}

/// One line of the process's replies.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Ready(#[expect(dead_code, reason = "that it came is what it says")] bool),
    Result(String),
    Error(String, String, String),
    End(bool),
}

/// A context's process.
pub(super) struct Process {
    running: Running,
    cwd: String,
    requests: Sender,
    replies: FramedRead<Receiver, LinesCodec>,
    count: u64,
}

/// One execution's events on their way out.
struct Outlet<'a> {
    events: &'a mpsc::Sender<InterpreterEvent>,
    stdout: Text,
    stderr: Text,
}

impl Process {
    /// Starts a process and waits until it takes executions.
    pub(super) async fn start(means: &Means<'_>, cwd: Option<String>) -> Answer<Self> {
        let failed = |error: io::Error| refuse(AgentErrorCode::Internal, format!("can't start a context: {error}"));
        let (requests_reader, requests) = io::pipe().map_err(failed)?;
        let (replies, replies_writer) = io::pipe().map_err(failed)?;
        let ours = |fd: i32| format!("/proc/{}/fd/{fd}", std::process::id());
        let channels = vec![ours(requests_reader.as_raw_fd()), ours(replies_writer.as_raw_fd())];
        let command = command(means, cwd, channels)?;
        let cwd = command.cwd.to_string_lossy().into_owned();
        let (running, scratch) = launch(means, command).await?;
        let mut process = Self {
            running,
            cwd,
            requests: sender(requests).map_err(failed)?,
            replies: FramedRead::new(
                Receiver::from_owned_fd(OwnedFd::from(replies)).map_err(failed)?,
                LinesCodec::new_with_max_length(REPLY_BYTES_MAX),
            ),
            count: 0,
        };
        let ready = tokio::time::timeout(READY_MAX, async {
            tokio::select! {
                reply = next(&mut process.replies) => matches!(reply, Some(Reply::Ready(_))),
                _ = &mut process.running.ended => false,
            }
        });
        let is_ready = ready.await.unwrap_or(false);
        // It has read its program; its name stays in no traceback.
        if let Some(scratch) = &scratch {
            let _ = std::fs::remove_file(scratch).map_err(file_error("remove", scratch));
        }
        if is_ready {
            return Ok(process);
        }
        process.kill();
        Err(failed(io::Error::other("its interpreter did not become ready")))
    }

    pub(super) fn cwd(&self) -> &str {
        &self.cwd
    }

    pub(super) fn group(&self) -> Pid {
        self.running.group
    }

    pub(super) fn kill(&self) {
        // It may have ended by itself.
        let _ = killpg(self.running.group, Signal::SIGKILL);
    }

    /// Runs executions until its process or all who could ask are gone.
    pub(super) async fn serve(mut self, mut executions: mpsc::Receiver<Execution>, busy: &AtomicBool) {
        loop {
            let execution = tokio::select! {
                biased;
                _ = &mut self.running.ended => return,
                execution = executions.recv() => execution,
            };
            let Some(execution) = execution else { return self.kill() };
            if execution.begun.send(()).is_err() && execution.deadline.is_some() {
                continue;
            }
            busy.store(true, Ordering::Relaxed);
            self.count += 1;
            let mut outlet = Outlet { events: &execution.events, stdout: Text::default(), stderr: Text::default() };
            let request = Request { code: &execution.code, env: &execution.env };
            let outcome = self.run(&request, execution.limit, execution.deadline, &mut outlet).await;
            let truncated = outlet.stdout.truncated || outlet.stderr.truncated;
            busy.store(false, Ordering::Relaxed);
            outlet.send(InterpreterEvent::End { outcome, execution_count: self.count, truncated }).await;
            if outcome == InterpreterOutcome::Died {
                return self.kill();
            }
        }
    }

    async fn run(
        &mut self,
        request: &Request<'_>,
        limit: Option<Duration>,
        mut deadline: Option<Instant>,
        outlet: &mut Outlet<'_>,
    ) -> InterpreterOutcome {
        // The types of a request always can be told.
        let body = serde_json::to_vec(request).unwrap_or_default();
        let order = [format!("{:08}", body.len()).into_bytes(), body].concat();
        let mut timed_out = false;
        let mut told = 0;
        loop {
            let passes = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                written = self.requests.write(&order[told..]), if told < order.len() => match written {
                    Ok(bytes) => told += bytes,
                    Err(_) => return self.died(outlet).await,
                },
                () = passes => {
                    if timed_out {
                        self.kill();
                        outlet.send(overdue(limit)).await;
                        return self.died(outlet).await;
                    }
                    timed_out = true;
                    deadline = Some(Instant::now() + INTERRUPT_WAIT);
                    // It may have ended by itself.
                    let _ = killpg(self.running.group, Signal::SIGINT);
                }
                reply = next(&mut self.replies) => {
                    self.empty(outlet).await;
                    match reply {
                        Some(Reply::Ready(_)) => {}
                        Some(Reply::Result(text)) => outlet.send(InterpreterEvent::Result { text }).await,
                        Some(Reply::Error(name, value, traceback)) => {
                            outlet.send(InterpreterEvent::Error { name, value, traceback }).await;
                        }
                        Some(Reply::End(_)) if timed_out => return InterpreterOutcome::TimedOut,
                        Some(Reply::End(true)) => return InterpreterOutcome::Interrupted,
                        Some(Reply::End(false)) => return InterpreterOutcome::Completed,
                        None => return self.died(outlet).await,
                    }
                }
                _ = &mut self.running.ended => return self.died(outlet).await,
                bytes = self.running.stdout.read() => {
                    let text = outlet.stdout.push(bytes);
                    outlet.stdout(text).await;
                }
                bytes = self.running.stderr.read() => {
                    let text = outlet.stderr.push(bytes);
                    outlet.stderr(text).await;
                }
            }
        }
    }

    async fn died(&mut self, outlet: &mut Outlet<'_>) -> InterpreterOutcome {
        self.empty(outlet).await;
        InterpreterOutcome::Died
    }

    /// Passes on what was printed before the reply that has come.
    async fn empty(&mut self, outlet: &mut Outlet<'_>) {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.running.stdout.empty(|bytes| stdout.push_str(&outlet.stdout.push(bytes)));
        self.running.stderr.empty(|bytes| stderr.push_str(&outlet.stderr.push(bytes)));
        outlet.stdout(stdout).await;
        outlet.stderr(stderr).await;
    }
}

impl Outlet<'_> {
    async fn stdout(&self, text: String) {
        if !text.is_empty() {
            self.send(InterpreterEvent::Stdout { text }).await;
        }
    }

    async fn stderr(&self, text: String) {
        if !text.is_empty() {
            self.send(InterpreterEvent::Stderr { text }).await;
        }
    }

    async fn send(&self, event: InterpreterEvent) {
        // A reader that is gone gets nothing; the execution goes on.
        let _ = self.events.send(event).await;
    }
}

/// The next reply; `None` once there is none, or something else in its place.
async fn next(replies: &mut FramedRead<Receiver, LinesCodec>) -> Option<Reply> {
    let line = replies.next().await?.ok()?;
    serde_json::from_str(&line).ok()
}

fn sender(pipe: PipeWriter) -> io::Result<Sender> {
    Sender::from_owned_fd(OwnedFd::from(pipe))
}

fn overdue(limit: Option<Duration>) -> InterpreterEvent {
    let seconds = limit.map_or(0, |limit| limit.as_secs());
    InterpreterEvent::Error {
        name: "TimeoutError".to_owned(),
        value: format!(
            "the execution passed its timeout of {seconds} s and didn't end when interrupted; its context was killed"
        ),
        traceback: String::new(),
    }
}

/// Output of one execution that is passed on, each of both.
pub(super) const TEXT_BYTES_MAX: usize = OUTPUT_BYTES_MAX;
