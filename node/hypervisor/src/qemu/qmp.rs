//! QEMU's monitor protocol (docs/interop/qmp-spec): greeting, capabilities, commands matched by id, events.
//!
//! One task owns the socket; a command is sent to it with a reply channel. Dropping the last [`Qmp`] closes the socket,
//! so that the next process of this node may connect: QEMU serves one monitor at a time.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, LinesCodec};

use crate::VmError;

/// Longest line that is read, bytes: the largest answer we ask for is under 1 KiB, the largest event too.
const LINE_BYTES_MAX: usize = 256 << 10;
/// Commands that may wait for the task: one verb runs at a time, with at most a few commands in flight.
const COMMANDS_MAX: usize = 16;
/// How long QEMU may take from its start to its greeting, on a host that is busy.
const GREETING_LIMIT: Duration = Duration::from_secs(15);
/// How long a command may take that waits for no guest: most take under 1 ms; `stop` flushes the disk.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(15);

/// A connected monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    commands: mpsc::Sender<Command>,
    /// The status of the newest `MIGRATION` event.
    migration: watch::Receiver<Option<String>>,
    label: String,
}

#[derive(Debug)]
struct Command {
    execute: &'static str,
    arguments: Value,
    descriptor: Option<OwnedFd>,
    reply: oneshot::Sender<Result<Value, String>>,
}

/// A line from QEMU: a greeting, an answer or an event.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Connects, awaits the greeting and leaves the negotiation mode.
    pub(super) async fn connect(socket: &Path, label: &str) -> Result<Self, VmError> {
        let greeted = timeout(GREETING_LIMIT, greet(socket));
        let (lines, writer) = match greeted.await {
            Ok(Ok(halves)) => halves,
            Ok(Err(source)) => {
                return Err(VmError::Ended {
                    label: label.to_owned(),
                    how: format!("its monitor doesn't greet: {source}"),
                });
            }
            Err(_) => return Err(timed_out("QMP greeting", GREETING_LIMIT)),
        };
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (status, migration) = watch::channel(None);
        tokio::spawn(Task { lines, writer, inbox, status, pending: HashMap::new(), next_id: 1 }.run());
        let qmp = Self { commands, migration, label: label.to_owned() };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command that answers soon.
    pub(super) async fn execute(&self, execute: &'static str, arguments: Value) -> Result<Value, VmError> {
        self.send(execute, arguments, None, COMMAND_LIMIT).await
    }

    /// Hands a descriptor to QEMU under a name for `fd:NAME`.
    pub(super) async fn give_descriptor(&self, name: &'static str, descriptor: OwnedFd) -> Result<(), VmError> {
        self.send("getfd", json!({ "fdname": name }), Some(descriptor), COMMAND_LIMIT).await.map(drop)
    }

    /// Hands a descriptor to QEMU for what opens files by name; answers the number of a set of its own, whose name is
    /// `/dev/fdset/NUMBER`. QEMU's files are those of its seal.
    pub(super) async fn lend_descriptor(&self, descriptor: OwnedFd) -> Result<u64, VmError> {
        let lent = self.send("add-fd", json!({}), Some(descriptor), COMMAND_LIMIT).await?;
        lent.get("fdset-id").and_then(Value::as_u64).ok_or_else(|| VmError::Refused {
            monitor: "qemu",
            command: "add-fd".to_owned(),
            message: format!("it names no set: {lent}"),
        })
    }

    /// Has QEMU let go of what was lent. It closes it only while its machine runs.
    pub(super) async fn take_back(&self, set: u64) -> Result<(), VmError> {
        self.execute("remove-fd", json!({ "fdset-id": set })).await.map(drop)
    }

    /// Starts a migration command and waits until it has completed.
    pub(super) async fn migrate(
        &self,
        execute: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<(), VmError> {
        let mut status = self.migration.clone();
        self.execute(execute, arguments).await?;
        let finished = status.wait_for(|status| matches!(status.as_deref(), Some("completed" | "failed")));
        match timeout(limit, finished).await {
            Ok(Ok(status)) if status.as_deref() == Some("completed") => Ok(()),
            Ok(Ok(_)) => {
                let message = "the transfer of its state failed".to_owned();
                Err(VmError::Refused { monitor: "qemu", command: execute.to_owned(), message })
            }
            Ok(Err(_)) => Err(self.gone()),
            Err(_) => Err(timed_out(execute, limit)),
        }
    }

    async fn send(
        &self,
        execute: &'static str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
        limit: Duration,
    ) -> Result<Value, VmError> {
        let (reply, answer) = oneshot::channel();
        let command = Command { execute, arguments, descriptor, reply };
        let round_trip = async {
            self.commands.send(command).await.map_err(|_| self.gone())?;
            answer.await.map_err(|_| self.gone())
        };
        match timeout(limit, round_trip).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(message))) => Err(VmError::Refused { monitor: "qemu", command: execute.to_owned(), message }),
            Ok(Err(gone)) => Err(gone),
            Err(_) => Err(timed_out(execute, limit)),
        }
    }

    fn gone(&self) -> VmError {
        VmError::Ended { label: self.label.clone(), how: "its monitor closed the connection".to_owned() }
    }
}

