//! The system calls by which a process that has just begun its program becomes the one that was taken, as a pure
//! function. They are made one after the other in its name; the first that fails ends it.

use std::mem::size_of;

use libc::{c_long, sock_filter};

use super::CheckpointError;
use super::look::Mapping;
use super::manifest::{Area, Content, Descriptor, File, Manifest};
use super::tracee::Registers;
use crate::keeper::pages::PAGE;

/// Lowest address that the steps themselves may lie at: below it, some kernels map nothing.
const SCRATCH_LOWEST: u64 = 0x1000_0000;
/// Distance between two addresses that are tried.
const SCRATCH_EVERY: u64 = 0x1000_0000;
/// Highest that is tried: programs, libraries and stacks lie far above.
const SCRATCH_HIGHEST: u64 = 0x5000_0000_0000;
/// `PR_SET_MM_MAP` of linux/prctl.h.
const PR_SET_MM_MAP: u64 = 14;
/// `size_of::<sigset_t>()` in the kernel.
const SIGNAL_SET_BYTES: u64 = 8;

/// A system call and its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) call: c_long,
    pub(super) arguments: [u64; 6],
    /// Whether the process is what it should be without it, too.
    pub(super) may_fail: bool,
}

/// Bytes of a step as the machine code reads it: number, arguments, result.
pub(super) const STEP_BYTES: u64 = 64;

/// Descriptors that the process has inherited, above all others.
#[derive(Debug, Clone, Default)]
pub(super) struct Sources {
    /// The lowest of them.
    pub(super) lowest: i32,
    /// The checkpoint's `pages`.
    pub(super) pages: i32,
    /// Its `base`; as `pages` where it has none.
    pub(super) base: i32,
    /// The template's memory.
    pub(super) memory: i32,
    /// What each of the manifest's descriptors is made from; none for one that is there already.
    pub(super) descriptors: Vec<Option<i32>>,
}

/// All that is written into the process before it makes the steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// What the steps point to; it lies at the address that it was made for.
    pub(super) data: Vec<u8>,
}

/// Bytes that steps and data take at most, for the choice of their place.
pub(super) fn room(manifest: &Manifest, arguments: &[u8]) -> u64 {
    let steps = 2 * manifest.areas.len() + 2 * manifest.descriptors.len() + manifest.actions.len() + 256;
    (steps as u64 * STEP_BYTES + arguments.len() as u64 + 64 * 1024).next_multiple_of(PAGE)
}

/// A place for `length` bytes that neither the process nor what it becomes has anything at.
pub(super) fn free_place(manifest: &Manifest, fresh: &[Mapping], length: u64) -> Result<u64, CheckpointError> {
    let taken = |at: u64| {
        let meets = |start: u64, end: u64| start < at + length && at < end;
        fresh.iter().any(|mapping| meets(mapping.start, mapping.end))
            || manifest.areas.iter().any(|area| meets(area.start, area.end))
            || manifest.kernel_areas.iter().any(|area| meets(area.start, area.end))
    };
    let mut places = (SCRATCH_LOWEST..SCRATCH_HIGHEST).step_by(usize::try_from(SCRATCH_EVERY).unwrap_or(usize::MAX));
    places.find(|&at| !taken(at)).ok_or_else(|| CheckpointError::Unfit("no address is free".to_owned()))
}

