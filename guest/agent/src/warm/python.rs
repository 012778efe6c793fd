//! Python: one process forks the others, each ahead of its use.
//!
//! A parked child's parent is the agent: the process between them leaves at once, and the first process of a guest inherits
//! whom their parent leaves. So its end is told to the agent as any command's.

use std::ffi::CString;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe::Receiver;

use super::park::{Ends, nothing, number};
use super::{NICE, Parked, Place, pages};
use crate::exec::{PYTHON, Reaper, next_program, program_file, strings};
use crate::limits::Bounds;
use crate::sys::{self, Launch};

/// The interpreter's side.
pub(super) const SCRIPT: &str = include_str!("zygote.py");
/// As what python imports it.
pub(super) const SCRIPT_FILE: &str = "usercustomize.py";

/// The process that others are forked from.
struct Zygote {
    orders: PipeWriter,
    reports: Lines<BufReader<Receiver>>,
    /// Its outputs, which nobody writes to: a child's are made like them.
    _outputs: (PipeReader, PipeReader),
    slots: u64,
    pid: i32,
    /// The pages of its memory that its children will write to; found once it has forked.
    pages: Option<Vec<u64>>,
}

/// Has the zygote fork children, and starts another zygote when it is gone.
pub(super) struct Starter {
    place: Place,
    reaper: Reaper,
    bounds: Arc<Bounds>,
    zygote: Option<Zygote>,
}

impl Starter {
    pub(super) fn new(place: Place, reaper: Reaper, bounds: Arc<Bounds>) -> Self {
        Self { place, reaper, bounds, zygote: None }
    }
}

impl super::Starter for Starter {
    async fn start(&mut self) -> io::Result<Parked> {
        // One that fails, or is given up in the middle, isn't used again: it ends when its orders do.
        let mut zygote = match self.zygote.take() {
            Some(zygote) => zygote,
            None => Zygote::start(&self.place, &self.bounds)?,
        };
        let parked = zygote.park(&self.reaper, &self.place.scratch).await?;
        self.zygote = Some(zygote);
        Ok(parked)
    }
}

impl Zygote {
    fn start(place: &Place, bounds: &Bounds) -> io::Result<Self> {
        let (orders_reader, orders) = io::pipe()?;
        let (reports, reports_writer) = io::pipe()?;
        let (stdout, stdout_writer) = io::pipe()?;
        let (stderr, stderr_writer) = io::pipe()?;
        let stdin = nothing()?;
        let mut environment = place.environment.clone();
        let path = format!("{}:{}", place.scripts.display(), place.home.display());
        environment.insert("PYTHONPATH".to_owned(), path);
        let main = program_file(&place.scratch, 0);
        let pid = sys::launch(&Launch {
            program: CString::new(PYTHON)?,
            arguments: vec![CString::new(PYTHON)?, CString::new(main.as_os_str().as_encoded_bytes())?],
            environment: strings(&environment)?,
            cwd: CString::new(place.home.as_os_str().as_encoded_bytes())?,
            descriptors: &[
                stdin.as_fd(),
                stdout_writer.as_fd(),
                stderr_writer.as_fd(),
                orders_reader.as_fd(),
                reports_writer.as_fd(),
            ],
            cgroup: None,
            open_files: bounds.open_files(),
            expendable: false,
        })?;
        // What fails is only that forking competes with programs.
        let _ = sys::set_niceness(pid, NICE);
        let reports = BufReader::new(Receiver::from_owned_fd(OwnedFd::from(reports))?).lines();
        Ok(Self { orders, reports, _outputs: (stdout, stderr), slots: 0, pid, pages: None })
    }

    async fn park(&mut self, reaper: &Reaper, scratch: &Path) -> io::Result<Parked> {
        let (control_reader, control) = io::pipe()?;
        let (stdout, stdout_writer) = io::pipe()?;
        let (stderr, stderr_writer) = io::pipe()?;
        let ends = Ends::new()?;
        let program = next_program(scratch);
        self.slots += 1;
        let slot = self.slots;
        let [ctl, out, err] = [number(&control_reader), number(&stdout_writer), number(&stderr_writer)];
        let order = format!("{slot} {ctl} {out} {err} {} {}\n", ends.number(), program.display());
        self.orders.write_all(order.as_bytes())?;
        let line = self.reports.next_line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let numbers: Option<(u64, i32)> =
            line.split_once(' ').and_then(|(slot, pid)| Some((slot.parse().ok()?, pid.parse().ok()?)));
        match numbers {
            Some((of, pid)) if of == slot && pid > 1 => {
                let ended = reaper.register(Pid::from_raw(pid));
                // What fails is only that its program starts slower.
                let pages = self.pages.get_or_insert_with(|| pages::of(self.pid).unwrap_or_default());
                let _ = pages::own(pid, pages).await;
                let pid = Pid::from_raw(pid);
                Ok(Parked { pid, ended, control, stdin: None, stdout, stderr, ends, program: Some(program) })
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
