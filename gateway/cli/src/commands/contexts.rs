//! `code`: python texts in stateful interpreters, and the contexts themselves.

use gateway_sdk::{Client, v1};
use serde::Serialize;

use super::code::program;
use super::map;
use crate::args::CodeArgs;
use crate::exit::{EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_TIMEOUT, Failure};
use crate::output::{Output, table};
use crate::progress::Waiting;

/// The exit code of a text that ended by an exception, as python's own.
const EXIT_RAISED: u8 = 1;

/// What `--delete` and `--interrupt` print with `--json`.
#[derive(Serialize)]
struct Done<'a> {
    sandbox: &'a str,
    context: &'a str,
}

pub(super) async fn code(args: CodeArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let sandbox = args.sandbox.as_str();
    if args.new {
        let context = client.new_context(sandbox, &v1::NewContext::default()).await?;
        output.result(&context, || context.id.clone())?;
    } else if args.list {
        let list = client.contexts(sandbox).await?;
        output.result(&list, || rows(&list))?;
    } else if let Some(context) = &args.delete {
        client.delete_context(sandbox, context).await?;
        output.result(&Done { sandbox, context }, || context.clone())?;
    } else if let Some(context) = &args.interrupt {
        client.interrupt(sandbox, context).await?;
        output.result(&Done { sandbox, context }, || context.clone())?;
    } else {
        return interpret(args, client, output).await;
    }
    Ok(EXIT_OK)
}

async fn interpret(args: CodeArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let ask = v1::Interpret {
        code: program(args.code.as_deref(), args.file.as_deref()).await?,
        context: args.context,
        env: map(args.env),
        timeout_seconds: args.timeout,
    };
    let waiting = Waiting::start(output.is_interactive(), "running");
    let told = client.interpret(&args.sandbox, &ask).await?;
    drop(waiting);
    let exit = exit_code(&told);
    if output.is_json() {
        output.result(&told, String::new)?;
        return Ok(exit);
    }
    output.bytes(told.stdout.as_bytes())?;
    output.error_bytes(told.stderr.as_bytes())?;
    if let Some(result) = &told.result {
        output.bytes(format!("{result}\n").as_bytes())?;
    }
    if let Some(error) = &told.error {
        output.error_bytes(error.traceback.as_bytes())?;
    }
    match told.outcome.as_str() {
        "timed_out" => output.remark("atoll: it passed its timeout and was interrupted"),
        "interrupted" => output.remark("atoll: it was interrupted"),
        "died" => output.remark("atoll: the interpreter ended: its state is lost, the next text begins a new one"),
        _ => {}
    }
    if told.truncated {
        output.remark("atoll: part of the output was dropped");
    }
    Ok(exit)
}

fn exit_code(told: &v1::Interpreted) -> u8 {
    match (told.outcome.as_str(), &told.error) {
        ("timed_out", _) => EXIT_TIMEOUT,
        ("interrupted", _) => EXIT_INTERRUPTED,
        ("completed", None) => EXIT_OK,
        ("completed", Some(_)) => EXIT_RAISED,
        _ => EXIT_FAILED,
    }
}

fn rows(list: &v1::ContextList) -> String {
    let row = |context: &v1::Context| {
        let busy = if context.busy { "busy" } else { "idle" };
        vec![
            context.id.clone(),
            context.language.clone(),
            busy.to_owned(),
            context.cwd.clone(),
            context.created_at.clone(),
        ]
    };
    table(&["CONTEXT", "LANGUAGE", "STATE", "FOLDER", "CREATED"], &list.items.iter().map(row).collect::<Vec<_>>())
}
