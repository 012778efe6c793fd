//! A request as a command that can be started, or a refusal.

use std::collections::BTreeMap;
use std::env;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guest_proto::surface::{AgentErrorCode, EXEC_SECONDS_MAX, ExecRequest};

use crate::refusal::{Answer, bad_request, refuse};

/// The shell. Named by its full path: looking it up on PATH would have the standard library fork.
const SHELL: &str = "/bin/sh";
/// Where programs are looked for if the environment doesn't say otherwise (environ(7), as Debian's login does).
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest single argument or variable (MAX_ARG_STRLEN, execve(2)).
const ARGUMENT_BYTES_MAX: usize = 128 << 10;

/// A command that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    /// The program, as a path.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// Its whole environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// Its working directory.
    pub(crate) cwd: PathBuf,
    /// All of its standard input.
    pub(crate) stdin: Vec<u8>,
    /// A file to remove when it has ended.
    pub(crate) scratch: Option<PathBuf>,
    /// What holds while it runs.
    pub(crate) limits: Limits,
}

/// What holds while a command runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// After this its process group is killed.
    pub(crate) timeout: Option<Duration>,
    /// Both outputs through one pipe.
    pub(crate) merge: bool,
}

impl Command {
    /// Reads a request. `environment` is the sandbox's.
    pub(crate) fn parse(request: ExecRequest, environment: &BTreeMap<String, String>, home: &Path) -> Answer<Self> {
        let environment = merged(environment, request.env, home)?;
        let cwd = match request.cwd.as_deref() {
            None | Some("") => home.to_owned(),
            Some(path) => home.join(path),
        };
        if !cwd.is_dir() {
            let message = format!("the working directory {} is not there or is no folder", cwd.display());
            return Err(bad_request(message));
        }
        let (program, arguments) = match request.argv.split_first() {
            Some((program, arguments)) => (find_program(program, &environment, &cwd)?, arguments.to_vec()),
            None => (PathBuf::from(SHELL), vec!["-c".to_owned(), request.command]),
        };
        let stdin = match request.stdin {
            None => Vec::new(),
            Some(text) => STANDARD.decode(text).map_err(|error| bad_request(format!("stdin is no base64: {error}")))?,
        };
        let limits = Limits { timeout: timeout(request.timeout_seconds)?, merge: request.merge };
        let command = Self { program, arguments, environment, cwd, stdin, scratch: None, limits };
        command.check()?;
        Ok(command)
    }

    /// What the kernel would refuse with a number is refused with a sentence.
    pub(crate) fn check(&self) -> Answer<()> {
        let variables = self.environment.iter().flat_map(|(name, value)| [name, value]);
        for text in self.arguments.iter().chain(variables) {
            if text.contains('\0') {
                return Err(bad_request("a command, an argument or a variable contains a zero byte"));
            }
            if text.len() >= ARGUMENT_BYTES_MAX {
                let message = format!("a command, an argument or a variable is longer than {ARGUMENT_BYTES_MAX} bytes");
                return Err(refuse(AgentErrorCode::TooLarge, message));
            }
        }
        if let Some(name) = self.environment.keys().find(|name| name.is_empty() || name.contains('=')) {
            return Err(bad_request(format!("'{name}' is no name of a variable")));
        }
        Ok(())
    }
}

/// A timeout in seconds, in its bounds.
pub(crate) fn timeout(seconds: Option<u32>) -> Answer<Option<Duration>> {
    match seconds {
        None => Ok(None),
        Some(seconds @ 1..=EXEC_SECONDS_MAX) => Ok(Some(Duration::from_secs(u64::from(seconds)))),
        Some(seconds) => Err(bad_request(format!("a timeout of {seconds} s is not between 1 and {EXEC_SECONDS_MAX}"))),
    }
}

/// What every command starts with, the sandbox's variables over it and the request's over those.
pub(crate) fn merged(
    sandbox: &BTreeMap<String, String>,
    request: BTreeMap<String, String>,
    home: &Path,
) -> Answer<BTreeMap<String, String>> {
    let base = [
        ("PATH", PATH),
        ("HOME", &*home.to_string_lossy()),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("SHELL", "/bin/bash"),
        ("LANG", "C.UTF-8"),
    ];
    let mut environment: BTreeMap<String, String> =
        base.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    environment.extend(sandbox.clone());
    environment.extend(request);
    Ok(environment)
}