/// The steps. `fresh` is what the process maps now; `data_at` is where the data will lie; `argument_place` and `arguments`
/// where its command line is shown from; `filter` is added to the process's filters of system calls.
pub(super) fn plan(
    manifest: &Manifest,
    fresh: &[Mapping],
    sources: &Sources,
    data_at: u64,
    (argument_place, arguments): (u64, &[u8]),
    filter: &[sock_filter],
) -> Result<Plan, CheckpointError> {
    let mut plan = Plan { steps: Vec::new(), data: Vec::new() };
    move_kernel_areas(&mut plan, manifest, fresh)?;
    for mapping in fresh.iter().filter(|mapping| mapping.kernel_name().is_none() && !mapping.is_vsyscall()) {
        plan.add(libc::SYS_munmap, [mapping.start, mapping.end - mapping.start, 0, 0, 0, 0]);
    }
    for area in merged(&manifest.areas) {
        plan.add(libc::SYS_mmap, mapped(&area, sources));
        plan.populate(&area);
    }
    let shown = Area {
        start: argument_place,
        end: argument_place + (arguments.len() as u64).next_multiple_of(PAGE).max(PAGE),
        rights: (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned(),
        content: Content::Zero,
    };
    plan.add(libc::SYS_mmap, mapped(&shown, sources));
    place_descriptors(&mut plan, &manifest.descriptors, sources)?;
    for action in &manifest.actions {
        let at = plan.put(data_at, &action.words.map(u64::to_ne_bytes).concat());
        let signal = u64::from(action.signal.cast_unsigned());
        plan.add(libc::SYS_rt_sigaction, [signal, at, 0, SIGNAL_SET_BYTES, 0, 0]);
    }
    lay_out(&mut plan, manifest, data_at, (argument_place, argument_place + arguments.len() as u64));
    if !filter.is_empty() {
        let bytes: Vec<u8> = filter
            .iter()
            .flat_map(|step| {
                let mut bytes = step.code.to_ne_bytes().to_vec();
                bytes.extend([step.jt, step.jf]);
                bytes.extend(step.k.to_ne_bytes());
                bytes
            })
            .collect();
        let program = plan.put(data_at, &bytes);
        // `struct sock_fprog`: length, padding, pointer.
        let header = plan.put(data_at, &[(filter.len() as u64).to_ne_bytes(), program.to_ne_bytes()].concat());
        plan.add(libc::SYS_seccomp, [u64::from(libc::SECCOMP_SET_MODE_FILTER), 0, header, 0, 0, 0]);
    }
    Ok(plan)
}

impl Plan {
    fn add(&mut self, call: c_long, arguments: [u64; 6]) {
        self.steps.push(Step { call, arguments, may_fail: false });
    }

    /// Has what the process writes and runs mapped at once: else it meets each of these pages by a fault of its own, first
    /// when its owner waits. Linux before 5.14 doesn't know how.
    fn populate(&mut self, area: &Area) {
        let hot = libc::PROT_READ | libc::PROT_WRITE;
        let from_file = matches!(area.content, Content::Pages(_) | Content::Base(_));
        if from_file && area.rights & hot.cast_unsigned() == hot.cast_unsigned() {
            let advice = u64::from(libc::MADV_POPULATE_READ.cast_unsigned());
            let arguments = [area.start, area.end - area.start, advice, 0, 0, 0];
            self.steps.push(Step { call: libc::SYS_madvise, arguments, may_fail: true });
        }
    }

    /// Adds data, aligned; answers where it will lie.
    fn put(&mut self, data_at: u64, bytes: &[u8]) -> u64 {
        self.data.resize(self.data.len().next_multiple_of(16), 0);
        let at = data_at + self.data.len() as u64;
        self.data.extend_from_slice(bytes);
        at
    }
}

/// The kernel's areas go to where the C library has noted that they are.
fn move_kernel_areas(plan: &mut Plan, manifest: &Manifest, fresh: &[Mapping]) -> Result<(), CheckpointError> {
    for area in &manifest.kernel_areas {
        let here = fresh.iter().find(|mapping| mapping.kernel_name() == Some(area.name.as_str()));
        let length = area.end - area.start;
        let Some(here) = here.filter(|here| here.end - here.start == length) else {
            return Err(CheckpointError::Unfit(format!("this kernel's {} is another", area.name)));
        };
        let meets = |mapping: &Mapping| area.start < mapping.end && mapping.start < area.end;
        if here.start == area.start {
            continue;
        }
        if let Some(other) = fresh.iter().find(|mapping| meets(mapping)) {
            return Err(CheckpointError::Unfit(format!("{} would lie over {other:?}; the next try won't", area.name)));
        }
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED).cast_unsigned();
        plan.add(libc::SYS_mremap, [here.start, length, length, u64::from(flags), area.start, 0]);
    }
    Ok(())
}

