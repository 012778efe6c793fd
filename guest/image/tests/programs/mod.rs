//! Program texts in a guest: what interpreters that were started ahead give is what fresh processes give, and no two clones
//! share what is random.

mod clones;
mod javascript;
mod python;
mod typescript;

use std::time::{Duration, Instant};

use crate::MACHINE_ID;
use crate::guest::{Guest, Host, identity, image, json, plain};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guest_proto::surface::{CodeRunRequest, ExecReply, ExecRequest, IdentityAck, NewContext};
use http::Method;

/// Arguments of every program here.
const ARGUMENTS: [&str; 3] = ["a b", "é", ""];

/// What a program gave.
#[derive(Debug, PartialEq, Eq)]
struct Gave {
    exit_code: i32,
    signal: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Gave {
    fn from(reply: &ExecReply) -> Self {
        let text = |data: &str| without_numbers(&String::from_utf8_lossy(&STANDARD.decode(data).unwrap()));
        let ExecReply { exit_code, signal, stdout, stderr, .. } = reply;
        Self { exit_code: *exit_code, signal: *signal, stdout: text(stdout), stderr: text(stderr) }
    }
}

/// A text without what differs from process to process: the program file's number, addresses, process ids.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = ["main-", "0x", "(node:", "Thread-", "pid="]
        .iter()
        .filter_map(|mark| rest.find(mark).map(|at| at + mark.len()))
        .min()
    {
        out.push_str(&rest[..at]);
        out.push('N');
        rest = rest[at..].trim_start_matches(|letter: char| letter.is_ascii_hexdigit());
    }
    out + rest
}

fn request(language: &str, code: &str) -> CodeRunRequest {
    CodeRunRequest {
        code: code.to_owned(),
        language: language.to_owned(),
        argv: ARGUMENTS.map(str::to_owned).to_vec(),
        env: [("VARIABLE".to_owned(), "é=1".to_owned())].into(),
        timeout_seconds: Some(60),
        ..CodeRunRequest::default()
    }
}

async fn ahead(host: &Host, language: &str, code: &str) -> ExecReply {
    json(host.post("/v1/code-run", &request(language, code)).await)
}

/// The same program as a process of its own: by `argv` and standard input.
async fn fresh(host: &Host, language: &str, code: &str, number: usize) -> ExecReply {
    let env = [("VARIABLE".to_owned(), "é=1".to_owned())];
    let arguments = ARGUMENTS.map(str::to_owned);
    let exec = if language == "python" {
        let file = format!("/tmp/.atoll/main-99999{number:05}.py");
        host.send(Method::PUT, &format!("/v1/files/content?path={file}&mode=600"), code.to_owned()).await;
        let argv = ["/usr/bin/python3".to_owned(), file].into_iter().chain(arguments).collect();
        let env = env.into_iter().chain([("PYTHONPATH".to_owned(), "/root".to_owned())]).collect();
        ExecRequest { argv, env, ..ExecRequest::default() }
    } else {
        let argv = ["/usr/bin/node".to_owned(), "-".to_owned()].into_iter().chain(arguments).collect();
        ExecRequest { argv, env: env.into(), stdin: Some(STANDARD.encode(code)), ..ExecRequest::default() }
    };
    json(host.post("/v1/exec", &ExecRequest { timeout_seconds: Some(60), ..exec }).await)
}

/// How long ago a program's process was started, as its program sees it.
const AGE: &str = "start = float(open('/proc/self/stat').read().rsplit(')', 1)[1].split()[19]) / 100\n\
    print(float(open('/proc/uptime').read().split()[0]) - start)";

