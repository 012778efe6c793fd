//! The node's side of a keeper's socket.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::protocol::{LINE_BYTES_MAX, PROTOCOL, Reply, Request, encode, files_of, read_line};
use crate::VmError;
use crate::process::ProcessRef;

/// How long a keeper may take for what moves no pages.
pub(crate) const ASK_LIMIT: Duration = Duration::from_secs(5);

/// A machine's keeper, by its socket.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    socket: PathBuf,
    label: String,
}

/// The creator's connection: dropping it before `confirm` ends the machine.
#[derive(Debug)]
pub(crate) struct Creator {
    stream: BufReader<UnixStream>,
    keeper: Keeper,
}

/// Who answered a greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Here {
    pub(crate) keeper: ProcessRef,
    pub(crate) vmm: ProcessRef,
    pub(crate) confirmed: bool,
}

impl Keeper {
    pub(crate) fn new(socket: PathBuf, label: String) -> Self {
        Self { socket, label }
    }

    /// Greets as the creator and keeps the connection.
    pub(crate) async fn create(&self) -> Result<(Creator, Here), VmError> {
        let within = async {
            let mut stream = self.connect().await?;
            let reply = exchange(&mut stream, &Request::Hello).await?;
            Ok((stream, reply))
        };
        let (stream, reply) = self.limited("hello", ASK_LIMIT, within).await?;
        Ok((Creator { stream, keeper: self.clone() }, self.here(reply)?))
    }

    /// Greets a keeper of an earlier process.
    pub(crate) async fn greet(&self) -> Result<Here, VmError> {
        let reply = self.ask(&Request::Hello, "hello", ASK_LIMIT).await?;
        self.here(reply)
    }

    /// Asks one question and awaits the answer; a `Failed` is an error.
    pub(crate) async fn ask(&self, request: &Request, name: &'static str, limit: Duration) -> Result<Reply, VmError> {
        let within = async { exchange(&mut self.connect().await?, request).await };
        self.accepted(name, self.limited(name, limit, within).await?)
    }

    /// Resolves when the monitor has ended, with how, or none when the keeper itself was killed. Cancel safe.
    pub(crate) async fn ended(&self) -> Option<String> {
        let within = async { exchange(&mut self.connect().await?, &Request::Wait).await };
        match within.await {
            Ok(Reply::Ended { how }) => Some(how),
            _ => None,
        }
    }

    async fn connect(&self) -> io::Result<BufReader<UnixStream>> {
        UnixStream::connect(&self.socket).await.map(BufReader::new)
    }

    async fn limited<T>(
        &self,
        name: &'static str,
        limit: Duration,
        work: impl Future<Output = io::Result<T>>,
    ) -> Result<T, VmError> {
        match timeout(limit, work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(VmError::Ended {
                label: self.label.clone(),
                how: format!("its keeper doesn't answer '{name}': {source}"),
            }),
            Err(_) => {
                let waited_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
                Err(VmError::Timeout { command: format!("keeper {name}"), waited_ms })
            }
        }
    }

    fn accepted(&self, name: &str, reply: Reply) -> Result<Reply, VmError> {
        match reply {
            Reply::Failed { message } => Err(VmError::Refused { monitor: "keeper", command: name.to_owned(), message }),
            reply => Ok(reply),
        }
    }

    fn here(&self, reply: Reply) -> Result<Here, VmError> {
        match self.accepted("hello", reply)? {
            Reply::Here { protocol, keeper, vmm, confirmed } if protocol <= PROTOCOL => {
                Ok(Here { keeper, vmm, confirmed })
            }
            Reply::Here { protocol, .. } => {
                Err(VmError::Schema { path: self.socket.clone(), found: protocol, known: PROTOCOL })
            }
            other => Err(unexpected("hello", &other)),
        }
    }
}

impl Creator {
    /// The machine is complete and stays from now on; its record is on disk.
    pub(crate) async fn confirm(mut self) -> Result<(), VmError> {
        let keeper = self.keeper.clone();
        let within = exchange(&mut self.stream, &Request::Confirm);
        let reply = keeper.limited("confirm", ASK_LIMIT, within).await?;
        match keeper.accepted("confirm", reply)? {
            Reply::Done => Ok(()),
            other => Err(unexpected("confirm", &other)),
        }
    }
}

pub(crate) fn unexpected(command: &str, reply: &Reply) -> VmError {
    VmError::Refused {
        monitor: "keeper",
        command: command.to_owned(),
        message: format!("an unexpected answer: {reply:?}"),
    }
}

async fn exchange(stream: &mut BufReader<UnixStream>, request: &Request) -> io::Result<Reply> {
    let line = encode(request)?;
    let files = files_of(request)?;
    let sent = if files.is_empty() { 0 } else { send_with(stream.get_ref(), &line, &files).await? };
    stream.get_mut().write_all(&line[sent..]).await?;
    let mut answer = Vec::new();
    stream.take(LINE_BYTES_MAX).read_until(b'\n', &mut answer).await?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
    }
    serde_json::from_slice(&answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Sends the first bytes along with descriptors; answers how many went.
async fn send_with(stream: &UnixStream, bytes: &[u8], files: &[File]) -> io::Result<usize> {
    let descriptors: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let send = || {
        let control = [ControlMessage::ScmRights(&descriptors)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], &control, flags, None).map_err(io::Error::from)
    };
    stream.async_io(Interest::WRITABLE, send).await
}

/// The same question from a thread that may block, for the sweep of old folders.
pub(crate) fn ask_blocking(socket: &Path, request: &Request, limit: Duration) -> io::Result<Reply> {
    use std::io::Write;
    let mut stream = BlockingStream::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(&encode(request)?)?;
    let line = read_line(&mut std::io::BufReader::new(stream))?.ok_or(io::ErrorKind::UnexpectedEof)?;
    serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
