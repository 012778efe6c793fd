//! The filter of system calls around every monitor, as a pure function (seccomp(2), linux/filter.h). QEMU and Cloud
//! Hypervisor add tighter ones of their own; this one also holds before they do, and what it refuses nobody needs.

use libc::{
    AF_INET, AF_INET6, AF_UNIX, BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET,
    BPF_W, CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS,
    CLONE_THREAD, ENOSYS, EPERM, O_ACCMODE, O_RDWR, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS,
    SECCOMP_RET_USER_NOTIF, SOCK_RAW, c_int, c_long, sock_filter,
};

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
const ARCH: u32 = 0xC000_003E;
/// The bit of x32's calls, which pass other checks by other numbers.
const X32: u32 = 0x4000_0000;
/// Offset of the call's number in `seccomp_data`.
const NUMBER: u32 = 0;
/// Offset of the architecture.
const ARCHITECTURE: u32 = 4;
/// Offset of the first argument's lower half; eight bytes each.
const ARGUMENTS: u32 = 16;
/// Namespaces that a clone could make.
const NAMESPACES: c_int =
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
/// A socket's type without its flags.
const SOCKET_TYPE: u32 = 0xF;

/// Refused with EPERM: other processes, namespaces, mounts, the kernel's own programs and modules, clocks, keys, and
/// io_uring, whose attack surface is large and without which both monitors do.
const DENIED: [c_long; 56] = [
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_fanotify_init,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
];

/// Refused with EPERM once a monitor has begun.
const DENIED_LATER: [c_long; 24] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setaffinity,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
];

/// The program. With `hands_out`, an open for reading and writing is put to the keeper, which answers with a
/// descriptor of its own where one is listed, and lets the call go on else.
pub(super) fn program(hands_out: bool) -> Vec<sock_filter> {
    let mut program = Program::default();
    program.load(ARCHITECTURE);
    program.unless(BPF_JEQ, ARCH, SECCOMP_RET_KILL_PROCESS);
    program.load(NUMBER);
    program.when(BPF_JGE, X32, refuse(EPERM));
    // Its flags lie in memory, which a filter can't read. Without it, C libraries use clone.
    program.when(BPF_JEQ, number(libc::SYS_clone3), refuse(ENOSYS));
    program.when(BPF_JEQ, number(libc::SYS_openat2), refuse(ENOSYS));
    for call in DENIED {
        program.when(BPF_JEQ, number(call), refuse(EPERM));
    }
    program.in_call(libc::SYS_clone, |within| {
        within.load(ARGUMENTS);
        within.when(BPF_JSET, NAMESPACES.cast_unsigned(), refuse(EPERM));
        within.answer(SECCOMP_RET_ALLOW);
    });
    program.in_call(libc::SYS_socket, |within| {
        within.load(ARGUMENTS + 8);
        within.and(SOCKET_TYPE);
        within.when(BPF_JEQ, SOCK_RAW.cast_unsigned(), refuse(EPERM));
        within.load(ARGUMENTS);
        for family in [AF_UNIX, AF_INET, AF_INET6] {
            within.when(BPF_JEQ, family.cast_unsigned(), SECCOMP_RET_ALLOW);
        }
        // Packets, the kernel's tables, and vsock, which no namespace holds.
        within.answer(refuse(EPERM));
    });
    if hands_out {
        for (call, flags) in [(libc::SYS_openat, 2), (libc::SYS_open, 1)] {
            program.in_call(call, |within| {
                within.load(ARGUMENTS + 8 * flags);
                within.and(O_ACCMODE.cast_unsigned());
                within.when(BPF_JEQ, O_RDWR.cast_unsigned(), SECCOMP_RET_USER_NOTIF);
                within.answer(SECCOMP_RET_ALLOW);
            });
        }
    }
    program.answer(SECCOMP_RET_ALLOW);
    program.0
}

/// What a monitor that has begun is refused besides, as QEMU's own `-sandbox` refuses it: programs, processes, another
/// user's rights, and how others are scheduled. For one that was restored and so never came to installing its own.
pub(crate) fn later() -> Vec<sock_filter> {
    let mut program = Program::default();
    program.load(ARCHITECTURE);
    program.unless(BPF_JEQ, ARCH, SECCOMP_RET_KILL_PROCESS);
    program.load(NUMBER);
    for call in DENIED_LATER {
        program.when(BPF_JEQ, number(call), refuse(EPERM));
    }
    program.in_call(libc::SYS_clone, |within| {
        within.load(ARGUMENTS);
        within.when(BPF_JSET, CLONE_THREAD.cast_unsigned(), SECCOMP_RET_ALLOW);
        within.answer(refuse(EPERM));
    });
    program.answer(SECCOMP_RET_ALLOW);
    program.0
}

fn number(call: c_long) -> u32 {
    // Numbers of calls are small.
    u32::try_from(call).unwrap_or(u32::MAX)
}

