//! From a checkpoint's files to a monitor: the keeper opens what it had open, starts its program, and has the process
//! become it before its first instruction. The process is sealed by then, as any monitor is.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::ptrace;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::WaitStatus;

use super::generators;
use super::known::Memory;
use super::look::{Mapping, mappings};
use super::manifest::{self, Descriptor, Manifest, Thread};
use super::remote::{self, read_at, word_at};
use super::steps::{Sources, free_place, plan, room, table, thread_arguments};
use super::tracee::{Registers, Tracee, error_of};
use super::{CheckpointError, base_file, differs_file, failed, guest_file, own_memory_file, pages_file, runs_file};
use crate::VmSpec;
use crate::keeper::{pages, read_runs};
use crate::process::pid_of;
use crate::seal::later_filter;
use crate::sys::seal::received;
use crate::sys::trace::{REGISTERS, registers_of, set_extended_state, set_signal_mask, steps_code};
use crate::{MemorySource, template};

/// Numbers from here on are the restore's own while it lasts: a monitor has some 40.
const LOWEST: i32 = 512;
/// The bytes of the instruction `syscall`, as the lower half of a word.
const SYSCALL: u64 = 0x050f;

/// A monitor about to be restored, as its keeper holds it.
pub(crate) struct Restoring {
    manifest: Manifest,
    memory: Memory,
    guest: File,
    runs: File,
    urandom: File,
    sources: Sources,
    /// Inherited by the monitor's process; the keeper lets go of them once it has them.
    inherited: Vec<OwnedFd>,
}

/// Opens all that the monitor had open. Call it while the keeper has its rights and sees the host's files.
pub(crate) fn prepare(
    folder: &Path,
    spec: &VmSpec,
    listeners: &[(String, UnixListener)],
    plug: Option<&OwnedFd>,
) -> Result<Restoring, CheckpointError> {
    let manifest = Manifest::read(folder).map_err(|error| CheckpointError::Unfit(error.to_string()))?;
    let MemorySource::Clone { template } = &spec.memory else {
        return Err(CheckpointError::Unfit("only a clone is a copy".to_owned()));
    };
    let open = |path: &Path| File::open(path).map_err(failed("open the checkpoint"));
    let (file, memory) = match File::open(own_memory_file(folder)) {
        Ok(file) => {
            let differs = read_runs(&differs_file(folder)).map_err(failed("open the checkpoint"))?;
            let memory = Memory::of_checkpoint(&file, differs).map_err(failed("open the checkpoint"))?;
            (file, memory)
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("open the checkpoint")(error)),
        Err(_) => {
            let path = template::memory_file(template);
            (open(&path)?, Memory::of_template(&path).map_err(failed("open the template's memory"))?)
        }
    };
    let mut restoring = Restoring {
        guest: open(&guest_file(folder))?,
        runs: open(&runs_file(folder))?,
        urandom: File::open("/dev/urandom").map_err(failed("draw random numbers"))?,
        sources: Sources { lowest: LOWEST, ..Sources::default() },
        inherited: Vec::new(),
        memory,
        manifest,
    };
    restoring.sources.pages = restoring.inherit(open(&pages_file(folder))?)?;
    let (pages, has_base) = (restoring.sources.pages, restoring.manifest.has_base());
    restoring.sources.base = if has_base { restoring.inherit(open(&base_file(folder))?)? } else { pages };
    restoring.sources.memory = restoring.inherit(file)?;
    for descriptor in restoring.manifest.descriptors.clone() {
        let source = restoring.source(&descriptor, spec, listeners, plug)?;
        restoring.sources.descriptors.push(source);
    }
    Ok(restoring)
}

