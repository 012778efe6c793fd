//! What a keeper knows of its monitor since it started it, and what each of that one's descriptors is by it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::look::{DescriptorInfo, Link};
use super::manifest::{self, Descriptor, Origin, Plug};
use super::{CheckpointError, failed};
use crate::keeper::pages::{Backing, Run};

/// A file as its device and number.
pub(crate) type FileId = (u64, u64);

/// What a keeper knows of its monitor's descriptors since it started it.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(super) origin: Origin,
    pub(super) plug_kind: Plug,
    root: FileId,
    disk: FileId,
    pub(super) memory: Option<Memory>,
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

/// All descriptors; one that this doesn't know is an error that names it.
pub(super) fn descriptors(proc: &Path, known: &Known) -> Result<Vec<Descriptor>, CheckpointError> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