fn timed_out(command: &str, limit: Duration) -> VmError {
    VmError::Timeout { command: command.to_owned(), waited_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
}

type Lines = FramedRead<OwnedReadHalf, LinesCodec>;

async fn greet(socket: &Path) -> io::Result<(Lines, OwnedWriteHalf)> {
    let (reader, writer) = UnixStream::connect(socket).await?.into_split();
    let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
    match next_line(&mut lines).await? {
        Some(Line { greeting: Some(_), .. }) => Ok((lines, writer)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "its first line is no greeting")),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

async fn next_line(lines: &mut Lines) -> io::Result<Option<Line>> {
    match lines.next().await {
        None => Ok(None),
        Some(Ok(line)) => serde_json::from_str(&line).map(Some).map_err(io::Error::other),
        Some(Err(error)) => Err(io::Error::other(error)),
    }
}

/// Owns the socket.
struct Task {
    lines: Lines,
    writer: OwnedWriteHalf,
    inbox: mpsc::Receiver<Command>,
    status: watch::Sender<Option<String>>,
    pending: HashMap<u64, oneshot::Sender<Result<Value, String>>>,
    next_id: u64,
}

impl Task {
    /// Until the last handle is dropped or QEMU closes; what is pending then fails by its dropped channel.
    async fn run(mut self) {
        loop {
            tokio::select! {
                command = self.inbox.recv() => match command {
                    None => return,
                    Some(command) => if self.write(command).await.is_err() { return },
                },
                line = next_line(&mut self.lines) => match line {
                    Ok(Some(line)) => self.take(line),
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(%error, "QEMU's monitor sent what can't be read; its connection is closed");
                        return;
                    }
                },
            }
        }
    }

    async fn write(&mut self, command: Command) -> io::Result<()> {
        let id = self.next_id;
        self.next_id += 1;
        if matches!(command.execute, "migrate" | "migrate-incoming") {
            // What earlier transfers came to must not be taken for this one's end.
            self.status.send_replace(None);
        }
        self.pending.retain(|_, reply| !reply.is_closed());
        self.pending.insert(id, command.reply);
        let message = json!({ "execute": command.execute, "arguments": command.arguments, "id": id });
        let mut bytes = message.to_string().into_bytes();
        bytes.push(b'\n');
        let sent = match command.descriptor {
            Some(descriptor) => self.write_with(&bytes, &descriptor).await?,
            None => 0,
        };
        self.writer.write_all(&bytes[sent..]).await
    }

    /// Sends the first bytes along with a descriptor (unix(7), `SCM_RIGHTS`); answers how many went.
    async fn write_with(&self, bytes: &[u8], descriptor: &OwnedFd) -> io::Result<usize> {
        let stream: &UnixStream = self.writer.as_ref();
        stream
            .async_io(Interest::WRITABLE, || {
                let descriptors = [descriptor.as_fd().as_raw_fd()];
                let control = [ControlMessage::ScmRights(&descriptors)];
                sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::MSG_NOSIGNAL, None)
                    .map_err(io::Error::from)
            })
            .await
    }

    fn take(&mut self, line: Line) {
        if let Some(reply) = line.id.and_then(|id| self.pending.remove(&id)) {
            let answer = match line.error {
                Some(refusal) => Err(refusal.desc),
                None => Ok(line.value.unwrap_or_default()),
            };
            // Who asked may have given up.
            let _ = reply.send(answer);
        }
        if line.event.as_deref() == Some("MIGRATION") {
            let status = line.data.get("status").and_then(Value::as_str).map(str::to_owned);
            self.status.send_replace(status);
        }
    }
}

/// A file opened for QEMU to write, made anew.
pub(super) fn create_for_qemu(path: &Path) -> Result<OwnedFd, VmError> {
    use std::os::unix::fs::OpenOptionsExt;
    let options = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    options.map(OwnedFd::from).map_err(file_error("create", path))
}