impl Restoring {
    /// The numbers of the monitor's listeners and its plug, once it is restored.
    pub(crate) fn numbers(&self) -> (Vec<(String, i32)>, Option<i32>) {
        let descriptors = self.manifest.descriptors.iter();
        let listeners = descriptors.clone().filter_map(|descriptor| match &descriptor.file {
            manifest::File::Listener(name) => Some((name.clone(), descriptor.number)),
            _ => None,
        });
        let plug = descriptors.clone().find(|descriptor| descriptor.file == manifest::File::Plug);
        (listeners.collect(), plug.map(|descriptor| descriptor.number))
    }

    /// What the monitor will map its guest's memory from.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Keeps an inheritable copy above all numbers of the monitor's.
    fn inherit(&mut self, file: impl AsFd) -> Result<i32, CheckpointError> {
        let number = fcntl(&file, FcntlArg::F_DUPFD(LOWEST)).map_err(failed("hand a descriptor on"))?;
        self.inherited.push(received(number));
        Ok(number)
    }

    fn source(
        &mut self,
        descriptor: &Descriptor,
        spec: &VmSpec,
        listeners: &[(String, UnixListener)],
        plug: Option<&OwnedFd>,
    ) -> Result<Option<i32>, CheckpointError> {
        use manifest::File as Kind;
        let ready = failed("make the monitor's descriptors");
        let number = match &descriptor.file {
            Kind::Output => return Ok(None),
            Kind::Null if descriptor.number == 0 => return Ok(None),
            Kind::Null => self.inherit(File::open("/dev/null").map_err(ready)?)?,
            Kind::Event { count, semaphore } => {
                let flags = if *semaphore { EfdFlags::EFD_SEMAPHORE } else { EfdFlags::empty() };
                let count = u32::try_from(*count).unwrap_or(u32::MAX);
                self.inherit(EventFd::from_value_and_flags(count, flags).map_err(|error| ready(error.into()))?)?
            }
            Kind::Poll => {
                self.inherit(Epoll::new(EpollCreateFlags::empty()).map_err(|error| ready(error.into()))?.0)?
            }
            Kind::Signals { mask } => {
                let set: SigSet = Signal::iterator().filter(|&signal| mask & (1 << (signal as i32 - 1)) != 0).collect();
                self.inherit(SignalFd::with_flags(&set, SfdFlags::empty()).map_err(|error| ready(error.into()))?)?
            }
            Kind::Root => self.inherit(File::open(&spec.image.root).map_err(ready)?)?,
            Kind::Disk { locks } => {
                let disk =
                    OpenOptions::new().read(true).write(true).open(&spec.disk).map_err(failed("open the disk"))?;
                for lock in locks {
                    lock_again(&disk, *lock)?;
                }
                self.inherit(disk)?
            }
            Kind::Memory => self.sources.memory,
            Kind::Listener(name) => {
                let listener = listeners.iter().find(|(known, _)| known == name);
                let (_, listener) =
                    listener.ok_or_else(|| CheckpointError::Unfit(format!("there is no listener '{name}'")))?;
                self.inherit(listener)?
            }
            Kind::Plug => self.inherit(plug.ok_or_else(|| CheckpointError::Unfit("there is no plug".to_owned()))?)?,
            Kind::Connection => {
                // Its other end is closed with this function.
                let (ours, _theirs) = UnixStream::pair().map_err(ready)?;
                self.inherit(ours)?
            }
        };
        Ok(Some(number))
    }

    /// Has the process `pid`, traced by this thread and stopped where its program begins, become the monitor; it runs when
    /// this returns. `arguments` are shown as its command line; `sealed` says whether it has filters of system calls, to which
    /// what QEMU refuses itself by its own is added.
    pub(crate) fn run(self, pid: u32, arguments: &[String], sealed: bool) -> Result<(), CheckpointError> {
        let Self { manifest, memory, guest, runs, urandom, sources, inherited } = self;
        drop(inherited);
        let main = Tracee { id: pid_of(pid) };
        main.wait_trap()?;
        let filter = if sealed { later_filter() } else { Vec::new() };
        become_it(pid, main, &manifest, &sources, arguments, &filter)?;
        pages::lay(pid, &memory.backing, &guest, &runs).map_err(failed("lay the guest's pages"))?;
        for &place in &manifest.generators {
            write_at(pid, place, &generators::key(&urandom).map_err(failed("draw random numbers"))?)?;
        }
        let mut threads = vec![main];
        threads.extend(add_threads(main, &manifest)?);
        for (thread, saved) in threads.iter().zip(&manifest.threads) {
            set_state(*thread, saved)?;
        }
        // The first last: it speaks to the world.
        threads.into_iter().rev().for_each(Tracee::let_go);
        Ok(())
    }
}