async fn up(guest: &Guest) -> Host {
    let host = guest.session(guest.channel().await).await;
    let rehearsal = guest_proto::surface::Identity { rehearsal: true, generation: 0, ..identity(1, MACHINE_ID) };
    let begun = Instant::now();
    let _: IdentityAck = json(host.post("/v1/identity", &rehearsal).await);
    eprintln!("all parked after {} ms", begun.elapsed().as_millis());
    let _: IdentityAck = json(host.post("/v1/identity", &identity(1, MACHINE_ID)).await);
    host
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_python_programs_give_what_fresh_processes_give() {
    let guest = Guest::start(&image());
    let host = up(&guest).await;
    // They are started ahead indeed.
    wait_for_parked(&host, "python").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let age: f64 = plain(&ahead(&host, "python", AGE).await.stdout).trim().parse().unwrap();
    assert!(age > 0.9, "{age}");
    host.sh("echo 'VALUE = 7' > neighbour.py").await;
    compare(&host, "python", python::PROGRAMS).await;
    // What a fresh interpreter would read while it starts is read.
    host.sh("echo 'print(\"customized\")' > usercustomize.py").await;
    compare(&host, "python", &[("a customization", "print('on')")]).await;
    assert!(plain(&ahead(&host, "python", "pass").await.stdout).contains("customized"));
    host.sh("rm usercustomize.py").await;
    times(&host, "python", "print('Hello World!')", 40, Duration::from_millis(20)).await;
    let mut took = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        host.sh("echo hi").await;
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    eprintln!("sh -c 'echo hi': p50 {:.1} ms", took[10].as_secs_f64() * 1e3);
    for _ in 0..3 {
        let begun = Instant::now();
        let _: guest_proto::surface::Context =
            json(host.post("/v1/interpreter/contexts", &NewContext::default()).await);
        eprintln!("a context: {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    }
}

// In two halves: each program starts two nodes, a second each under emulation.
#[tokio::test(flavor = "multi_thread")]
async fn vm_javascript_programs_give_what_fresh_processes_give() {
    let guest = Guest::start(&image());
    let host = up(&guest).await;
    compare(&host, "javascript", &javascript::PROGRAMS[..13]).await;
    typescript::types_are_taken_out_and_lines_stay(&host).await;
    times(&host, "javascript", "console.log('Hello World!')", 5, Duration::from_secs(4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_more_javascript_programs_give_what_fresh_processes_give() {
    let guest = Guest::start(&image());
    let host = up(&guest).await;
    host.sh("echo 'exports.VALUE = 7' > neighbour.js").await;
    compare(&host, "javascript", &javascript::PROGRAMS[13..]).await;
}

/// Runs each program both ways.
async fn compare(host: &Host, language: &str, programs: &[(&str, &str)]) {
    let mut differ = Vec::new();
    for (number, (name, code)) in programs.iter().enumerate() {
        let fresh = Gave::from(&fresh(host, language, code, number).await);
        wait_for_parked(host, language).await;
        let ahead = Gave::from(&ahead(host, language, code).await);
        if ahead != fresh {
            differ.push(format!("{name}:\n  ahead {}\n  fresh {}", short(&ahead), short(&fresh)));
        }
    }
    assert!(differ.is_empty(), "{} differ:\n{}", differ.len(), differ.join("\n"));
}

fn short(gave: &Gave) -> String {
    format!("{gave:?}").chars().take(3000).collect()
}

/// Waits until an interpreter of this language is parked: of two processes at least one is.
async fn wait_for_parked(host: &Host, language: &str) {
    // Python's second is the one that the others are forked from.
    let parked = if language == "python" { "main-0000000000" } else { "warm/node.js" };
    let look = format!("pgrep -fc '[{}]{}' || true", &parked[..1], &parked[1..]);
    let begun = Instant::now();
    while host.sh(&look).await.trim().parse::<u32>().unwrap_or(0) < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no {language} is parked");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What programs take, told and not judged: a machine with two processors runs other tests too.
async fn times(host: &Host, language: &str, code: &str, rounds: usize, pause: Duration) {
    let (mut took, mut inside) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        tokio::time::sleep(pause).await;
        let begun = Instant::now();
        let reply = ahead(host, language, code).await;
        took.push(begun.elapsed());
        inside.push(reply.took_ms);
    }
    took.sort_unstable();
    inside.sort_unstable();
    let ms = |index: usize| took[index].as_secs_f64() * 1e3;
    let (middle, last) = (rounds / 2, rounds - 1);
    eprintln!(
        "{language}: p50 {:.1} ms, best {:.1}, worst {:.1}; in the guest p50 {} ms",
        ms(middle),
        ms(0),
        ms(last),
        inside[middle]
    );
}
