//! A machine's cgroups: made and entered by its keeper before all else, removed by whoever clears its folder.
//!
//! Their name comes from the folder's path, and where they lie is in `seal.json`, written first: a keeper that was
//! killed at any moment leaves nothing that the next node can't find.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::limits::{Controller, Facts, NODE_LEAF, Plan, Version, Write, places, plan};
use super::parts::{Outcome, Part};
use crate::durable::{read_json, remove_file};
use crate::{VmFolder, VmSpec};

/// Newest schema of `seal.json` that this version reads and the one it writes.
const SCHEMA: u32 = 1;
/// How long the removal of a machine's groups is tried: a killed process that nobody could wait for leaves them only when
/// its memory is freed.
const REMOVE_LIMIT: Duration = Duration::from_secs(5);
/// How old an empty group must be to count as lost: far longer than a keeper takes from making to entering it.
const LOST_AFTER: Duration = Duration::from_secs(60);
/// Between two tries.
const REMOVE_PAUSE: Duration = Duration::from_millis(2);

/// `seal.json`: where a machine's groups are.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    schema: u32,
    groups: Vec<PathBuf>,
}

/// Counts the kernel's kills for want of memory; open, so that it is read from within the seal.
pub(crate) struct OomCounter(File);

impl OomCounter {
    /// Whether the kernel killed a process of the machine for want of memory.
    pub(crate) fn has_killed(&mut self) -> bool {
        let mut text = String::new();
        let read = self.0.seek(SeekFrom::Start(0)).and_then(|_| (&self.0).take(4096).read_to_string(&mut text));
        let count = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok();
        read.is_ok() && text.lines().find_map(count).is_some_and(|kills| kills > 0)
    }
}

/// Makes the machine's groups, sets its limits and enters them. What fails is noted.
pub(super) fn enter(spec: &VmSpec, outcome: &mut Outcome) -> Option<OomCounter> {
    let plan = plan(&facts(&spec.disk), &spec.limits, &name(&spec.folder));
    for (part, why) in &plan.gaps {
        outcome.note(*part, Err(why));
    }
    if plan.groups.is_empty() {
        return None;
    }
    let record = Record { schema: SCHEMA, groups: plan.groups.clone() };
    if let Err(error) = write_record(&spec.folder.seal_record(), &record) {
        note_all(outcome, &format!("can't note where its groups are: {error}"));
        return None;
    }
    make(&plan, outcome);
    let counter = plan.oom.as_ref().and_then(|path| File::open(path).ok()).map(OomCounter);
    for group in &plan.groups {
        // 0 is the process that writes.
        if let Err(error) = put(&group.join("cgroup.procs"), "0") {
            let parts = parts_of(&plan, group);
            parts.into_iter().for_each(|part| outcome.note(part, Err(&error)));
        }
    }
    for part in [Part::MemoryLimit, Part::NoSwap, Part::CpuLimit, Part::PidsLimit, Part::IoLimit] {
        outcome.note(part, Ok::<(), String>(()));
    }
    counter
}

/// Whole or absent, but not synced: groups don't outlive the host's boot either, and a sync costs a create milliseconds.
fn write_record(path: &Path, record: &Record) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    fs::write(&beside, serde_json::to_vec(record).map_err(io::Error::other)?)?;
    fs::rename(beside, path)
}

fn make(plan: &Plan, outcome: &mut Outcome) {
    for group in &plan.groups {
        // Its parent first, then what is handed down to it, then itself.
        if let Some(base) = group.parent()
            && let Err(error) = fs::create_dir_all(base)
        {
            let why = format!("can't make {}: {error}", base.display());
            parts_of(plan, group).into_iter().for_each(|part| outcome.note(part, Err(&why)));
        }
    }
    for write in &plan.hand_down {
        apply(write, outcome);
    }
    for group in &plan.groups {
        let made = match fs::create_dir(group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        };
        if let Err(error) = made {
            let why = format!("can't make {}: {error}", group.display());
            parts_of(plan, group).into_iter().for_each(|part| outcome.note(part, Err(&why)));
        }
    }
    for write in &plan.writes {
        apply(write, outcome);
    }
}

fn apply(write: &Write, outcome: &mut Outcome) {
    if let (Err(error), Some(part)) = (put(&write.file, &write.value), write.part) {
        outcome.note(part, Err(&error));
    }
}

fn put(file: &Path, value: &str) -> Result<(), String> {
    let written = File::options().write(true).open(file).and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|error| format!("can't write '{value}' to {}: {error}", file.display()))
}

/// What depends on one group.
fn parts_of(plan: &Plan, group: &Path) -> Vec<Part> {
    let within = plan.writes.iter().filter(|write| write.file.starts_with(group)).filter_map(|write| write.part);
    within.collect()
}

fn note_all(outcome: &mut Outcome, why: &str) {
    for part in [Part::MemoryLimit, Part::NoSwap, Part::CpuLimit, Part::PidsLimit, Part::IoLimit] {
        outcome.note(part, Err(why));
    }
}

fn facts(disk: &Path) -> Facts {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let controllers = |group: &Path| fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    let places = places(&text("/proc/self/mountinfo"), &text("/proc/self/cgroup"), controllers);
    Facts { places, disk: disk_under(disk) }
}

