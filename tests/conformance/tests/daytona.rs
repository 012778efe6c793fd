//! The Daytona wire: the stock client unchanged against every region, and every refusal in the wire's form.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests_conformance::{Request, StockClient};
use tests_harness::{Mesh, MeshOptions, eventually, step};

/// A region that answers late is listed as it was last known: a list is asked for again for so long.
const LISTED: Duration = Duration::from_secs(30);

/// What a user writes, unchanged.
const HELLO: &str = r#"
from daytona import Daytona

daytona = Daytona()
sandbox = daytona.create()
response = sandbox.process.code_run('print("Hello World!")')
print(response.result)
daytona.delete(sandbox)
"#;

/// What the clients do besides: the parts of the wire that the server promises.
const TOUR: &str = r#"
from daytona import Daytona, CreateSandboxFromSnapshotParams

daytona = Daytona()
sandbox = daytona.create(CreateSandboxFromSnapshotParams(language="javascript", labels={"job": "tour"}, env_vars={"A": "b"}))
assert sandbox.process.code_run("console.log(6 * 7)").result.strip() == "42"
answer = sandbox.process.exec("echo $A; exit 3")
assert (answer.exit_code, answer.result.strip()) == (3, "b"), answer
sandbox.fs.create_folder("/root/folder", "755")
sandbox.fs.upload_file(b"some bytes", "/root/folder/file")
assert [entry.name for entry in sandbox.fs.list_files("/root/folder")] == ["file"]
assert sandbox.fs.download_file("/root/folder/file") == b"some bytes"
sandbox.fs.delete_file("/root/folder/file")
assert daytona.get(sandbox.id).id == sandbox.id
sandbox.stop()
sandbox.start()
assert sandbox.process.exec("ls -d /root/folder").result.strip() == "/root/folder"
daytona.delete(sandbox)
print("toured")
"#;

/// What the newest client has for the engine's verbs: interpreters, pause and resume by a request, forks, networks,
/// intervals, shapes, archives.
const ENGINE: &str = r#"
from daytona import CreateSandboxFromSnapshotParams, Daytona, DaytonaTimeoutError, Resources

daytona = Daytona()
sandbox = daytona.create(CreateSandboxFromSnapshotParams(
    network_allow_list="203.0.113.7/24", domain_allow_list="*.example.com", auto_stop_interval=0,
    auto_pause_interval=30, auto_archive_interval=60, auto_delete_interval=120, ttl_minutes=600))
assert sandbox.network_allow_list == "203.0.113.0/24", sandbox.network_allow_list
assert (sandbox.auto_pause_interval, sandbox.auto_archive_interval, sandbox.auto_delete_interval) == (30, 60, 120)

code = sandbox.code_interpreter
seen = []
first = code.run_code("x = 6\nprint('out')", on_stdout=lambda message: seen.append(message.output))
assert (first.stdout, "".join(seen), first.error) == ("out\n", "out\n", None), first
assert code.run_code("print(x * 7)").stdout == "42\n", "the default context remembers"
failed = code.run_code("1/0")
assert failed.error.name == "ZeroDivisionError" and "1/0" in failed.error.traceback, failed
context = code.create_context(cwd="/tmp")
assert [one.id for one in code.list_contexts()] == [context.id]
own = code.run_code("import os; print(os.getcwd(), os.environ['A'], 'x' in globals())", context=context, envs={"A": "b"})
assert own.stdout == "/tmp b False\n", own
try:
    code.run_code("import time; time.sleep(60)", timeout=1)
    raise AssertionError("it ran on")
except DaytonaTimeoutError:
    pass
code.delete_context(context)

sandbox.process.exec("echo kept > /root/file; (sleep 600 &)")
sandbox.pause()
assert sandbox.state == "paused", sandbox.state
assert sandbox.process.exec("cat /root/file").result == "kept\n", "a request resumes it"
sandbox.refresh_data()
assert sandbox.state == "started", sandbox.state

fork = sandbox.fork(name="fork")
assert (fork.name, fork.state) == ("fork", "started") and fork.id != sandbox.id
assert fork.process.exec("cat /root/file; pgrep -c sleep").result == "kept\n1\n", "memory and disk"
fork.process.exec("echo other > /root/file")
assert sandbox.process.exec("cat /root/file").result == "kept\n", "each has its own from now on"
assert fork.process.exec("cat /etc/machine-id").result != sandbox.process.exec("cat /etc/machine-id").result
daytona.delete(fork)

