//! How a node starts a keeper.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::client::{Creator, Here, Keeper};
use super::config::KeeperConfig;
use crate::durable::remove_file;
use crate::launch::{EXIT_LIMIT, clear_after, last_line};
use crate::process::ProcessRef;
use crate::seal::{SealMode, SealRequest, release};
use crate::{VmError, VmFolder};

/// Longest path of a socket, bytes: `sun_path` less its end (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The program that is a keeper when it is started with `args` and `--config FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeeperProgram {
    /// The program.
    pub program: PathBuf,
    /// Its arguments before `--config FILE`.
    pub args: Vec<OsString>,
}

impl KeeperProgram {
    /// This very program's subcommand `keeper`. An error when the program can't find itself.
    pub fn this_program() -> io::Result<Self> {
        // Linux appends this when the file was replaced by a newer version; the newer one keeps as well.
        let program = std::env::current_exe()?;
        let text = program.to_string_lossy();
        let program = text.strip_suffix(" (deleted)").map_or(program.clone(), PathBuf::from);
        Ok(Self { program, args: vec!["keeper".into()] })
    }
}

/// A keeper that has greeted.
pub(crate) struct SpawnedKeeper {
    pub(crate) keeper: Keeper,
    pub(crate) creator: Creator,
    pub(crate) here: Here,
}

/// Starts a keeper with its machine and greets it. On an error nothing of it is left; a folder in which another machine
/// lives is left as it is.
pub(crate) async fn spawn(program: &KeeperProgram, config: &KeeperConfig) -> Result<SpawnedKeeper, VmError> {
    let folder = &config.spec.folder;
    let listener = prepare(folder)?;
    let seal = SealRequest { mode: SealMode::from_environment(), ..config.seal.clone() };
    let config = &KeeperConfig { seal, ..config.clone() };
    let spawned = start(program, config, listener).await;
    if spawned.is_err() {
        clear_after(folder, None).await;
    }
    spawned
}

async fn start(
    program: &KeeperProgram,
    config: &KeeperConfig,
    listener: UnixListener,
) -> Result<SpawnedKeeper, VmError> {
    let folder = &config.spec.folder;
    let file = folder.keeper_config();
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| VmError::File { action, path, source }
    };
    let bytes = serde_json::to_vec(config).map_err(io::Error::other).map_err(failed("write", &file))?;
    // Read at once and removed; nothing of it has to survive a crash.
    fs::write(&file, bytes).map_err(failed("write", &file))?;
    let log_path = folder.keeper_log();
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path);
    let log = log.map_err(failed("open", &log_path))?;
    let log_too = log.try_clone().map_err(failed("open", &log_path))?;
    let mut command = tokio::process::Command::new(&program.program);
    command
        .args(&program.args)
        .arg("--config")
        .arg(&file)
        // The node's environment may hold keys, and the monitor inherits the keeper's.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(log_too));
    let mut child = command.spawn().map_err(|source| VmError::Program {
        program: program.program.display().to_string(),
        source,
        advice: "it is the keeper: name the atoll binary",
    })?;
    drop(command);
    let process = child.id().and_then(|pid| ProcessRef::of(pid).ok());
    // Somebody has to reap it while this process lives; nothing depends on when.
    tokio::spawn(async move { child.wait().await });
    let keeper = Keeper::new(folder.keeper_socket(), config.spec.label.clone());
    match keeper.create().await {
        Ok((creator, here)) => Ok(SpawnedKeeper { keeper, creator, here }),
        Err(error) => {
            if let Some(process) = process {
                all_written(process).await;
            }
            Err(explained(error, folder))
        }
    }
}

/// Waits until a keeper that didn't greet has ended, and its monitor with it: then all is said and removed that will
/// be.
async fn all_written(keeper: ProcessRef) {
    if !keeper.gone(EXIT_LIMIT).await {
        keeper.kill();
        keeper.gone(EXIT_LIMIT).await;
    }
}

/// A keeper that ended before it greeted said why in its log; if it was its monitor that ended, that did in its own.
fn explained(error: VmError, folder: &VmFolder) -> VmError {
    let VmError::Ended { label, how } = error else { return error };
    let said = [folder.keeper_log(), folder.vmm_log()].map(|log| last_line(&log));
    match said.into_iter().find(|line| !line.is_empty()) {
        Some(line) => VmError::Ended { label, how: format!("{how}; it said: {line}") },
        None => VmError::Ended { label, how },
    }
}

/// Refuses a folder in which a machine lives.
pub(crate) fn vacant(folder: &VmFolder) -> Result<(), VmError> {
    let path = folder.keeper_socket();
    if UnixStream::connect(&path).is_ok() {
        let source = io::Error::new(io::ErrorKind::AddrInUse, "another machine's keeper lives in this folder");
        return Err(VmError::File { action: "listen on", path, source });
    }
    Ok(())
}

/// Makes both folders and the listening socket; leftovers of an ended machine are removed, a living one is an error.
fn prepare(folder: &VmFolder) -> Result<UnixListener, VmError> {
    for path in [&folder.dir, &folder.run] {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| VmError::File {
            action: "make",
            path: path.clone(),
            source,
        })?;
    }
    let path = folder.keeper_socket();
    let failed = |source| VmError::File { action: "listen on", path: path.clone(), source };
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "a socket's path ends at 107 bytes")));
    }
    vacant(folder)?;
    release(folder);
    for path in folder.all_files().iter().chain([&folder.record()]) {
        remove_file(path)?;
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}
