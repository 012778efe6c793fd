//! `run`: a program text in a sandbox that is created for it and deleted after it, whatever happens in between.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use gateway_sdk::{Client, v1};

use super::map;
use super::sandboxes::{new_sandbox, waiting_for};
use crate::args::{Language, RunArgs};
use crate::exit::{Failure, guest_exit};
use crate::output::Output;
use crate::progress::Waiting;
use crate::signals::Signals;
use crate::stdin;

/// Largest program: with JSON's escapes it must fit the gateway's 1 MiB body. A larger one is copied and executed.
const CODE_BYTES_MAX: usize = 900 << 10;
/// How long an interrupted command waits for its sandbox to be made and deleted. A person is waiting too.
const UNDO_TIMEOUT: Duration = Duration::from_secs(15);

pub(super) async fn run(
    args: RunArgs,
    client: &Client,
    output: &mut Output,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let code = tokio::select! {
        code = program(args.code.as_deref(), args.file.as_deref()) => code?,
        code = signals.next() => return Ok(code),
    };
    let mut ask = v1::CodeRun {
        code,
        language: language(args.lang, args.file.as_deref()).as_str().to_owned(),
        argv: args.argv,
        env: Default::default(),
        timeout_seconds: args.timeout,
    };
    if let Some(sandbox) = args.sandbox {
        ask.env = map(args.new.env);
        return tokio::select! {
            done = execute(client, &sandbox, &ask, output) => done,
            code = signals.next() => Ok(code),
        };
    }
    let new = new_sandbox(args.new);
    let sandbox = match create(client, &new, output, signals).await? {
        ControlFlow::Continue(sandbox) => sandbox,
        ControlFlow::Break(code) => return Ok(code),
    };
    let near = client.following(&sandbox).unwrap_or_else(|_| client.clone());
    let done = tokio::select! {
        done = execute(&near, &sandbox.id, &ask, output) => done,
        code = signals.next() => Ok(code),
    };
    if args.keep {
        output.remark(&format!("atoll: kept {}", sandbox.id));
    } else {
        undo(&near, &sandbox.id, output).await;
    }
    done
}

/// Creates the sandbox, or breaks with an exit code. Interrupted, it waits for the answer all the same: only that has
/// the id to delete.
async fn create(
    client: &Client,
    new: &v1::CreateSandbox,
    output: &mut Output,
    signals: &mut Signals,
) -> Result<ControlFlow<u8, v1::Sandbox>, Failure> {
    let waiting = Waiting::start(output.is_interactive(), waiting_for(new));
    let mut making = std::pin::pin!(client.create(new));
    let code = tokio::select! {
        made = &mut making => return Ok(ControlFlow::Continue(made?)),
        code = signals.next() => code,
    };
    drop(waiting);
    match tokio::time::timeout(UNDO_TIMEOUT, making).await {
        Ok(Ok(sandbox)) => undo(client, &sandbox.id, output).await,
        // Nothing was made.
        Ok(Err(_)) => {}
        Err(_) => output.remark("atoll: the sandbox is still being created: look for it with `atoll ls`"),
    }
    Ok(ControlFlow::Break(code))
}

/// Deletes the sandbox; what stays is told, and the program's own result stands.
async fn undo(client: &Client, sandbox: &str, output: &mut Output) {
    let waiting = Waiting::start(output.is_interactive(), format!("deleting {sandbox}"));
    let deleted = tokio::time::timeout(UNDO_TIMEOUT, client.delete(sandbox)).await;
    drop(waiting);
    match deleted {
        Ok(Ok(_)) => {}
        Ok(Err(error)) if error.is_not_found() => {}
        Ok(Err(error)) => {
            output.remark(&format!("atoll: {sandbox} is left behind: {}", Failure::Client(error).sentence()));
        }
        Err(_) => output.remark(&format!("atoll: {sandbox} may be left behind: its deletion gave no answer")),
    }
}

async fn execute(client: &Client, sandbox: &str, ask: &v1::CodeRun, output: &mut Output) -> Result<u8, Failure> {
    let waiting = Waiting::start(output.is_interactive(), "running");
    let result = client.code_run(sandbox, ask).await?;
    drop(waiting);
    if output.is_json() {
        output.result(&result, String::new)?;
    } else {
        output.bytes(result.stdout.as_bytes())?;
        output.error_bytes(result.stderr.as_bytes())?;
        if result.timed_out {
            output.remark("atoll: the program passed its timeout and was killed");
        }
        if result.truncated {
            output.remark("atoll: part of the output was dropped");
        }
    }
    Ok(guest_exit(result.exit_code, result.timed_out))
}

/// The program: given as it is, in a file, or on standard input.
pub(super) async fn program(code: Option<&str>, file: Option<&Path>) -> Result<String, Failure> {
    let (name, bytes) = match (code, file) {
        (Some(code), _) => return Ok(code.to_owned()),
        (None, Some(path)) if path.as_os_str() == "-" => {
            ("standard input".to_owned(), stdin::whole(CODE_BYTES_MAX).await?)
        }
        (None, Some(path)) => (path.display().to_string(), read_file(path).await?),
        (None, None) => return Err(Failure::Usage("a FILE, - or -c CODE is needed".to_owned())),
    };
    String::from_utf8(bytes).map_err(|_| Failure::Usage(format!("{name} is not a program: it is not UTF-8")))
}

async fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |source| Failure::Local { path: path.to_owned(), verb: "read", source };
    let size = tokio::fs::metadata(path).await.map_err(failed)?.len();
    if size > CODE_BYTES_MAX as u64 {
        return Err(Failure::Usage(format!(
            "{} is longer than {CODE_BYTES_MAX} bytes: copy it with `atoll cp` and run it with `atoll exec`",
            path.display()
        )));
    }
    tokio::fs::read(path).await.map_err(failed)
}

/// The language that was named, or that the file's ending tells, or python.
fn language(named: Option<Language>, file: Option<&Path>) -> Language {
    let ending = file.and_then(Path::extension).and_then(|ending| ending.to_str());
    match (named, ending) {
        (Some(language), _) => language,
        (None, Some("js" | "mjs" | "cjs")) => Language::Javascript,
        (None, Some("ts" | "mts" | "cts")) => Language::Typescript,
        (None, _) => Language::Python,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_tells_the_language_unless_it_is_named() {
        assert_eq!(language(None, Some(Path::new("a.mjs"))), Language::Javascript);
        assert_eq!(language(None, Some(Path::new("a.ts"))), Language::Typescript);
        assert_eq!(language(None, Some(Path::new("a"))), Language::Python);
        assert_eq!(language(None, None), Language::Python);
        assert_eq!(language(Some(Language::Python), Some(Path::new("a.js"))), Language::Python);
    }
}
