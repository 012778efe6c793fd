//! A parked interpreter, and what it is told when it is used.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::pending;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;

use super::Kind;
use crate::exec::{Command, feed};
use crate::sys::{self, Exit};

/// Beginnings of names that the libraries under every interpreter read while they start: one that is parked has read them
/// already (ld.so(8), locale(7), tzset(3), mallopt(3)).
const READ_BY_ALL: &[&str] =
    &["LD_", "LC_", "LANG", "LOCPATH", "TZ", "MALLOC_", "GLIBC_", "GCONV_", "OPENSSL_", "SSL_", "HOME"];
/// What python reads besides (python3(1)).
const READ_BY_PYTHON: &[&str] = &["PYTHON"];
/// What node and its libraries read besides (node(1)).
const READ_BY_NODE: &[&str] = &["NODE_", "UV_", "ICU_", "NO_COLOR", "FORCE_COLOR", "SSLKEYLOGFILE"];
/// Bytes that an empty pipe takes without waiting for its reader (pipe(7)).
const PIPE_BYTES: usize = 64 << 10;

/// An interpreter that waits to be used, nice until then.
#[derive(Debug)]
pub(crate) struct Parked {
    /// Its process, and its process group.
    pub(crate) pid: Pid,
    /// How it ends.
    pub(crate) ended: oneshot::Receiver<Exit>,
    /// Where it is told what to do.
    pub(crate) control: PipeWriter,
    /// Its standard input, if it reads its program there.
    pub(crate) stdin: Option<PipeWriter>,
    /// Its standard output.
    pub(crate) stdout: PipeReader,
    /// Its standard error.
    pub(crate) stderr: PipeReader,
    /// Where it tells that all that can be seen of its program has been done.
    pub(crate) ends: Ends,
    /// The file that it will open as its program, if it reads it there.
    pub(super) program: Option<PathBuf>,
}

/// A pipe on which a parked interpreter tells its exit code before it is taken apart: that takes longer than most programs,
/// and nobody can see it. It opens the pipe as a descriptor of the agent's when it has come to that, and has it open no
/// sooner. One that ends otherwise tells nothing, and its end is what its parent is told.
#[derive(Debug)]
pub(crate) struct Ends {
    reader: Receiver,
    /// Held so that there is a descriptor to open, and that the pipe doesn't end.
    writer: PipeWriter,
}

impl Ends {
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        Ok(Self { reader: Receiver::from_owned_fd(OwnedFd::from(reader))?, writer })
    }

    /// As another process opens it.
    pub(super) fn number(&self) -> i32 {
        number(&self.writer)
    }

    /// The exit code, once it is told. Cancel safe.
    pub(crate) async fn told(&mut self) -> Exit {
        match self.reader.read_u8().await {
            Ok(code) => Exit::Code(i32::from(code)),
            Err(_) => pending().await,
        }
    }
}

impl Parked {
    /// Whether it still waits.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.ended.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    /// The file that it will open as its program.
    pub(crate) fn program(&self) -> Option<&Path> {
        self.program.as_deref()
    }

    /// Ends it unused.
    pub(super) fn end(self) {
        // It may have ended by itself.
        let _ = killpg(self.pid, Signal::SIGKILL);
    }

    /// Has it run a command, which must be its interpreter's. An error leaves the command to a fresh process.
    pub(crate) fn tell(&mut self, command: &Command) -> io::Result<()> {
        // What fails is found out by what follows: only one that has died can't be told.
        let _ = sys::set_group_niceness(self.pid.as_raw(), 0);
        let order = order(command);
        if order.len() <= PIPE_BYTES {
            self.control.write_all(&order)?;
        } else {
            feed(self.control.try_clone()?, order);
        }
        if let Some(stdin) = self.stdin.take() {
            feed(stdin, command.stdin.clone());
        }
        Ok(())
    }
}

/// Whether a parked interpreter runs a command as a fresh one would. `start` is the environment that it was started with.
pub(crate) fn parks(kind: Kind, start: &BTreeMap<String, String>, command: &Command) -> bool {
    let own = match kind {
        Kind::Python => READ_BY_PYTHON,
        Kind::Node => READ_BY_NODE,
    };
    let read = |name: &str| READ_BY_ALL.iter().chain(own).any(|beginning| name.starts_with(beginning));
    let now = command.environment.iter().filter(|(name, _)| read(name));
    now.eq(start.iter().filter(|(name, _)| read(name)))
}

/// The length as 8 digits, then fields that end in a zero byte; no field has one (`Command::check`).
fn order(command: &Command) -> Vec<u8> {
    let (main, arguments) = command.arguments.split_first().map_or(("", &[][..]), |(main, rest)| (main.as_str(), rest));
    let mut fields = Vec::new();
    let mut field = |text: &[u8]| {
        fields.extend_from_slice(text);
        fields.push(0);
    };
    field(if command.limits.merge { b"1" } else { b"0" });
    field(command.cwd.as_os_str().as_encoded_bytes());
    field(main.as_bytes());
    field(arguments.len().to_string().as_bytes());
    arguments.iter().for_each(|argument| field(argument.as_bytes()));
    for (name, value) in &command.environment {
        field(format!("{name}={value}").as_bytes());
    }
    [format!("{:08}", fields.len()).into_bytes(), fields].concat()
}

/// Descriptors of the agent's own, as another process opens them.
pub(super) fn number(pipe: &impl std::os::fd::AsRawFd) -> i32 {
    pipe.as_raw_fd()
}

/// What an interpreter that reads no standard input has instead.
pub(super) fn nothing() -> io::Result<File> {
    File::open("/dev/null")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::exec::command::Limits;

    fn command(environment: &[(&str, &str)]) -> Command {
        Command {
            program: PathBuf::from("/usr/bin/python3"),
            arguments: vec!["/tmp/main.py".to_owned(), "a b".to_owned(), String::new()],
            environment: environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            cwd: PathBuf::from("/root"),
            stdin: Vec::new(),
            scratch: None,
            limits: Limits { timeout: None, merge: true },
        }
    }

    #[test]
    fn an_order_is_a_length_and_fields() {
        assert_eq!(order(&command(&[("A", "b=c")])), b"00000034\x31\0/root\0/tmp/main.py\x002\0a b\0\0A=b=c\0");
    }

    #[test]
    fn variables_that_are_read_at_the_start_need_a_fresh_interpreter() {
        let start = command(&[("LANG", "C.UTF-8"), ("HOME", "/root")]).environment;
        let with =
            |kind, name: &str| parks(kind, &start, &command(&[("LANG", "C.UTF-8"), ("HOME", "/root"), (name, "1")]));
        for kind in [Kind::Python, Kind::Node] {
            assert!(with(kind, "A") && with(kind, "PATH"));
            assert!(!with(kind, "TZ") && !with(kind, "LD_PRELOAD") && !with(kind, "LC_ALL"));
            assert!(!parks(kind, &start, &command(&[("LANG", "de_DE"), ("HOME", "/root")])));
            assert!(!parks(kind, &start, &command(&[("LANG", "C.UTF-8")])));
        }
        assert!(!with(Kind::Python, "PYTHONHASHSEED") && with(Kind::Node, "PYTHONHASHSEED"));
        assert!(!with(Kind::Node, "NODE_OPTIONS") && with(Kind::Python, "NODE_OPTIONS"));
    }
}
