//! From a paused monitor to a checkpoint's files. The monitor stands still meanwhile and goes on as it was.

use std::fs::{self, File};
use std::io::{self, BufWriter, IoSliceMut, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::look::{DescriptorInfo, Link, Mapping, mappings, stat_fields, status_bits};
use super::manifest::{
    self, Action, Area, Content, Descriptor, KernelArea, Layout, Manifest, Origin, Plug, SCHEMA, Thread,
};
use super::tracee::{Tracee, waiting_again, waits_in};
use super::{CheckpointError, failed};
use crate::keeper::pages::{self, Backing, PAGE, Run, on_threads};
use crate::process::pid_of;
use crate::sys::trace::{extended_state, signal_mask, words_of};

/// How often a monitor is looked at that doesn't stand still: its threads finish what they do in milliseconds.
const TRIES: u32 = 200;
/// Wait between two looks.
const TRY_EVERY: Duration = Duration::from_millis(2);
/// Calls that a thread of a paused monitor waits in: all begin anew without harm.
const WAITS: [libc::c_long; 3] = [libc::SYS_ppoll, libc::SYS_poll, libc::SYS_futex];
/// Shortest hole in a range of memory that is left out, bytes: for shorter ones a mapping more costs more.
const HOLE_BYTES_MIN: u64 = 256 << 10;
/// Bytes that the first thread's stack may grow to: Linux's usual limit.
const STACK_BYTES: u64 = 8 << 20;
/// Most ranges of memory, threads and bytes of a monitor: an honest one has some 500, ten and 100 MiB. One that its guest has
/// taken over may have what it likes.
const AREAS_MAX: usize = 16 << 10;
/// As above.
const THREADS_MAX: usize = 256;
/// As above.
const BYTES_MAX: u64 = 4 << 30;
/// Bytes copied at once.
const PIECE_BYTES: u64 = 1 << 20;
/// How far below its stack pointer a thread keeps what it may still need (System V ABI, the red zone), bytes, and room.
const BELOW_STACK: u64 = 1024;
/// Where glibc keeps a thread's number is looked for this far from the thread pointer on, bytes.
const THREAD_BYTES: u64 = 2048;

/// A file as its device and number.
pub(crate) type FileId = (u64, u64);

/// What a keeper knows of its monitor's descriptors since it started it.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    origin: Origin,
    plug_kind: Plug,
    root: FileId,
    disk: FileId,
    memory: Option<Memory>,
    /// Listeners by name.
    listeners: Vec<(String, i32)>,
    plug: Option<i32>,
}

/// What a monitor maps its guest's memory from.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(super) id: FileId,
    pub(super) backing: Backing,
    /// Where that differs from the template's, for a checkpoint's own.
    pub(super) differs: Vec<Run>,
}

impl Memory {
    /// A template's, mapped by its name.
    pub(crate) fn of_template(path: &Path) -> io::Result<Self> {
        Ok(Self { id: id_of(path)?, backing: Backing::at(path)?, differs: Vec::new() })
    }

    /// A checkpoint's own.
    pub(super) fn of_checkpoint(file: &File, differs: Vec<Run>) -> io::Result<Self> {
        let about = file.metadata()?;
        Ok(Self { id: (about.dev(), about.ino()), backing: Backing::of(file)?, differs })
    }
}

impl Known {
    /// What the guest's memory is mapped from, and where that differs from the template's.
    pub(crate) fn backing(&self) -> Option<(&Backing, &[Run])> {
        self.memory.as_ref().map(|memory| (&memory.backing, memory.differs.as_slice()))
    }

    /// Looks at the files while the keeper still sees them.
    pub(crate) fn look(
        program: &Path,
        plug_kind: Plug,
        [root, disk]: [&Path; 2],
        memory: Option<Memory>,
        listeners: Vec<(String, i32)>,
        plug: Option<i32>,
    ) -> io::Result<Self> {
        Ok(Self {
            origin: Origin::of(program)?,
            plug_kind,
            root: id_of(root)?,
            disk: id_of(disk)?,
            memory,
            listeners,
            plug,
        })
    }
}

