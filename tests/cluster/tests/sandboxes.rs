//! Sandboxes on a mesh of three regions: apart from each other and from the host, and moved with their memory.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use gateway_sdk::{ExecEvent, v1};
use tests_cluster::{Counter, Sandbox};
use tests_harness::{Mesh, MeshOptions, Process, Signal, eventually, step};

#[test]
fn mesh_sandboxes_are_apart_and_move_with_their_memory() -> anyhow::Result<()> {
    let mesh = Mesh::start(MeshOptions::default())?;
    let one = step("create in each region", || {
        for region in ["iad", "sin"] {
            Sandbox::create(&mesh, region, &[])?.remove(&mesh)?;
        }
        Sandbox::create(&mesh, "fra", &["--name", "one", "--label", "team=search", "--env", "GREETING=hello"])
    })?;
    let other = Sandbox::create(&mesh, "fra", &[])?;
    step("a guest has a kernel, a first process and files of its own", || guests_are_apart(&mesh, &one, &other))?;
    step("two clones share nothing that identifies them", || clones_differ(&mesh, &one, &other))?;
    step("the clock is right", || the_clock_is_right(&mesh, &one))?;
    step("a command's end is the command line's", || codes_are_kept(&mesh, &one))?;
    step("a child in the background doesn't hold the answer", || children_live_on(&mesh, &one))?;
    step("files go in and out", || files_go_both_ways(&mesh, &one))?;
    step("ls and status show the mesh", || lists_are_mesh_wide(&mesh, &one))?;
    step("usage tells what a sandbox moves", || usage_grows(&mesh, &one, &other))?;
    step("stop keeps the disk", || stop_keeps_the_disk(&mesh, &other))?;
    step("a counter goes on in another region", || a_counter_moves(&mesh, &one))?;
    step("a snapshot in the middle of a message does no harm", || half_a_message(&mesh, &one))?;
    step("keys are made and revoked", || keys_come_and_go(&mesh))?;
    step("an interrupted run leaves nothing", || an_interrupted_run_leaves_nothing(&mesh))?;
    step("a reader that goes away ends a command", || a_reader_goes_away(&mesh, &one))?;
    mesh.stop()
}

fn guests_are_apart(mesh: &Mesh, one: &Sandbox, other: &Sandbox) -> anyhow::Result<()> {
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let guest = one.says(mesh, "uname -r")?;
    ensure!(guest != host.trim(), "the guest runs the host's kernel: {guest}");
    let first = one.says(mesh, "tr '\\0' ' ' < /proc/1/cmdline; cat /proc/1/comm; readlink /proc/1/exe")?;
    ensure!(first.contains("agent") || first.contains("/init"), "the first process: {first}");
    ensure!(!first.contains("systemd"), "the first process: {first}");
    one.says(mesh, "echo secret > /root/only-here && sync")?;
    ensure!(other.says(mesh, "ls /root")?.lines().all(|name| name != "only-here"), "a file crossed over");
    ensure!(one.says(mesh, "echo $GREETING")? == "hello", "the sandbox's environment");
    Ok(())
}

fn clones_differ(mesh: &Mesh, one: &Sandbox, other: &Sandbox) -> anyhow::Result<()> {
    for command in [
        "cat /proc/sys/kernel/random/uuid",
        "head -c 16 /dev/urandom | od -An -tx1",
        "cat /etc/machine-id",
        "hostname",
        "python3 -c 'import random; print(random.random())'",
    ] {
        let (first, second) = (one.says(mesh, command)?, other.says(mesh, command)?);
        ensure!(!first.trim().is_empty() && first != second, "`{command}` is the same in both: {first}");
    }
    Ok(())
}

fn the_clock_is_right(mesh: &Mesh, one: &Sandbox) -> anyhow::Result<()> {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs_f64());
    let before = now()?;
    let guest: f64 = one.says(mesh, "date +%s.%N")?.parse().context("the guest's time")?;
    let after = now()?;
    ensure!(before - 1.0 <= guest && guest <= after + 1.0, "guest {guest}, host {before} to {after}");
    Ok(())
}