/// Neighbours that can be mapped by one call.
fn merged(areas: &[Area]) -> Vec<Area> {
    let mut merged: Vec<Area> = Vec::new();
    for &area in areas {
        if let Some(last) = merged.last_mut() {
            let goes_on = match (last.content, area.content) {
                (Content::Zero, Content::Zero) => true,
                (Content::Pages(from), Content::Pages(to)) | (Content::Base(from), Content::Base(to)) => {
                    from + (last.end - last.start) == to
                }
                _ => false,
            };
            if goes_on && last.end == area.start && last.rights == area.rights {
                last.end = area.end;
                continue;
            }
        }
        merged.push(area);
    }
    merged
}

fn mapped(area: &Area, sources: &Sources) -> [u64; 6] {
    let always = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let (flags, descriptor, offset) = match area.content {
        Content::Zero => (always | libc::MAP_ANONYMOUS, -1, 0),
        Content::Pages(offset) => (always, sources.pages, offset),
        Content::Base(offset) => (always, sources.base, offset),
        Content::Guest(offset) => (always, sources.memory, offset),
    };
    let descriptor = i64::from(descriptor).cast_unsigned();
    let length = area.end - area.start;
    [area.start, length, u64::from(area.rights), u64::from(flags.cast_unsigned()), descriptor, offset]
}

/// Each number gets its file; nothing else stays open.
fn place_descriptors(plan: &mut Plan, descriptors: &[Descriptor], sources: &Sources) -> Result<(), CheckpointError> {
    let number = |number: i32| u64::from(number.cast_unsigned());
    let highest = descriptors.iter().map(|descriptor| descriptor.number).max().unwrap_or(0);
    if highest >= sources.lowest {
        return Err(CheckpointError::Unfit(format!("the monitor has {highest} descriptors")));
    }
    plan.add(libc::SYS_close_range, [3, number(sources.lowest - 1), 0, 0, 0, 0]);
    for (descriptor, source) in descriptors.iter().zip(&sources.descriptors) {
        if let Some(source) = source {
            let flags = if descriptor.close_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 };
            plan.add(libc::SYS_dup3, [number(*source), number(descriptor.number), u64::from(flags), 0, 0, 0]);
        }
        if descriptor.nonblocking && !matches!(descriptor.file, File::Null) {
            let set = libc::F_SETFL.cast_unsigned();
            let flags = libc::O_NONBLOCK.cast_unsigned();
            plan.add(libc::SYS_fcntl, [number(descriptor.number), u64::from(set), u64::from(flags), 0, 0, 0]);
        }
    }
    plan.add(libc::SYS_close_range, [number(sources.lowest), u64::from(u32::MAX), 0, 0, 0, 0]);
    Ok(())
}

/// Tells the kernel where the heap goes on, and what to show as the command line (`struct prctl_mm_map`).
fn lay_out(plan: &mut Plan, manifest: &Manifest, data_at: u64, arguments: (u64, u64)) {
    let layout = &manifest.layout;
    let (no_file, none) = (u64::from(u32::MAX) << 32, 0);
    let words = [
        layout.code.0,
        layout.code.1,
        layout.data.0,
        layout.data.1,
        layout.heap.0,
        layout.heap.1,
        layout.stack,
        arguments.0,
        arguments.1,
        arguments.1,
        arguments.1,
        none,
        no_file,
    ];
    let bytes = words.map(u64::to_ne_bytes).concat();
    let length = bytes.len() as u64;
    let at = plan.put(data_at, &bytes);
    let option = u64::from(libc::PR_SET_MM.cast_unsigned());
    plan.add(libc::SYS_prctl, [option, PR_SET_MM_MAP, at, length, 0, 0]);
}

