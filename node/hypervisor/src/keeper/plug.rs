//! What a machine's network card is plugged into: opened while the keeper still has its rights, handed on as a
//! descriptor.
//!
//! A tap is attached to by name, in the namespace that it lies in; it must be there already, since a name that isn't
//! would make the kernel create one that nobody filters. `passt` is a second child: it serves one end of a socket pair,
//! the monitor has the other. When the monitor goes, passt sees the end of the stream and goes too, however the keeper
//! ended.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use thiserror::Error;

use crate::{NetworkDevice, sys};

/// The name that `{fd:net}` in the monitor's arguments stands for.
pub(super) const PLACEHOLDER: &str = "{fd:net}";
/// The device that taps are attached through.
const TUN: &str = "/dev/net/tun";

/// Why a card has no far side.
#[derive(Debug, Error)]
pub(crate) enum PlugError {
    #[error("can't enter the network namespace {path}: {source}")]
    Namespace { path: PathBuf, source: io::Error },
    #[error("can't attach to the tap '{name}': {source}")]
    Tap { name: String, source: io::Error },
    #[error("can't run {program} for the machine's network: {source}")]
    Passt { program: PathBuf, source: io::Error },
}

/// A plug. Dropping it ends the helper.
pub(super) struct Plug {
    /// The monitor inherits it; the keeper lets go of it once the monitor has it.
    pub(super) descriptor: OwnedFd,
    pub(super) helper: Option<Helper>,
}

/// A process that serves one machine's network. Dropping it ends and reaps it.
pub(super) struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // It has usually ended by itself, with the monitor.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Opens what `network` names, for a program that is started next to inherit. Call it before any other descriptor is
/// inheritable: passt inherits those too.
pub(super) fn plug(network: &NetworkDevice) -> Result<Option<Plug>, PlugError> {
    match network {
        NetworkDevice::None => Ok(None),
        NetworkDevice::Tap { name, netns } => tap(name, netns.as_deref()).map(Some),
        NetworkDevice::Passt { program, arguments } => passt(program, arguments).map(Some),
    }
}

fn tap(name: &str, netns: Option<&Path>) -> Result<Plug, PlugError> {
    let failed = |source| PlugError::Tap { name: name.to_owned(), source };
    let descriptor = open_tap(name, netns, false)?;
    inheritable(&descriptor).map_err(failed)?;
    Ok(Plug { descriptor, helper: None })
}

/// Opens a tap, in the namespace that it lies in; `header` says whether frames have virtio's header. Blocks.
pub(crate) fn open_tap(name: &str, netns: Option<&Path>, header: bool) -> Result<OwnedFd, PlugError> {
    let failed = |source| PlugError::Tap { name: name.to_owned(), source };
    let Some(path) = netns else { return attach(name, header).map(OwnedFd::from).map_err(failed) };
    let refused = |source| PlugError::Namespace { path: path.to_owned(), source };
    let namespace = File::open(path).map_err(refused)?;
    // A namespace is a thread's: one of its own enters it and ends, the others stay where they are.
    let entered = std::thread::scope(|scope| {
        let within = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|error| refused(error.into()))?;
            attach(name, header).map(OwnedFd::from).map_err(failed)
        });
        within.join()
    });
    entered.map_err(|_| failed(io::Error::other("the thread that entered its namespace panicked")))?
}

/// Attaches to a tap that is there. The device's file belongs to the namespace that opened it (tun.c, tun_chr_open).
fn attach(name: &str, header: bool) -> io::Result<File> {
    if_nametoindex(name)?;
    let file = OpenOptions::new().read(true).write(true).open(TUN)?;
    sys::attach_tap(&file, name, header)?;
    Ok(file)
}

fn passt(program: &Path, arguments: &[String]) -> Result<Plug, PlugError> {
    let failed = |source| PlugError::Passt { program: program.to_owned(), source };
    let (ours, its) = UnixStream::pair().map_err(failed)?;
    let its = OwnedFd::from(its);
    inheritable(&its).map_err(failed)?;
    let mut command = Command::new(program);
    command.args(arguments).arg("--fd").arg(its.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    sys::die_with_parent(&mut command);
    let child = command.spawn().map_err(failed)?;
    let helper = Some(Helper(child));
    let descriptor = OwnedFd::from(ours);
    inheritable(&descriptor).map_err(failed)?;
    Ok(Plug { descriptor, helper })
}

fn inheritable(descriptor: &OwnedFd) -> io::Result<()> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_tap_that_is_not_there_is_not_made() {
        let device = NetworkDevice::Tap { name: "atollnone0".into(), netns: None };
        let error = plug(&device).err().expect("refused").to_string();
        assert!(error.contains("'atollnone0'"), "{error}");
        assert!(if_nametoindex("atollnone0").is_err(), "the kernel made a tap");
    }

    #[test]
    fn a_missing_namespace_is_named() {
        let device = NetworkDevice::Tap { name: "t".into(), netns: Some("/nonexistent/ns".into()) };
        let error = plug(&device).err().expect("refused").to_string();
        assert!(error.contains("/nonexistent/ns"), "{error}");
    }

    #[test]
    fn a_helper_has_the_other_end_and_ends_with_the_plug() {
        // A shell in passt's place: `--fd N` are the last of its arguments.
        let arguments =
            ["-c".to_owned(), "eval \"echo hello >&$2\"; eval \"exec cat <&$2\"".to_owned(), "helper".to_owned()];
        let device = NetworkDevice::Passt { program: "/bin/sh".into(), arguments: arguments.to_vec() };
        let Plug { descriptor, helper } = plug(&device).expect("plugged").expect("a plug");
        let mut stream = UnixStream::from(descriptor);
        let mut said = [0; 6];
        stream.read_exact(&mut said).expect("it speaks");
        assert_eq!(&said, b"hello\n");
        let helper = helper.expect("a process");
        let pid = helper.0.id();
        drop(helper);
        assert!(crate::process::ProcessRef::of(pid).is_err(), "the helper outlived its plug");
        assert!(stream.write_all(b"x").is_err(), "somebody else holds the helper's end");
    }

    #[test]
    fn a_helper_ends_when_the_monitor_lets_go() {
        let arguments = ["-c".to_owned(), "eval \"exec cat <&$2\"".to_owned(), "helper".to_owned()];
        let device = NetworkDevice::Passt { program: "/bin/sh".into(), arguments: arguments.to_vec() };
        let Plug { descriptor, helper } = plug(&device).expect("plugged").expect("a plug");
        drop(descriptor);
        let status = helper.expect("a process").0.wait().expect("reaped");
        assert!(status.success());
    }

    #[test]
    fn no_network_is_no_plug() {
        assert!(plug(&NetworkDevice::None).expect("nothing to open").is_none());
    }
}
