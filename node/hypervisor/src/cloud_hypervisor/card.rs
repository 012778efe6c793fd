//! What a machine's network card is plugged into: a tap that the node opens and hands to the monitor with a call, since
//! the monitor may not open one.
//!
//! A card that is plugged into nothing still needs a tap: one in a network namespace of its own, which goes with it. A
//! node that may make none has machines without a card; a template that was booted so gets its clones' cards plugged in
//! while they run.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, unshare};
use tokio::task::spawn_blocking;

use crate::keeper::{PlugError, open_tap};
use crate::{NetworkDevice, VmError, sys};

/// The device that taps are attached through.
const TUN: &str = "/dev/net/tun";
/// The name of a tap that is alone in its namespace.
const ALONE: &str = "alone";

/// Opens what `network` names. For nothing: a tap that leads nowhere, or none where this node may not make one.
pub(super) async fn open(network: &NetworkDevice) -> Result<Option<OwnedFd>, VmError> {
    let network = network.clone();
    let opened = spawn_blocking(move || match &network {
        NetworkDevice::None => Ok(lone_tap().ok()),
        NetworkDevice::Tap { name, netns } => open_tap(name, netns.as_deref(), true).map(Some).map_err(|error| {
            let source = match error {
                PlugError::Namespace { source, .. }
                | PlugError::Tap { source, .. }
                | PlugError::Passt { source, .. } => source,
            };
            VmError::File { action: "attach to the tap", path: name.into(), source }
        }),
        NetworkDevice::Passt { .. } => {
            let why = "Cloud Hypervisor takes a tap as its network, and passt isn't one; a node that may make taps is \
                       needed, or QEMU";
            Err(VmError::Unsupported { verb: "network by passt", why: why.to_owned() })
        }
    });
    let panicked =
        |error: tokio::task::JoinError| VmError::File { action: "open", path: TUN.into(), source: error.into() };
    opened.await.map_err(panicked)?
}

/// A tap in a namespace that holds nothing else: what the card sends goes nowhere, and nothing comes.
fn lone_tap() -> io::Result<OwnedFd> {
    let within = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let file = OpenOptions::new().read(true).write(true).open(TUN)?;
        sys::attach_tap(&file, ALONE, true)?;
        Ok(OwnedFd::from(file))
    });
    within.join().unwrap_or_else(|_| Err(io::Error::other("the thread with the namespace panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passt_is_refused_in_words() {
        let passt = NetworkDevice::Passt { program: "passt".into(), arguments: vec![] };
        let error = open(&passt).await.expect_err("refused").to_string();
        assert!(error.contains("or QEMU"), "{error}");
    }

    #[tokio::test]
    async fn a_tap_that_is_not_there_is_not_made() {
        let device = NetworkDevice::Tap { name: "atollnone1".into(), netns: None };
        assert!(matches!(open(&device).await, Err(VmError::File { action: "attach to the tap", .. })));
    }
}