fn id_of(path: &Path) -> io::Result<FileId> {
    fs::metadata(path).map(|about| (about.dev(), about.ino()))
}

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

/// What lies at the process's addresses. `present` answers which ranges within one hold pages of that kind, ascending.
fn areas(
    found: &[Mapping],
    is_guest: impl Fn(&Mapping) -> bool,
    is_base: impl Fn(&Mapping) -> bool,
    present: impl Fn(u64, u64, fn(u64) -> bool) -> Result<Vec<(u64, u64)>, CheckpointError>,
) -> Result<Vec<Area>, CheckpointError> {
    let (mut areas, mut offset, mut before) = (Vec::new(), 0, 0);
    for mapping in found.iter().filter(|mapping| mapping.kernel_name().is_none() && !mapping.is_vsyscall()) {
        let &Mapping { mut start, end, rights, .. } = mapping;
        if mapping.shared {
            return Err(CheckpointError::Unfit(format!("the monitor shares memory with others: {mapping:?}")));
        }
        let mut pages = |start, end| {
            let content = Content::Pages(offset);
            offset += end - start;
            Area { start, end, rights, content }
        };
        if is_guest(mapping) {
            areas.push(Area { start, end, rights, content: Content::Guest(mapping.offset) });
        } else if rights == 0 {
            areas.push(Area { start, end, rights, content: Content::Zero });
        } else if mapping.inode != 0 && !is_base(mapping) {
            areas.push(pages(start, end));
        } else {
            let based = mapping.inode != 0;
            if mapping.name == "[stack]" {
                // A copy's doesn't grow by itself.
                start = start.min(end.saturating_sub(STACK_BYTES)).max(before);
            }
            let rest = |start, end| {
                let content =
                    if based { Content::Base(mapping.offset + (start - mapping.start)) } else { Content::Zero };
                (start < end).then_some(Area { start, end, rights, content })
            };
            let mut at = start;
            let kind = if based { pages::is_private } else { pages::is_there };
            for (from, to) in joined(&present(mapping.start, end, kind)?) {
                areas.extend(rest(at, from));
                areas.push(pages(from, to));
                at = to;
            }
            areas.extend(rest(at, end));
        }
        before = end;
        if areas.len() > AREAS_MAX || offset > BYTES_MAX {
            return Err(CheckpointError::Unfit("the monitor has far more memory than one needs".to_owned()));
        }
    }
    Ok(areas)
}

/// Joins ranges with short holes between.
fn joined(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for &(start, end) in ranges {
        match joined.last_mut() {
            Some(last) if start - last.1 < HOLE_BYTES_MIN => last.1 = end,
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// The ranges of pages whose entries in pagemap are of a kind.
fn present(pid: u32, start: u64, end: u64, which: fn(u64) -> bool) -> io::Result<Vec<(u64, u64)>> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let count = usize::try_from((end - start) / PAGE).map_err(io::Error::other)?;
    let mut bytes = vec![0; count * 8];
    pagemap.read_exact_at(&mut bytes, start / PAGE * 8)?;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (number, entry) in (0u64..).zip(bytes.as_chunks::<8>().0) {
        if !which(u64::from_ne_bytes(*entry)) {
            continue;
        }
        let at = start + number * PAGE;
        match ranges.last_mut() {
            Some(last) if last.1 == at => last.1 += PAGE,
            _ => ranges.push((at, at + PAGE)),
        }
    }
    Ok(ranges)
}

fn kernel_areas(found: &[Mapping]) -> Vec<KernelArea> {
    let area = |mapping: &Mapping| {
        mapping.kernel_name().map(|name| KernelArea { name: name.to_owned(), start: mapping.start, end: mapping.end })
    };
    found.iter().filter_map(area).collect()
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
        let remote = [RemoteIoVec { base: usize::try_from(at).map_err(io::Error::other)?, len: length }];
        let buffer = &mut buffer[..length];
        if process_vm_readv(pid_of(pid), &mut [IoSliceMut::new(buffer)], &remote)? != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        into.write_all_at(buffer, offset)
    })
}