sandbox.update_network_settings(network_block_all=True)
assert sandbox.network_block_all
sandbox.set_autostop_interval(15)
sandbox.set_auto_pause_interval(0)
sandbox.set_ttl(0)
sandbox.set_public(True)
sandbox.refresh_data()
assert (sandbox.auto_stop_interval, sandbox.auto_pause_interval, sandbox.public) == (15, 0, True)

sandbox.stop()
sandbox.resize(Resources(disk=5))
assert sandbox.disk == 5
sandbox.archive()
sandbox.refresh_data()
assert sandbox.state == "archived", sandbox.state
sandbox.start()
assert sandbox.process.exec("cat /root/file").result == "kept\n", "out of the archive"
daytona.delete(sandbox)
blocked = daytona.create(CreateSandboxFromSnapshotParams(network_block_all=True))
assert blocked.network_block_all
daytona.delete(blocked)
print("forked")
"#;

#[test]
fn mesh_serves_the_stock_clients() -> anyhow::Result<()> {
    let clients =
        step("the stock clients", || Ok([StockClient::install(None)?, StockClient::install(Some("0.190.0"))?]))?;
    let mesh = Mesh::start(MeshOptions::default())?;
    for client in &clients {
        for region in mesh.regions() {
            step(&format!("hello from {region} with daytona {}", client.version), || {
                let said = client.run(HELLO, &format!("{}/api", mesh.endpoint(region)?), mesh.key())?;
                ensure!(said.trim() == "Hello World!", "{said:?}");
                Ok(())
            })?;
        }
        step(&format!("a tour with daytona {}", client.version), || {
            let said = client.run(TOUR, mesh.daytona_url(), mesh.key())?;
            ensure!(said.trim() == "toured", "{said:?}");
            Ok(())
        })?;
    }
    step("interpreters, pause, fork, network, resize and archive with the newest client", || {
        let said = clients[0].run(ENGINE, mesh.daytona_url(), mesh.key())?;
        ensure!(said.trim() == "forked", "{said:?}");
        Ok(())
    })?;
    step("a key that is missing or wrong", || keys_are_asked_for(&mesh))?;
    step("every refusal has the wire's form", || refusals_have_their_form(&mesh))?;
    step("bodies have a limit", || bodies_have_a_limit(&mesh))?;
    step("commands have a timeout", || commands_have_a_timeout(&mesh))?;
    step("target, list and labels are mesh-wide", || the_mesh_is_one(&mesh))?;
    step("nothing is left by the clients", || {
        eventually("an empty list", LISTED, || {
            let list = mesh.atoll(&["ls", "--json"])?.json()?;
            ensure!(list["items"].as_array().is_some_and(Vec::is_empty), "{list}");
            Ok(())
        })
    })?;
    mesh.stop()
}

/// A request with the mesh's key to the first region.
fn ask(mesh: &Mesh, request: Request) -> anyhow::Result<tests_conformance::Answer> {
    request.key(mesh.key()).send(&mesh.endpoint("fra")?)
}

fn keys_are_asked_for(mesh: &Mesh) -> anyhow::Result<()> {
    let endpoint = mesh.endpoint("fra")?;
    let wrong = format!("e2b_{}", "0".repeat(40));
    for target in ["/api/sandbox", "/api/sandbox/nosuch", "/v1/mesh", "/toolbox/fra0123456789abcdef/files?path=/"] {
        Request::new("GET", target).send(&endpoint)?.refusal(&[401]).with_context(|| format!("no key: {target}"))?;
        let answer = Request::new("GET", target).key(&wrong).send(&endpoint)?;
        answer.refusal(&[401]).with_context(|| format!("a wrong key: {target}"))?;
    }
    let answer = Request::new("GET", "/api/sandbox").header("authorization", "Basic abc").send(&endpoint)?;
    answer.refusal(&[401]).context("not a bearer")?;
    Ok(())
}

