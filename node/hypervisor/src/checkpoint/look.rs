//! What /proc says of a process, as values (proc(5)).

use std::path::Path;

/// A line of /proc/PID/maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
    /// `PROT_*` of mmap(2).
    pub(super) rights: u32,
    pub(super) shared: bool,
    pub(super) offset: u64,
    pub(super) inode: u64,
    /// A path, a word in brackets, or nothing.
    pub(super) name: String,
}

impl Mapping {
    /// Whether it is the kernel's own, and which.
    pub(super) fn kernel_name(&self) -> Option<&str> {
        matches!(self.name.as_str(), "[vvar]" | "[vvar_vclock]" | "[vdso]").then_some(self.name.as_str())
    }

    /// The page that every process has at the same place, outside of its own addresses.
    pub(super) fn is_vsyscall(&self) -> bool {
        self.name == "[vsyscall]"
    }
}

/// /proc/PID/maps; a line that isn't one is left out.
pub(super) fn mappings(text: &str) -> Vec<Mapping> {
    let parse = |line: &str| {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let rights = fields.next()?;
        let right = |letter: char, right: libc::c_int| if rights.contains(letter) { right.cast_unsigned() } else { 0 };
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let offset = hex(fields.next()?)?;
        let inode = fields.nth(1)?.parse().ok()?;
        Some(Mapping {
            start: hex(start)?,
            end: hex(end)?,
            rights: right('r', libc::PROT_READ) | right('w', libc::PROT_WRITE) | right('x', libc::PROT_EXEC),
            shared: rights.ends_with('s'),
            offset,
            inode,
            name: fields.next().unwrap_or_default().trim().to_owned(),
        })
    };
    text.lines().filter_map(parse).collect()
}

/// /proc/PID/fdinfo/N.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DescriptorInfo {
    /// `O_*` of open(2).
    pub(super) flags: u32,
    pub(super) event_count: u64,
    pub(super) event_semaphore: bool,
    pub(super) signal_mask: u64,
    /// How many files an epoll watches.
    pub(super) watched: usize,
    /// Locks of the open file: whether to write, first byte, last.
    pub(super) locks: Vec<(bool, u64, u64)>,
}

impl DescriptorInfo {
    pub(super) fn parse(text: &str) -> Self {
        let mut info = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key {
                "flags" => info.flags = u32::from_str_radix(value, 8).unwrap_or(0),
                // In hexadecimal (fs/eventfd.c).
                "eventfd-count" => info.event_count = u64::from_str_radix(value, 16).unwrap_or(0),
                "eventfd-semaphore" => info.event_semaphore = value == "1",
                "sigmask" => info.signal_mask = u64::from_str_radix(value, 16).unwrap_or(0),
                "tfd" => info.watched += 1,
                "lock" => info.locks.extend(lock(value)),
                _ => {}
            }
        }
        info
    }

    pub(super) fn has(&self, flag: libc::c_int) -> bool {
        self.flags & flag.cast_unsigned() != 0
    }
}

/// `1: OFDLCK ADVISORY  READ -1 fe:00:10077588 100 101`; locks of other kinds belong to a process, not to the file.
fn lock(line: &str) -> Option<(bool, u64, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, "OFDLCK", _, kind, _, _, first, last] = fields.as_slice() else { return None };
    let last = if *last == "EOF" { u64::MAX } else { last.parse().ok()? };
    Some((*kind == "WRITE", first.parse().ok()?, last))
}

/// What a link in /proc/PID/fd leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Event,
    Poll,
    Signals,
    Socket,
    Pipe,
    Null,
    Tunnel,
    Other,
}

impl Link {
    pub(super) fn of(target: &Path) -> Self {
        match target.to_string_lossy().as_ref() {
            "anon_inode:[eventfd]" => Self::Event,
            "anon_inode:[eventpoll]" => Self::Poll,
            "anon_inode:[signalfd]" => Self::Signals,
            "/dev/null" => Self::Null,
            "/dev/net/tun" => Self::Tunnel,
            text if text.starts_with("socket:") => Self::Socket,
            text if text.starts_with("pipe:") => Self::Pipe,
            _ => Self::Other,
        }
    }
}

/// The fields of /proc/PID/stat, from the third on; the second is a name that may hold anything.
pub(super) fn stat_fields(text: &str) -> Vec<&str> {
    text.rsplit_once(')').map_or_else(Vec::new, |(_, rest)| rest.split_whitespace().collect())
}

/// A field of /proc/PID/status as bits.
pub(super) fn status_bits(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_as_the_kernel_prints_them() {
        let text = "55cdd1d61000-55cdd2ddd000 rw-p 00000000 00:00 0                          [heap]\n\
            7fbf8bfff000-7fbfcbfff000 rw-p 00001000 fe:00 5522033                    /a b/memory\n\
            7fbfdd1b4000-7fbfdd1b6000 r-xp 00000000 00:00 0                          [vdso]\n\
            7fbfdd1b7000-7fbfdd1b8000 ---s 00000000 00:00 0 \nnot one\n";
        let found = mappings(text);
        assert_eq!(found.len(), 4);
        assert_eq!((found[1].name.as_str(), found[1].offset, found[1].inode), ("/a b/memory", 0x1000, 5_522_033));
        assert_eq!(found[0].rights, (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned());
        assert_eq!(found[2].kernel_name(), Some("[vdso]"));
        assert!(found[3].shared && found[3].rights == 0 && found[3].name.is_empty());
    }

    #[test]
    fn descriptors_are_read_with_their_locks() {
        let text = "pos:\t0\nflags:\t02104002\neventfd-count:               1f\nsigmask:\t0000000010002040\n\
            lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10077588 100 101\nlock:\t2: OFDLCK ADVISORY  WRITE -1 fe:00:1 7 EOF\n\
            lock:\t3: POSIX  ADVISORY  WRITE 77 fe:00:1 0 1\ntfd:        7 events: 19\n";
        let info = DescriptorInfo::parse(text);
        assert!(info.has(libc::O_CLOEXEC) && info.has(libc::O_NONBLOCK));
        assert_eq!((info.event_count, info.signal_mask, info.watched), (0x1f, 0x1000_2040, 1));
        assert_eq!(info.locks, [(false, 100, 101), (true, 7, u64::MAX)]);
    }

    #[test]
    fn stat_is_counted_from_behind_the_name() {
        let fields = stat_fields("12 (a) b (c) S 1 2 3");
        assert_eq!(fields, ["S", "1", "2", "3"]);
        assert_eq!(status_bits("SigBlk:\t0000000000000001\nSigCgt:\t00000000000024ff\n", "SigCgt"), 0x24ff);
    }
}
