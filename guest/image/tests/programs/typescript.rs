//! TypeScript programs.

use std::time::{Duration, Instant};

use guest_proto::surface::ExecReply;

use super::{ahead, request, times};
use crate::guest::{Host, json, plain};

pub(super) async fn types_are_taken_out_and_lines_stay(host: &Host) {
    let program = "import { basename } from 'path';\n\ninterface Named {\n  name: string;\n}\n\n// A comment.\nenum Kind { One = 1, Two }\n\
        const named: Named = { name: 'é' }; const kind = Kind.Two as number;\n\
        function told<T extends Named>(it: T, times?: number): string {\n  return `${it.name}\n${times ?? kind}`;\n}\n\
        console.log(told(named), basename('/a/b'), process.argv.slice(2).length);\n\nthrow new Error('line 16');\n";
    let reply = ahead(host, "typescript", program).await;
    let stderr = plain(&reply.stderr);
    assert_eq!((reply.exit_code, plain(&reply.stdout).as_str()), (1, "é\n2 b 3\n"), "{stderr}");
    assert!(stderr.starts_with("[stdin]:16\nthrow new Error"), "{stderr}");
    let reply = ahead(host, "typescript", "let a: number = ;\n").await;
    let stderr = plain(&reply.stderr);
    assert!(reply.exit_code == 1 && reply.stdout.is_empty() && stderr.contains("[stdin]:1:"), "{stderr}");
    // Types are not checked.
    let reply = ahead(host, "typescript", "const text: string = 1; console.log(text)").await;
    assert_eq!((reply.exit_code, plain(&reply.stdout).as_str()), (0, "1\n"));
    assert_eq!(ahead(host, "typescript", "").await.exit_code, 0);
}

pub(super) async fn the_transpiler_that_waits_is_used(host: &Host) {
    let program = "const n: number = 1; console.log(n)";
    let waiting = parked(host).await;
    // What it would have read when it was started needs a fresh one.
    let mut with_variable = request("typescript", program);
    with_variable.env.insert("GODEBUG".to_owned(), "gctrace=0".to_owned());
    let reply: ExecReply = json(host.post("/v1/code-run", &with_variable).await);
    assert_eq!(plain(&reply.stdout), "1\n");
    assert_eq!(parked(host).await, waiting, "it was used for a program with variables that it reads");
    let reply = ahead(host, "typescript", program).await;
    assert_eq!(plain(&reply.stdout), "1\n");
    assert_ne!(parked(host).await, waiting, "a fresh one was used");
    // One that has died is passed over.
    host.sh("kill -9 $(pgrep -x esbuild)").await;
    assert_eq!(plain(&ahead(host, "typescript", program).await.stdout), "1\n");
    times(host, "typescript", program, 5, Duration::from_secs(4)).await;
}

/// The one that waits for its program.
async fn parked(host: &Host) -> String {
    let begun = Instant::now();
    loop {
        let waiting =
            host.sh("grep -l '^0 0x0 ' $(pgrep -x esbuild | sed 's|.*|/proc/&/task/*/syscall|') | cut -d/ -f3").await;
        if !waiting.trim().is_empty() {
            return waiting;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no transpiler is parked");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