/// The whole disk under a file, as `major:minor`: limits are of disks, not of their partitions.
fn disk_under(file: &Path) -> Option<String> {
    let device = fs::metadata(file).ok()?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    // File systems without a disk of their own (overlay, btrfs, tmpfs) have anonymous devices.
    let folder = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    if !folder.join("partition").exists() {
        return Some(format!("{major}:{minor}"));
    }
    let whole = fs::read_to_string(folder.parent()?.join("dev")).ok()?;
    Some(whole.trim().to_owned())
}

/// The name of a machine's groups.
fn name(folder: &VmFolder) -> String {
    let hash = blake3::hash(folder.dir.as_os_str().as_encoded_bytes());
    format!("vm-{}", &hash.to_hex()[..16])
}

/// Removes the groups of an ended machine and what names them. Blocks for milliseconds, up to 5 s while something still
/// runs in them; idempotent.
pub(crate) fn release(folder: &VmFolder) {
    let path = folder.seal_record();
    let Ok(record) = read_json::<Record>(&path, SCHEMA) else { return };
    let name = name(folder);
    let until = Instant::now() + REMOVE_LIMIT;
    for group in record.groups.iter().filter(|group| group.ends_with(&name)) {
        if let Err(error) = removed(|| fs::remove_dir(group), until) {
            tracing::warn!(group = %group.display(), %error, "a machine's cgroup stays");
        }
    }
    // It is removed with its folder otherwise.
    let _ = remove_file(&path);
}

/// Removes machines' groups that nobody's folder names any more: it was removed while its keeper lived. A group with
/// processes can't be removed; one that is being made is young.
pub(super) fn sweep_lost() {
    for place in facts(Path::new("/")).places.values() {
        for entry in fs::read_dir(&place.base).into_iter().flatten().flatten() {
            let is_machines = entry.file_name().to_string_lossy().starts_with("vm-");
            let made = entry.metadata().and_then(|about| about.modified());
            let age = made.ok().and_then(|made| made.elapsed().ok()).unwrap_or_default();
            if is_machines && age > LOST_AFTER {
                // It is in use, or somebody else was faster.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// Tries until the group isn't busy any more, at least once.
fn removed(mut attempt: impl FnMut() -> io::Result<()>, until: Instant) -> io::Result<()> {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                std::thread::sleep(REMOVE_PAUSE);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => return result,
        }
    }
}

/// Where this process runs in a version 2 group that was delegated to it, moves it to a leaf: only then can the group
/// hand controllers down to machines. What doesn't work is found by the first keeper.
pub(super) fn settle() {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (mounts, own) = (text("/proc/self/mountinfo"), text("/proc/self/cgroup"));
    if own.lines().any(|line| line.starts_with("0::/") && line.ends_with(NODE_LEAF)) || own.lines().any(|l| l == "0::/")
    {
        return;
    }
    let controllers = |group: &Path| fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    let found = places(&mounts, &own, controllers);
    let second = Controller::ALL.iter().filter_map(|controller| found.get(controller));
    let Some(base) = second.filter(|place| place.version == Version::Two).map(|place| &place.base).next() else {
        return;
    };
    if let Some(leaf) = base.parent().map(|group| group.join(NODE_LEAF)) {
        let moved = fs::create_dir_all(&leaf).map_err(|error| error.to_string());
        if let Err(error) = moved.and_then(|()| put(&leaf.join("cgroup.procs"), "0")) {
            tracing::debug!(error, "the node stays in its cgroup");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_groups_of_that_very_folder_are_removed() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = VmFolder { dir: root.path().join("vm"), run: root.path().join("run") };
        let (mine, other) = (root.path().join(name(&folder)), root.path().join("vm-0000"));
        for path in [&folder.dir, &mine, &other] {
            fs::create_dir(path).expect("made");
        }
        let groups = vec![mine.clone(), other.clone(), root.path().join("gone").join(name(&folder))];
        write_record(&folder.seal_record(), &Record { schema: SCHEMA, groups }).expect("written");
        release(&folder);
        assert!(!mine.exists() && other.exists() && !folder.seal_record().exists());
        release(&folder);
    }

    #[test]
    fn a_group_is_waited_for_while_something_ends_in_it() {
        let busy = || io::Error::from(io::ErrorKind::ResourceBusy);
        let mut tries = 0;
        // Longer than the 200 ms in which a machine under a processor limit has been seen to end.
        let slow = || {
            tries += 1;
            if tries > 150 { Ok(()) } else { Err(busy()) }
        };
        removed(slow, Instant::now() + Duration::from_secs(60)).expect("it ends at last");
        let stays = removed(|| Err(busy()), Instant::now() + Duration::from_millis(10));
        assert_eq!(stays.expect_err("it never ends").kind(), io::ErrorKind::ResourceBusy);
        assert!(removed(|| Err(io::ErrorKind::NotFound.into()), Instant::now()).is_ok(), "it is gone already");
        assert!(removed(|| Err(io::ErrorKind::PermissionDenied.into()), Instant::now()).is_err());
    }

    #[test]
    fn a_file_lies_on_a_whole_disk_or_none() {
        if let Some(disk) = disk_under(Path::new("/")) {
            assert!(
                disk.split_once(':').is_some_and(|(major, minor)| major.parse::<u32>().is_ok() && !minor.is_empty())
            );
        }
        assert_eq!(disk_under(Path::new("/proc/self/status")), None);
    }
}
