//! TypeScript programs.

use super::ahead;
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
