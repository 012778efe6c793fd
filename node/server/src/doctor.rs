//! `atoll doctor`: what this machine has and lacks for running sandboxes, and what each lack costs.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use fabric_types::Seal;
use node_hypervisor::KeeperProgram;
use node_hypervisor::seal::{self, Part};
use serde::Serialize;

use crate::dev::say;

/// Exit code when something that is needed is missing.
const EXIT_LACKS: u8 = 1;
/// Least free disk for an image, a template and some sandboxes.
const DISK_GIB_MIN: u64 = 5;
/// Least memory for one node with its pool.
const MEMORY_GIB_MIN: u64 = 2;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    name: Cow<'static, str>,
    /// Whether it is there.
    ok: bool,
    /// Whether a node can't do without.
    required: bool,
    /// What was found.
    found: String,
    /// What its lack costs.
    #[serde(skip_serializing_if = "str::is_empty")]
    cost: &'static str,
    /// What to do about it.
    #[serde(skip_serializing_if = "str::is_empty")]
    remedy: &'static str,
}

#[derive(Serialize)]
struct Diagnosis {
    ok: bool,
    checks: Vec<Check>,
}

/// Looks at everything and prints it; 0 if a node can run here, 1 if not.
pub(crate) fn run(images: &Path, json: bool) -> ExitCode {
    let checks = examine(images, &found_seal());
    let ok = checks.iter().all(|check| check.ok || !check.required);
    if json {
        match serde_json::to_string(&Diagnosis { ok, checks }) {
            Ok(text) => say::result(&text),
            Err(error) => say::line(&format!("can't write the diagnosis as JSON: {error}")),
        }
    } else {
        checks.iter().for_each(|check| say::result(&line(check)));
        let verdict = if ok {
            "This machine can run a node."
        } else {
            "This machine can't run a node yet: see what is marked MISSING."
        };
        say::result(&format!("\n{verdict}"));
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::from(EXIT_LACKS) }
}

fn line(check: &Check) -> String {
    let mark = match (check.ok, check.required) {
        (true, _) => "ok     ",
        (false, true) => "MISSING",
        (false, false) => "without",
    };
    let mut text = format!("{mark}  {:<24} {}", check.name, check.found);
    if !check.ok {
        if !check.cost.is_empty() {
            text.push_str(&format!("\n{:34}cost: {}", "", check.cost));
        }
        if !check.remedy.is_empty() {
            text.push_str(&format!("\n{:34}do:   {}", "", check.remedy));
        }
    }
    text
}

fn examine(images: &Path, seal: &Seal) -> Vec<Check> {
    let mut checks = vec![
        program(
            "qemu",
            "qemu-system-x86_64",
            true,
            "no virtual machine can be started where Cloud Hypervisor doesn't run",
            "apt-get install qemu-system-x86",
        ),
        cloud_hypervisor(),
        kvm(),
        program("mkfs.ext4", "mkfs.ext4", true, "no disk can be made for a sandbox", "apt-get install e2fsprogs"),
        image(images),
        program(
            "mmdebstrap",
            "mmdebstrap",
            false,
            "the guest image can't be built here (a finished one can be copied here)",
            "apt-get install mmdebstrap",
        ),
        program(
            "mkfs.erofs",
            "mkfs.erofs",
            false,
            "the guest image can't be built here (a finished one can be copied here)",
            "apt-get install erofs-utils",
        ),
        memory(),
        disk(),
        run_folder(),
        network(),
        program(
            "terraform",
            "terraform",
            false,
            "fleets can't be provisioned from this machine",
            "install Terraform 1.11",
        ),
    ];
    checks.extend(seal_parts(seal));
    checks
}

/// A program on PATH, with the first line that it prints of its version.
fn program(name: &'static str, file: &str, required: bool, cost: &'static str, remedy: &'static str) -> Check {
    match find(file) {
        Some(path) => {
            let found = version(&path).unwrap_or_else(|| path.display().to_string());
            Check { name: name.into(), ok: true, required, found, cost: "", remedy: "" }
        }
        None => Check { name: name.into(), ok: false, required, found: format!("{file} is not on PATH"), cost, remedy },
    }
}

fn find(file: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian keeps mkfs.* in sbin, which isn't on every user's PATH.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(file)).find(|path| path.is_file())
}

fn version(path: &Path) -> Option<String> {
    let flag = if path.file_name().is_some_and(|name| name == "mkfs.ext4") { "-V" } else { "--version" };
    let output = Command::new(path).arg(flag).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

fn cloud_hypervisor() -> Check {
    let asked = std::env::var_os("ATOLL_CLOUD_HYPERVISOR").map(PathBuf::from).filter(|path| path.is_file());
    let found = asked.or_else(|| find("cloud-hypervisor"));
    Check {
        name: "cloud-hypervisor".into(),
        ok: found.is_some(),
        required: false,
        found: found.map_or_else(
            || "neither ATOLL_CLOUD_HYPERVISOR nor PATH names it".to_owned(),
            |path| version(&path).unwrap_or_else(|| path.display().to_string()),
        ),
        cost: "QEMU is used instead: about 20 MiB more memory for each sandbox",
        remedy: "install Cloud Hypervisor 52 to 54 and set ATOLL_CLOUD_HYPERVISOR",
    }
}

fn kvm() -> Check {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = flags
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    let found = match (&opened, hardware) {
        (Ok(_), true) => "/dev/kvm opens; the probe at a node's start decides".to_owned(),
        (Ok(_), false) => {
            "/dev/kvm opens, but the processor shows no vmx or svm: paravirtual, the probe decides".to_owned()
        }
        (Err(error), _) => format!("/dev/kvm: {error}"),
    };
    Check {
        name: "hardware virtualization".into(),
        ok: opened.is_ok() && hardware,
        required: false,
        found,
        cost: "guests are translated (TCG): correct and as isolated, several times slower",
        remedy: "use a host with vmx or svm, and give this user /dev/kvm",
    }
}

fn image(images: &Path) -> Check {
    let built = std::fs::read_dir(images)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| guest_image::ImageDir::open(path).is_ok());
    Check {
        name: "guest image".into(),
        ok: built.is_some(),
        required: false,
        found: built.map_or_else(|| format!("none under {}", images.display()), |path| path.display().to_string()),
        cost: "the first start builds it: a minute or two",
        remedy: "atoll image build",
    }
}

