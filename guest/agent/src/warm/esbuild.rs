//! Esbuild: one process as a service, which takes the types out of one program after the other.
//!
//! It runs no program, so it may serve all of them. Whatever it can't do, programs with errors in them too, is left to a
//! process of its own: that one's words are what a caller is told.

use std::ffi::{CStr, CString};
use std::fs::OpenOptions;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::timeout;

use super::packet::{ANSWER_BYTES_MAX, transform, transformed};
use super::{AGAIN, ATTEMPTS_MAX, NICE, PARK_MAX, Place};
use crate::console::say;
use crate::exec::{ESBUILD, ESBUILD_OPTIONS, Reaper, strings};
use crate::limits::Bounds;
use crate::sys::{self, Exit, Launch};

/// Longest program that is given to the service: it keeps the memory that its longest took.
const PROGRAM_BYTES_MAX: usize = 1 << 20;
/// It collects garbage when it has so much memory, and not every two minutes besides, as a Go program does that idles: that
/// would wake each guest for nothing (the documentation of Go's package runtime, "Environment Variables").
const COLLECTS: [&CStr; 2] = [c"GOGC=off", c"GOMEMLIMIT=32MiB"];
/// How long a program may take there. One of the longest takes a second under emulation.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A program that has what most have.
const EXERCISE: &[u8] = b"import { a } from 'a';\ninterface I { n: number }\nenum E { A }\nclass C<T> implements I {\n  n = 1;\n\
    private m?: T;\n}\nasync function f<T>(x: T, y?: E): Promise<T> { return `${x as string}` as T; }\nf<C<I>>(new C()).then((c) => console.log(c, a));\n";
/// How often it is exercised: what has run a few times has its memory.
const EXERCISES: usize = 3;

/// The service, started ahead and anew when it has died.
#[derive(Debug)]
pub(super) struct Transpiler {
    place: Place,
    reaper: Reaper,
    bounds: Arc<Bounds>,
    service: Mutex<Option<Service>>,
    /// Starts in a row that have failed.
    failed: AtomicU32,
    /// Whether it is there, or won't be by itself.
    ready: watch::Sender<bool>,
}

/// A process that waits for programs.
#[derive(Debug)]
struct Service {
    pid: Pid,
    stdin: Sender,
    stdout: Receiver,
    /// It is collected when it ends, whoever ended it.
    _ended: oneshot::Receiver<Exit>,
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = killpg(self.pid, Signal::SIGKILL);
    }
}

impl Transpiler {
    /// Starts the service beside everything else. Must be called on the runtime.
    pub(super) fn start(place: Place, reaper: Reaper, bounds: Arc<Bounds>) -> Arc<Self> {
        let transpiler = Arc::new(Self {
            place,
            reaper,
            bounds,
            service: Mutex::new(None),
            failed: AtomicU32::new(0),
            ready: watch::Sender::new(false),
        });
        Arc::clone(&transpiler).restart();
        transpiler
    }

