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

/// Makes a command of a program text in a language that an interpreter reads. `scratch` is the folder for program files.
pub(crate) fn prepare(
    language: Language,
    request: CodeRunRequest,
    sandbox: &BTreeMap<String, String>,
    home: &Path,
    scratch: &Path,
) -> Answer<Command> {
    let mut command = Command {
        program: PathBuf::from(if language == Language::Python { PYTHON } else { NODE }),
        arguments: std::iter::once("-".to_owned()).chain(request.argv).collect(),
        environment: merged(sandbox, request.env, home)?,
        cwd: home.to_owned(),
        stdin: Vec::new(),
        scratch: None,
        limits: Limits { timeout: timeout(request.timeout_seconds)?, merge: request.merge },
    };
    if language != Language::Python {
        command.check()?;
        command.stdin = request.code.into_bytes();
        return Ok(command);
    }
    importable(&mut command.environment, home);
    command.check()?;
    let file = write_program(scratch, request.code.as_bytes())?;
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

/// Writes a program to a file of its own that nobody else can read or replace.
fn write_program(scratch: &Path, code: &[u8]) -> Answer<PathBuf> {
    let path = program_file(scratch, NEXT.fetch_add(1, Ordering::Relaxed));
    let make = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let mut file = make()
        .or_else(|_| {
            fs::create_dir_all(scratch)?;
            // A file left by an agent before a restore has the same number.
            let _ = fs::remove_file(&path);
            make()
        })
        .map_err(file_error("make", &path))?;
    file.write_all(code).map_err(file_error("write", &path))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(language: &str, scratch: &Path) -> Answer<Command> {
        let request =
            CodeRunRequest { code: "1 + 1".to_owned(), argv: vec!["a".to_owned()], ..CodeRunRequest::default() };
        prepare(Language::parse(language)?, request, &BTreeMap::new(), Path::new("/tmp"), scratch)
    }

    #[test]
    fn an_unknown_language_names_the_known_ones() {
        let error = prepared("cobol", Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.message, "the language 'cobol' is unknown; known are: python, javascript, typescript");
    }

    #[test]
    fn python_runs_a_file_and_node_its_standard_input() {
        let scratch = tempfile::tempdir().unwrap();
        let python = prepared("python", &scratch.path().join("made")).unwrap();
        let file = python.scratch.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1 + 1");
        assert_eq!(python.arguments, [file.to_str().unwrap(), "a"]);
        assert_eq!(python.environment["PYTHONPATH"], "/tmp");
        let node = prepared("javascript", scratch.path()).unwrap();
        assert_eq!((node.arguments, node.stdin), (vec!["-".to_owned(), "a".to_owned()], b"1 + 1".to_vec()));
        assert_eq!(node.scratch, None);
    }
}
