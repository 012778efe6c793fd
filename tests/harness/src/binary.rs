//! Where the repository and the atoll binary are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Names the binary to test, in place of the one beside the test.
const BINARY_VARIABLE: &str = "ATOLL_BIN";

/// The root of the repository.
pub fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("this package lies two folders below the root")
}

/// The atoll binary: `ATOLL_BIN`, else the one in the target folder that this test was built into.
pub fn atoll_binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from) {
        if !path.is_file() {
            bail!("{BINARY_VARIABLE} names {}, which is no file", path.display());
        }
        return path.canonicalize().with_context(|| format!("can't find {}", path.display()));
    }
    let test = std::env::current_exe().context("can't find this test's own file")?;
    // target/PROFILE/deps/test-HASH, or target/PROFILE/program.
    let beside = test.ancestors().skip(1).take(2).map(|folder| folder.join("atoll")).find(|path| path.is_file());
    beside.with_context(|| {
        format!("there is no atoll near {}: build it first with cargo build -p node-server", test.display())
    })
}

/// Whether a program is there and answers `--version`.
pub fn runs(program: &str) -> bool {
    let quiet =
        |command: &mut Command| command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet(Command::new(program).arg("--version")).is_ok_and(|status| status.success())
}
