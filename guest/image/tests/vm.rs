//! The real image under QEMU's emulation: boots, takes an identity, runs what it is asked, survives its hosts.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and tells what it measured")]

mod bounds;
mod guest;
mod programs;

use std::time::{Duration, Instant};

use guest::{Guest, Host, identity, image, json, plain};
use guest_proto::surface::{
    AgentError, AgentErrorCode, CodeRunRequest, ExecReply, ExecRequest, FileInfo, FileList, Health, IdentityAck,
    PROTOCOL,
};
use http::{Method, StatusCode};
use tokio::io::AsyncWriteExt;

const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";

/// Timing belongs to the machine; it is printed, not judged.
async fn timed<T>(what: &str, work: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let result = work.await;
    eprintln!("{what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    result
}

async fn boot(guest: &Guest) -> Host {
    let start = Instant::now();
    let host = guest.session(guest.channel().await).await;
    let health: Health = json(host.send(Method::GET, "/v1/health", "").await);
    eprintln!("boot to health: {} ms, by the guest's clock {}", start.elapsed().as_millis(), health.uptime_ms);
    assert_eq!((health.protocol, health.ready, health.generation), (PROTOCOL, false, 0));
    assert!(health.kernel.contains("cloud-amd64") || health.kernel.contains("generic"), "{}", health.kernel);
    host
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_guest_does_what_the_surface_says() {
    let image = image();
    let mut guest = Guest::start(&image);
    let mut host = boot(&guest).await;

    let (status, body) = host.post("/v1/exec", &ExecRequest::default()).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(serde_json::from_slice::<AgentError>(&body).unwrap().code, AgentErrorCode::NoIdentity);
    let ack: IdentityAck = json(timed("identity", host.post("/v1/identity", &identity(1, MACHINE_ID))).await);
    eprintln!("identity in the guest: {} us", ack.took_us);
    for _ in 0..3 {
        let ack: IdentityAck = json(timed("identity again", host.post("/v1/identity", &identity(1, MACHINE_ID))).await);
        eprintln!("identity in the guest: {} us", ack.took_us);
    }

    for _ in 0..6 {
        assert_eq!(timed("sh -c 'echo hi'", host.sh("echo hi")).await, "hi\n");
    }
    a_guest_of_its_own(&host).await;
    commands(&host).await;
    programs(&host).await;
    files(&host).await;

    // A second host while the first is still connected; then half a message, and a third.
    let _: IdentityAck = json(host.post("/v1/identity", &identity(2, MACHINE_ID)).await);
    host.generation = 2;
    drop(host);
    let mut second = guest.session(guest.channel().await).await;
    let (_, body) = second.send(Method::GET, "/v1/files", "").await;
    assert_eq!(serde_json::from_slice::<AgentError>(&body).unwrap().code, AgentErrorCode::StaleGeneration);
    second.generation = 2;
    assert_eq!(second.sh("cat kept; hostname").await, "kept\nbox-2\n");
    drop(second);
    let mut channel = guest.channel().await;
    channel.write_all(&[0x42; 3000]).await.unwrap();
    let mut third = guest.session(channel).await;
    third.generation = 2;
    assert_eq!(third.sh("cat kept").await, "kept\n");

    // A host that is killed in the middle of a download and of a command: the next one is served, the command goes on.
    third.sh("head -c 50000000 /dev/zero > much").await;
    let response = third.begin(Method::GET, "/v1/files/content?path=much", "").await;
    assert_eq!(response.status(), StatusCode::OK);
    let slow = "touch begun; while [ ! -e go ]; do sleep 0.1; done; echo done > outlived";
    let slow = ExecRequest { command: slow.to_owned(), ..ExecRequest::default() };
    tokio::select! {
        _ = third.begin(Method::POST, "/v1/exec", serde_json::to_vec(&slow).unwrap()) => panic!("it has ended"),
        _ = third.sh("while [ ! -e begun ]; do sleep 0.1; done") => {}
    }
    third.cut();
    drop(response);
    let mut third = guest.session(guest.channel().await).await;
    third.generation = 2;
    assert_eq!(third.sh("touch go; while [ ! -s outlived ]; do sleep 0.1; done; cat outlived").await, "done\n");

    let (_, logs) = third.send(Method::GET, "/v1/logs?tail=1000", "").await;
    let logs = String::from_utf8(logs.to_vec()).unwrap();
    assert!(logs.contains("atoll-agent: up") && logs.contains("Linux version"), "{logs}");

    let (status, _) = third.post("/v1/shutdown", &()).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let start = Instant::now();
    assert!(guest.ends_within(guest::BOOT).await, "{}", guest.console());
    eprintln!("shutdown: {} ms", start.elapsed().as_millis());
    assert!(!guest.console().contains("panic"), "{}", guest.console());
}

/// It is a machine with a kernel, processes, names and a clock of its own.
async fn a_guest_of_its_own(host: &Host) {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(host.sh("uname -r").await, kernel);
    assert_eq!(
        host.sh("tr '\\0' ' ' < /proc/1/cmdline; cat /proc/1/comm").await.split_whitespace().last(),
        Some("init")
    );
    assert_eq!(host.sh("hostname; cat /etc/machine-id; getent hosts $(hostname)").await.lines().count(), 3);
    assert_eq!(host.sh("cat /etc/machine-id").await.trim(), MACHINE_ID);
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    let seconds: u64 = host.sh("date +%s").await.trim().parse().unwrap();
    let after = now();
    assert!(seconds + 1 >= before && seconds <= after + 1, "{seconds} {before} {after}");
    assert_eq!(
        host.sh("cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/uuid | sort -u").await.lines().count(),
        2
    );
    assert_eq!(host.sh("echo $FROM $HOME $USER; pwd").await, "identity /root root\n/root\n");
    assert_eq!(
        host.sh("findmnt -n -o FSTYPE / 2>/dev/null || awk '$2==\"/\"{print $3}' /proc/mounts").await,
        "overlay\n"
    );
    // The card is there and down: this identity has no network.
    let seen = host.sh("ls -d /modules /newroot 2>&1 | wc -l; ls /sys/class/net; ip -br addr show eth0").await;
    assert!(seen.starts_with("2\neth0\nlo\n") && seen.contains("DOWN") && !seen.contains('.'), "{seen}");
    assert_eq!(host.sh("for p in git curl node python3 ssh ip ps; do command -v $p; done | wc -l").await, "7\n");
    assert_eq!(
        host.sh("python3 -c 'import ssl, socket; s = socket.create_server((\"127.0.0.1\", 0)); print(1)'").await,
        "1\n"
    );
    // Orphans end without staying.
    host.sh("for i in 1 2 3 4 5; do (sleep 0.1 &) ; done; sleep 0.5").await;
    let until = "for i in $(seq 150); do ps -eo stat= | grep -c ^Z || break; sleep 0.2; done | tail -n 1";
    assert_eq!(host.sh(until).await.trim(), "0");
}

async fn commands(host: &Host) {
    let slow =
        ExecRequest { command: "sleep 30 & wait".to_owned(), timeout_seconds: Some(1), ..ExecRequest::default() };
    let start = Instant::now();
    let (status, body) = host.post("/v1/exec", &slow).await;
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT, "{}", String::from_utf8_lossy(&body));
    assert!(start.elapsed() < Duration::from_secs(20));
    // Killed, but the kernel may still be at it.
    let until = "for i in $(seq 150); do pgrep -c sleep || break; sleep 0.2; done | tail -n 1";
    assert_eq!(host.sh(until).await, "0\n");

    let late = "(for i in $(seq 300); do [ -e /tmp/go ] && break; sleep 0.1; done; echo late; echo done > /tmp/late) & \
        echo started; ls /tmp/late 2>/dev/null || true";
    assert_eq!(host.sh(late).await, "started\n");
    let until = "touch /tmp/go; for i in $(seq 300); do [ -s /tmp/late ] && break; sleep 0.1; done; cat /tmp/late";
    assert_eq!(host.sh(until).await, "done\n");

    let big = timed("8 MiB of output", host.sh("head -c 8388608 /dev/zero | tr '\\0' x")).await;
    assert_eq!(big.len(), 8 << 20);
}

async fn programs(host: &Host) {
    let run = async |language: &str, code: &str| -> ExecReply {
        let request =
            CodeRunRequest { code: code.to_owned(), language: language.to_owned(), ..CodeRunRequest::default() };
        json(timed(&format!("code-run {language}"), host.post("/v1/code-run", &request)).await)
    };
    for _ in 0..4 {
        assert_eq!(plain(&run("python", "print('Hello World!')").await.stdout), "Hello World!\n");
    }
    for _ in 0..2 {
        assert_eq!(plain(&run("javascript", "console.log('Hello World!')").await.stdout), "Hello World!\n");
    }
    let reply = run("python", "def f():\n    raise ValueError('no')\nf()").await;
    assert_eq!(reply.exit_code, 1);
    let traceback = plain(&reply.stderr);
    assert!(traceback.contains("    raise ValueError('no')") && traceback.contains("line 2, in f"), "{traceback}");
    let reply = run("javascript", "process.stderr.write('e'); process.exit(3)").await;
    assert_eq!((reply.exit_code, plain(&reply.stderr)), (3, "e".to_owned()));
    let (status, _) =
        host.post("/v1/code-run", &CodeRunRequest { language: "perl".to_owned(), ..CodeRunRequest::default() }).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

async fn files(host: &Host) {
    let bytes: Vec<u8> = (0..8_000_000u32).map(|index| (index * 31 % 253) as u8).collect();
    let sent = timed("upload of 8 MB", host.send(Method::PUT, "/v1/files/content?path=d/big", bytes.clone())).await;
    let info: FileInfo = json(sent);
    assert_eq!((info.size, info.path.as_str(), info.owner.as_str()), (8_000_000, "/root/d/big", "root"));
    let (_, got) = timed("download of 8 MB", host.send(Method::GET, "/v1/files/content?path=d/big", "")).await;
    assert!(got == bytes);
    let list: FileList = json(host.send(Method::GET, "/v1/files?path=d", "").await);
    assert_eq!(list.entries.len(), 1);
    let (status, _) = host.send(Method::DELETE, "/v1/files?path=d&recursive=true", "").await;
    assert_eq!(status, StatusCode::NO_CONTENT);

    // A disk that is full is told, and what was half written is gone.
    host.sh("fallocate -l 2G fill 2>/dev/null; dd if=/dev/zero of=fill2 bs=1M 2>/dev/null; true").await;
    let (status, body) = host.send(Method::PUT, "/v1/files/content?path=more", vec![1; 4 << 20]).await;
    assert_eq!(status.as_u16(), 507, "{}", String::from_utf8_lossy(&body));
    host.sh("rm -f fill fill2; ls -A | grep -c atoll-upload && exit 1; echo kept > kept").await;
}
