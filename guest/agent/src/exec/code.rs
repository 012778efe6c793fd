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

/// Numbers the program files of this agent.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A language and how its programs are run.
struct Language {
    name: &'static str,
    interpreter: &'static str,
    /// Python reads the program from a file, so that a traceback shows its lines; the home folder stays importable.
    /// Node reads it from standard input, so that `require` starts at the home folder.
    from_file: bool,
}

const LANGUAGES: &[Language] = &[
    Language { name: "python", interpreter: "/usr/bin/python3", from_file: true },
    Language { name: "javascript", interpreter: "/usr/bin/node", from_file: false },
];

/// Makes a command of a program text. `scratch` is the folder for program files.
pub(crate) fn prepare(
    request: CodeRunRequest,
    sandbox: &BTreeMap<String, String>,
    home: &Path,
    scratch: &Path,
) -> Answer<Command> {
    let language = LANGUAGES.iter().find(|language| language.name == request.language).ok_or_else(|| {
        let known: Vec<&str> = LANGUAGES.iter().map(|language| language.name).collect();
        bad_request(format!("the language '{}' is unknown; known are: {}", request.language, known.join(", ")))
    })?;
    let mut environment = merged(sandbox, request.env, home)?;
    let limits = Limits { timeout: timeout(request.timeout_seconds)?, merge: request.merge };
    let mut command = Command {
        program: PathBuf::from(language.interpreter),
        arguments: Vec::new(),
        environment: BTreeMap::new(),
        cwd: home.to_owned(),
        stdin: Vec::new(),
        scratch: None,
        limits,
    };
    if language.from_file {
        let home = home.to_string_lossy();
        let path = match environment.get("PYTHONPATH").filter(|path| !path.is_empty()) {
            Some(path) => format!("{home}:{path}"),
            None => home.into_owned(),
        };
        environment.insert("PYTHONPATH".to_owned(), path);
    }
    command.environment = environment;
    command.arguments = std::iter::once("-".to_owned()).chain(request.argv).collect();
    command.check()?;
    if language.from_file {
        let file = write_program(scratch, request.code.as_bytes())?;
        command.arguments[0] = file.to_string_lossy().into_owned();
        command.scratch = Some(file);
    } else {
        command.stdin = request.code.into_bytes();
    }
    Ok(command)
}

/// Writes a program to a file of its own that nobody else can read or replace.
fn write_program(scratch: &Path, code: &[u8]) -> Answer<PathBuf> {
    fs::create_dir_all(scratch).map_err(file_error("make", scratch))?;
    let path = scratch.join(format!("main-{}.py", NEXT.fetch_add(1, Ordering::Relaxed)));
    // A file left by an agent before a restore has the same number.
    let _ = fs::remove_file(&path);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(file_error("make", &path))?;
    file.write_all(code).map_err(file_error("write", &path))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(request: CodeRunRequest, scratch: &Path) -> Answer<Command> {
        prepare(request, &BTreeMap::new(), Path::new("/tmp"), scratch)
    }

    #[test]
    fn an_unknown_language_names_the_known_ones() {
        let request = CodeRunRequest { language: "cobol".to_owned(), ..CodeRunRequest::default() };
        let error = prepared(request, Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.message, "the language 'cobol' is unknown; known are: python, javascript");
    }

    #[test]
    fn python_runs_a_file_and_node_its_standard_input() {
        let scratch = tempfile::tempdir().unwrap();
        let request = |language: &str| CodeRunRequest {
            language: language.to_owned(),
            code: "1 + 1".to_owned(),
            argv: vec!["a".to_owned()],
            ..CodeRunRequest::default()
        };
        let python = prepared(request("python"), scratch.path()).unwrap();
        let file = python.scratch.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1 + 1");
        assert_eq!(python.arguments, [file.to_str().unwrap(), "a"]);
        assert_eq!(python.environment["PYTHONPATH"], "/tmp");
        let node = prepared(request("javascript"), scratch.path()).unwrap();
        assert_eq!((node.arguments, node.stdin), (vec!["-".to_owned(), "a".to_owned()], b"1 + 1".to_vec()));
        assert_eq!(node.scratch, None);
    }
}