fn codes_are_kept(mesh: &Mesh, one: &Sandbox) -> anyhow::Result<()> {
    let ran = one.shell(mesh, "echo out; echo err >&2; exit 7")?.ends_with(7)?;
    ensure!(ran.stdout == "out\n" && ran.stderr == "err\n", "{ran}");
    one.shell(mesh, "kill -9 $$")?.ends_with(137)?;
    mesh.atoll(&["exec", &one.id, "--", "printf", "%s", "a b"])?.ok().map(|text| ensure_is(&text, "a b"))??;
    let begun = Instant::now();
    mesh.atoll(&["exec", &one.id, "--timeout", "1", "--", "sleep", "4321"])?.ends_with(124)?;
    ensure!(begun.elapsed() < Duration::from_secs(15), "a timeout of 1 s took {:?}", begun.elapsed());
    one.shell(mesh, "pgrep -f '^sleep 4321'")?.ends_with(1).context("the command past its timeout lives on")?;
    let object = mesh.atoll(&["exec", "--json", &one.id, "-c", "echo hi"])?.json()?;
    ensure!(
        object == serde_json::json!({"exitCode":0,"stdout":"hi\n","stderr":"","timedOut":false,"truncated":false}),
        "{object}"
    );
    let object = mesh.atoll(&["run", "--json", "--sandbox", &one.id, "-c", "print('Hello World!')"])?.json()?;
    ensure!(object["stdout"] == "Hello World!\n", "{object}");
    let text = mesh.atoll(&["run", "--lang", "javascript", "--region", "sin", "-c", "console.log(6 * 7)"])?.ok()?;
    ensure_is(&text, "42")?;
    mesh.atoll(&["exec", "nosuch", "--", "true"])?.ends_with(125)?;
    mesh.atoll(&["exec", &one.id])?.ends_with(2)?;
    mesh.atoll(&["create", "--name", "one"])?.ends_with(125).context("a name that exists")?;
    ensure_is(&mesh.atoll_with_input(&["exec", "-i", &one.id, "--", "wc", "-c"], b"12345")?.ok()?, "5")
}

fn ensure_is(found: &str, expected: &str) -> anyhow::Result<()> {
    ensure!(found.trim() == expected, "{found:?} instead of {expected:?}");
    Ok(())
}

fn children_live_on(mesh: &Mesh, one: &Sandbox) -> anyhow::Result<()> {
    let begun = Instant::now();
    ensure_is(&one.says(mesh, "sleep 1234 & echo started")?, "started")?;
    ensure!(begun.elapsed() < Duration::from_secs(15), "the answer took {:?}", begun.elapsed());
    // The answer may come before the child has become what it runs.
    let until = "for i in $(seq 300); do pgrep -f '^sleep 1234' && break; sleep 0.1; done; pkill -f '^sleep 1234'";
    one.says(mesh, until).map(drop).context("the child is gone")
}

