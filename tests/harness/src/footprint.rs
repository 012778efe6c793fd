//! What a mesh uses outside its folder while it runs, and what of that is left when it has ended.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::binary::repository;
use crate::guests::GuestNetwork;
use crate::mesh::Mesh;
use crate::process::{Process, marked};

/// Taken before a mesh's end, by looking at its processes now and then; asked for leaks after it.
#[derive(Debug)]
pub struct Footprint {
    mark: String,
    data: PathBuf,
    began: SystemTime,
    /// Names of its nodes' guest networks.
    networks: BTreeSet<String>,
    processes: BTreeSet<Process>,
    sockets: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
}

impl Footprint {
    /// Begins to look at a mesh.
    pub fn of(mesh: &Mesh) -> Self {
        let mut footprint = Self {
            mark: mesh.mark().to_owned(),
            data: mesh.data().to_owned(),
            began: mesh.began(),
            networks: BTreeSet::new(),
            processes: BTreeSet::new(),
            sockets: BTreeSet::new(),
            files: BTreeSet::new(),
        };
        footprint.look();
        footprint
    }

    /// Notes what its processes have open now.
    pub fn look(&mut self) {
        let bound = bound_sockets();
        for process in marked(&self.mark) {
            for inode in process.socket_inodes() {
                let own = bound.iter().filter(|(bound, _)| *bound == inode);
                self.sockets.extend(own.map(|(_, path)| path.clone()));
            }
            let open = process.open_files().into_iter();
            let outside: Vec<PathBuf> = open.filter(|path| !self.may_stay(path)).collect();
            self.files.extend(outside);
            self.networks.extend(GuestNetwork::of(&process).map(|network| network.name));
            self.processes.insert(process);
        }
    }

    /// How many processes were seen.
    pub fn processes_seen(&self) -> usize {
        self.processes.len()
    }

    /// What is left after the end, as sentences; nothing where all is gone.
    pub fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        let seen = self.processes.iter().filter(|process| process.lives()).cloned();
        let living: BTreeSet<Process> = seen.chain(marked(&self.mark)).collect();
        leaks.extend(living.iter().map(|process| format!("process {}: {}", process.pid, process.command)));
        let sockets = self.sockets.iter().filter(|path| path.exists());
        leaks.extend(sockets.map(|path| format!("socket {}", path.display())));
        // A run folder without its sockets is left behind all the same.
        let folders: BTreeSet<&Path> = self.sockets.iter().filter_map(|path| path.parent()).collect();
        let folders = folders.into_iter().filter(|folder| !self.may_stay(folder) && is_newer(folder, self.began));
        leaks.extend(folders.map(|folder| format!("folder {}", folder.display())));
        let files = self.files.iter().filter(|path| is_newer(path, self.began));
        leaks.extend(files.map(|path| format!("file {}", path.display())));
        leaks.extend(self.mounts_left());
        leaks.extend(self.networks.iter().flat_map(|name| GuestNetwork::left(name)));
        leaks.extend(self.sandboxes_left());
        leaks
    }

    /// Whether a path is meant to stay: the mesh's folder, and the images and templates that meshes share.
    fn may_stay(&self, path: &Path) -> bool {
        let system = ["/dev", "/proc", "/sys"];
        path.starts_with(&self.data)
            || path.starts_with(repository().join(".atoll/image"))
            || system.iter().any(|folder| path.starts_with(folder))
    }

    fn mounts_left(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // proc_pid_mountinfo(5): the mount point is field 5.
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        let own = points.filter(|point| {
            point.starts_with(&self.data)
                || self.sockets.iter().filter_map(|path| path.parent()).any(|run| point.starts_with(run))
        });
        own.map(|point| format!("mount {}", point.display())).collect()
    }

    /// Inside the folder, logs and stores stay, but nothing of a sandbox.
    fn sandboxes_left(&self) -> Vec<String> {
        let nodes = fs::read_dir(&self.data).into_iter().flatten().flatten().map(|entry| entry.path());
        let rooms = nodes.flat_map(|node| ["sandboxes", "pool"].map(|room| node.join(room)));
        let left = rooms.flat_map(|room| fs::read_dir(room).into_iter().flatten().flatten());
        left.map(|entry| format!("of a sandbox: {}", entry.path().display())).collect()
    }
}

/// Inode and path of each unix socket that is bound to a path.
fn bound_sockets() -> Vec<(u64, PathBuf)> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let row = |line: &str| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut fields = line.split_whitespace().skip(6);
        let inode = fields.next()?.parse().ok()?;
        let path = fields.next()?;
        path.starts_with('/').then(|| (inode, PathBuf::from(path)))
    };
    table.lines().filter_map(row).collect()
}

/// Whether something is there that was not before the mesh began.
fn is_newer(path: &Path, began: SystemTime) -> bool {
    let Ok(about) = fs::symlink_metadata(path) else { return false };
    // Not every file system tells when a file was made; then its last change has to do.
    about.created().or_else(|_| about.modified()).is_ok_and(|made| made >= began)
}
