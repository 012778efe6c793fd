//! TypeScript programs.

use std::time::{Duration, Instant};

use super::{ahead, times};
use crate::guest::{Host, plain};

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

pub(super) async fn the_transpiler_is_warm_and_is_replaced(host: &Host) {
    let program = "const n: number = 1; console.log(n)";
    let first = service(host, "").await;
    // One that is being started is nicer, and isn't asked.
    let until = format!("for i in $(seq 300); do ps -o ni= -p {first} | grep -qw 0 && break; sleep 0.2; done");
    host.sh(&until).await;
    assert_eq!(plain(&ahead(host, "typescript", program).await.stdout), "1\n");
    assert_eq!(service(host, "").await, first, "another was started for a program");
    // One that doesn't answer was asked, and is given up.
    host.sh(&format!("kill -STOP {first}")).await;
    let begun = Instant::now();
    assert_eq!(plain(&ahead(host, "typescript", program).await.stdout), "1\n");
    assert!(begun.elapsed() > Duration::from_secs(9), "it wasn't asked");
    let second = service(host, &first).await;
    // One that was killed is passed over.
    host.sh(&format!("kill -KILL {second}")).await;
    assert_eq!(plain(&ahead(host, "typescript", program).await.stdout), "1\n");
    service(host, &second).await;
    times(host, "typescript", program, 5, Duration::from_secs(4)).await;
}

/// The process that takes out types, which is another than the given one.
async fn service(host: &Host, before: &str) -> String {
    let begun = Instant::now();
    loop {
        let found = host.sh("pgrep -f 'esbuild --[s]ervice' || true").await.trim().to_owned();
        if !found.is_empty() && found != before && !found.contains('\n') {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no service of esbuild's");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
