//! From a paused monitor to a checkpoint's files. The monitor stands still meanwhile and goes on as it was.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::unistd::Pid;

use super::areas::{areas, kernel_areas, present};
use super::generators;
use super::known::{Known, descriptors};
use super::look::{Mapping, mappings, stat_fields, status_bits};
use super::manifest::{Action, Area, Content, Layout, Manifest, SCHEMA, Thread};
use super::remote::{read_at, word_at};
use super::tracee::{Tracee, waiting_again, waits_in};
use super::{CheckpointError, failed};
use crate::keeper::pages::{self, on_threads};
use crate::process::pid_of;
use crate::sys::trace::{extended_state, signal_mask, words_of};

/// How often a monitor is looked at that doesn't stand still: its threads finish what they do in milliseconds.
const TRIES: u32 = 200;
/// Wait between two looks.
const TRY_EVERY: Duration = Duration::from_millis(2);
/// Calls that a thread of a paused monitor waits in: all begin anew without harm.
const WAITS: [libc::c_long; 3] = [libc::SYS_ppoll, libc::SYS_poll, libc::SYS_futex];
/// Most threads of a monitor: an honest one has ten at most.
const THREADS_MAX: usize = 256;
/// Bytes copied at once.
const PIECE_BYTES: u64 = 1 << 20;
/// How far below its stack pointer a thread keeps what it may still need (System V ABI, the red zone), bytes, and room.
const BELOW_STACK: u64 = 1024;
/// Where glibc keeps a thread's number is looked for this far from the thread pointer on, bytes.
const THREAD_BYTES: u64 = 2048;

/// The files of a checkpoint, to be written.
pub(crate) struct Files<'a> {
    pub(crate) manifest: &'a File,
    pub(crate) pages: &'a File,
    pub(crate) guest: &'a File,
    pub(crate) runs: &'a File,
    /// Another name of what the monitor's memory was mapped from, if the folder has one: what is there isn't written again.
    pub(crate) base: Option<&'a File>,
    /// The same of what the guest's memory is mapped from, where that is a checkpoint's own.
    pub(crate) memory: Option<&'a File>,
}

/// Takes the monitor `pid`, which is paused. Answers the bytes that copies share.
pub(crate) fn take(pid: u32, known: &Known, into: &Files<'_>) -> Result<u64, CheckpointError> {
    let threads = stand_still(pid)?;
    let taken = take_still(pid, known, into, &threads);
    for (thread, registers) in &threads {
        // It makes the call again that it was stopped in, as the kernel would have it do; it may have made others since.
        let _ = thread.set_registers(*registers);
        thread.let_go();
    }
    taken
}

/// Stops all threads, each in a call that it can make again; the first is the process's first.
fn stand_still(pid: u32) -> Result<Vec<(Tracee, super::tracee::Registers)>, CheckpointError> {
    let mut met = String::new();
    for _ in 0..TRIES {
        let stopped = seize_all(pid)?;
        let mut waiting = Vec::new();
        for &thread in &stopped {
            let registers = thread.registers()?;
            match waits_in(&registers) {
                Some(call) if WAITS.contains(&call) => waiting.push((thread, waiting_again(&registers))),
                other => met = format!("{other:?}"),
            }
        }
        if waiting.len() == stopped.len() {
            return Ok(waiting);
        }
        // Left to itself, the kernel would have some go on by a call of its own, which tells nobody what it goes on with.
        for (thread, registers) in waiting {
            thread.set_registers(registers)?;
        }
        stopped.into_iter().for_each(Tracee::let_go);
        thread::sleep(TRY_EVERY);
    }
    Err(CheckpointError::Unfit(format!("the monitor doesn't come to rest: a thread is in call {met}")))
}

