//! Stock clients from PyPI, each in a folder of its own under the target folder, kept between runs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};
use tests_harness::repository;

/// The `daytona` client of one version.
#[derive(Debug, Clone)]
pub struct StockClient {
    /// Its version, as the package itself says.
    pub version: String,
    python: PathBuf,
}

impl StockClient {
    /// Installs a version by name, the newest where none is given, unless it is there already.
    pub fn install(version: Option<&str>) -> anyhow::Result<Self> {
        let requirement = version.map_or_else(|| "daytona".to_owned(), |version| format!("daytona=={version}"));
        let folder = repository().join("target/conformance").join(version.unwrap_or("newest"));
        let python = folder.join("bin/python");
        // Written last, so that an install that was cut off is done again.
        let done = folder.join("installed");
        if !done.is_file() {
            if folder.exists() {
                std::fs::remove_dir_all(&folder).context("can't remove a half-made folder")?;
            }
            std::fs::create_dir_all(&folder)?;
            run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
            run(Command::new(&python).args(["-m", "pip", "install", "--quiet", &requirement]))?;
            std::fs::write(&done, &requirement)?;
        }
        let ask = "import importlib.metadata as m; print(m.version('daytona'))";
        let version = run(Command::new(&python).args(["-c", ask]))?.trim().to_owned();
        Ok(Self { version, python })
    }

    /// Runs a script with the client's variables set and gives what it prints.
    pub fn run(&self, script: &str, api_url: &str, key: &str) -> anyhow::Result<String> {
        let mut command = Command::new(&self.python);
        // Of this machine's surroundings only what python needs: no settings of another service.
        command
            .env_clear()
            .envs(["PATH", "HOME", "LANG"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.args(["-c", script]).env("DAYTONA_API_URL", api_url).env("DAYTONA_API_KEY", key);
        run(&mut command).with_context(|| format!("the stock client {} against {api_url}", self.version))
    }
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("can't run {:?}", command.get_program()))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} ended with {}:\n{out}\n{err}", output.status);
    Ok(out.into_owned())
}
