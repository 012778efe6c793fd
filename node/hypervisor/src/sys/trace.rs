//! The calls of a checkpoint: what ptrace(2) gives that has no safe form, and the code that a copied process runs first.

use std::ffi::c_void;
use std::io;

use nix::unistd::Pid;

/// The register set of the extended state (linux/elf.h).
const NT_X86_XSTATE: libc::c_int = 0x202;
/// Of linux/ptrace.h.
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
/// Of linux/ptrace.h.
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
/// Most bytes of a processor's extended state: AMX's tiles make it 11 KiB.
const STATE_BYTES_MAX: usize = 16 << 10;

std::arch::global_asm!(
    // rbx: first step; r12: how many. A step is eight words: number, six arguments, result. One whose result is not zero
    // before may fail.
    ".pushsection .rodata.atoll_steps, \"a\", @progbits",
    ".global atoll_steps_begin",
    ".global atoll_steps_end",
    "atoll_steps_begin:",
    "2: test r12, r12",
    "jz 3f",
    "mov rax, [rbx]",
    "mov rdi, [rbx + 8]",
    "mov rsi, [rbx + 16]",
    "mov rdx, [rbx + 24]",
    "mov r10, [rbx + 32]",
    "mov r8, [rbx + 40]",
    "mov r9, [rbx + 48]",
    "mov r13, [rbx + 56]",
    "syscall",
    "mov [rbx + 56], rax",
    // An error's number is among the last 4095.
    "cmp rax, -4095",
    "jb 4f",
    "test r13, r13",
    "jz 3f",
    "4: add rbx, 64",
    "dec r12",
    "jmp 2b",
    "3: int3",
    "atoll_steps_end:",
    ".popsection",
);

unsafe extern "C" {
    static atoll_steps_begin: u8;
    static atoll_steps_end: u8;
}

/// Machine code that makes a list of system calls, stops at the first that fails, and traps. It has no address of its
/// own and needs no stack.
pub(crate) fn steps_code() -> &'static [u8] {
    // SAFETY: why unsafe: two symbols become a slice. Why it holds: both lie in one section of read-only data that
    // the assembly above fills between them, in this order.
    unsafe {
        let (begin, end) = (&raw const atoll_steps_begin, &raw const atoll_steps_end);
        std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin))
    }
}

/// The extended state (vector registers and the like) of a stopped thread.
pub(crate) fn extended_state(thread: Pid) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; STATE_BYTES_MAX];
    let mut piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: why unsafe: ptrace's arguments aren't typed. Why it holds: this request fills at most `iov_len` bytes
    // of the buffer, which lives for the length of the call, and writes how many.
    let answer = unsafe { libc::ptrace(libc::PTRACE_GETREGSET, thread.as_raw(), NT_X86_XSTATE, &raw mut piece) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    bytes.truncate(piece.iov_len);
    Ok(bytes)
}

/// Gives a stopped thread another extended state; the kernel checks it.
pub(crate) fn set_extended_state(thread: Pid, state: &[u8]) -> io::Result<()> {
    let mut piece = libc::iovec { iov_base: state.as_ptr().cast_mut().cast(), iov_len: state.len() };
    // SAFETY: as above; this request only reads the buffer.
    let answer = unsafe { libc::ptrace(libc::PTRACE_SETREGSET, thread.as_raw(), NT_X86_XSTATE, &raw mut piece) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The signals that a stopped thread holds back, as bits.
pub(crate) fn signal_mask(thread: Pid) -> io::Result<u64> {
    let mut mask = 0u64;
    let size = std::ptr::without_provenance_mut::<c_void>(size_of::<u64>());
    // SAFETY: why unsafe: ptrace's arguments aren't typed. Why it holds: this request takes the set's size as an
    // address and fills as many bytes, which live for the length of the call.
    let answer = unsafe { libc::ptrace(PTRACE_GETSIGMASK, thread.as_raw(), size, &raw mut mask) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(mask) }
}

/// Has a stopped thread hold back these signals.
pub(crate) fn set_signal_mask(thread: Pid, mask: u64) -> io::Result<()> {
    let size = std::ptr::without_provenance_mut::<c_void>(size_of::<u64>());
    // SAFETY: as above; this request only reads.
    let answer = unsafe { libc::ptrace(PTRACE_SETSIGMASK, thread.as_raw(), size, &raw const mask) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Registers as words, in the kernel's order (`user_regs_struct`, sys/user.h).
pub(crate) const REGISTERS: usize = size_of::<libc::user_regs_struct>() / 8;

/// As words.
pub(crate) fn words_of(registers: &libc::user_regs_struct) -> [u64; REGISTERS] {
    // SAFETY: why unsafe: a structure is read as an array. Why it holds: it consists of 64-bit numbers alone, and the
    // array is as long.
    unsafe { std::mem::transmute(*registers) }
}

/// From words.
pub(crate) fn registers_of(words: [u64; REGISTERS]) -> libc::user_regs_struct {
    // SAFETY: as above; any numbers are registers.
    unsafe { std::mem::transmute(words) }
}
