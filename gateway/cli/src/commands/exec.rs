//! `exec`: a command's output as it comes, and its exit code as this process's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use gateway_sdk::{Client, ExecEvent, v1};

use super::map;
use crate::args::ExecArgs;
use crate::exit::{EXIT_FAILED, Failure, guest_exit};
use crate::output::Output;
use crate::stdin;

/// Most standard input that a command is given: in base64 it must fit the gateway's 1 MiB body. More goes by `cp`.
const STDIN_BYTES_MAX: usize = 700 << 10;

pub(super) async fn exec(args: ExecArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let stdin = if args.stdin { Some(STANDARD.encode(stdin::whole(STDIN_BYTES_MAX).await?)) } else { None };
    let command = v1::Exec {
        command: args.command,
        argv: args.argv,
        cwd: args.cwd,
        env: map(args.env),
        timeout_seconds: args.timeout,
        stdin,
    };
    let mut stream = client.exec_stream(&args.sandbox, &command).await?;
    if output.is_json() {
        let result = v1::ExecResult::from(stream.collect().await?);
        output.result(&result, String::new)?;
        return Ok(guest_exit(result.exit_code, result.timed_out));
    }
    while let Some(event) = stream.next().await {
        match event? {
            ExecEvent::Stdout(bytes) => output.bytes(&bytes)?,
            ExecEvent::Stderr(bytes) => output.error_bytes(&bytes)?,
            ExecEvent::Exit(exit) => {
                if exit.timed_out {
                    output.remark(&format!("atoll: the command passed its timeout{}", after(args.timeout)));
                }
                if exit.truncated {
                    output.remark("atoll: part of the output was dropped");
                }
                return Ok(guest_exit(exit.exit_code, exit.timed_out));
            }
        }
    }
    Ok(EXIT_FAILED)
}

fn after(timeout_seconds: Option<u32>) -> String {
    timeout_seconds.map(|seconds| format!(" of {seconds} s and was killed")).unwrap_or_default()
}
