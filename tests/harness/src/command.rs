//! The atoll command line against a mesh.

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::mesh::Mesh;

/// A command that has ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its words, for messages.
    pub words: String,
    /// Its exit code; -1 where a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it remarked.
    pub stderr: String,
}

impl Ran {
    /// What it printed, without the last newline, if it ended with 0.
    pub fn ok(self) -> anyhow::Result<String> {
        ensure!(self.code == 0, "{self}");
        Ok(self.stdout.trim_end_matches('\n').to_owned())
    }

    /// The one JSON object that it printed, if it ended with 0.
    pub fn json(self) -> anyhow::Result<Value> {
        ensure!(self.code == 0, "{self}");
        ensure!(self.stdout.lines().count() == 1, "not exactly one line: {self}");
        serde_json::from_str(&self.stdout).with_context(|| format!("not one JSON object: {self}"))
    }

    /// Itself, if it ended with this code.
    pub fn ends_with(self, code: i32) -> anyhow::Result<Self> {
        ensure!(self.code == code, "expected {code}: {self}");
        Ok(self)
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { words, code, stdout, stderr } = self;
        write!(f, "`atoll {words}` ended with {code}; stdout: {stdout:?}; stderr: {stderr:?}")
    }
}

impl Mesh {
    /// A command of atoll with this mesh's endpoints and key in its environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.binary());
        command.env_clear().current_dir(self.data());
        // What a program needs of its surroundings, and nothing of another mesh.
        command.envs(["PATH", "HOME", "LANG"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.env("ATOLL_ENDPOINTS", self.endpoints_text()).env("ATOLL_API_KEY", self.key());
        command
    }

    /// Runs a command to its end.
    pub fn atoll<S: AsRef<OsStr>>(&self, words: &[S]) -> anyhow::Result<Ran> {
        self.atoll_with_input(words, b"")
    }

    /// The same with this on its standard input.
    pub fn atoll_with_input<S: AsRef<OsStr>>(&self, words: &[S], input: &[u8]) -> anyhow::Result<Ran> {
        let mut command = self.command();
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("can't run atoll")?;
        let mut stdin = child.stdin.take().context("a piped child has a standard input")?;
        let input = input.to_vec();
        // On a thread: a child that writes much before it reads would wait for us, and we for it.
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().context("can't wait for atoll")?;
        match writer.join() {
            // A command that doesn't read its input closes it; that is its right.
            Ok(Err(error)) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error).context("its input"),
            Ok(_) => {}
            Err(_) => bail!("the thread that writes its input panicked"),
        }
        let words: Vec<_> = words.iter().map(|word| word.as_ref().to_string_lossy()).collect();
        Ok(Ran {
            words: words.join(" "),
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
