//! What every driver's test needs: the image, the keeper, folders that go away, and a loud word when something is
//! missing.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use fabric_types::Shape;
use node_hypervisor::{ImagePaths, KeeperProgram, MemorySource, VmFolder, VmSpec, end_machine, make_disk};

/// How long a guest may take to boot on a busy host.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// Says that a test can't run here, and leaves the reason where the whole run's summary is made.
pub(crate) fn skip(what: &str, why: &str) {
    let line = format!("SKIPPED: {what}: {why}");
    println!("{line}");
    if let Some(path) = std::env::var_os("ATOLL_SKIPS") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let noted = file.and_then(|mut file| writeln!(file, "{line}"));
        noted.expect("ATOLL_SKIPS names a file that can be written");
    }
}

/// Whether `/dev/kvm` opens as a monitor opens it.
pub(crate) fn kvm() -> std::io::Result<()> {
    OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop)
}

/// The guest image: `ATOLL_IMAGE`, else the newest complete one of this repository.
pub(crate) fn image() -> Option<ImagePaths> {
    let complete = |folder: PathBuf| {
        let image = ImagePaths {
            kernel: folder.join("kernel"),
            initramfs: folder.join("initramfs"),
            root: folder.join("root.erofs"),
        };
        let all = [&image.kernel, &image.initramfs, &image.root].iter().all(|path| path.is_file());
        all.then_some(image)
    };
    if let Some(folder) = std::env::var_os("ATOLL_IMAGE") {
        return complete(folder.into());
    }
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.atoll/image");
    let folders = fs::read_dir(images).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<ImagePaths> = folders.filter_map(complete).collect();
    found.sort_by_key(|image| fs::metadata(&image.root).and_then(|about| about.modified()).ok());
    found.pop()
}

/// One of this crate's examples; cargo builds them along with the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test's path");
    let target = test.parent().and_then(Path::parent).expect("deps lies in the profile's folder");
    let program = target.join("examples").join(name);
    assert!(program.is_file(), "{} is missing: cargo build -p node-hypervisor --examples", program.display());
    program
}

/// The example that is a keeper and nothing else.
pub(crate) fn keeper() -> KeeperProgram {
    KeeperProgram { program: example("keeper"), args: vec![] }
}

/// Folders of one test. Dropping it ends the machines that a failed test left there and removes them.
pub(crate) struct Place {
    root: tempfile::TempDir,
    folders: Mutex<Vec<VmFolder>>,
    image: ImagePaths,
}

impl Place {
    /// A place in the system's temporary folder, whose path is short enough for sockets.
    pub(crate) fn new(image: ImagePaths) -> Self {
        let root = tempfile::Builder::new().prefix("atoll-vm-").tempdir().expect("a folder");
        Self { root, folders: Mutex::default(), image }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn template(&self) -> PathBuf {
        self.path("template")
    }

    /// A machine to boot, with a fresh disk.
    pub(crate) fn booting(&self) -> VmSpec {
        let spec = self.spec(MemorySource::Boot);
        make_disk(&spec.disk, spec.shape.disk()).expect("a disk");
        spec
    }

    /// A specification with folders of its own; the disk is not made.
    pub(crate) fn spec(&self, memory: MemorySource) -> VmSpec {
        let mut folders = self.folders.lock().expect("no test panics here");
        let number = folders.len();
        let dir = self.path(&format!("vm{number}"));
        fs::create_dir_all(&dir).expect("made");
        let folder = VmFolder { dir: dir.clone(), run: self.path(&format!("r{number}")) };
        folders.push(folder.clone());
        VmSpec {
            label: format!("vm{number}"),
            disk: dir.join("disk"),
            folder,
            shape: Shape::DEFAULT,
            image: self.image.clone(),
            memory,
            checkpoint: None,
            network: node_hypervisor::NetworkDevice::None,
            limits: node_hypervisor::MachineLimits::default(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for folder in self.folders.get_mut().into_iter().flatten() {
            end_machine(folder);
        }
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "{what} took more than {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process is there and no zombie.
pub(crate) fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The names in a folder, sorted.
pub(crate) fn files_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Processes (no zombies) whose command line names this place: keepers and monitors of its machines.
pub(crate) fn processes_naming(place: &Place) -> Vec<u32> {
    let wanted = place.root.path().to_string_lossy().into_owned();
    let pids = fs::read_dir("/proc").expect("proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let names = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&wanted)
    };
    pids.filter(|pid| names(pid) && runs(*pid)).collect()
}

/// Milliseconds since `start`, for the figures that a test prints.
pub(crate) fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