fn memory() -> Check {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let gib = kib >> 20;
    Check {
        name: "memory".into(),
        ok: gib >= MEMORY_GIB_MIN,
        required: true,
        found: format!("{gib} GiB available"),
        cost: "a template boots with 1 GiB, and each busy sandbox needs its own",
        remedy: "free memory, or use a larger machine",
    }
}

fn disk() -> Check {
    let gib =
        nix::sys::statvfs::statvfs(".").map(|stat| (stat.blocks_available() * stat.fragment_size()) >> 30).unwrap_or(0);
    Check {
        name: "disk".into(),
        ok: gib >= DISK_GIB_MIN,
        required: true,
        found: format!("{gib} GiB free here"),
        cost: "image, templates and the sandboxes' disks don't fit",
        remedy: "free disk, or run from another folder",
    }
}

fn run_folder() -> Check {
    let root = nix::unistd::geteuid().is_root();
    Check {
        name: "user".into(),
        ok: root,
        required: false,
        found: if root { "root".to_owned() } else { format!("uid {}", nix::unistd::geteuid()) },
        cost: "sockets lie in XDG_RUNTIME_DIR or /tmp instead of /run; the image is built in a user namespace",
        remedy: "",
    }
}

/// Whether guests can have taps behind the packet filter: the rights, the device and the program. A node's own start
/// tries it, and says in `atoll status` what came of it.
fn network() -> Check {
    let administers = nix::unistd::geteuid().is_root();
    let tun = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    let filter = find("nft");
    let found = match (administers, &tun, &filter) {
        (false, ..) => "this user may not administer the network".to_owned(),
        (_, Err(error), _) => format!("/dev/net/tun can't be opened: {error}"),
        (_, _, None) => "nft is not on PATH".to_owned(),
        (true, Ok(_), Some(_)) => "guests get taps behind the node's packet filter".to_owned(),
    };
    Check {
        name: "guest network".into(),
        ok: administers && tun.is_ok() && filter.is_some(),
        required: false,
        found,
        cost: "code in a sandbox reaches nothing outside it",
        remedy: "run the node as root, with the module tun loaded and the package nftables installed",
    }
}

/// What shuts monitors off from this host, part by part: found out by sealing a program that does nothing.
fn found_seal() -> Seal {
    match KeeperProgram::this_program() {
        Ok(keeper) => seal::examine(&keeper),
        Err(_) => Seal::default(),
    }
}

fn seal_parts(seal: &Seal) -> Vec<Check> {
    let check = |part: Part| {
        let name = Cow::Owned(format!("seal: {}", part.as_str()));
        if seal.in_force.iter().any(|name| name == part.as_str()) {
            return Check { name, ok: true, required: false, found: "in force".to_owned(), cost: "", remedy: "" };
        }
        let gap = seal.missing.iter().find(|gap| gap.part == part.as_str());
        let why = gap.map_or("it couldn't be tried", |gap| gap.why.as_str());
        // The sentence ends with what to do, which has a line of its own here.
        let why = why.strip_suffix(part.remedy()).map_or(why, |why| why.trim_end_matches("; "));
        Check { name, ok: false, required: false, found: why.to_owned(), cost: part.cost(), remedy: part.remedy() }
    };
    Part::ALL.into_iter().map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric_types::SealGap;

    #[test]
    fn a_missing_program_says_its_cost_and_what_to_do() {
        let check = program("x", "no-such-program-anywhere", true, "nothing works", "install it");
        let text = line(&check);
        assert!(text.contains("MISSING") && text.contains("nothing works") && text.contains("install it"), "{text}");
    }

    #[test]
    fn each_part_of_the_seal_is_in_force_or_says_why_and_what_to_do() {
        let gap = SealGap { part: "no_swap".to_owned(), why: format!("no group; {}", Part::NoSwap.remedy()) };
        let seal = Seal { in_force: vec!["user".to_owned()], missing: vec![gap] };
        let checks = seal_parts(&seal);
        assert_eq!(checks.len(), Part::ALL.len());
        let of = |name: &str| line(checks.iter().find(|check| check.name == name).expect("named"));
        assert!(of("seal: user").contains("in force"));
        let text = of("seal: no_swap");
        assert!(text.contains("no group\n") && text.contains("swap") && text.contains(Part::NoSwap.remedy()), "{text}");
        assert!(of("seal: landlock").contains("couldn't be tried"));
    }

    #[test]
    fn the_diagnosis_is_one_object() {
        let folder = tempfile::tempdir().expect("a folder");
        let checks = examine(folder.path(), &Seal::default());
        let text = serde_json::to_string(&Diagnosis { ok: true, checks }).expect("JSON");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert!(value["checks"].as_array().is_some_and(|checks| checks.len() > 8));
    }
}
