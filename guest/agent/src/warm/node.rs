//! Node: processes started ahead, each waiting for its program on its standard input.

use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::park::Ends;
use super::{NICE, Parked, Place};
use crate::exec::{NODE, Reaper, strings};
use crate::limits::Bounds;
use crate::sys::{self, Launch};

/// The interpreter's side.
pub(super) const SCRIPT: &str = include_str!("node.js");
/// Its file.
pub(super) const SCRIPT_FILE: &str = "node.js";
/// Starts processes.
pub(super) struct Starter {
    pub(super) place: Place,
    pub(super) reaper: Reaper,
    pub(super) bounds: Arc<Bounds>,
}

impl super::Starter for Starter {
    async fn start(&mut self) -> io::Result<Parked> {
        park(&self.place, &self.reaper, &self.bounds).await
    }
}

async fn park(place: &Place, reaper: &Reaper, bounds: &Bounds) -> io::Result<Parked> {
    let (control_reader, control) = io::pipe()?;
    let (ready, ready_writer) = io::pipe()?;
    let (stdin_reader, stdin) = io::pipe()?;
    let (stdout, stdout_writer) = io::pipe()?;
    let (stderr, stderr_writer) = io::pipe()?;
    let (exercise, mut exercise_writer) = io::pipe()?;
    exercise_writer.write_all(b"exercise")?;
    drop(exercise_writer);
    let ends = Ends::new()?;
    let script = place.scripts.join(SCRIPT_FILE);
    let pid = sys::launch(&Launch {
        program: CString::new(NODE)?,
        arguments: vec![
            CString::new(NODE)?,
            CString::new("--require")?,
            CString::new(script.as_os_str().as_encoded_bytes())?,
            CString::new("-")?,
            CString::new(ends.number().to_string())?,
        ],
        environment: strings(&place.environment)?,
        cwd: CString::new(place.home.as_os_str().as_encoded_bytes())?,
        descriptors: &[
            stdin_reader.as_fd(),
            stdout_writer.as_fd(),
            stderr_writer.as_fd(),
            control_reader.as_fd(),
            ready_writer.as_fd(),
            exercise.as_fd(),
        ],
        cgroup: bounds.group(),
        open_files: bounds.open_files(),
        expendable: true,
    })?;
    // Registered before anything is awaited.
    let ended = reaper.register(Pid::from_raw(pid));
    // Until it is used: some seconds later it collects garbage, too. What fails is only that others wait for that.
    let _ = sys::set_group_niceness(pid, NICE);
    drop(ready_writer);
    let mut ready = Receiver::from_owned_fd(OwnedFd::from(ready))?;
    let parked =
        Parked { pid: Pid::from_raw(pid), ended, control, stdin: Some(stdin), stdout, stderr, ends, program: None };
    match ready.read_u8().await {
        Ok(_) => {}
        Err(error) => {
            parked.end();
            return Err(error);
        }
    }
    Ok(parked)
}