/// All descriptors; one that this doesn't know is an error that names it.
fn descriptors(proc: &Path, known: &Known) -> Result<Vec<Descriptor>, CheckpointError> {
    let failed = failed("look at the monitor's descriptors");
    let mut found = Vec::new();
    for entry in fs::read_dir(proc.join("fd")).map_err(&failed)? {
        let entry = entry.map_err(&failed)?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let target = fs::read_link(entry.path()).map_err(&failed)?;
        let info = fs::read_to_string(proc.join(format!("fdinfo/{number}"))).map_err(&failed)?;
        let info = DescriptorInfo::parse(&info);
        let id = id_of(&entry.path()).ok();
        let Some(file) = file_of(number, Link::of(&target), &info, id, known) else {
            let what = target.display();
            return Err(CheckpointError::Unfit(format!(
                "the monitor has {what} open as {number}, which can't be copied"
            )));
        };
        let (close_on_exec, nonblocking) = (info.has(libc::O_CLOEXEC), info.has(libc::O_NONBLOCK));
        found.push(Descriptor { number, close_on_exec, nonblocking, file });
    }
    found.sort_by_key(|descriptor| descriptor.number);
    Ok(found)
}

fn file_of(
    number: i32,
    link: Link,
    info: &DescriptorInfo,
    id: Option<FileId>,
    known: &Known,
) -> Option<manifest::File> {
    use manifest::File;
    if known.plug == Some(number) {
        return Some(File::Plug);
    }
    if let Some((name, _)) = known.listeners.iter().find(|(_, listener)| *listener == number) {
        return Some(File::Listener(name.clone()));
    }
    match link {
        Link::Null => Some(File::Null),
        Link::Pipe => (1..=2).contains(&number).then_some(File::Output),
        Link::Event => Some(File::Event { count: info.event_count, semaphore: info.event_semaphore }),
        Link::Poll => (info.watched == 0).then_some(File::Poll),
        Link::Signals => Some(File::Signals { mask: info.signal_mask }),
        Link::Socket => Some(File::Connection),
        Link::Tunnel => None,
        Link::Other if id == Some(known.root) => Some(File::Root),
        Link::Other if id == Some(known.disk) => Some(File::Disk { locks: info.locks.clone() }),
        Link::Other if id.is_some() && id == known.memory.as_ref().map(|memory| memory.id) => Some(File::Memory),
        Link::Other => None,
    }
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

/// Eight bytes of the monitor's memory.
pub(super) fn word_at(pid: u32, at: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    let remote = [RemoteIoVec { base: usize::try_from(at).map_err(io::Error::other)?, len: 8 }];
    match process_vm_readv(pid_of(pid), &mut [IoSliceMut::new(&mut bytes)], &remote)? {
        8 => Ok(u64::from_ne_bytes(bytes)),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, rights: &str, name: &str) -> String {
        let inode = if name.starts_with('/') { 7 } else { 0 };
        format!("{start:x}-{end:x} {rights} 00000000 00:00 {inode}     {name}\n")
    }

    fn contents(text: &str, there: &[(u64, u64)]) -> Result<Vec<(u64, u64, Content)>, CheckpointError> {
        let within = |start, end, _: fn(u64) -> bool| {
            Ok(there.iter().copied().filter(|&(from, to)| start <= from && to <= end).collect())
        };
        let named = |name: &'static str| move |mapping: &Mapping| mapping.name.ends_with(name);
        let areas = areas(&mappings(text), named("/memory"), named("/base"), within)?;
        Ok(areas.iter().map(|area| (area.start, area.end, area.content)).collect())
    }

    #[test]
    fn holes_are_left_out_and_files_are_whole() {
        let text = mapping(0x1000, 0x3000, "r-xp", "/lib/a.so")
            + &mapping(0x10_0000, 0x90_0000, "rw-p", "")
            + &mapping(0xa0_0000, 0xb0_0000, "---p", "")
            + &mapping(0x100_0000, 0x200_0000, "rw-p", "/t/memory")
            + &mapping(0x300_0000, 0x300_2000, "r-xp", "[vdso]")
            + &mapping(0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000, "--xp", "[vsyscall]");
        let there = [(0x10_0000, 0x10_1000), (0x10_4000, 0x10_5000), (0x80_0000, 0x80_1000)];
        assert_eq!(
            contents(&text, &there).expect("areas"),
            [
                (0x1000, 0x3000, Content::Pages(0)),
                (0x10_0000, 0x10_5000, Content::Pages(0x2000)),
                (0x10_5000, 0x80_0000, Content::Zero),
                (0x80_0000, 0x80_1000, Content::Pages(0x7000)),
                (0x80_1000, 0x90_0000, Content::Zero),
                (0xa0_0000, 0xb0_0000, Content::Zero),
                (0x100_0000, 0x200_0000, Content::Guest(0)),
            ]
        );
    }

    #[test]
    fn what_a_copy_has_not_written_stays_where_it_is() {
        let text = "100000-900000 rw-p 00003000 00:00 8     /c/base\n";
        let found = contents(text, &[(0x20_0000, 0x20_1000)]).expect("areas");
        assert_eq!(
            found,
            [
                (0x10_0000, 0x20_0000, Content::Base(0x3000)),
                (0x20_0000, 0x20_1000, Content::Pages(0)),
                (0x20_1000, 0x90_0000, Content::Base(0x10_4000)),
            ]
        );
    }

    #[test]
    fn a_stack_has_its_room_below_and_stays_clear_of_its_neighbour() {
        let text =
            mapping(0x7ff0_0000, 0x7ff0_1000, "---p", "") + &mapping(0x7ff8_0000, 0x7ffa_0000, "rw-p", "[stack]");
        let found = contents(&text, &[(0x7ff9_f000, 0x7ffa_0000)]).expect("areas");
        assert_eq!(found[1], (0x7ff0_1000, 0x7ff9_f000, Content::Zero));
        assert_eq!(found[2], (0x7ff9_f000, 0x7ffa_0000, Content::Pages(0)));
    }

    #[test]
    fn shared_memory_is_refused_by_its_name() {
        let text = mapping(0x1000, 0x2000, "rw-s", "/dev/shm/x");
        let error = contents(&text, &[]).expect_err("refused").to_string();
        assert!(error.contains("/dev/shm/x"), "{error}");
    }

    #[test]
    fn a_descriptor_is_known_by_what_the_keeper_handed_on() {
        let known = Known {
            origin: Origin::of(Path::new("/bin/sh")).expect("a program"),
            plug_kind: Plug::Tap,
            root: (1, 2),
            disk: (1, 3),
            memory: None,
            listeners: vec![("q".to_owned(), 5)],
            plug: Some(6),
        };
        let of = |number, link, id| file_of(number, link, &DescriptorInfo::default(), id, &known);
        assert_eq!(of(6, Link::Tunnel, None), Some(manifest::File::Plug));
        assert_eq!(of(5, Link::Socket, None), Some(manifest::File::Listener("q".to_owned())));
        assert_eq!(of(9, Link::Socket, None), Some(manifest::File::Connection));
        assert_eq!(of(9, Link::Other, Some((1, 2))), Some(manifest::File::Root));
        assert_eq!(of(9, Link::Other, Some((2, 2))), None, "another device's file");
        assert_eq!(of(9, Link::Pipe, None), None, "a pipe that nobody handed on");
        assert_eq!(of(9, Link::Tunnel, None), None, "another's tap");
    }
}