fn lock_again(disk: &File, (write, first, last): (bool, u64, u64)) -> Result<(), CheckpointError> {
    let length = if last == u64::MAX { 0 } else { last - first + 1 };
    let kind = if write { libc::F_WRLCK } else { libc::F_RDLCK };
    let lock = libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: first.cast_signed(),
        l_len: length.cast_signed(),
        l_pid: 0,
    };
    fcntl(disk, FcntlArg::F_OFD_SETLK(&lock)).map(drop).map_err(failed("lock the disk"))
}

/// Memory, descriptors, signals and layout.
fn become_it(
    pid: u32,
    main: Tracee,
    manifest: &Manifest,
    sources: &Sources,
    arguments: &[String],
    filter: &[libc::sock_filter],
) -> Result<(), CheckpointError> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(failed("look at the new process"))?;
    let fresh = mappings(&maps);
    let mut shown = arguments.join("\0").into_bytes();
    shown.push(0);
    let shown_bytes = (shown.len() as u64).next_multiple_of(pages::PAGE);
    let length = room(manifest, &shown);
    let place = free_place(manifest, &fresh, length + shown_bytes)?;
    let shown_at = place + length;
    let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let (rights, flags) = (u64::from(rights.cast_unsigned()), u64::from(flags.cast_unsigned()));
    let at = call_instruction(pid, &fresh)?;
    main.call(at, libc::SYS_mmap, [place, length, rights, flags, u64::MAX, 0])?;

    // Code, then data, then steps: where the steps end is known last.
    let code = steps_code();
    let data_at = (place + code.len() as u64).next_multiple_of(16);
    let plan = plan(manifest, &fresh, sources, data_at, (shown_at, &shown), filter)?;
    let table_at = (data_at + plan.data.len() as u64).next_multiple_of(16);
    let table = table(&plan.steps);
    if table_at + table.len() as u64 > place + length {
        return Err(CheckpointError::Unfit("its steps don't fit where they should".to_owned()));
    }
    for (at, bytes) in [(place, code), (data_at, &plan.data), (table_at, &table)] {
        write_at(pid, at, bytes)?;
    }
    let count = plan.steps.len() as u64;
    let registers = main.registers()?;
    main.set_registers(Registers { rip: place, rbx: table_at, r12: count, orig_rax: u64::MAX, ..registers })?;
    ptrace::cont(main.id, None).map_err(failed("run the new process"))?;
    main.wait_trap()?;
    let left = main.registers()?.r12;
    if left != 0 {
        let step = usize::try_from(count - left).ok().and_then(|index| plan.steps.get(index));
        let answer = error_of(main.registers()?.rax);
        return Err(CheckpointError::Unfit(format!("{step:?} failed: {answer:?}")));
    }
    write_at(pid, shown_at, &shown)?;
    if word_at(pid, again(manifest)?).map_err(failed("read the monitor's memory"))? & 0xffff != SYSCALL {
        return Err(CheckpointError::Unfit("its memory isn't what was taken".to_owned()));
    }
    let known = own_number(main, manifest)?;
    write_at(pid, known.0, &known.1.to_ne_bytes())?;
    let at = again(manifest)?;
    main.call(at, libc::SYS_munmap, [place, length, 0, 0, 0, 0])?;
    Ok(())
}

