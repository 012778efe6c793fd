//! The local fleet of `terraform/examples/local`, applied and destroyed by the real terraform.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use tests_harness::{atoll_binary, free_port_base, repository, runs, skip, step};

#[test]
fn mesh_terraform_brings_a_fleet_up_and_down() -> anyhow::Result<()> {
    if !runs("terraform") {
        return skip("mesh_terraform_brings_a_fleet_up_and_down", "terraform is not on PATH");
    }
    let fleet = Fleet::new()?;
    step("init and validate with built-in providers only", || {
        fleet.terraform(&["init", "-input=false"])?;
        fleet.terraform(&["validate"]).map(drop)
    })?;
    step("apply", || fleet.terraform(&["apply", "-input=false", "-auto-approve"]).map(drop))?;
    step("the fleet serves", || {
        ensure!(fleet.data.join("env").is_file(), "apply returns when the mesh is ready");
        let text = fleet.atoll(&["run", "--region", "iad", "-c", "print('Hello World!')"])?;
        ensure!(text.trim() == "Hello World!", "{text:?}");
        let endpoints = fleet.terraform(&["output", "-json", "endpoints"])?;
        let endpoints: serde_json::Value = serde_json::from_str(&endpoints)?;
        ensure!(endpoints["iad"] == format!("http://127.0.0.1:{}", fleet.port_base + 1), "{endpoints}");
        Ok(())
    })?;
    step("a second apply changes nothing", || {
        let words = fleet.terraform(&["plan", "-input=false", "-detailed-exitcode"])?;
        ensure!(words.contains("No changes"), "{words}");
        Ok(())
    })?;
    step("destroy returns when all is gone", || {
        let nodes = fleet.pids()?;
        ensure!(nodes.len() == 2, "two nodes: {nodes:?}");
        fleet.terraform(&["destroy", "-input=false", "-auto-approve"])?;
        ensure!(!fleet.data.join("env").exists(), "the env file is left");
        let living: Vec<_> = nodes.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
        ensure!(living.is_empty(), "processes live on: {living:?}");
        Ok(())
    })
}

/// The example, copied to a folder of its own so that no state is written into the repository.
struct Fleet {
    _folder: tests_harness::TempDir,
    example: PathBuf,
    data: PathBuf,
    port_base: u16,
    binary: PathBuf,
}

impl Fleet {
    fn new() -> anyhow::Result<Self> {
        let folder = tests_harness::temporary_folder()?;
        let example = folder.path().join("terraform/examples/local");
        std::fs::create_dir_all(&example)?;
        let source = repository().join("terraform/examples/local");
        for entry in std::fs::read_dir(&source).with_context(|| format!("no example in {}", source.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "tf") {
                std::fs::copy(&path, example.join(path.file_name().context("a name")?))?;
            }
        }
        let data = folder.path().join("data");
        Ok(Self { example, data, port_base: free_port_base(2)?, binary: atoll_binary()?, _folder: folder })
    }

    fn terraform(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = Command::new("terraform")
            .arg(format!("-chdir={}", self.example.display()))
            .args(words)
            .arg("-no-color")
            .env("CHECKPOINT_DISABLE", "1")
            // No settings of this machine's user: a mirror or a plug-in of theirs would not be the built-in provider.
            .env("TF_CLI_CONFIG_FILE", "/dev/null")
            .env("TF_IN_AUTOMATION", "1")
            .env("TF_VAR_atoll_bin", &self.binary)
            .env("TF_VAR_data", &self.data)
            .env("TF_VAR_port_base", self.port_base.to_string())
            .env("TF_VAR_regions", r#"["fra","iad"]"#)
            .env("TF_VAR_regions_folder", repository().join("regions"))
            .env("TF_VAR_work_folder", repository())
            .env("TF_VAR_pool", "1")
            .output()
            .context("can't run terraform")?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "terraform {words:?} ended with {}:\n{out}\n{err}", output.status);
        Ok(out.into_owned())
    }

    fn atoll(&self, words: &[&str]) -> anyhow::Result<String> {
        let env = std::fs::read_to_string(self.data.join("env"))?;
        let pairs = env.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        let output = Command::new(&self.binary).args(words).envs(pairs).output().context("can't run atoll")?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn pids(&self) -> anyhow::Result<Vec<String>> {
        let nodes = std::fs::read_dir(&self.data)?.flatten().map(|entry| entry.path().join("pid"));
        Ok(nodes.filter_map(|path| std::fs::read_to_string(path).ok()).map(|pid| pid.trim().to_owned()).collect())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // After a destroy there is nothing to stop; after a failure there is, and this is the last chance.
        let stop = Command::new(&self.binary).args(["dev", "stop", "--data"]).arg(&self.data).output();
        drop(stop);
    }
}
