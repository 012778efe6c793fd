//! What lies at a monitor's addresses, and which of it has to be written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::CheckpointError;
use super::look::Mapping;
use super::manifest::{Area, Content, KernelArea};
use crate::keeper::pages::{self, PAGE};

/// Shortest hole in a range of memory that is left out, bytes: for shorter ones a mapping more costs more.
const HOLE_BYTES_MIN: u64 = 256 << 10;
/// Bytes that the first thread's stack may grow to: Linux's usual limit.
const STACK_BYTES: u64 = 8 << 20;
/// Most ranges of memory and bytes of a monitor: an honest one has some 500 and 100 MiB. One that its guest has taken over may
/// have what it likes.
const AREAS_MAX: usize = 16 << 10;
/// As above.
const BYTES_MAX: u64 = 4 << 30;

/// What lies at the process's addresses. `present` answers which ranges within one hold pages of that kind, ascending.
pub(super) fn areas(
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
pub(super) fn present(pid: u32, start: u64, end: u64, which: fn(u64) -> bool) -> io::Result<Vec<(u64, u64)>> {
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

pub(super) fn kernel_areas(found: &[Mapping]) -> Vec<KernelArea> {
    let area = |mapping: &Mapping| {
        mapping.kernel_name().map(|name| KernelArea { name: name.to_owned(), start: mapping.start, end: mapping.end })
    };
    found.iter().filter_map(area).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::look::mappings;

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
}
