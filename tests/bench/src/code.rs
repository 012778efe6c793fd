//! Programs for an interpreter in a sandbox that runs.
//!
//! A replacement for a used interpreter is started behind each answer, so how often a program is asked for decides what the
//! next one finds. Each row says its pause: programs now and then find an interpreter parked, back to back they wait for
//! what is started in between, at a rate that is told as well.

use std::time::{Duration, Instant};

use anyhow::ensure;
use gateway_sdk::v1;

use crate::place::{Place, row};
use crate::statistics::{Fact, Row};

/// Programs before those that count: the translator has met each path then, as in any sandbox that has been used a little.
const WARM_UP: u32 = 10;
/// Between two programs that come now and then: what a person or agent takes at least to read the last result. Node takes
/// a second of the processor to start under emulation, which the pause covers.
const PYTHON_PAUSE: Duration = Duration::from_millis(300);
const NODE_PAUSE: Duration = Duration::from_millis(2500);

/// A program and how it is asked for.
struct Series {
    language: &'static str,
    code: &'static str,
    pause: Duration,
    what: &'static str,
}

const PYTHON: Series = Series {
    language: "python",
    code: "print(\"Hello World!\")",
    pause: PYTHON_PAUSE,
    what: "code-run of python in a running sandbox, every 0.3 s",
};
const JAVASCRIPT: Series = Series {
    language: "javascript",
    code: "console.log(\"Hello World!\")",
    pause: NODE_PAUSE,
    what: "code-run of javascript in a running sandbox, every 2.5 s",
};
const TYPESCRIPT: Series = Series {
    language: "typescript",
    code: "const text: string = \"Hello World!\";\nconsole.log(text);",
    pause: NODE_PAUSE,
    what: "code-run of typescript in a running sandbox, every 2.5 s",
};
/// Without a pause: language, text, name of the row, name of the rate.
const BACK_TO_BACK: [(Series, &str); 2] = [
    (
        Series { pause: Duration::ZERO, what: "code-run of python, back to back", ..PYTHON },
        "code-runs of python a second, back to back",
    ),
    (
        Series { pause: Duration::ZERO, what: "code-run of javascript, back to back", ..JAVASCRIPT },
        "code-runs of javascript a second, back to back",
    ),
];

/// `print("Hello World!")`.
pub(crate) fn python(place: &Place, count: u32) -> anyhow::Result<Row> {
    PYTHON.run(place, count).map(|(row, _)| row)
}

/// `console.log("Hello World!")`.
pub(crate) fn javascript(place: &Place, count: u32) -> anyhow::Result<Row> {
    JAVASCRIPT.run(place, count).map(|(row, _)| row)
}

/// The same, with its type.
pub(crate) fn typescript(place: &Place, count: u32) -> anyhow::Result<Row> {
    TYPESCRIPT.run(place, count).map(|(row, _)| row)
}

/// The same one after the other, and how many come to a second.
pub(crate) fn back_to_back(place: &Place, count: u32) -> anyhow::Result<(Vec<Row>, Vec<Fact>)> {
    let (mut rows, mut facts) = (Vec::new(), Vec::new());
    for (series, rate) in &BACK_TO_BACK {
        let (row, took) = series.run(place, count)?;
        facts.push(Fact::plain(*rate, f64::from(count) / took.as_secs_f64()));
        rows.push(row);
    }
    Ok((rows, facts))
}

impl Series {
    /// A row of `count` samples in a sandbox of its own, and how long they took together, pauses and all.
    fn run(&self, place: &Place, count: u32) -> anyhow::Result<(Row, Duration)> {
        let sandbox = place.create()?;
        place.wait_for_pool()?;
        for _ in 0..WARM_UP.min(count) {
            std::thread::sleep(self.pause);
            self.sample(place, &sandbox.id)?;
        }
        let begun = Instant::now();
        let row = row(self.what, count, || {
            std::thread::sleep(self.pause);
            self.sample(place, &sandbox.id)
        })?;
        let took = begun.elapsed();
        place.delete(&sandbox.id)?;
        Ok((row, took))
    }

    fn sample(&self, place: &Place, sandbox: &str) -> anyhow::Result<Duration> {
        let ask =
            v1::CodeRun { code: self.code.to_owned(), language: self.language.to_owned(), ..v1::CodeRun::default() };
        let begun = Instant::now();
        let result = place.mesh.wait(place.client.code_run(sandbox, &ask))?;
        let took = begun.elapsed();
        let language = self.language;
        ensure!(result.stdout == "Hello World!\n", "{language} said {:?} and {:?}", result.stdout, result.stderr);
        Ok(took)
    }
}
