//! Named steps of a long test, waits with a limit, and skips that are told.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Names the file that collects why tests were skipped; the Makefile prints it at the end.
const SKIPS_VARIABLE: &str = "ATOLL_SKIPS";
const POLL: Duration = Duration::from_millis(100);

/// One step of a test: its name stands in the output with its time, and in the error.
pub fn step<T>(name: &str, body: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    say(&format!("step: {name}"));
    let begun = Instant::now();
    let done = body().with_context(|| format!("in the step '{name}'"))?;
    say(&format!("      {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(done)
}

/// Tries until it succeeds or the limit passes; then its last error.
pub fn eventually<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let until = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= until => {
                return Err(error.context(format!("{what}: not within {} s", limit.as_secs())));
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Tells that a test, or a part of it, can't run here and why: in its output, and at the end of the whole run.
pub fn skip(test: &str, why: &str) -> anyhow::Result<()> {
    say(&format!("SKIPPED {test}: {why}"));
    let Some(path) = std::env::var_os(SKIPS_VARIABLE) else { return Ok(()) };
    let line = format!("{test}: {why}\n");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    match file.and_then(|mut file| file.write_all(line.as_bytes())) {
        Ok(()) => Ok(()),
        Err(error) => bail!("a skip can't be told in {}: {error}", path.display()),
    }
}

/// A line for whoever reads the test's output. Standard error may be closed; then nobody reads it.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A folder that is removed when it is dropped.
pub fn temporary_folder() -> anyhow::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("test-").tempdir().context("can't make a folder")
}