/// Where the first thread's number lies and what it is, as its own namespace counts; the kernel is told to clear it at its
/// end.
fn own_number(main: Tracee, manifest: &Manifest) -> Result<(u64, u32), CheckpointError> {
    let at = again(manifest)?;
    let registers = saved_registers(&manifest.threads[0])?;
    let place = registers.fs_base + manifest.number_offset;
    let number = main.call(at, libc::SYS_set_tid_address, [place, 0, 0, 0, 0, 0])?;
    Ok((place, u32::try_from(number).unwrap_or_default()))
}

/// The first thread's own call instruction, which is there again.
fn again(manifest: &Manifest) -> Result<u64, CheckpointError> {
    let first = manifest.threads.first().ok_or_else(|| CheckpointError::Unfit("it has no threads".to_owned()))?;
    Ok(saved_registers(first)?.rip)
}

fn saved_registers(thread: &Thread) -> Result<Registers, CheckpointError> {
    let words: [u64; REGISTERS] = thread
        .registers
        .as_slice()
        .try_into()
        .map_err(|_| CheckpointError::Unfit("its registers are another kind of processor's".to_owned()))?;
    Ok(registers_of(words))
}

/// The other threads, stopped before their first instruction.
fn add_threads(main: Tracee, manifest: &Manifest) -> Result<Vec<Tracee>, CheckpointError> {
    let at = again(manifest)?;
    ptrace::setoptions(main.id, ptrace::Options::PTRACE_O_TRACECLONE).map_err(failed("trace the new process"))?;
    let mut threads = Vec::new();
    for saved in &manifest.threads[1..] {
        let arguments = thread_arguments(&saved_registers(saved)?, manifest.number_offset);
        main.set_call(at, libc::SYS_clone, arguments)?;
        ptrace::step(main.id, None).map_err(failed("step the new process"))?;
        match main.wait()? {
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_CLONE) => {}
            other => {
                main.answer(libc::SYS_clone)?;
                return Err(CheckpointError::Unfit(format!("no thread was made: {other:?}")));
            }
        }
        let id = ptrace::getevent(main.id).map_err(failed("see the new thread"))?;
        ptrace::step(main.id, None).map_err(failed("step the new process"))?;
        main.wait_trap()?;
        main.answer(libc::SYS_clone)?;
        let thread = Tracee { id: pid_of(u32::try_from(id).unwrap_or_default()) };
        match thread.wait()? {
            WaitStatus::Stopped(_, Signal::SIGSTOP) | WaitStatus::PtraceEvent(..) => threads.push(thread),
            other => return Err(CheckpointError::Unfit(format!("a new thread doesn't stand still: {other:?}"))),
        }
    }
    Ok(threads)
}

fn set_state(thread: Tracee, saved: &Thread) -> Result<(), CheckpointError> {
    thread.set_registers(saved_registers(saved)?)?;
    set_extended_state(thread.id, &saved.state).map_err(failed("set the monitor's vector registers"))?;
    set_signal_mask(thread.id, saved.mask).map_err(failed("set the monitor's signal mask"))
}

/// A `syscall` in the code that the kernel gives every process.
fn call_instruction(pid: u32, fresh: &[Mapping]) -> Result<u64, CheckpointError> {
    let Some(code) = fresh.iter().find(|mapping| mapping.kernel_name() == Some("[vdso]")) else {
        return Err(CheckpointError::Unfit("this kernel gives no vdso".to_owned()));
    };
    let length = usize::try_from(code.end - code.start).unwrap_or_default();
    let mut bytes = vec![0; length];
    read_at(pid, code.start, &mut bytes).map_err(failed("read the kernel's code"))?;
    let at = bytes.windows(2).position(|pair| pair == [0x0f, 0x05]);
    at.map(|at| code.start + at as u64)
        .ok_or_else(|| CheckpointError::Unfit("this kernel's vdso makes no calls".to_owned()))
}

fn write_at(pid: u32, at: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
    remote::write_at(pid, at, bytes).map_err(failed("write to the new process"))
}
