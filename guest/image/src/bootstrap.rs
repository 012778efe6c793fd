//! Runs mmdebstrap with the recipe; leaves `root.erofs`, `packages` and the unpacked kernel package.
//!
//! The recipe's results come out through mmdebstrap's own `copy-out`, so nothing here depends on whether it runs as
//! root or as a user in a user namespace.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use crate::error::ImageError;
use crate::inputs::ImageInputs;
use crate::sources::host_sources;

/// The hook that makes the results inside the new root.
pub(crate) const RECIPE: &str = include_str!("recipe.sh");
/// Lines of a program's output that an error carries.
const TAIL_LINES: usize = 20;
/// Programs that the build runs, each with the package that holds it.
const PROGRAMS: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.erofs", "erofs-utils"),
    ("dpkg-deb", "dpkg"),
    ("apt-get", "apt"),
    ("tar", "tar"),
    ("paste", "coreutils"),
];
/// More of them for who isn't root.
const USER_PROGRAMS: &[(&str, &str)] = &[("newuidmap", "uidmap")];
/// What dpkg doesn't unpack: documentation (but for licences) and translations.
pub(crate) const DPKG_OPTIONS: &[&str] = &[
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// What the recipe left.
#[derive(Debug)]
pub(crate) struct Bootstrapped {
    /// The folder of the results.
    dir: PathBuf,
}

impl Bootstrapped {
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root.erofs")
    }
    /// The unpacked kernel packages.
    pub(crate) fn kernel_tree(&self) -> PathBuf {
        self.dir.join("kernel")
    }
    /// `name<TAB>version` lines.
    pub(crate) fn packages(&self) -> PathBuf {
        self.dir.join("packages")
    }
}

/// Fails with one error that names every missing program's package.
pub(crate) fn check_programs() -> Result<(), ImageError> {
    let user = if nix::unistd::geteuid().is_root() { &[] } else { USER_PROGRAMS };
    let missing: Vec<_> = PROGRAMS.iter().chain(user).filter(|(program, _)| find_program(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(ImageError::MissingPrograms {
        programs: missing.iter().map(|(program, _)| *program).collect(),
        packages: missing.iter().map(|(_, package)| *package).collect(),
    })
}

/// A program on PATH, or in the folders that a user's PATH lacks on Debian.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = search_path();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// PATH with the folders for administrators.
fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// Builds the root and unpacks the kernel, into `work`, a folder of its own.
pub(crate) fn bootstrap(
    inputs: &ImageInputs,
    work: &Path,
    line: &mut dyn FnMut(&str),
) -> Result<Bootstrapped, ImageError> {
    let sources = host_sources(&inputs.distribution.suite)?;
    let out = work.join("out");
    fs::create_dir(&out).map_err(ImageError::file("make", &out))?;

    let mut command = Command::new("mmdebstrap");
    command.env("PATH", search_path()).env("ATOLL_KERNEL_PACKAGE", inputs.distribution.kind.kernel_package());
    command.args(["--variant=apt", "--format=null"]);
    command.arg(format!("--include={}", inputs.packages.join(",")));
    command.args(DPKG_OPTIONS.iter().map(|option| format!("--dpkgopt={option}")));
    command.arg("--aptopt=Acquire::Languages \"none\"");
    command.arg(format!("--customize-hook={RECIPE}"));
    command.arg(format!("--customize-hook=copy-out /.atoll-out {}", shell_quoted(&out)));
    command.arg(&inputs.distribution.suite).arg("-");
    for (name, text) in [("host.list", &sources.list), ("host.sources", &sources.deb822)] {
        if !text.is_empty() {
            let path = work.join(name);
            fs::write(&path, text).map_err(ImageError::file("write", &path))?;
            command.arg(path);
        }
    }
    run(&mut command, line)?;
    Ok(Bootstrapped { dir: out.join(".atoll-out") })
}

/// mmdebstrap splits its special hooks into words as a shell would.
fn shell_quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Runs a program to its end, passing on its lines as they come; an error carries the last ones.
pub(crate) fn run(command: &mut Command, line: &mut dyn FnMut(&str)) -> Result<(), ImageError> {
    let name = PathBuf::from(command.get_program());
    let program = name.display().to_string();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(ImageError::file("run", &name))?;
    let mut tail: Vec<String> = Vec::new();
    if let Some(errors) = child.stderr.take() {
        for text in BufReader::new(errors).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&text).trim_end().to_owned();
            line(&text);
            if tail.len() == TAIL_LINES {
                tail.remove(0);
            }
            tail.push(text);
        }
    }
    let status = child.wait().map_err(ImageError::file("wait for", &name))?;
    if status.success() {
        return Ok(());
    }
    Err(ImageError::Program { program, status: status.to_string(), tail: tail.join("\n") })
}

/// Runs a program and gives what it writes.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>, ImageError> {
    let name = PathBuf::from(command.get_program());
    let program = name.display().to_string();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(ImageError::file("run", &name))?;
    let errors = child.stderr.take().map(|mut errors| {
        thread::spawn(move || {
            let mut text = String::new();
            // What it says is only for the error's text.
            let _ = errors.read_to_string(&mut text);
            text
        })
    });
    let mut bytes = Vec::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_end(&mut bytes).map_err(ImageError::file("read the output of", Path::new(OsStr::new(&program))))?;
    }
    let tail = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let status = child.wait().map_err(ImageError::file("wait for", &name))?;
    if status.success() {
        return Ok(bytes);
    }
    Err(ImageError::Program { program, status: status.to_string(), tail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_the_last_words() {
        let mut seen = 0;
        let script = "for i in $(seq 30); do echo line $i >&2; done; exit 3";
        let error = run(Command::new("sh").args(["-c", script]), &mut |_| seen += 1).unwrap_err();
        let text = error.to_string();
        assert_eq!(seen, 30);
        assert!(text.contains("exit status: 3") && text.contains("line 30") && !text.contains("line 10\n"), "{text}");
    }

    #[test]
    fn output_is_bytes_or_an_error() {
        assert_eq!(output(Command::new("printf").arg("ab")).unwrap(), b"ab");
        let error = output(Command::new("sh").args(["-c", "echo lost >&2; exit 1"])).unwrap_err();
        assert!(error.to_string().contains("lost"), "{error}");
    }

    #[test]
    fn quoting_survives_a_quote() {
        assert_eq!(shell_quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
