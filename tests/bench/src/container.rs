//! The same command in a container of this machine, by `runc` and by gVisor's `runsc`, from start to its first byte.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A program that runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runner {
    /// Debian's `runc`.
    Runc,
    /// Debian's `runsc` (gVisor) with its ptrace platform.
    Runsc,
}

impl Runner {
    fn program(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Runsc => "runsc",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Runc => &[],
            Self::Runsc => &["--platform=ptrace", "--network=none", "--ignore-cgroups"],
        }
    }

    /// Its version, as it prints it; none where it isn't installed.
    pub(crate) fn version(self) -> Option<String> {
        let output = Command::new(self.program()).arg("--version").output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
    }
}

/// A bundle (OCI runtime specification): this host's shell with what it is linked to.
pub(crate) struct Bundle {
    folder: TempDir,
    next: u32,
}

impl Bundle {
    /// Makes one that runs `sh -c 'echo hi'`.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("bundle-").tempdir().context("can't make a folder")?;
        let root = folder.path().join("rootfs");
        for name in ["bin", "proc", "dev", "sys", "tmp"] {
            fs::create_dir_all(root.join(name))?;
        }
        let shell = Path::new("/bin/sh").canonicalize()?;
        fs::copy(&shell, root.join("bin/sh"))?;
        for library in libraries(&shell)? {
            let to = root.join(library.strip_prefix("/")?);
            fs::create_dir_all(to.parent().context("a library lies in a folder")?)?;
            fs::copy(&library, to)?;
        }
        let made = Command::new("runc").arg("spec").current_dir(folder.path()).status().context("can't run runc")?;
        ensure!(made.success(), "`runc spec` ended with {made}");
        let file = folder.path().join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["sh", "-c", "echo hi"]);
        fs::write(&file, serde_json::to_vec(&spec)?)?;
        Ok(Self { folder, next: 0 })
    }

    /// Runs it once, up to the first byte that it writes.
    pub(crate) fn run(&mut self, runner: Runner) -> anyhow::Result<Duration> {
        self.next += 1;
        let name = format!("atoll-bench-{}-{}", std::process::id(), self.next);
        let begun = Instant::now();
        let mut child = Command::new(runner.program())
            .args(runner.arguments())
            .args(["run", &name])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't run {}", runner.program()))?;
        let mut output = child.stdout.take().context("its output is a pipe")?;
        let mut said = [0; 1];
        let read = output.read(&mut said)?;
        let took = begun.elapsed();
        let mut rest = String::new();
        output.read_to_string(&mut rest)?;
        let ended = child.wait_with_output()?;
        let errors = String::from_utf8_lossy(&ended.stderr);
        ensure!(read == 1 && ended.status.success(), "{} ended with {}: {errors}", runner.program(), ended.status);
        ensure!(said == *b"h" && rest == "i\n", "it said {said:?} and {rest:?}");
        Ok(took)
    }
}

/// The files that a program is linked to, by `ldd`.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("can't run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
