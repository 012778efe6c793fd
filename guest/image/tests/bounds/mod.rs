//! What a guest's commands may use, its network card and its disk.

use std::time::{Duration, Instant};

use guest_proto::surface::{
    DiskSize, ExecEvent, ExecReply, ExecRequest, GuestLimits, GuestNetwork, Health, Identity, IdentityAck,
};
use http::{Method, StatusCode};
use http_body_util::BodyExt;

use crate::MACHINE_ID;
use crate::guest::{Guest, Host, identity, image, json, plain};

#[tokio::test(flavor = "multi_thread")]
async fn vm_guest_stays_within_its_bounds() {
    let guest = Guest::start(&image());
    let host = guest.session(guest.channel().await).await;
    let _: IdentityAck = json(host.post("/v1/identity", &identity(1, MACHINE_ID)).await);
    network(&host).await;
    processes(&host).await;
    memory(&host).await;
    open_files(&host).await;
    disk(&host).await;
    assert!(!guest.console().contains("panic"), "{}", guest.console());
}

async fn take(host: &Host, change: impl FnOnce(&mut Identity)) {
    let mut identity = identity(1, MACHINE_ID);
    change(&mut identity);
    let _: IdentityAck = json(host.post("/v1/identity", &identity).await);
}

async fn network(host: &Host) {
    assert_eq!(host.sh("cat /sys/class/net/eth0/operstate; wc -c < /etc/resolv.conf; ip route").await, "down\n0\n");
    let network = GuestNetwork {
        address: [10, 77, 0, 2].into(),
        prefix: 30,
        gateway: [10, 77, 0, 1].into(),
        dns: [10, 77, 0, 1].into(),
        mtu: 1400,
    };
    let begun = Instant::now();
    take(host, |identity| {
        identity.mac = Some("02:aa:bb:cc:dd:ee".to_owned());
        identity.network = Some(network.clone());
    })
    .await;
    eprintln!("identity with a network: {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    let told = host
        .sh("ip -br addr show eth0; ip -br link show eth0; ip route; cat /etc/resolv.conf /sys/class/net/eth0/mtu")
        .await;
    for part in
        ["10.77.0.2/30", "02:aa:bb:cc:dd:ee", "default via 10.77.0.1 dev eth0", "nameserver 10.77.0.1", "\n1400\n"]
    {
        assert!(told.contains(part), "{part} is missing in {told}");
    }
    assert!(!told.contains("fe80"), "{told}");
    take(host, |identity| {
        identity.network =
            Some(GuestNetwork { address: [10, 77, 0, 6].into(), gateway: [10, 77, 0, 5].into(), ..network })
    })
    .await;
    let told = host.sh("ip -br addr show eth0; ip route").await;
    assert!(told.contains("10.77.0.6/30") && told.contains("via 10.77.0.5") && !told.contains("10.77.0.2"), "{told}");
    take(host, |_| {}).await;
    assert_eq!(host.sh("ip route; cat /etc/resolv.conf; cat /sys/class/net/eth0/operstate").await, "down\n");
}

async fn answers(host: &Host) {
    let begun = Instant::now();
    let _: Health = json(host.send(Method::GET, "/v1/health", "").await);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

async fn run(host: &Host, command: &str, seconds: u32) -> (StatusCode, Option<ExecReply>, String) {
    let request = ExecRequest { command: command.to_owned(), timeout_seconds: Some(seconds), ..ExecRequest::default() };
    let (status, body) = host.post("/v1/exec", &request).await;
    (status, serde_json::from_slice(&body).ok(), String::from_utf8_lossy(&body).into_owned())
}

async fn processes(host: &Host) {
    take(host, |identity| identity.limits = GuestLimits { pids: Some(100), ..GuestLimits::default() }).await;
    let bomb = "import os, time\ntry:\n    while True:\n        if os.fork() == 0:\n            time.sleep(600)\n\
        except OSError as error:\n    print(error, flush=True)\ntime.sleep(600)\n";
    host.send(Method::PUT, "/v1/files/content?path=bomb.py", bomb).await;
    let request =
        ExecRequest { command: "exec python3 bomb.py".to_owned(), timeout_seconds: Some(30), ..ExecRequest::default() };
    let mut bomb = host.begin(Method::POST, "/v1/exec/stream", serde_json::to_vec(&request).unwrap()).await;
    let told = bomb.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    let ExecEvent::Stdout { data } = serde_json::from_slice(&told).unwrap() else { panic!("{told:?}") };
    assert!(plain(&data).contains("Resource temporarily unavailable"), "{}", plain(&data));
    // The group is full: the agent answers, a command is refused with a sentence, and the timeout ends the bomb.
    answers(host).await;
    let (status, _, text) = run(host, "true", 5).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{text}");
    assert!(text.contains("have 100 processes and threads, as many as they may"), "{text}");
    assert!(
        String::from_utf8_lossy(&bomb.body_mut().collect().await.unwrap().to_bytes()).contains("\"timedOut\":true")
    );
    take(host, |_| {}).await;
    host.sh("true").await;
}

async fn memory(host: &Host) {
    let hog = "python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 24))'";
    let (_, reply, _) = run(host, hog, 60).await;
    let reply = reply.unwrap();
    let stderr = plain(&reply.stderr);
    assert_eq!(reply.exit_code, 137, "{stderr}");
    assert!(stderr.contains("out of memory"), "{stderr}");
    answers(host).await;
    assert_eq!(host.sh("cat /proc/1/oom_score_adj; cat /proc/self/oom_score_adj").await, "-1000\n0\n");
    assert_eq!(host.sh("cat /proc/self/cgroup").await, "0::/box\n");
}

async fn open_files(host: &Host) {
    take(host, |identity| identity.limits = GuestLimits { open_files: Some(100), ..GuestLimits::default() }).await;
    assert_eq!(host.sh("ulimit -n; ulimit -Hn").await, "100\n100\n");
    take(host, |_| {}).await;
    assert_eq!(host.sh("ulimit -n; ulimit -Hn").await, "4096\n65536\n");
}

async fn disk(host: &Host) {
    let (_, reply, _) = run(host, "dd if=/dev/zero of=/fill bs=1M", 180).await;
    assert!(plain(&reply.unwrap().stderr).contains("No space left on device"));
    answers(host).await;
    let before: u64 = host.sh("df -B1 --output=size / | tail -1").await.trim().parse().unwrap();
    let size: DiskSize = json(host.send(Method::POST, "/v1/disk/grow", "").await);
    assert_eq!(size.bytes, 1 << 30);
    let after: u64 = host.sh("df -B1 --output=size / | tail -1; rm /fill").await.trim().parse().unwrap();
    assert!(before < 512 << 20 && after > 900 << 20, "{before} {after}");
    let again: DiskSize = json(host.send(Method::POST, "/v1/disk/grow", "").await);
    assert_eq!(again, size);
}