fn seize_all(pid: u32) -> Result<Vec<Tracee>, CheckpointError> {
    let mut stopped: Vec<Tracee> = Vec::new();
    loop {
        let all = thread_ids(pid).map_err(failed("list the monitor's threads"))?;
        let before = stopped.len();
        if all.len() > THREADS_MAX {
            stopped.into_iter().for_each(Tracee::let_go);
            return Err(CheckpointError::Unfit(format!("the monitor has {} threads", all.len())));
        }
        for id in all {
            if stopped.iter().any(|thread| thread.id == id) {
                continue;
            }
            match Tracee::seize(id) {
                Ok(thread) => stopped.push(thread),
                // One that is just ending.
                Err(_) if !Path::new(&format!("/proc/{pid}/task/{id}")).exists() => {}
                Err(error) => {
                    stopped.into_iter().for_each(Tracee::let_go);
                    return Err(error);
                }
            }
        }
        if stopped.len() == before {
            stopped.sort_by_key(|thread| thread.id != pid_of(pid));
            return Ok(stopped);
        }
    }
}

fn thread_ids(pid: u32) -> io::Result<Vec<Pid>> {
    let number = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw);
    Ok(fs::read_dir(format!("/proc/{pid}/task"))?.filter_map(number).collect())
}

fn take_still(
    pid: u32,
    known: &Known,
    into: &Files<'_>,
    threads: &[(Tracee, super::tracee::Registers)],
) -> Result<u64, CheckpointError> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let read = |name: &str| fs::read_to_string(proc.join(name)).map_err(failed("look at the monitor"));
    let found = mappings(&read("maps")?);
    let Some(memory) = &known.memory else {
        return Err(CheckpointError::Unfit("its guest's memory isn't mapped from a file".to_owned()));
    };
    let is_guest = |mapping: &Mapping| memory.backing.is(mapping.inode, &mapping.name);
    let base = into.base.map(File::metadata).transpose().map_err(failed("look at the base"))?;
    let is_base = |mapping: &Mapping| base.as_ref().is_some_and(|base| mapping.inode == base.ino());
    let present = |start, end, which: fn(u64) -> bool| {
        present(pid, start, end, which).map_err(failed("see which of the monitor's pages are there"))
    };
    let areas = areas(&found, is_guest, is_base, present)?;
    let status = read("status")?;
    let Some(&(main, registers)) = threads.first() else {
        return Err(CheckpointError::Unfit("the monitor has no threads".to_owned()));
    };
    let generators = generators::find(pid, &areas)?;
    let manifest = Manifest {
        schema: SCHEMA,
        origin: known.origin.clone(),
        plug: known.plug_kind,
        areas,
        kernel_areas: kernel_areas(&found),
        threads: threads.iter().map(|(thread, registers)| of_thread(*thread, registers)).collect::<Result<_, _>>()?,
        descriptors: descriptors(&proc, known)?,
        actions: actions(pid, main, registers.rip, &status)?,
        layout: layout(&read("stat")?, heap_end(main, registers.rip)?)?,
        generators,
        number_offset: number_offset(pid, &proc, threads)?,
    };
    copy_areas(pid, &manifest.areas, into.pages).map_err(failed("copy the monitor's memory"))?;
    // Where the new checkpoint has no memory of its own, its copies map the template's.
    let goes_along = into.memory.map(File::metadata).transpose().map_err(failed("look at the memory"))?;
    let goes_along = goes_along.is_some_and(|about| (about.dev(), about.ino()) == memory.id);
    let differs = if goes_along { &[] } else { memory.differs.as_slice() };
    pages::save(pid, &memory.backing, differs, into.guest, into.runs)
        .map_err(failed("copy the guest's private pages"))?;
    let mut writer = BufWriter::new(into.manifest);
    serde_json::to_writer(&mut writer, &manifest)
        .map_err(|error| failed("write the checkpoint")(io::Error::from(error)))?;
    writer.flush().map_err(failed("write the checkpoint"))?;
    Ok(manifest.shared_bytes())
}

fn of_thread(thread: Tracee, registers: &super::tracee::Registers) -> Result<Thread, CheckpointError> {
    Ok(Thread {
        registers: words_of(registers).to_vec(),
        state: extended_state(thread.id).map_err(failed("read the monitor's vector registers"))?,
        mask: signal_mask(thread.id).map_err(failed("read the monitor's signal mask"))?,
    })
}