fn refusals_have_their_form(mesh: &Mesh) -> anyhow::Result<()> {
    let create = |body: Value| Request::new("POST", "/api/sandbox").json(body.to_string());
    let malformed = |body: &[u8]| Request::new("POST", "/api/sandbox").json(body);
    let sandbox = created(&ask(mesh, create(json!({"name": "refusals"})))?)?;
    let toolbox = |method: &str, path: &str| Request::new(method, &format!("/toolbox/{sandbox}{path}"));
    let resize = |body: Value| Request::new("POST", &format!("/api/sandbox/{sandbox}/resize")).json(body.to_string());
    let gone = "fra0000000000000000";
    let cases: Vec<(&str, Request, &[u16])> = vec![
        ("malformed JSON", malformed(b"{\"name\":"), &[400]),
        ("JSON that is no object", malformed(b"[1,2]"), &[400]),
        ("bytes that are no text", malformed(b"\xff\xfe\x00"), &[400]),
        ("a mistyped field", create(json!({"cpu": "two"})), &[400]),
        ("a mistyped map", create(json!({"labels": ["a"]})), &[400]),
        ("an unknown region", create(json!({"target": "nowhere"})), &[400, 404]),
        ("a negative shape", create(json!({"cpu": -1})), &[400]),
        ("an impossible shape", create(json!({"memory": 100_000})), &[400]),
        ("no capacity", create(json!({"cpu": 16, "memory": 64, "disk": 500})), &[503]),
        ("a name that exists", create(json!({"name": "refusals"})), &[409]),
        ("an unknown snapshot", create(json!({"snapshot": "nosuch"})), &[400, 404]),
        ("an allow list that is none", create(json!({"networkAllowList": "10.0.0.300"})), &[400]),
        ("a domain that is none", create(json!({"domainAllowList": "http://example.com"})), &[400]),
        ("a negative interval", create(json!({"autoPauseInterval": -1})), &[400]),
        ("a disk that shrinks", resize(json!({"disk": 1})), &[400]),
        ("memory of a running one", resize(json!({"memory": 2})), &[409]),
        ("an archive of a running one", Request::new("POST", &format!("/api/sandbox/{sandbox}/archive")), &[409]),
        ("a parent of no fork", Request::new("GET", &format!("/api/sandbox/{sandbox}/parent")), &[404]),
        ("an unknown context", toolbox("DELETE", "/process/interpreter/context/nosuch"), &[404]),
        ("no WebSocket", toolbox("GET", "/process/interpreter/execute"), &[400]),
        ("an unknown sandbox", Request::new("GET", &format!("/api/sandbox/{gone}")), &[404]),
        ("an unknown name", Request::new("DELETE", "/api/sandbox/nosuch"), &[404]),
        ("an unknown sandbox's toolbox", Request::new("GET", &format!("/toolbox/{gone}/files?path=/")), &[404]),
        ("an unknown file", toolbox("GET", "/files/info?path=/nosuch"), &[404]),
        ("an unknown file's bytes", toolbox("GET", "/files/download?path=/nosuch"), &[404]),
        ("no path", toolbox("GET", "/files/info"), &[400]),
        (
            "an unknown language",
            toolbox("POST", "/process/code-run").json(json!({"code": "x", "language": "cobol"}).to_string()),
            &[400],
        ),
        ("no command", toolbox("POST", "/process/execute").json("{}"), &[400]),
        (
            "an impossible timeout",
            toolbox("POST", "/process/execute").json(json!({"command": "true", "timeout": -1}).to_string()),
            &[400],
        ),
        ("an unknown path", Request::new("GET", "/api/nosuch"), &[404]),
        ("an unknown path of no wire", Request::new("GET", "/nosuch"), &[404]),
        ("a wrong method", Request::new("PATCH", "/api/sandbox"), &[405]),
        ("a wrong method on one", Request::new("PUT", &format!("/api/sandbox/{sandbox}")), &[405]),
        ("an interval that is none", Request::new("POST", &format!("/api/sandbox/{sandbox}/autostop/soon")), &[400]),
        ("labels that are none", Request::new("GET", "/api/sandbox?labels=notjson"), &[400]),
    ];
    let mut failed = Vec::new();
    for (name, request, statuses) in cases {
        if let Err(error) = ask(mesh, request.clone()).and_then(|answer| answer.refusal(statuses)) {
            failed.push(format!("{name}: {request}: {error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{} refusals are not as promised:\n{}", failed.len(), failed.join("\n"));
    let answer = ask(mesh, Request::new("DELETE", &format!("/api/sandbox/{sandbox}")))?;
    ensure!(answer.status == 200 && answer.json()?["id"] == sandbox.as_str(), "{answer:?}");
    Ok(())
}

fn created(answer: &tests_conformance::Answer) -> anyhow::Result<String> {
    let body = answer.json()?;
    ensure!(matches!(answer.status, 200 | 201), "{}: {body}", answer.status);
    ensure!(body["state"] == "started", "create answers when it runs: {body}");
    for name in [
        "id",
        "organizationId",
        "name",
        "user",
        "env",
        "labels",
        "public",
        "networkBlockAll",
        "kvm",
        "target",
        "cpu",
        "gpu",
        "memory",
        "disk",
        "toolboxProxyUrl",
    ] {
        ensure!(body.get(name).is_some(), "{name} in {body}");
    }
    Ok(body["id"].as_str().context("an id")?.to_owned())
}

fn bodies_have_a_limit(mesh: &Mesh) -> anyhow::Result<()> {
    let large = json!({"name": "x".repeat(2 << 20)}).to_string();
    ask(mesh, Request::new("POST", "/api/sandbox").json(large))?.refusal(&[413]).context("2 MiB")?;
    let larger = vec![b' '; 40 << 20];
    ask(mesh, Request::new("POST", "/api/sandbox").json(larger))?.refusal(&[413]).context("40 MiB, drained")?;
    // The gateway still serves after both.
    ensure!(ask(mesh, Request::new("GET", "/api/sandbox"))?.status == 200, "the gateway serves on");
    Ok(())
}

fn commands_have_a_timeout(mesh: &Mesh) -> anyhow::Result<()> {
    let sandbox = created(&ask(mesh, Request::new("POST", "/api/sandbox").json("{}"))?)?;
    let execute =
        |body: Value| Request::new("POST", &format!("/toolbox/{sandbox}/process/execute")).json(body.to_string());
    let answer = ask(mesh, execute(json!({"command": "sleep 600", "timeout": 1})))?;
    answer.refusal(&[408])?;
    // Killed, but the kernel may still be at it.
    let until = "for i in $(seq 150); do pgrep -f '^sleep 600' >/dev/null || break; sleep 0.2; done; \
        pgrep -f '^sleep 600' | wc -l";
    let answer = ask(mesh, execute(json!({"command": until})))?;
    ensure!(answer.json()?["result"].as_str().map(str::trim) == Some("0"), "it lives on: {answer:?}");
    let answer = ask(mesh, execute(json!({"command": "echo out; echo err >&2; exit 4"})))?;
    let body = answer.json()?;
    ensure!(body["exitCode"] == 4 && body["result"] == "out\nerr\n", "stdout and stderr as written: {body}");
    ensure!(ask(mesh, Request::new("DELETE", &format!("/api/sandbox/{sandbox}")))?.status == 200, "deleted");
    Ok(())
}

fn the_mesh_is_one(mesh: &Mesh) -> anyhow::Result<()> {
    let body = json!({"target": "sin", "labels": {"job": "one"}});
    let answer = ask(mesh, Request::new("POST", "/api/sandbox").json(body.to_string()))?;
    let sandbox = created(&answer)?;
    let view = answer.json()?;
    ensure!(view["target"] == "sin" && sandbox.starts_with("sin"), "{view}");
    let toolbox = format!("{}/toolbox", mesh.endpoint("sin")?);
    ensure!(view["toolboxProxyUrl"].as_str().map(|url| url.trim_end_matches('/')) == Some(&*toolbox), "{view}");
    let labels = "%7B%22job%22%3A%22one%22%7D";
    for region in mesh.regions() {
        let request = Request::new("GET", &format!("/api/sandbox?labels={labels}")).key(mesh.key());
        eventually("it is listed", LISTED, || {
            let list = request.send(&mesh.endpoint(region)?)?.json()?;
            let ids: Vec<&Value> = list["items"].as_array().context("items")?.iter().map(|item| &item["id"]).collect();
            ensure!(ids == [&json!(sandbox)], "from {region}: {list}");
            Ok(())
        })?;
        // Any gateway serves any sandbox.
        let one =
            Request::new("GET", &format!("/api/sandbox/{sandbox}")).key(mesh.key()).send(&mesh.endpoint(region)?)?;
        ensure!(one.json()?["id"] == sandbox.as_str(), "from {region}: {one:?}");
    }
    ensure!(ask(mesh, Request::new("DELETE", &format!("/api/sandbox/{sandbox}")))?.status == 200, "deleted");
    let regions = ask(mesh, Request::new("GET", "/api/regions"))?.json()?;
    ensure!(regions.to_string().contains("iad"), "{regions}");
    Ok(())
}