/// An environment as a program is started with.
pub(crate) fn strings(environment: &BTreeMap<String, String>) -> io::Result<Vec<CString>> {
    environment.iter().map(|(name, value)| Ok(CString::new(format!("{name}={value}"))?)).collect()
}

/// A program as execvp(3) finds it.
fn find_program(name: &str, environment: &BTreeMap<String, String>, cwd: &Path) -> Answer<PathBuf> {
    if name.is_empty() {
        return Err(bad_request("argv begins with an empty program name"));
    }
    let found = if name.contains('/') {
        Some(cwd.join(name)).filter(|path| is_program(path))
    } else {
        let path = environment.get("PATH").map_or(PATH, String::as_str);
        env::split_paths(path).map(|folder| cwd.join(folder).join(name)).find(|path| is_program(path))
    };
    found.ok_or_else(|| refuse(AgentErrorCode::NotFound, format!("there is no program {name}")))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(request: ExecRequest) -> Answer<Command> {
        let sandbox = BTreeMap::from([("A".to_owned(), "sandbox".to_owned()), ("B".to_owned(), "sandbox".to_owned())]);
        Command::parse(request, &sandbox, Path::new("/tmp"))
    }

    #[test]
    fn a_command_is_the_shells() {
        let env = BTreeMap::from([("B".to_owned(), "request".to_owned())]);
        let command = parse(ExecRequest { command: "echo hi".to_owned(), env, ..ExecRequest::default() }).unwrap();
        assert_eq!(command.program, Path::new("/bin/sh"));
        assert_eq!(command.arguments, ["-c", "echo hi"]);
        assert_eq!(command.cwd, Path::new("/tmp"));
        let get = |name: &str| command.environment[name].as_str();
        assert_eq!((get("A"), get("B"), get("HOME"), get("PATH")), ("sandbox", "request", "/tmp", PATH));
    }

    #[test]
    fn a_program_is_found_as_the_shell_finds_it() {
        let argv = |program: &str| ExecRequest { argv: vec![program.to_owned()], ..ExecRequest::default() };
        assert!(parse(argv("true")).unwrap().program.ends_with("bin/true"));
        assert_eq!(parse(argv("/bin/sh")).unwrap().program, Path::new("/bin/sh"));
        for nothing in ["no-such-program", "/etc/passwd", "./nothing", "/"] {
            assert_eq!(parse(argv(nothing)).unwrap_err().code, AgentErrorCode::NotFound, "{nothing}");
        }
        assert_eq!(parse(argv("")).unwrap_err().code, AgentErrorCode::BadRequest);
    }

    #[test]
    fn impossible_requests_are_refused_with_a_sentence() {
        let bad = [
            ExecRequest { cwd: Some("/no/such".to_owned()), ..ExecRequest::default() },
            ExecRequest { cwd: Some("/etc/passwd".to_owned()), ..ExecRequest::default() },
            ExecRequest { timeout_seconds: Some(0), ..ExecRequest::default() },
            ExecRequest { timeout_seconds: Some(EXEC_SECONDS_MAX + 1), ..ExecRequest::default() },
            ExecRequest { stdin: Some("%%%".to_owned()), ..ExecRequest::default() },
            ExecRequest { command: "a\0b".to_owned(), ..ExecRequest::default() },
            ExecRequest { env: BTreeMap::from([("A=B".to_owned(), String::new())]), ..ExecRequest::default() },
            ExecRequest { env: BTreeMap::from([(String::new(), String::new())]), ..ExecRequest::default() },
        ];
        for request in bad {
            let error = parse(request.clone()).unwrap_err();
            assert_eq!(error.code, AgentErrorCode::BadRequest, "{request:?}");
            assert!(error.message.len() > 15, "{}", error.message);
        }
        let long = ExecRequest { command: "x".repeat(ARGUMENT_BYTES_MAX), ..ExecRequest::default() };
        assert_eq!(parse(long).unwrap_err().code, AgentErrorCode::TooLarge);
    }
}
