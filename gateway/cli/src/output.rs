//! Standard output and standard error: a table, a line, or one JSON object.

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use serde::Serialize;

use crate::exit::Failure;

/// Where a command writes.
pub struct Streams {
    /// Results.
    pub out: Box<dyn Write + Send>,
    /// Errors and remarks.
    pub err: Box<dyn Write + Send>,
    /// Whether a person watches standard error: only then something moves there.
    pub interactive: bool,
}

impl Streams {
    /// This process's own.
    pub fn standard() -> Self {
        Self { out: Box::new(io::stdout()), err: Box::new(io::stderr()), interactive: io::stderr().is_terminal() }
    }
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("interactive", &self.interactive).finish_non_exhaustive()
    }
}

/// The streams and the form that results take on them.
pub(crate) struct Output {
    streams: Streams,
    json: bool,
}

impl Output {
    pub(crate) fn new(streams: Streams, json: bool) -> Self {
        Self { streams, json }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    pub(crate) fn is_interactive(&self) -> bool {
        self.streams.interactive && !self.json
    }

    /// A result: as one JSON object, or as these lines.
    pub(crate) fn result<T: Serialize>(&mut self, value: &T, text: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.json {
            let line = serde_json::to_string(value).map_err(|error| Failure::Output(error.into()))?;
            return self.line(&line);
        }
        let text = text();
        if text.is_empty() { Ok(()) } else { self.line(text.trim_end_matches('\n')) }
    }

    /// Bytes of a guest, as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.streams.out.write_all(bytes).and_then(|()| self.streams.out.flush()).map_err(Failure::Output)
    }

    /// Bytes of a guest's standard error, as they are.
    pub(crate) fn error_bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.streams.err.write_all(bytes).and_then(|()| self.streams.err.flush()).map_err(Failure::Output)
    }

    /// A remark on standard error. Where that is closed there is nobody to tell.
    pub(crate) fn remark(&mut self, text: &str) {
        let _ = writeln!(self.streams.err, "{text}");
    }

    /// A failure: its sentence on standard error and, with `--json`, its object as the one on standard output.
    pub(crate) fn failure(&mut self, failure: &Failure) {
        if failure.exit_code() == crate::exit::EXIT_BROKEN_PIPE {
            return;
        }
        self.remark(&format!("atoll: {}", failure.sentence()));
        if self.json && !matches!(failure, Failure::Output(_)) {
            // A failure to tell a failure has no further place to go; the exit code says it.
            let _ = serde_json::to_string(&failure.report()).map(|line| self.line(&line));
        }
    }

    fn line(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.streams.out, "{text}").and_then(|()| self.streams.out.flush()).map_err(Failure::Output)
    }
}

/// Rows under a head, columns as wide as their widest cell, two spaces between.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// In the largest binary unit of which there is one, to a tenth.
pub fn bytes(count: u64) -> String {
    let (unit, name) = match count {
        0..1024 => return format!("{count} B"),
        1024..0x10_0000 => (10, "KiB"),
        0x10_0000..0x4000_0000 => (20, "MiB"),
        _ => (30, "GiB"),
    };
    let tenths = (u128::from(count) * 10) >> unit;
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// How long, in the largest unit that isn't zero.
pub fn age(since: Duration) -> String {
    let seconds = since.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Names and values below each other, empty values left out.
pub(crate) fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let shown = pairs.iter().filter(|(_, value)| !value.is_empty());
    shown.map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_fits() {
        for (count, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((5 << 20) + (512 << 10), "5.5 MiB"),
            (3 << 30, "3.0 GiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ] {
            assert_eq!(bytes(count), shown);
        }
    }

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let rows = vec![vec!["a".into(), "started".into()], vec!["long-name".into(), String::new()]];
        assert_eq!(table(&["ID", "STATE"], &rows), "ID         STATE\na          started\nlong-name\n");
    }

    #[test]
    fn empty_fields_are_left_out() {
        assert_eq!(fields(&[("id", "x".into()), ("error", String::new())]), "id     x\n");
    }
}
