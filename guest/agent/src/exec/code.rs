//! Program texts for an interpreter, run as a fresh process runs them.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use guest_proto::surface::CodeRunRequest;

use super::command::{Command, Limits, merged, timeout};
use crate::refusal::{Answer, bad_request, file_error};
use crate::warm::Kind;

/// Python's interpreter.
pub(crate) const PYTHON: &str = "/usr/bin/python3";
/// JavaScript's.
pub(crate) const NODE: &str = "/usr/bin/node";
/// Numbers the program files of this agent; 0 is the name that a parked interpreter is started with.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A language of program texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    /// Read from a file, so that a traceback shows its lines; the home folder stays importable.
    Python,
    /// Read from standard input, so that `require` starts at the home folder.
    JavaScript,
    /// As JavaScript, when its types are taken out.
    TypeScript,
}

const LANGUAGES: &[(&str, Language)] =
    &[("python", Language::Python), ("javascript", Language::JavaScript), ("typescript", Language::TypeScript)];

impl Language {
    /// A language by its name on the surface.
    pub(crate) fn parse(name: &str) -> Answer<Self> {
        LANGUAGES.iter().find(|(known, _)| *known == name).map(|(_, language)| *language).ok_or_else(|| {
            let known: Vec<&str> = LANGUAGES.iter().map(|(known, _)| *known).collect();
            bad_request(format!("the language '{name}' is unknown; known are: {}", known.join(", ")))
        })
    }

    /// The interpreter that runs it.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Python => Kind::Python,
            Self::JavaScript | Self::TypeScript => Kind::Node,
        }
    }
}

/// Makes a command of a program text in a language that an interpreter reads: its standard input, which is [`stored`]
/// where the interpreter reads a file.
pub(crate) fn prepare(
    language: Language,
    request: CodeRunRequest,
    sandbox: &BTreeMap<String, String>,
    home: &Path,
) -> Answer<Command> {
    let mut command = Command {
        program: PathBuf::from(if language == Language::Python { PYTHON } else { NODE }),
        arguments: std::iter::once("-".to_owned()).chain(request.argv).collect(),
        environment: merged(sandbox, request.env, home)?,
        cwd: home.to_owned(),
        stdin: request.code.into_bytes(),
        scratch: None,
        limits: Limits { timeout: timeout(request.timeout_seconds)?, merge: request.merge },
    };
    if language == Language::Python {
        importable(&mut command.environment, home);
    }
    command.check()?;
    Ok(command)
}

/// Writes a command's program, its standard input, to a file in the folder for such files: the one that the parked
/// interpreter was promised that will run it, or another.
pub(crate) fn stored(mut command: Command, promised: Option<&Path>, scratch: &Path) -> Answer<Command> {
    let code = std::mem::take(&mut command.stdin);
    let file = promised.map_or_else(|| next_program(scratch), Path::to_owned);
    write_program(&file, &code)?;
    command.arguments[0] = file.to_string_lossy().into_owned();
    command.scratch = Some(file);
    Ok(command)
}

/// Has python find modules in the home folder.
pub(crate) fn importable(environment: &mut BTreeMap<String, String>, home: &Path) {
    let home = home.to_string_lossy();
    let path = match environment.get("PYTHONPATH").filter(|path| !path.is_empty()) {
        Some(path) => format!("{home}:{path}"),
        None => home.into_owned(),
    };
    environment.insert("PYTHONPATH".to_owned(), path);
}

/// The file of a program; all names are equally long.
pub(crate) fn program_file(scratch: &Path, number: u64) -> PathBuf {
    scratch.join(format!("main-{number:010}.py"))
}

/// A file that no other program has.
pub(crate) fn next_program(scratch: &Path) -> PathBuf {
    program_file(scratch, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Writes a program to a file of its own that nobody else can read or replace.
fn write_program(path: &Path, code: &[u8]) -> Answer<()> {
    let make = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = make()
        .or_else(|_| {
            if let Some(scratch) = path.parent() {
                fs::create_dir_all(scratch)?;
            }
            // A file left by an agent before a restore has the same number.
            let _ = fs::remove_file(path);
            make()
        })
        .map_err(file_error("make", path))?;
    file.write_all(code).map_err(file_error("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(language: &str) -> Answer<Command> {
        let request =
            CodeRunRequest { code: "1 + 1".to_owned(), argv: vec!["a".to_owned()], ..CodeRunRequest::default() };
        prepare(Language::parse(language)?, request, &BTreeMap::new(), Path::new("/tmp"))
    }

    #[test]
    fn an_unknown_language_names_the_known_ones() {
        let error = prepared("cobol").unwrap_err();
        assert_eq!(error.message, "the language 'cobol' is unknown; known are: python, javascript, typescript");
    }

    #[test]
    fn python_runs_a_file_and_node_its_standard_input() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("made");
        let python = stored(prepared("python").unwrap(), None, &folder).unwrap();
        let file = python.scratch.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1 + 1");
        assert_eq!((python.arguments, python.stdin), (vec![file.to_str().unwrap().to_owned(), "a".to_owned()], vec![]));
        assert_eq!(python.environment["PYTHONPATH"], "/tmp");
        let promised = folder.join("promised.py");
        let python = stored(prepared("python").unwrap(), Some(&promised), &folder).unwrap();
        assert_eq!((fs::read_to_string(&promised).unwrap(), python.scratch), ("1 + 1".to_owned(), Some(promised)));
        let node = prepared("javascript").unwrap();
        assert_eq!((node.arguments, node.stdin), (vec!["-".to_owned(), "a".to_owned()], b"1 + 1".to_vec()));
        assert_eq!(node.scratch, None);
    }
}