fn copy_areas(pid: u32, areas: &[Area], into: &File) -> io::Result<()> {
    let mut pieces = Vec::new();
    let mut length = 0;
    for area in areas {
        let Content::Pages(offset) = area.content else { continue };
        length = offset + (area.end - area.start);
        let mut at = area.start;
        while at < area.end {
            let end = area.end.min(at + PIECE_BYTES);
            pieces.push((at, end - at, offset + (at - area.start)));
            at = end;
        }
    }
    into.set_len(length)?;
    let buffer_bytes = usize::try_from(PIECE_BYTES).map_err(io::Error::other)?;
    on_threads(pieces.len(), buffer_bytes, |number, buffer| {
        let (at, length, offset) = pieces[number];
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let buffer = &mut buffer[..length];
        read_at(pid, at, buffer)?;
        into.write_all_at(buffer, offset)
    })
}

/// What the caught and ignored signals do, asked in the monitor's name.
fn actions(pid: u32, main: Tracee, at: u64, status: &str) -> Result<Vec<Action>, CheckpointError> {
    const WORDS: usize = 4;
    let set = status_bits(status, "SigCgt") | status_bits(status, "SigIgn");
    let buffer = (main.registers()?.rsp - BELOW_STACK) & !0xf;
    let mut actions = Vec::new();
    for signal in 1..=64i32 {
        if set & (1 << (signal - 1)) == 0 {
            continue;
        }
        let arguments = [u64::from(signal.cast_unsigned()), 0, buffer, size_of::<u64>() as u64, 0, 0];
        main.call(at, libc::SYS_rt_sigaction, arguments)?;
        let mut words = [0u64; WORDS];
        for (number, word) in (0u64..).zip(&mut words) {
            *word = word_at(pid, buffer + number * 8).map_err(failed("read the monitor's memory"))?;
        }
        actions.push(Action { signal, words });
    }
    Ok(actions)
}

fn heap_end(main: Tracee, at: u64) -> Result<u64, CheckpointError> {
    main.call(at, libc::SYS_brk, [0; 6])
}

fn layout(stat: &str, heap_end: u64) -> Result<Layout, CheckpointError> {
    let fields = stat_fields(stat);
    // Numbered as in proc(5), where the state is the third.
    let field = |number: usize| {
        let value = fields.get(number - 3).and_then(|text| text.parse().ok());
        value.ok_or_else(|| CheckpointError::Unfit(format!("/proc/PID/stat has no field {number}")))
    };
    Ok(Layout {
        code: (field(26)?, field(27)?),
        data: (field(45)?, field(46)?),
        heap: (field(47)?, heap_end),
        stack: field(28)?,
        arguments: (field(48)?, field(49)?),
        environment: (field(50)?, field(51)?),
    })
}

/// Where the C library keeps a thread's number: at one distance from each thread's pointer.
fn number_offset(
    pid: u32,
    proc: &Path,
    threads: &[(Tracee, super::tracee::Registers)],
) -> Result<u64, CheckpointError> {
    let mut candidates: Option<Vec<u64>> = None;
    for (thread, registers) in threads {
        let status = fs::read_to_string(proc.join(format!("task/{}/status", thread.id)));
        let status = status.map_err(failed("look at the monitor's threads"))?;
        let own = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        let own: Option<u64> = own.split_whitespace().last().and_then(|number| number.parse().ok());
        let read = |offset: u64| word_at(pid, registers.fs_base + offset).ok().map(|word| word & 0xffff_ffff);
        let matches: Vec<u64> = (0..THREAD_BYTES).step_by(4).filter(|&at| own.is_some() && read(at) == own).collect();
        candidates = Some(match candidates {
            None => matches,
            Some(before) => before.into_iter().filter(|at| matches.contains(at)).collect(),
        });
    }
    match candidates.as_deref() {
        Some([offset]) => Ok(*offset),
        found => Err(CheckpointError::Unfit(format!("where its threads' numbers lie is not plain: {found:?}"))),
    }
}