    /// Waits until it serves, or won't.
    pub(super) async fn ready(&self) {
        // The sender is ours and lives.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// A program without its types, and its source map; none if it is left to a process of its own. Takes no longer than its
    /// run may.
    pub(super) async fn transpiled(self: &Arc<Self>, code: &[u8], limit: Option<Duration>) -> Option<String> {
        if code.len() > PROGRAM_BYTES_MAX {
            return None;
        }
        // One that is busy takes as long as a fresh one.
        let mut slot = self.service.try_lock().ok()?;
        let Some(mut service) = slot.take() else {
            drop(slot);
            Arc::clone(self).restart();
            return None;
        };
        // Taken out of its place meanwhile: one whose caller has gone is in the middle of something, and is ended.
        let limit = limit.map_or(ANSWER_MAX, |limit| limit.min(ANSWER_MAX));
        let failed = match timeout(limit, service.transpiled(code)).await {
            Ok(Ok(program)) => {
                *slot = Some(service);
                return program;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", limit.as_secs()),
        };
        say(&format!("esbuild's service has failed: {failed}"));
        drop((slot, service));
        Arc::clone(self).restart();
        None
    }

    fn restart(self: Arc<Self>) {
        tokio::spawn(async move {
            // Whoever else starts it holds the place.
            let Ok(mut slot) = self.service.try_lock() else { return };
            if slot.is_some() {
                return;
            }
            while self.failed.load(Ordering::Relaxed) < ATTEMPTS_MAX {
                let begun = timeout(PARK_MAX, self.begin()).await;
                match begun.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    Ok(service) => {
                        self.failed.store(0, Ordering::Relaxed);
                        *slot = Some(service);
                        break;
                    }
                    Err(error) => {
                        let failed = self.failed.fetch_add(1, Ordering::Relaxed) + 1;
                        say(&format!("can't start esbuild's service (attempt {failed}): {error}"));
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
            drop(slot);
            self.ready.send_replace(true);
        });
    }

    async fn begin(&self) -> io::Result<Service> {
        let nothing = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let (version, version_writer) = io::pipe()?;
        let (_, ended) = self.launch(&["--version"], [nothing.as_fd(), version_writer.as_fd(), nothing.as_fd()])?;
        drop(version_writer);
        let version = first_line(version).await?;
        drop(ended);
        let (stdin_reader, stdin) = io::pipe()?;
        let (stdout, stdout_writer) = io::pipe()?;
        // Its own version: it serves no other.
        let service = format!("--service={version}");
        let descriptors = [stdin_reader.as_fd(), stdout_writer.as_fd(), nothing.as_fd()];
        let (pid, ended) = self.launch(&[&service], descriptors)?;
        drop((stdin_reader, stdout_writer));
        let mut service = Service {
            pid,
            stdin: Sender::from_owned_fd(OwnedFd::from(stdin))?,
            stdout: Receiver::from_owned_fd(OwnedFd::from(stdout))?,
            _ended: ended,
        };
        if service.packet().await? != version.as_bytes() {
            return Err(io::Error::other("it doesn't begin with its version"));
        }
        for _ in 0..EXERCISES {
            if service.transpiled(EXERCISE).await?.is_none() {
                return Err(io::Error::other("it takes a program for none"));
            }
        }
        // What fails is only that others go before it.
        let _ = sys::set_group_niceness(pid.as_raw(), 0);
        Ok(service)
    }

    fn launch(
        &self,
        arguments: &[&str],
        descriptors: [BorrowedFd<'_>; 3],
    ) -> io::Result<(Pid, oneshot::Receiver<Exit>)> {
        let arguments = std::iter::once(&ESBUILD).chain(arguments).map(|&argument| CString::new(argument));
        let mut environment = strings(&self.place.environment)?;
        environment.extend(COLLECTS.map(CStr::to_owned));
        let pid = Pid::from_raw(sys::launch(&Launch {
            program: CString::new(ESBUILD)?,
            arguments: arguments.collect::<Result<_, _>>()?,
            environment,
            cwd: CString::new(self.place.home.as_os_str().as_encoded_bytes())?,
            descriptors: &descriptors,
            cgroup: self.bounds.group(),
            open_files: self.bounds.open_files(),
            expendable: true,
        })?);
        // Registered before anything is awaited.
        let ended = self.reaper.register(pid);
        // Until it serves.
        let _ = sys::set_group_niceness(pid.as_raw(), NICE);
        Ok((pid, ended))
    }
}

impl Service {
    /// A program without its types; none if there are errors in it.
    async fn transpiled(&mut self, code: &[u8]) -> io::Result<Option<String>> {
        self.stdin.write_all(&transform(ESBUILD_OPTIONS, code)?).await?;
        transformed(&self.packet().await?)
    }

    /// What it says next, without its length.
    async fn packet(&mut self) -> io::Result<Vec<u8>> {
        let length = self.stdout.read_u32_le().await?;
        if length > ANSWER_BYTES_MAX {
            return Err(io::Error::other(format!("{length} bytes at once are more than {ANSWER_BYTES_MAX}")));
        }
        let mut packet = Vec::new();
        (&mut self.stdout).take(u64::from(length)).read_to_end(&mut packet).await?;
        if packet.len() < usize::try_from(length).unwrap_or(usize::MAX) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(packet)
    }
}

/// The first line of what a process says, all of which has to fit into 100 bytes.
async fn first_line(reader: PipeReader) -> io::Result<String> {
    let mut said = String::new();
    Receiver::from_owned_fd(OwnedFd::from(reader))?.take(100).read_to_string(&mut said).await?;
    match said.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(io::Error::other("esbuild doesn't say its version")),
    }
}