/// A file opened for QEMU to read.
pub(super) fn open_for_qemu(path: &Path) -> Result<OwnedFd, VmError> {
    std::fs::File::open(path).map(OwnedFd::from).map_err(file_error("open", path))
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VmError {
    let path = PathBuf::from(path);
    move |source| VmError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use std::io::IoSliceMut;
    use tokio::net::UnixListener;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    async fn answer(stream: &UnixStream, text: &str) {
        let line = format!("{text}\n");
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            stream.writable().await.expect("writable");
            match stream.try_write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    /// Reads one command and the descriptors that came with it.
    async fn command(stream: &UnixStream) -> (Value, usize) {
        let mut buffer = [0; 4096];
        let (count, descriptors) = stream
            .async_io(Interest::READABLE, || {
                let mut slices = [IoSliceMut::new(&mut buffer)];
                let mut space = nix::cmsg_space!([i32; 4]);
                let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty())?;
                let given = message.cmsgs()?.map(|control| match control {
                    ControlMessageOwned::ScmRights(given) => given.len(),
                    _ => 0,
                });
                Ok((message.bytes, given.sum()))
            })
            .await
            .expect("received");
        (serde_json::from_slice(&buffer[..count]).expect("JSON"), descriptors)
    }

    async fn pair(folder: &tempfile::TempDir) -> (Qmp, UnixStream) {
        let path = folder.path().join("q");
        let listener = UnixListener::bind(&path).expect("bound");
        let server = async {
            let (stream, _) = listener.accept().await.expect("accepted");
            answer(&stream, GREETING).await;
            let (negotiation, _) = command(&stream).await;
            assert_eq!(negotiation["execute"], "qmp_capabilities");
            answer(&stream, &format!(r#"{{"return": {{}}, "id": {}}}"#, negotiation["id"])).await;
            stream
        };
        let (qmp, stream) = tokio::join!(Qmp::connect(&path, "vm"), server);
        (qmp.expect("connected"), stream)
    }

    #[tokio::test]
    async fn answers_find_their_commands_among_events_and_in_any_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let (qmp, stream) = pair(&folder).await;
        let server = async {
            let (first, _) = command(&stream).await;
            answer(&stream, r#"{"event": "STOP", "timestamp": {}}"#).await;
            answer(&stream, r#"{"return": {}, "id": 9999}"#).await;
            answer(&stream, &format!(r#"{{"error": {{"class": "x", "desc": "no"}}, "id": {}}}"#, first["id"])).await;
        };
        let (answered, ()) = tokio::join!(qmp.execute("stop", json!({})), server);
        assert_eq!(answered.expect_err("refused").to_string(), "qemu refused 'stop': no");
    }

    #[tokio::test]
    async fn a_descriptor_travels_with_its_command() {
        let folder = tempfile::tempdir().expect("a folder");
        let (qmp, stream) = pair(&folder).await;
        let path = folder.path().join("state");
        let given = create_for_qemu(&path).expect("created");
        let server = async {
            let (getfd, descriptors) = command(&stream).await;
            assert_eq!((getfd["execute"].as_str(), descriptors), (Some("getfd"), 1));
            answer(&stream, &format!(r#"{{"return": {{}}, "id": {}}}"#, getfd["id"])).await;
        };
        let (answered, ()) = tokio::join!(qmp.give_descriptor("state", given), server);
        answered.expect("taken");
    }

    #[tokio::test]
    async fn a_migration_waits_for_its_own_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let (qmp, stream) = pair(&folder).await;
        for (status, works) in [("completed", true), ("failed", false), ("completed", true)] {
            let server = async {
                let (migrate, _) = command(&stream).await;
                answer(&stream, r#"{"event": "MIGRATION", "data": {"status": "setup"}}"#).await;
                answer(&stream, &format!(r#"{{"return": {{}}, "id": {}}}"#, migrate["id"])).await;
                answer(&stream, &format!(r#"{{"event": "MIGRATION", "data": {{"status": "{status}"}}}}"#)).await;
            };
            let migrated = qmp.migrate("migrate", json!({}), COMMAND_LIMIT);
            let (answered, ()) = tokio::join!(migrated, server);
            assert_eq!(answered.is_ok(), works, "{status}");
        }
    }

    #[tokio::test]
    async fn a_monitor_that_goes_fails_what_is_pending() {
        let folder = tempfile::tempdir().expect("a folder");
        let (qmp, stream) = pair(&folder).await;
        let server = async {
            command(&stream).await;
            drop(stream);
        };
        let (answered, ()) = tokio::join!(qmp.execute("cont", json!({})), server);
        assert!(matches!(answered, Err(VmError::Ended { .. })));
        assert!(matches!(qmp.execute("cont", json!({})).await, Err(VmError::Ended { .. })));
    }

    #[tokio::test]
    async fn an_endless_line_closes_the_connection() {
        let folder = tempfile::tempdir().expect("a folder");
        let (qmp, stream) = pair(&folder).await;
        let server = async {
            command(&stream).await;
            answer(&stream, &"x".repeat(LINE_BYTES_MAX + 2)).await;
        };
        let (answered, ()) = tokio::join!(qmp.execute("cont", json!({})), server);
        assert!(matches!(answered, Err(VmError::Ended { .. })));
    }
}
