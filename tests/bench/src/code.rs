//! Programs for an interpreter in a sandbox that runs.

use std::time::{Duration, Instant};

use anyhow::ensure;
use gateway_sdk::v1;

use crate::place::{Place, row};
use crate::statistics::Row;

/// Between two programs, so that the interpreter started for the next one is there: what a person or agent takes at
/// least to read the last result. Node takes more than a second of the processor to start under emulation.
const PAUSES: [(&str, Duration); 2] =
    [("python", Duration::from_millis(300)), ("javascript", Duration::from_millis(2500))];

/// `print("Hello World!")`.
pub(crate) fn python(place: &Place, count: u32) -> anyhow::Result<Row> {
    run(place, count, "code-run of python in a running sandbox, every 0.3 s", "python", "print(\"Hello World!\")")
}

/// `console.log("Hello World!")`.
pub(crate) fn javascript(place: &Place, count: u32) -> anyhow::Result<Row> {
    run(
        place,
        count,
        "code-run of javascript in a running sandbox, every 2.5 s",
        "javascript",
        "console.log(\"Hello World!\")",
    )
}

fn run(place: &Place, count: u32, what: &'static str, language: &str, code: &str) -> anyhow::Result<Row> {
    let sandbox = place.create()?;
    place.wait_for_pool()?;
    let ask = v1::CodeRun { code: code.to_owned(), language: language.to_owned(), ..v1::CodeRun::default() };
    let pause = PAUSES.iter().find(|(name, _)| *name == language).map_or(Duration::ZERO, |(_, pause)| *pause);
    let row = row(what, count, || {
        std::thread::sleep(pause);
        let begun = Instant::now();
        let result = place.mesh.wait(place.client.code_run(&sandbox.id, &ask))?;
        let took = begun.elapsed();
        ensure!(result.stdout == "Hello World!\n", "{language} said {:?} and {:?}", result.stdout, result.stderr);
        Ok(took)
    })?;
    place.delete(&sandbox.id)?;
    Ok(row)
}
