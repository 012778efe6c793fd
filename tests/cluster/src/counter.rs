//! A process in a guest whose memory is a number that grows: it tells whether memory and processes went on.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tests_harness::{Mesh, eventually};

use crate::Sandbox;

/// Counts in a shell's variable, ten times a second, and writes pid, the guest's boot and the number to a file by
/// rename, so that a reader never sees half of it.
const PROGRAM: &str = "boot=$(cat /proc/sys/kernel/random/boot_id); i=0; \
    while :; do i=$((i+1)); echo $$ $boot $i > /root/count.new; mv /root/count.new /root/count; sleep 0.1; done";

/// What the counter last wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// The process in the guest.
    pub pid: u32,
    /// The guest kernel's boot: another one after a boot.
    pub boot: String,
    /// The number.
    pub count: u64,
}

impl Counter {
    /// Starts one in a sandbox; it outlives the command that starts it.
    pub fn start(mesh: &Mesh, sandbox: &Sandbox) -> anyhow::Result<Self> {
        sandbox.says(
            mesh,
            &format!("nohup setsid sh -c '{PROGRAM}' >/dev/null 2>&1 & until [ -s /root/count ]; do sleep 0.05; done"),
        )?;
        Self::read(mesh, sandbox)
    }

    /// Reads it.
    pub fn read(mesh: &Mesh, sandbox: &Sandbox) -> anyhow::Result<Self> {
        let text = sandbox.says(mesh, "cat /root/count")?;
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [pid, boot, count] = fields[..] else { anyhow::bail!("the counter wrote {text:?}") };
        let number = |text: &str| text.parse::<u64>().with_context(|| format!("the counter wrote {text:?}"));
        Ok(Self { pid: number(pid)? as u32, boot: boot.to_owned(), count: number(count)? })
    }

    /// Reads it again in this sandbox, twice: the same process of the same boot has gone on from here and still does.
    pub fn has_gone_on(&self, mesh: &Mesh, sandbox: &Sandbox) -> anyhow::Result<Self> {
        let first = Self::read(mesh, sandbox)?;
        ensure!(first.pid == self.pid && first.boot == self.boot, "another process: {self:?}, then {first:?}");
        ensure!(first.count >= self.count, "it went back: {self:?}, then {first:?}");
        sandbox.says(mesh, "sleep 0.5")?;
        eventually("it counts on", Duration::from_secs(30), || {
            let second = Self::read(mesh, sandbox)?;
            ensure!(second.count > first.count, "it stands still: {first:?}, then {second:?}");
            Ok(second)
        })
    }
}
