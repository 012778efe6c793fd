//! One stopped thread of a monitor: its registers, and system calls made in its name.

use std::io;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{CheckpointError, failed};

/// Registers of a thread.
pub(super) type Registers = libc::user_regs_struct;

/// Length of the instruction `syscall`.
const SYSCALL_BYTES: u64 = 2;

/// A thread that this thread traces and that stands still. The number is the keeper's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tracee {
    pub(super) id: Pid,
}

impl Tracee {
    /// Stops a thread, wherever it is.
    pub(super) fn seize(id: Pid) -> Result<Self, CheckpointError> {
        ptrace::seize(id, ptrace::Options::empty()).map_err(failed("trace the monitor"))?;
        let tracee = Self { id };
        ptrace::interrupt(id).map_err(failed("stop the monitor"))?;
        match tracee.wait() {
            Ok(WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)) => Ok(tracee),
            other => {
                tracee.let_go();
                Err(CheckpointError::Unfit(format!("the monitor doesn't stand still: {other:?}")))
            }
        }
    }

    /// Lets it run on, untraced.
    pub(super) fn let_go(self) {
        // The only failure is that it has ended, which is noticed elsewhere.
        let _ = ptrace::detach(self.id, None);
    }

    /// What it does next that its tracer hears of.
    pub(super) fn wait(self) -> Result<WaitStatus, CheckpointError> {
        loop {
            match waitpid(self.id, Some(WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) => {}
                other => return other.map_err(failed("wait for the monitor")),
            }
        }
    }

    /// Awaits a trap: the end of a step, or a breakpoint.
    pub(super) fn wait_trap(self) -> Result<(), CheckpointError> {
        match self.wait()? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => Ok(()),
            other => Err(CheckpointError::Unfit(format!("the monitor met something else than a trap: {other:?}"))),
        }
    }

    pub(super) fn registers(self) -> Result<Registers, CheckpointError> {
        ptrace::getregs(self.id).map_err(failed("read the monitor's registers"))
    }

    pub(super) fn set_registers(self, registers: Registers) -> Result<(), CheckpointError> {
        ptrace::setregs(self.id, registers).map_err(failed("set the monitor's registers"))
    }

    /// Makes a system call by the instruction at `at`. Its registers are left as the call left them.
    pub(super) fn call(self, at: u64, number: libc::c_long, arguments: [u64; 6]) -> Result<u64, CheckpointError> {
        self.set_call(at, number, arguments)?;
        ptrace::step(self.id, None).map_err(failed("step the monitor"))?;
        self.wait_trap()?;
        self.answer(number)
    }

    /// Readies it for a call.
    pub(super) fn set_call(self, at: u64, number: libc::c_long, arguments: [u64; 6]) -> Result<(), CheckpointError> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let registers = Registers {
            rip: at,
            rax: number.cast_unsigned(),
            // Not in a call: nothing is begun again.
            orig_rax: u64::MAX,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.registers()?
        };
        self.set_registers(registers)
    }

    /// What a call answered.
    pub(super) fn answer(self, number: libc::c_long) -> Result<u64, CheckpointError> {
        let answer = self.registers()?.rax;
        match error_of(answer) {
            None => Ok(answer),
            Some(error) => Err(CheckpointError::Unfit(format!("call {number} in the monitor's name failed: {error}"))),
        }
    }
}

/// The error that a call's result stands for.
pub(super) fn error_of(answer: u64) -> Option<io::Error> {
    let number = answer.cast_signed();
    // The last 4095 numbers are errors.
    (-4095..0).contains(&number).then(|| io::Error::from_raw_os_error(i32::try_from(-number).unwrap_or(libc::EIO)))
}

/// The call that a stopped thread waits in, if it waits in one.
pub(super) fn waits_in(registers: &Registers) -> Option<libc::c_long> {
    let begun = registers.orig_rax != u64::MAX && error_of(registers.rax).is_some();
    begun.then_some(registers.orig_rax.cast_signed())
}

/// Registers of the same thread, about to make its call again from the start: as if it had just come there.
pub(super) fn waiting_again(registers: &Registers) -> Registers {
    Registers { rip: registers.rip - SYSCALL_BYTES, rax: registers.orig_rax, orig_rax: u64::MAX, ..*registers }
}
