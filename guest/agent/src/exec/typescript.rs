//! TypeScript to JavaScript: types are taken out, not checked, and each statement keeps its line.
//!
//! esbuild prints a statement a line and drops comments and blank lines; its source map says where each line was. So the
//! lines are laid out again: traces then name the lines that the program's author sees.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::command::Command;

/// The transpiler, of Debian's package of the same name.
pub(crate) const ESBUILD: &str = "/usr/bin/esbuild";
/// What precedes the source map on the output's last line.
const MAP: &str = "//# sourceMappingURL=data:application/json;base64,";
/// Most lines that a program is stretched by: hostile maps name any line.
const LINES_MAX: usize = 1 << 20;

/// The command that transpiles a program, for the interpreter's command: the same place and limits.
pub(crate) fn transpiler(of: &Command, code: Vec<u8>) -> Command {
    let arguments = [
        "--loader=ts",
        "--platform=node",
        "--format=cjs",
        "--target=node18",
        // No token is longer than a line then: templates become texts that are joined.
        "--supported:template-literal=false",
        "--sourcefile=[stdin]",
        "--sourcemap=inline",
        "--sources-content=false",
        "--legal-comments=none",
        "--log-level=error",
        "--color=false",
    ];
    Command {
        program: ESBUILD.into(),
        arguments: arguments.map(str::to_owned).to_vec(),
        environment: of.environment.clone(),
        cwd: of.cwd.clone(),
        stdin: if code.is_empty() { b"\n".to_vec() } else { code },
        scratch: None,
        limits: super::command::Limits { merge: false, ..of.limits },
    }
}

/// The transpiler's output with each statement on its own line of the program; as it is, if its map can't be read.
pub(crate) fn laid_out(output: &str) -> String {
    let Some((code, map)) = output.rsplit_once(MAP) else { return output.to_owned() };
    let mappings = STANDARD
        .decode(map.trim())
        .ok()
        .and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok())
        .and_then(|map| map.get("mappings")?.as_str().map(str::to_owned));
    match mappings {
        Some(mappings) => lay_out(code, &starts(&mappings)),
        None => code.to_owned(),
    }
}

/// The beginning of a line's mapping: a column of the output and the program's line that it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    column: i64,
    line: i64,
}

/// Where each line's first mapping is (Source Map Revision 3, "Mappings Structure").
fn starts(mappings: &str) -> Vec<Option<Start>> {
    let mut line = 0;
    mappings
        .split(';')
        .map(|segments| {
            let mut column = 0;
            let mut first = None;
            for segment in segments.split(',').filter(|segment| !segment.is_empty()) {
                let numbers = numbers(segment);
                column += numbers.first()?;
                line += numbers.get(2).unwrap_or(&0);
                first.get_or_insert(Start { column, line });
            }
            first
        })
        .collect()
}

/// Numbers in base 64, low digits first, five bits a digit; the lowest bit is the sign.
fn numbers(segment: &str) -> Vec<i64> {
    let mut numbers = Vec::new();
    let (mut number, mut shift) = (0i64, 0);
    for letter in segment.bytes() {
        let digit = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return numbers,
        };
        number |= i64::from(digit & 31) << shift;
        shift += 5;
        if digit & 32 == 0 {
            numbers.push(if number & 1 == 0 { number >> 1 } else { -(number >> 1) });
            (number, shift) = (0, 0);
        } else if shift > 40 {
            return numbers;
        }
    }
    numbers
}

fn lay_out(code: &str, starts: &[Option<Start>]) -> String {
    let mut out = String::with_capacity(code.len());
    let mut at = 0;
    let mut begun = false;
    for (number, text) in code.lines().enumerate() {
        let start = starts.get(number).copied().flatten();
        // A line whose first token is mapped is the program's; others are the transpiler's own.
        let indent = i64::try_from(text.len() - text.trim_start().len()).unwrap_or(i64::MAX);
        let wanted = start.filter(|start| start.column <= indent).and_then(|start| usize::try_from(start.line).ok());
        let lines = match wanted {
            Some(line) if line > at && line < LINES_MAX => line - at,
            Some(_) if out.ends_with([';', '{', '}', ',', '(', '[']) => 0,
            // What comes before the program's first statement is the transpiler's own.
            _ if !begun => 0,
            _ => 1,
        };
        begun |= wanted.is_some();
        if lines == 0 && number > 0 {
            out.push(' ');
        }
        out.extend(std::iter::repeat_n('\n', lines));
        at += lines;
        out.push_str(text);
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_read_as_the_format_writes_them() {
        assert_eq!(numbers("AAgBC"), [0, 0, 16, 1]);
        assert_eq!(numbers("D2B"), [-1, 27]);
        assert!(numbers("!").is_empty());
    }

    #[test]
    fn statements_return_to_their_lines() {
        // The helper, then statements of lines 2, 2 and 5, and one that is nobody's.
        let code = "var helper = 1;\nlet a = 1;\nlet b = 2;\nf(1);\ng();\n";
        let starts: Vec<Option<Start>> =
            [None, Some(2), Some(2), Some(5), None].map(|line| line.map(|line| Start { column: 0, line })).to_vec();
        assert_eq!(lay_out(code, &starts), "var helper = 1;\n\nlet a = 1; let b = 2;\n\n\nf(1);\ng();\n");
    }

    #[test]
    fn an_output_without_a_map_is_left() {
        assert_eq!(laid_out("a;\n"), "a;\n");
        assert_eq!(laid_out(&format!("a;\n{MAP}!!!")), "a;\n");
    }

    proptest! {
        #[test]
        fn hostile_maps_change_no_token(code in "([a-z;{} ]{0,9}\n){0,9}", mappings in "[A-Za-z0-9+/;,]{0,60}") {
            let got = lay_out(&code, &starts(&mappings));
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            prop_assert_eq!(words(&got), words(&code));
            prop_assert!(got.len() < code.len() + LINES_MAX + 99);
        }
    }
}
