//! The local fleet of `terraform/examples/local`, applied and destroyed by the real terraform.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use tests_harness::{TempDir, atoll_binary, free_port_base, repository, runs, skip, step, temporary_folder};

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

/// A node's configuration as `terraform/modules/node` renders it is read by the program: it fails later, for want of an
/// image, and not on a field.
#[test]
fn mesh_terraform_module_renders_what_a_node_reads() -> anyhow::Result<()> {
    if !runs("terraform") {
        return skip("mesh_terraform_module_renders_what_a_node_reads", "terraform is not on PATH");
    }
    let folder = temporary_folder()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let module = repository().join("terraform/modules/node");
    let settings = [
        format!("source = {:?}", module.display().to_string()),
        "node = \"fra-1\"\nhttp = \"127.0.0.1:0\"\nfabric = \"127.0.0.1:0\"".to_owned(),
        "public_url = \"https://fra.example.org\"".to_owned(),
        "regions = { fra = \"https://fra.example.org\", iad = \"https://iad.example.org\" }".to_owned(),
        "peers = { \"fra-1\" = \"127.0.0.1:8080\" }".to_owned(),
        "catalog_voters = [\"fra-1\"]\nregion_voters = [\"fra-1\"]".to_owned(),
        "limits = { vcpus = 2, memory_mib = 4096, disk_gib = 9 }".to_owned(),
        format!("bootstrap_key = {{ id = \"key-0123456789abcdef\", name = \"first\", hash = \"{}\", ", "0".repeat(64))
            + "organization = \"default\", shown = \"e2b_0123\" }",
        format!("data = {:?}\nrun = {:?}\nimage = {:?}", path("data"), path("run"), path("no-image")),
    ];
    let text = format!("module \"node\" {{\n{}\n}}\n", settings.join("\n"))
        + "output \"config\" { value = module.node.config }\noutput \"unit\" { value = module.node.unit }\n";
    std::fs::write(folder.path().join("main.tf"), text)?;
    terraform(folder.path(), &["init", "-input=false"], &[])?;
    terraform(folder.path(), &["apply", "-input=false", "-auto-approve"], &[])?;
    let unit = terraform(folder.path(), &["output", "-raw", "unit"], &[])?;
    ensure!(unit.contains("KillMode=process") && unit.contains("atoll node --config"), "{unit}");
    let config = folder.path().join("node.toml");
    std::fs::write(&config, terraform(folder.path(), &["output", "-raw", "config"], &[])?)?;
    let output = Command::new(atoll_binary()?).args(["node", "--config"]).arg(&config).output()?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "a node without an identity and an image runs: {words}");
    ensure!(!words.contains("is not a node's configuration"), "{words}");
    ensure!(words.contains(&*folder.path().to_string_lossy()), "it names what it lacks: {words}");
    Ok(())
}

/// The example, copied to a folder of its own so that no state is written into the repository.
struct Fleet {
    _folder: TempDir,
    example: PathBuf,
    data: PathBuf,
    port_base: u16,
    binary: PathBuf,
}

impl Fleet {
    fn new() -> anyhow::Result<Self> {
        let folder = temporary_folder()?;
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
        let text = |path: &Path| path.display().to_string();
        let variables = [
            ("atoll_bin", text(&self.binary)),
            ("data", text(&self.data)),
            ("port_base", self.port_base.to_string()),
            ("regions", r#"["fra","iad"]"#.to_owned()),
            ("regions_folder", text(&repository().join("regions"))),
            ("work_folder", text(repository())),
            ("pool", "1".to_owned()),
        ];
        terraform(&self.example, words, &variables)
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

/// Runs terraform in a folder, with nothing but its built-in providers.
fn terraform(folder: &Path, words: &[&str], variables: &[(&str, String)]) -> anyhow::Result<String> {
    let output = Command::new("terraform")
        .arg(format!("-chdir={}", folder.display()))
        .args(words)
        .arg("-no-color")
        .env("CHECKPOINT_DISABLE", "1")
        // No settings of this machine's user: a mirror or a plug-in of theirs would not be the built-in provider.
        .env("TF_CLI_CONFIG_FILE", "/dev/null")
        .env("TF_IN_AUTOMATION", "1")
        .envs(variables.iter().map(|(name, value)| (format!("TF_VAR_{name}"), value)))
        .output()
        .context("can't run terraform")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "terraform {words:?} ended with {}:\n{out}\n{err}", output.status);
    Ok(out.into_owned())
}