fn files_go_both_ways(mesh: &Mesh, one: &Sandbox) -> anyhow::Result<()> {
    let folder = mesh.data().join("copied");
    std::fs::create_dir_all(&folder)?;
    let (local, back) = (folder.join("data.bin"), folder.join("back.bin"));
    let bytes: Vec<u8> = (0..5_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&local, &bytes)?;
    let inside = format!("{}:/root/deep/er/data.bin", one.id);
    mesh.atoll(&["cp", &local.to_string_lossy(), &inside])?.ok()?;
    ensure_is(&one.says(mesh, "wc -c < /root/deep/er/data.bin")?, "5000000")?;
    mesh.atoll(&["cp", &inside, &back.to_string_lossy()])?.ok()?;
    ensure!(std::fs::read(&back)? == bytes, "the file came back changed");
    mesh.atoll(&["cp", &format!("{}:/nosuch", one.id), &back.to_string_lossy()])?.ends_with(125)?;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

fn lists_are_mesh_wide(mesh: &Mesh, one: &Sandbox) -> anyhow::Result<()> {
    let far = Sandbox::create(mesh, "sin", &["--label", "team=search"])?;
    // Each gateway alone knows all of them.
    for region in mesh.regions() {
        let filter =
            gateway_sdk::ListFilter { labels: [("team".into(), "search".into())].into(), ..Default::default() };
        // A region that answers late is listed as it was last known.
        eventually("all are listed", Duration::from_secs(30), || {
            let list = mesh.wait(mesh.client_of(region)?.sandboxes(&filter))?;
            let ids: BTreeSet<&str> = list.items.iter().map(|sandbox| sandbox.id.as_str()).collect();
            ensure!(ids == BTreeSet::from([one.id.as_str(), far.id.as_str()]), "from {region}: {ids:?}");
            Ok(())
        })?;
    }
    let info = mesh.wait(mesh.client_of("iad")?.sandbox("one"))?;
    ensure!(info.id == one.id && info.endpoint == mesh.endpoint("fra")?, "by name, from another region: {info:?}");
    let status = mesh.atoll(&["status"])?.ok()?;
    for word in ["fra-1", "iad-1", "sin-1", "catalog led by", "ISOLATION"] {
        ensure!(status.contains(word), "{word} in:\n{status}");
    }
    let ran = mesh.atoll(&["info", &one.id])?.ok()?;
    // Which it is depends on what the nodes of this machine may do.
    let told = ["network tap", "network none"].iter().any(|way| ran.contains(way));
    ensure!(told && ran.contains("sealed by"), "the guest's network and the seal are told:\n{ran}");
    mesh.atoll(&["logs", &one.id, "--tail", "5"])?.ok()?;
    far.remove(mesh)
}

fn usage_grows(mesh: &Mesh, one: &Sandbox, other: &Sandbox) -> anyhow::Result<()> {
    let used = |sandboxes: &[&str]| -> anyhow::Result<Vec<v1::Usage>> {
        let object = mesh.atoll(&[&["usage", "--json"], sandboxes].concat())?.json()?;
        Ok(serde_json::from_value(object["items"].clone())?)
    };
    let machine = |used: Vec<v1::Usage>| used.into_iter().next().and_then(|used| used.machine).context("its machine");
    let before = machine(used(&[&one.id])?)?;
    one.says(mesh, "dd if=/dev/urandom of=/root/moved bs=1M count=4 2>/dev/null; sync; rm /root/moved")?;
    let after = machine(used(&[&one.id])?)?;
    ensure!(after.cpu_ms > before.cpu_ms && after.memory_private_bytes > 0, "{before:?} {after:?}");
    ensure!(after.disk_written_bytes >= before.disk_written_bytes + (4 << 20), "{before:?} {after:?}");
    ensure!(after.memory_resident_bytes >= after.memory_private_bytes, "{after:?}");
    let all: BTreeSet<String> = used(&[])?.into_iter().map(|used| used.id).collect();
    ensure!([one, other].iter().all(|sandbox| all.contains(&sandbox.id)), "{all:?}");
    Ok(())
}

fn stop_keeps_the_disk(mesh: &Mesh, other: &Sandbox) -> anyhow::Result<()> {
    other.says(mesh, "echo kept > /root/kept && sync")?;
    mesh.atoll(&["stop", &other.id])?.ok()?;
    let used = mesh.atoll(&["usage", "--json", &other.id])?.json()?;
    ensure!(used["items"][0]["machine"].is_null(), "a stopped sandbox has no machine: {used}");
    ensure!(other.state(mesh)? == "stopped", "{}", other.info(mesh)?);
    mesh.atoll(&["exec", &other.id, "--", "true"])?.ends_with(125)?;
    mesh.atoll(&["start", &other.id])?.ok()?;
    ensure_is(&other.says(mesh, "cat /root/kept")?, "kept")?;
    other.remove(mesh)?;
    mesh.atoll(&["info", &other.id])?.ends_with(125).map(drop)
}

fn a_counter_moves(mesh: &Mesh, one: &Sandbox) -> anyhow::Result<()> {
    let before = Counter::start(mesh, one)?;
    let snapshot = mesh.atoll(&["snapshot", "--json", &one.id, "--name", "counting"])?.json()?;
    for name in
        ["id", "name", "sandbox", "region", "digest", "sizeBytes", "storedBytes", "stopMs", "durable", "replicas"]
    {
        ensure!(snapshot.get(name).is_some(), "{name} in {snapshot}");
    }
    ensure!(snapshot["id"].as_str().is_some_and(|id| id.starts_with("snap-")), "{snapshot}");
    mesh.atoll(&["snapshot", &one.id, "--name", "counting"])?.ends_with(125).context("a snapshot's name is unique")?;
    let at_home = before.has_gone_on(mesh, one)?;
    let restored = mesh.atoll(&["restore", "--json", "counting", "--region", "iad"])?.json()?;
    for name in ["id", "sandbox", "snapshot", "region", "state", "generation"] {
        ensure!(restored.get(name).is_some(), "{name} in {restored}");
    }
    ensure!(restored["id"] == restored["sandbox"] && restored["snapshot"] == snapshot["id"], "{restored}");
    let id = restored["id"].as_str().context("an id")?.to_owned();
    ensure!(restored["region"] == "iad" && id.starts_with("iad") && id != one.id, "{restored}");
    let moved = Sandbox { id, region: "iad".to_owned() };
    before.has_gone_on(mesh, &moved)?;
    at_home.has_gone_on(mesh, one)?;
    clones_differ(mesh, one, &moved)?;
    the_clock_is_right(mesh, &moved)?;
    moved.remove(mesh)?;
    mesh.atoll(&["restore", "nosuch", "--region", "iad"])?.ends_with(125).map(drop)
}

/// Lines that a guest writes while it is frozen in between, each long enough to fill many frames of the channel.
const LINES: usize = 300;

fn half_a_message(mesh: &Mesh, one: &Sandbox) -> anyhow::Result<()> {
    let client = mesh.client()?;
    let talk = format!(
        "import time\nfor i in range({LINES}):\n    print('x' * 30000 + str(i), flush=True)\n    time.sleep(0.01)\n"
    );
    let command = v1::Exec { argv: vec!["python3".into(), "-c".into(), talk], ..v1::Exec::default() };
    let ask = v1::CreateSnapshot { name: Some("mid-sentence".into()) };
    let (talked, snapshot) = mesh.wait(async {
        let mut stream = client.exec_stream(&one.id, &command).await?;
        let mut bytes = Vec::new();
        // The talk has begun; from here on the channel is never empty.
        let mut snapshot = None;
        let mut exit = None;
        while exit.is_none() {
            let event = stream.next().await.context("the stream's end comes with an exit")??;
            match event {
                ExecEvent::Stdout(more) => bytes.extend_from_slice(&more),
                ExecEvent::Stderr(_) => {}
                ExecEvent::Exit(end) => exit = Some(end.exit_code),
            }
            if snapshot.is_none() && bytes.len() > 300_000 {
                let (client, id, ask) = (client.clone(), one.id.clone(), ask.clone());
                snapshot = Some(tokio::spawn(async move { client.snapshot(&id, &ask).await }));
            }
        }
        ensure!(exit == Some(0), "the talk ended with {exit:?}");
        let snapshot = snapshot.context("it was taken")?.await??;
        Ok((String::from_utf8(bytes)?, snapshot))
    })?;
    let numbers: Vec<&str> = talked.lines().map(|line| line.trim_start_matches('x')).collect();
    let expected: Vec<String> = (0..LINES).map(|at| at.to_string()).collect();
    ensure!(numbers == expected, "the talk was cut or mixed: {} lines", numbers.len());
    ensure!(talked.lines().all(|line| line.len() > 30_000), "a line was cut");
    let restored = mesh.atoll(&["restore", "--json", &snapshot.id, "--region", "sin"])?.json()?;
    let moved = Sandbox { id: restored["id"].as_str().context("an id")?.to_owned(), region: "sin".to_owned() };
    ensure_is(&moved.says(mesh, "echo still here")?, "still here")?;
    let long = moved.says(mesh, "python3 -c 'print(\"y\" * 1000000)'")?;
    ensure!(
        long.len() == 1_000_000 && long.bytes().all(|byte| byte == b'y'),
        "a fresh message of {} bytes",
        long.len()
    );
    moved.remove(mesh)
}

fn keys_come_and_go(mesh: &Mesh) -> anyhow::Result<()> {
    let key = mesh.atoll(&["key", "create", "--json", "guest"])?.json()?;
    let text = key["key"].as_str().context("the key")?;
    let endpoint = mesh.endpoint("sin")?;
    let with_new = gateway_sdk::Client::new(&endpoint, text)?;
    // The catalog's copy in another region is a moment behind.
    eventually("the new key is known in sin", Duration::from_secs(30), || {
        Ok(mesh.wait(with_new.regions()).map(drop)?)
    })?;
    let listed = mesh.atoll(&["key", "ls"])?.ok()?;
    ensure!(listed.contains("guest") && !listed.contains(text), "a list never shows a key:\n{listed}");
    mesh.atoll(&["key", "rm", "guest"])?.ok()?;
    eventually("the key is refused in sin", Duration::from_secs(30), || {
        ensure!(mesh.wait(with_new.regions()).is_err(), "a revoked key still opens");
        Ok(())
    })
}

fn an_interrupted_run_leaves_nothing(mesh: &Mesh) -> anyhow::Result<()> {
    let ids = || -> anyhow::Result<BTreeSet<String>> {
        Ok(mesh.atoll(&["ls", "-q"])?.ok()?.lines().map(str::to_owned).collect())
    };
    let before = ids()?;
    let mut child = mesh.command().args(["run", "--region", "iad", "-c", "import time; time.sleep(600)"]).spawn()?;
    let process = Process::of(child.id() as i32).context("it lives")?;
    let made = eventually("its sandbox is there", Duration::from_secs(30), || {
        let now = ids()?;
        now.difference(&before).next().cloned().context("nothing new yet")
    })?;
    // It runs in there, or is about to; both must be undone.
    process.signal(Signal::SIGINT);
    let begun = Instant::now();
    let status = child.wait()?;
    ensure!(status.code() == Some(130), "it ended with {status}");
    ensure!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    eventually("its sandbox is gone", Duration::from_secs(30), || {
        ensure!(!ids()?.contains(&made), "{made} is left behind");
        Ok(())
    })
}

fn a_reader_goes_away(mesh: &Mesh, one: &Sandbox) -> anyhow::Result<()> {
    let mut child = mesh.command().args(["exec", &one.id, "--", "yes"]).stdout(std::process::Stdio::piped()).spawn()?;
    drop(child.stdout.take());
    let process = Process::of(child.id() as i32).context("it lives")?;
    ensure!(process.ends_within(Duration::from_secs(20)), "it writes on with no reader");
    let status = child.wait()?;
    ensure!(status.code() == Some(141), "it ended with {status}");
    // The command in the guest goes on, as after a lost connection; what it writes is dropped, and it can be ended.
    one.says(mesh, "pkill -x yes").map(drop)
}