/// The arguments of clone(2) that make a thread like those of the C library, whose number the kernel writes to where that
/// keeps it.
pub(super) fn thread_arguments(registers: &Registers, number_offset: u64) -> [u64; 6] {
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_CHILD_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    let number = registers.fs_base + number_offset;
    [u64::from(flags.cast_unsigned()), registers.rsp, 0, number, registers.fs_base, 0]
}

/// Steps as the machine code reads them.
pub(super) fn table(steps: &[Step]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(steps.len() * size_of::<[u64; 8]>());
    for step in steps {
        bytes.extend(step.call.to_ne_bytes());
        bytes.extend(step.arguments.map(u64::to_ne_bytes).concat());
        bytes.extend(u64::from(step.may_fail).to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::look::mappings;
    use crate::checkpoint::manifest::tests::manifest;
    use crate::checkpoint::manifest::{Action, KernelArea};

    const FRESH: &str = "555500000000-555500002000 r-xp 00000000 00:00 9     /bin/monitor\n\
        7f0000000000-7f0000004000 r--p 00000000 00:00 0     [vvar]\n\
        7f0000004000-7f0000006000 r-xp 00000000 00:00 0     [vdso]\n\
        7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0     [stack]\n\
        ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0     [vsyscall]\n";

    fn area(start: u64, end: u64, content: Content) -> Area {
        Area { start, end, rights: 3, content }
    }

    fn planned(manifest: &Manifest) -> Result<Plan, CheckpointError> {
        let descriptors = manifest.descriptors.iter().map(|_| Some(600)).collect();
        let sources = Sources { lowest: 512, pages: 512, base: 514, memory: 513, descriptors };
        plan(manifest, &mappings(FRESH), &sources, 0x9000, (0x8000, b"qemu\0"), &[])
    }

    fn calls(plan: &Plan, call: c_long) -> Vec<[u64; 6]> {
        plan.steps.iter().filter(|step| step.call == call).map(|step| step.arguments).collect()
    }

    #[test]
    fn all_that_was_there_goes_before_anything_comes() {
        let areas = vec![
            area(0x1000, 0x3000, Content::Pages(0)),
            area(0x3000, 0x4000, Content::Pages(0x2000)),
            area(0x4000, 0x5000, Content::Zero),
            area(0x5000, 0x6000, Content::Base(0x3000)),
            area(0x10_0000, 0x20_0000, Content::Guest(0x5000)),
        ];
        let plan = planned(&Manifest { areas, ..manifest() }).expect("planned");
        let gone = calls(&plan, libc::SYS_munmap);
        assert_eq!(gone.iter().map(|call| call[0]).collect::<Vec<_>>(), [0x5555_0000_0000, 0x7ffe_0000_0000]);
        let mapped = calls(&plan, libc::SYS_mmap);
        let short: Vec<_> = mapped.iter().map(|call| (call[0], call[1], call[4].cast_signed(), call[5])).collect();
        assert_eq!(
            short,
            [
                (0x1000, 0x3000, 512, 0),
                (0x4000, 0x1000, -1, 0),
                (0x5000, 0x1000, 514, 0x3000),
                (0x10_0000, 0x10_0000, 513, 0x5000),
                (0x8000, 0x1000, -1, 0),
            ]
        );
        let first = plan.steps.iter().position(|step| step.call == libc::SYS_mmap).expect("a mapping");
        assert!(plan.steps[first..].iter().all(|step| step.call != libc::SYS_munmap));
        let populated = calls(&plan, libc::SYS_madvise);
        assert_eq!(populated.iter().map(|call| call[0]).collect::<Vec<_>>(), [0x1000, 0x5000]);
        for call in mapped {
            assert_ne!(call[3] & u64::from(libc::MAP_FIXED.cast_unsigned()), 0, "{call:x?} goes anywhere");
        }
    }

    #[test]
    fn every_descriptor_is_placed_and_nothing_else_stays() {
        let file =
            |number, close_on_exec, nonblocking| Descriptor { number, close_on_exec, nonblocking, file: File::Poll };
        let descriptors = vec![file(3, true, false), file(40, false, true)];
        let plan = planned(&Manifest { descriptors, ..manifest() }).expect("planned");
        let closed = calls(&plan, libc::SYS_close_range);
        assert_eq!(closed.iter().map(|call| (call[0], call[1])).collect::<Vec<_>>(), [(3, 511), (512, 0xffff_ffff)]);
        let cloexec = u64::from(libc::O_CLOEXEC.cast_unsigned());
        let placed = calls(&plan, libc::SYS_dup3);
        assert_eq!(placed, [[600, 3, cloexec, 0, 0, 0], [600, 40, 0, 0, 0, 0]]);
        assert_eq!(calls(&plan, libc::SYS_fcntl).iter().map(|call| call[0]).collect::<Vec<_>>(), [40]);
        let last = plan.steps.iter().rposition(|step| step.call == libc::SYS_mmap).expect("a mapping");
        let first = plan.steps.iter().position(|step| step.call == libc::SYS_close_range).expect("a close");
        assert!(last < first, "what is mapped is closed before");
        let descriptors = vec![file(512, false, false)];
        assert!(planned(&Manifest { descriptors, ..manifest() }).is_err(), "a number among the restore's own");
    }

    #[test]
    fn the_kernels_areas_go_where_they_were_or_the_copy_is_refused() {
        let at = |start| vec![KernelArea { name: "[vdso]".to_owned(), start, end: start + 0x2000 }];
        let moved = planned(&Manifest { kernel_areas: at(0x7f11_0000_0000), ..manifest() }).expect("planned");
        let moves = calls(&moved, libc::SYS_mremap);
        assert_eq!((moves[0][0], moves[0][4]), (0x7f00_0000_4000, 0x7f11_0000_0000));
        assert_eq!(moved.steps[0].call, libc::SYS_mremap, "before anything is unmapped");
        let stays = planned(&Manifest { kernel_areas: at(0x7f00_0000_4000), ..manifest() }).expect("planned");
        assert!(calls(&stays, libc::SYS_mremap).is_empty());
        let over = planned(&Manifest { kernel_areas: at(0x7ffe_0000_0000), ..manifest() });
        assert!(over.expect_err("refused").to_string().contains("would lie over"));
        let mut longer = at(0x7f11_0000_0000);
        longer[0].end += 0x1000;
        assert!(planned(&Manifest { kernel_areas: longer, ..manifest() }).is_err(), "another kernel's");
    }

    #[test]
    fn data_lies_where_the_steps_point() {
        let actions = vec![Action { signal: 10, words: [1, 2, 3, 4] }];
        let plan = planned(&Manifest { actions, ..manifest() }).expect("planned");
        let at = usize::try_from(calls(&plan, libc::SYS_rt_sigaction)[0][1] - 0x9000).expect("small");
        assert_eq!(plan.data[at..at + 32], [1u64, 2, 3, 4].map(u64::to_ne_bytes).concat());
        let layout = calls(&plan, libc::SYS_prctl)[0];
        let at = usize::try_from(layout[2] - 0x9000).expect("small");
        let word = |number: usize| u64::from_ne_bytes(plan.data[at + number * 8..][..8].try_into().expect("eight"));
        assert_eq!((layout[3], word(7), word(8)), (104, 0x8000, 0x8005), "the command line");
        assert_eq!(table(&plan.steps).len() as u64, plan.steps.len() as u64 * STEP_BYTES);
    }

    #[test]
    fn a_free_place_meets_neither_what_is_nor_what_will_be() {
        let fresh = mappings("10001000-10002000 r-xp 00000000 00:00 9     /bin/low\n");
        let areas = vec![area(0x2000_0000, 0x2000_1000, Content::Zero)];
        let place = free_place(&Manifest { areas, ..manifest() }, &fresh, 0x10_0000).expect("free");
        assert_eq!(place, 0x3000_0000);
    }
}
