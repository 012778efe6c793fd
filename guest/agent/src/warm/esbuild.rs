//! Esbuild: a process started ahead, which waits for a program on its standard input.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Pid;
use tokio::sync::oneshot;

use super::park::Ends;
use super::{NICE, Parked, Place};
use crate::exec::{ESBUILD, ESBUILD_OPTIONS, Reaper, strings};
use crate::limits::Bounds;
use crate::sys::{self, Exit, Launch};

/// A program that has what most have.
const EXERCISE: &[u8] = b"import { a } from 'a';\ninterface I { n: number }\nenum E { A }\nclass C<T> implements I {\n  n = 1;\n\
    private m?: T;\n}\nasync function f<T>(x: T, y?: E): Promise<T> { return `${x as string}` as T; }\nf<C<I>>(new C()).then((c) => console.log(c, a));\n";
/// Between two looks at whether one waits for its program.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Starts processes; the first exercises the way that all go.
pub(super) struct Starter {
    place: Place,
    reaper: Reaper,
    bounds: Arc<Bounds>,
    exercised: bool,
}

impl Starter {
    pub(super) fn new(place: Place, reaper: Reaper, bounds: Arc<Bounds>) -> Self {
        Self { place, reaper, bounds, exercised: false }
    }

    /// Starts one with these outputs; it reads its program from what is written.
    fn launch(&self, outputs: [BorrowedFd<'_>; 2]) -> io::Result<(Pid, oneshot::Receiver<Exit>, PipeWriter)> {
        let (stdin_reader, stdin) = io::pipe()?;
        let arguments = std::iter::once(&ESBUILD).chain(ESBUILD_OPTIONS).map(|&argument| CString::new(argument));
        let pid = Pid::from_raw(sys::launch(&Launch {
            program: CString::new(ESBUILD)?,
            arguments: arguments.collect::<Result<_, _>>()?,
            environment: strings(&self.place.environment)?,
            cwd: CString::new(self.place.home.as_os_str().as_encoded_bytes())?,
            descriptors: &[stdin_reader.as_fd(), outputs[0], outputs[1]],
            cgroup: self.bounds.group(),
            open_files: self.bounds.open_files(),
            expendable: true,
        })?);
        // Registered before anything is awaited.
        let ended = self.reaper.register(pid);
        // Until it is used. What fails is only that others wait for it.
        let _ = sys::set_group_niceness(pid.as_raw(), NICE);
        Ok((pid, ended, stdin))
    }

    async fn exercise(&self) -> io::Result<()> {
        let nowhere = OpenOptions::new().write(true).open("/dev/null")?;
        let (_, ended, mut stdin) = self.launch([nowhere.as_fd(), nowhere.as_fd()])?;
        stdin.write_all(EXERCISE)?;
        drop(stdin);
        // How it ends tells nothing about the next one.
        let _ = ended.await;
        Ok(())
    }
}

impl super::Starter for Starter {
    async fn start(&mut self) -> io::Result<Parked> {
        if !self.exercised {
            self.exercise().await?;
            self.exercised = true;
        }
        let (stdout, stdout_writer) = io::pipe()?;
        let (stderr, stderr_writer) = io::pipe()?;
        let ends = Ends::new()?;
        let (pid, ended, stdin) = self.launch([stdout_writer.as_fd(), stderr_writer.as_fd()])?;
        let mut parked = Parked { pid, ended, control: None, stdin: Some(stdin), stdout, stderr, ends, program: None };
        while !waits(pid) {
            if !parked.is_alive() {
                return Err(io::Error::other("esbuild has ended before it was used"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(parked)
    }
}

/// Whether one of a process's threads reads its standard input, and there is nothing to read yet (proc_pid_syscall(5)).
fn waits(pid: Pid) -> bool {
    let reading = format!("{} 0x0 ", libc::SYS_read);
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("syscall")).ok())
        .any(|call| call.starts_with(&reading))
}