fn refuse(errno: c_int) -> u32 {
    SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

#[derive(Default)]
struct Program(Vec<sock_filter>);

impl Program {
    fn push(&mut self, code: u32, jt: u8, jf: u8, k: u32) {
        // Codes are combinations of small constants.
        self.0.push(sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k });
    }

    fn load(&mut self, offset: u32) {
        self.push(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset);
    }

    fn and(&mut self, mask: u32) {
        self.push(BPF_ALU | BPF_AND | BPF_K, 0, 0, mask);
    }

    fn answer(&mut self, with: u32) {
        self.push(BPF_RET | BPF_K, 0, 0, with);
    }

    fn when(&mut self, test: u32, value: u32, answer: u32) {
        self.push(BPF_JMP | test | BPF_K, 0, 1, value);
        self.answer(answer);
    }

    fn unless(&mut self, test: u32, value: u32, answer: u32) {
        self.push(BPF_JMP | test | BPF_K, 1, 0, value);
        self.answer(answer);
    }

    /// What is only for one call; it has to end with an answer. Some twenty steps at most, so the jump fits.
    fn in_call(&mut self, call: c_long, fill: impl FnOnce(&mut Self)) {
        let mut within = Self::default();
        fill(&mut within);
        let steps = u8::try_from(within.0.len()).unwrap_or(u8::MAX);
        self.push(BPF_JMP | BPF_JEQ | BPF_K, 0, steps, number(call));
        self.0.append(&mut within.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, over a call.
    fn run(program: &[sock_filter], arch: u32, call: u32, arguments: [u64; 3]) -> u32 {
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let step = program[at];
            at += 1;
            let code = u32::from(step.code);
            let jump = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
            if code == BPF_LD | BPF_W | BPF_ABS {
                accumulator = match step.k {
                    NUMBER => call,
                    ARCHITECTURE => arch,
                    offset => arguments[usize::try_from((offset - ARGUMENTS) / 8).expect("small")] as u32,
                };
            } else if code == BPF_ALU | BPF_AND | BPF_K {
                accumulator &= step.k;
            } else if code == BPF_RET | BPF_K {
                return step.k;
            } else if code == BPF_JMP | BPF_JEQ | BPF_K {
                at += jump(accumulator == step.k);
            } else if code == BPF_JMP | BPF_JGE | BPF_K {
                at += jump(accumulator >= step.k);
            } else if code == BPF_JMP | BPF_JSET | BPF_K {
                at += jump(accumulator & step.k != 0);
            } else {
                panic!("step {at} is unknown: {code:#x}");
            }
        }
    }

    fn ask(call: c_long, arguments: [u64; 3]) -> u32 {
        run(&program(true), ARCH, number(call), arguments)
    }

    #[test]
    fn what_no_monitor_needs_is_refused() {
        for call in DENIED {
            assert_eq!(ask(call, [0; 3]), refuse(EPERM), "{call}");
        }
        assert_eq!(ask(libc::SYS_clone3, [0; 3]), refuse(ENOSYS));
        assert_eq!(ask(libc::SYS_clone, [CLONE_NEWUSER as u64, 0, 0]), refuse(EPERM));
        assert_eq!(ask(libc::SYS_socket, [libc::AF_PACKET as u64, 2, 0]), refuse(EPERM));
        assert_eq!(ask(libc::SYS_socket, [libc::AF_VSOCK as u64, 1, 0]), refuse(EPERM));
        assert_eq!(ask(libc::SYS_socket, [AF_INET as u64, (SOCK_RAW | libc::SOCK_CLOEXEC) as u64, 0]), refuse(EPERM));
    }

    #[test]
    fn one_that_has_begun_makes_threads_and_nothing_else() {
        let ask = |call, argument| run(&later(), ARCH, number(call), [argument, 0, 0]);
        for call in DENIED_LATER {
            assert_eq!(ask(call, 0), refuse(EPERM), "{call}");
        }
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
        assert_eq!(ask(libc::SYS_clone, thread), SECCOMP_RET_ALLOW);
        assert_eq!(ask(libc::SYS_clone, libc::SIGCHLD as u64), refuse(EPERM));
        assert_eq!(ask(libc::SYS_ppoll, 0), SECCOMP_RET_ALLOW);
        assert_eq!(run(&later(), 0x4000_0003, 0, [0; 3]), SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn threads_files_and_plain_sockets_are_allowed() {
        let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_FILES;
        assert_eq!(ask(libc::SYS_clone, [thread as u64, 0, 0]), SECCOMP_RET_ALLOW);
        assert_eq!(
            ask(libc::SYS_socket, [AF_UNIX as u64, (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64, 0]),
            SECCOMP_RET_ALLOW
        );
        assert_eq!(ask(libc::SYS_read, [0; 3]), SECCOMP_RET_ALLOW);
        assert_eq!(ask(libc::SYS_openat, [0, 0, libc::O_CLOEXEC as u64]), SECCOMP_RET_ALLOW);
    }

    #[test]
    fn opens_to_write_are_put_to_the_keeper_only_when_it_hands_out() {
        assert_eq!(ask(libc::SYS_openat, [0, 0, (O_RDWR | libc::O_CLOEXEC) as u64]), SECCOMP_RET_USER_NOTIF);
        assert_eq!(ask(libc::SYS_open, [0, O_RDWR as u64, 0]), SECCOMP_RET_USER_NOTIF);
        let quiet = run(&program(false), ARCH, number(libc::SYS_openat), [0, 0, O_RDWR as u64]);
        assert_eq!(quiet, SECCOMP_RET_ALLOW);
    }

    #[test]
    fn other_architectures_do_not_pass_by_other_numbers() {
        assert_eq!(run(&program(true), 0x4000_0003, 0, [0; 3]), SECCOMP_RET_KILL_PROCESS);
        assert_eq!(run(&program(true), ARCH, X32 | 2, [0; 3]), refuse(EPERM));
    }
}
