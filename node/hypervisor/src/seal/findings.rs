//! What the seal is on this host: found out by sealing a program that does nothing, the same way as a monitor.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fabric_types::{HypervisorKind, Seal, Shape};

use super::enter::{SealMode, SealRequest, Sealing};
use super::parts::nothing;
use super::{cgroup, release};
use crate::keeper::{KeeperConfig, KeeperProgram, SCHEMA};
use crate::{ImagePaths, MachineLimits, MemorySource, NetworkDevice, VmFolder, VmSpec, template};

/// The keeper's argument for a trial.
pub(crate) const TRIAL: &str = "--seal";
/// The same within its scratch folder, named next.
pub(crate) const TRIAL_IN: &str = "--seal-in";
/// The argument of the program that does nothing.
pub(crate) const NOTHING: &str = "--nothing";
/// How long a trial may take on a busy host; one takes some 30 ms.
const TRIAL_LIMIT: Duration = Duration::from_secs(10);
/// How often its end is looked for.
const POLL: Duration = Duration::from_millis(2);
/// Limits of the trial: that they can be set is what is found out.
const LIMITS: MachineLimits = MachineLimits {
    memory_bytes: Some(1 << 30),
    cpu_weight: Some(100),
    cpu_millis: Some(1000),
    pids: Some(64),
    io_bytes_per_second: Some(1 << 30),
};

/// What shuts monitors off from this host when `keeper` starts them, and what this host can't give. Where a cgroup was
/// delegated to this process, it first moves to a leaf of it.
pub async fn findings(keeper: &KeeperProgram) -> Seal {
    let keeper = keeper.clone();
    let found = tokio::task::spawn_blocking(move || {
        cgroup::settle();
        cgroup::sweep_lost();
        examine(&keeper)
    });
    found.await.unwrap_or_else(|error| nothing(&format!("the trial broke off: {error}")))
}

/// The same without the move, for whoever only wants to know. Blocks for some 30 ms, 10 s at most.
pub fn examine(keeper: &KeeperProgram) -> Seal {
    if SealMode::from_environment() == SealMode::Off {
        return nothing("it is switched off (ATOLL_SEAL=off)");
    }
    match try_out(keeper) {
        Ok(seal) => seal,
        Err(error) => nothing(&format!("the trial failed: {error}")),
    }
}

fn try_out(keeper: &KeeperProgram) -> io::Result<Seal> {
    let mut command = Command::new(&keeper.program);
    command.args(&keeper.args).arg(TRIAL).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > TRIAL_LIMIT {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(POLL);
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().last().unwrap_or("it said nothing").chars().take(300).collect::<String>();
        return Err(io::Error::other(format!("{}: {said}", output.status)));
    }
    serde_json::from_slice(&output.stdout).map_err(io::Error::other)
}

/// The keeper's side: seals this very process around a program that does nothing and prints the seal as JSON.
pub(crate) fn trial() -> io::Result<()> {
    let folder = scratch()?;
    let child =
        std::process::Command::new(std::env::current_exe()?).args(before(TRIAL)).arg(TRIAL_IN).arg(&folder).output();
    let config = config(&folder)?;
    release(&config.spec.folder);
    fs::remove_dir_all(&folder)?;
    let output = child?;
    io::stdout().write_all(&output.stdout)?;
    io::stderr().write_all(&output.stderr)?;
    if output.status.success() { Ok(()) } else { Err(io::Error::other("the seal can't be closed")) }
}

/// Within the scratch folder, in a process that doesn't come back.
pub(crate) fn trial_in(folder: &Path) -> io::Result<()> {
    let config = config(folder)?;
    let mut sealing = Sealing::limits(&config);
    let program = sealing.enclose(&config)?;
    let mut command = Command::new(program);
    command.args(&config.arguments).stdin(Stdio::null());
    sealing.command(&config, &mut command)?;
    let mut child = command.spawn()?;
    drop(command);
    // The program opens nothing to write, so nobody has to answer for it.
    let sealed = sealing.settle()?;
    let status = child.wait()?;
    if !status.success() {
        return Err(io::Error::other(format!("a sealed program ended with {status}")));
    }
    let text = serde_json::to_vec(&sealed.seal).map_err(io::Error::other)?;
    io::stdout().write_all(&text)
}

/// This process's own arguments up to `word`: how the keeper is called within its program.
fn before(word: &str) -> Vec<OsString> {
    std::env::args_os().skip(1).take_while(|argument| !argument.to_string_lossy().starts_with(word)).collect()
}

fn scratch() -> io::Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let folder = std::env::temp_dir().join(format!("atoll-seal-{}-{now}", std::process::id()));
    fs::DirBuilder::new().mode(0o700).create(&folder)?;
    for name in ["vm", "run", "template"] {
        fs::create_dir(folder.join(name))?;
    }
    for file in ["kernel", "initramfs", "root", "vm/disk"] {
        fs::write(folder.join(file), "")?;
    }
    fs::write(template::memory_file(&folder.join("template")), "")?;
    Ok(folder)
}

fn config(folder: &Path) -> io::Result<KeeperConfig> {
    let mut arguments: Vec<String> = Vec::new();
    arguments.extend(before(TRIAL).into_iter().map(|argument| argument.to_string_lossy().into_owned()));
    arguments.push(NOTHING.to_owned());
    let spec = VmSpec {
        label: "seal".to_owned(),
        folder: VmFolder { dir: folder.join("vm"), run: folder.join("run") },
        shape: Shape::DEFAULT,
        image: ImagePaths {
            kernel: folder.join("kernel"),
            initramfs: folder.join("initramfs"),
            root: folder.join("root"),
        },
        disk: folder.join("vm/disk"),
        memory: MemorySource::Clone { template: folder.join("template") },
        checkpoint: None,
        network: NetworkDevice::None,
        limits: LIMITS,
    };
    Ok(KeeperConfig {
        schema: SCHEMA,
        driver: HypervisorKind::Qemu,
        spec,
        program: std::env::current_exe()?,
        arguments,
        listeners: Vec::new(),
        remove: Vec::new(),
        ahead: false,
        seal: SealRequest::default(),
    })
}
