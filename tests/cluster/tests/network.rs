//! What a guest reaches, tried from inside guests of a whole mesh that runs in a network of the test's own, beside decoys.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use gateway_sdk::{Client, v1};
use serde_json::Value;
use tests_harness::lab::{Decoy, FAR, FAR_TOO, Lab, NEAR, RESOLVER};
use tests_harness::{Footprint, Mesh, MeshOptions, eventually, skip, step};

const TEST: &str = "mesh_guests_reach_the_world_and_nothing_that_is_ours";
/// For what may be reached: a probe waits for each answer for less than a busy machine takes now and then.
const REACHED: Duration = Duration::from_secs(30);
/// Tries TCP and UDP to each of its arguments, and answers which of them said something, as JSON.
const PROBE: &str = r#"
import json, socket, sys
reached = []
for word in sys.argv[1:]:
    host, port = word.rsplit("|", 1)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as s:
            s.settimeout(0.7)
            try:
                s.connect((host, int(port)))
                s.send(b"GET / HTTP/1.0\r\n\r\n")
                if s.recv(100):
                    reached.append(word + ("/tcp" if kind == socket.SOCK_STREAM else "/udp"))
            except OSError:
                pass
print(json.dumps(reached))
"#;

#[test]
fn mesh_guests_reach_the_world_and_nothing_that_is_ours() -> anyhow::Result<()> {
    if let Some(why) = Lab::lacks() {
        return skip(TEST, &why);
    }
    let mut lab = Lab::enter()?;
    let far = lab.far_decoy(FAR.into(), 8000)?;
    let far_too = lab.far_decoy(FAR_TOO.into(), 8000)?;
    let forbidden = decoys(&mut lab)?;
    lab.resolver(vec![
        ("good.test", FAR),
        ("other.test", FAR_TOO),
        ("rebind.test", Ipv4Addr::new(169, 254, 169, 254)),
        ("rebind.test", FAR),
    ])?;
    let more = ["--resolver".to_owned(), format!("{RESOLVER}:53")].to_vec();
    let options = MeshOptions { regions: vec!["fra".to_owned()], more, ..MeshOptions::default() };
    let mut mesh = Mesh::start(options)?;
    let mut footprint = Footprint::of(&mesh);
    let client = mesh.client_of("fra")?;
    let seen = mesh.wait(client.mesh())?;
    let network = serde_json::to_value(&seen.nodes[0].isolation)?["network"].clone();
    if network != "tap" {
        mesh.stop()?;
        return skip(TEST, &format!("guests of this host have the network {network}, not taps"));
    }
    let guest = Guest::create(&mesh, &client, v1::Network::default())?;
    let peer = Guest::create(&mesh, &client, v1::Network::default())?;
    step("the world is reached, by address and by name", || {
        let said = guest.reached(&[far.at], 2)?;
        ensure!(said.len() == 2, "reached: {said:?}");
        guest.fetches("http://good.test:8000/")
    })?;
    step("nothing of ours is, by any protocol", || {
        let mut targets: Vec<SocketAddr> = forbidden.iter().map(|decoy| decoy.at).collect();
        let ports = [mesh.port_base(), mesh.port_base() + 1, mesh.port_base() + 2, 53, 22];
        targets.extend(ports.map(|port| SocketAddr::from((NEAR, port))));
        let said = guest.probe(&targets)?;
        ensure!(said.is_empty(), "reached: {said:?}");
        none_visited(&forbidden)
    })?;
    step("nor another sandbox", || {
        peer.serve(8000)?;
        let address = peer.address()?;
        let said = guest.probe(&[SocketAddr::new(address, 8000)])?;
        ensure!(said.is_empty(), "a peer at {address} was reached: {said:?}");
        Ok(())
    })?;
    step("no name leads where no address may", || {
        ensure!(guest.fetch("http://rebind.test:8000/").is_err(), "a rebinding name was followed");
        none_visited(&forbidden)
    })?;
    step("a spoofed source goes nowhere", || spoof(&guest, &far))?;
    step("a policy is changed in mid-flow", || changed_live(&mesh, &client, &guest, &far, &far_too))?;
    step("names alone may be allowed", || names_alone(&mesh, &client, &far_too))?;
    step("nothing at all", || {
        let alone = Guest::create(&mesh, &client, v1::Network { block_all: true, ..v1::Network::default() })?;
        let said = alone.probe(&[far.at, far_too.at])?;
        ensure!(said.is_empty(), "reached: {said:?}");
        ensure!(alone.fetch("http://good.test:8000/").is_err(), "a name was answered");
        restored_alone(&alone, &[far.at, far_too.at])
    })?;
    step("ranges alone", || {
        let network = v1::Network { allow: vec![format!("{}/32", far.at.ip())], ..v1::Network::default() };
        let ranged = Guest::create(&mesh, &client, network)?;
        let said = ranged.reached(&[far.at, far_too.at], 1)?;
        ensure!(
            said.iter().all(|said| said.contains(&far.at.ip().to_string())) && !said.is_empty(),
            "reached: {said:?}"
        );
        ensure!(ranged.fetch("http://good.test:8000/").is_err(), "a name was answered: a question is a way out");
        Ok(())
    })?;
    footprint.look();
    mesh.interrupt()?;
    let leaks = footprint.leaks();
    ensure!(leaks.is_empty(), "left behind:\n{}", leaks.join("\n"));
    mesh.stop()
}

/// What is restored from a snapshot of it reaches no more than it did, unless its creator says so.
fn restored_alone(alone: &Guest<'_>, far: &[SocketAddr]) -> anyhow::Result<()> {
    let (mesh, client) = (alone.mesh, alone.client);
    let ask = v1::CreateSnapshot { name: Some("alone".to_owned()) };
    mesh.wait(client.snapshot(&alone.id, &ask))?;
    let restored = mesh.wait(client.restore("alone", &v1::RestoreSnapshot::default()))?;
    let restored = Guest { mesh, client, id: restored.id };
    let said = restored.probe(far)?;
    ensure!(said.is_empty(), "restored, it reached: {said:?}");
    let open = v1::CreateSandbox {
        snapshot: Some("alone".to_owned()),
        network: Some(v1::Network::default()),
        ..v1::CreateSandbox::default()
    };
    let opened = Guest { mesh, client, id: mesh.wait(client.create(&open))?.id };
    let said = opened.reached(far, 2 * far.len())?;
    ensure!(said.len() == 2 * far.len(), "its creator gave it a network: {said:?}");
    Ok(())
}

/// Addresses that a guest must never reach, each with a listener that would answer.
fn decoys(lab: &mut Lab) -> anyhow::Result<Vec<Decoy>> {
    let far: [IpAddr; 10] = [
        [169, 254, 169, 254].into(),
        [169, 254, 1, 1].into(),
        [10, 99, 0, 1].into(),
        [172, 16, 5, 5].into(),
        [192, 168, 77, 1].into(),
        [100, 64, 7, 7].into(),
        [198, 18, 0, 9].into(),
        [192, 0, 2, 9].into(),
        Ipv6Addr::new(0x2600, 0x99, 0, 0, 0, 0, 0, 1).into(),
        Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254).into(),
    ];
    let mut decoys = Vec::new();
    for address in far {
        decoys.push(lab.far_decoy(address, 8000)?);
    }
    decoys.push(lab.near_decoy(NEAR.into(), 8000)?);
    decoys.push(lab.near_decoy(Ipv4Addr::UNSPECIFIED.into(), 8001)?);
    Ok(decoys)
}

fn none_visited(decoys: &[Decoy]) -> anyhow::Result<()> {
    let visited: Vec<_> = decoys.iter().filter(|decoy| decoy.visitors() > 0).map(|decoy| decoy.at).collect();
    ensure!(visited.is_empty(), "{} of {} decoys were reached: {visited:?}", visited.len(), decoys.len());
    Ok(())
}

/// Datagrams with another's source, from a raw socket of the guest's root.
fn spoof(guest: &Guest<'_>, far: &Decoy) -> anyhow::Result<()> {
    let before = far.visitors();
    let program = format!(
        r#"
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for source in ("11.22.33.9", "10.0.0.1", "127.0.0.1"):
    data = b"spoofed"
    udp = struct.pack("!HHHH", 4000, {port}, 8 + len(data), 0) + data
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton("{to}"))
    s.sendto(ip + udp, ("{to}", 0))
print("sent")
"#,
        port = far.at.port(),
        to = far.at.ip(),
    );
    ensure!(guest.python(&program, &[])? == "sent\n", "the guest's root has raw sockets of its own");
    std::thread::sleep(std::time::Duration::from_millis(500));
    ensure!(far.visitors() == before, "{} spoofed datagrams arrived", far.visitors() - before);
    Ok(())
}

/// A connection that a new policy forbids ends, and one that it allows is made.
fn changed_live(mesh: &Mesh, client: &Client, guest: &Guest<'_>, far: &Decoy, far_too: &Decoy) -> anyhow::Result<()> {
    let only_too = v1::Network { allow: vec![format!("{}/32", far_too.at.ip())], ..v1::Network::default() };
    mesh.wait(client.set_network(&guest.id, &only_too))?;
    let said = guest.reached(&[far.at, far_too.at], 2)?;
    ensure!(said.len() == 2 && said.iter().all(|word| word.contains("11.22.44.1")), "only the other: {said:?}");
    let denied = v1::Network { deny: vec!["11.22.44.0/24".to_owned()], ..v1::Network::default() };
    mesh.wait(client.set_network(&guest.id, &denied))?;
    let said = guest.reached(&[far.at, far_too.at], 2)?;
    ensure!(said.len() == 2 && said.iter().all(|word| word.contains("11.22.33.1")), "only the first: {said:?}");
    Ok(())
}

fn names_alone(mesh: &Mesh, client: &Client, far_too: &Decoy) -> anyhow::Result<()> {
    let policy = v1::Network { allow_domains: vec!["good.test".to_owned()], ..v1::Network::default() };
    let guest = Guest::create(mesh, client, policy)?;
    guest.fetches("http://good.test:8000/").context("the allowed name")?;
    ensure!(guest.fetch("http://other.test:8000/").is_err(), "another name was followed");
    let said = guest.probe(&[far_too.at, SocketAddr::from((RESOLVER, 53))])?;
    ensure!(said.is_empty(), "reached without a name: {said:?}");
    Ok(())
}

struct Guest<'a> {
    mesh: &'a Mesh,
    client: &'a Client,
    id: String,
}

impl<'a> Guest<'a> {
    fn create(mesh: &'a Mesh, client: &'a Client, network: v1::Network) -> anyhow::Result<Self> {
        let ask = v1::CreateSandbox { network: Some(network), ..v1::CreateSandbox::default() };
        let id = mesh.wait(client.create(&ask))?.id;
        Ok(Self { mesh, client, id })
    }

    fn python(&self, program: &str, argv: &[String]) -> anyhow::Result<String> {
        let language = "python".to_owned();
        let argv = argv.to_vec();
        let ask = v1::CodeRun { code: program.to_owned(), language, argv, ..v1::CodeRun::default() };
        let result = self.mesh.wait(self.client.code_run(&self.id, &ask))?;
        ensure!(result.exit_code == 0, "it ended with {}: {}", result.exit_code, result.stderr);
        Ok(result.stdout)
    }

    /// Which of these answer, with their protocol.
    fn probe(&self, targets: &[SocketAddr]) -> anyhow::Result<Vec<String>> {
        let words: Vec<String> = targets.iter().map(|at| format!("{}|{}", at.ip(), at.port())).collect();
        let said: Value = serde_json::from_str(&self.python(PROBE, &words)?)?;
        let words = said.as_array().context("a list")?.iter();
        Ok(words.filter_map(|word| word.as_str().map(str::to_owned)).collect())
    }

    /// All of these that have answered once so many have.
    fn reached(&self, targets: &[SocketAddr], count: usize) -> anyhow::Result<BTreeSet<String>> {
        let mut reached = BTreeSet::new();
        eventually("the answers", REACHED, || {
            reached.extend(self.probe(targets)?);
            ensure!(reached.len() >= count, "reached: {reached:?}");
            Ok(())
        })?;
        Ok(reached)
    }

    /// A decoy answers at a URL.
    fn fetches(&self, url: &str) -> anyhow::Result<()> {
        eventually(url, REACHED, || {
            let said = self.fetch(url)?;
            ensure!(said == "decoy", "{url} says {said:?}");
            Ok(())
        })
    }

    /// What a URL answers.
    fn fetch(&self, url: &str) -> anyhow::Result<String> {
        let program = "import sys, urllib.request\n\
            print(urllib.request.urlopen(sys.argv[1], timeout=3).read().decode(), end='')";
        self.python(program, &[url.to_owned()])
    }

    fn address(&self) -> anyhow::Result<IpAddr> {
        let ask = v1::Exec { command: Some("hostname -I".to_owned()), ..v1::Exec::default() };
        let said = self.mesh.wait(self.client.exec(&self.id, &ask))?.stdout;
        said.split_whitespace().next().context("no address")?.parse().context("no address")
    }

    /// Listens on a port, in the background.
    fn serve(&self, port: u16) -> anyhow::Result<()> {
        let command = format!(
            "nohup setsid python3 -m http.server {port} >/dev/null 2>&1 & \
            for i in $(seq 300); do curl -so /dev/null http://127.0.0.1:{port}/ && echo on && break; sleep 0.1; done"
        );
        let ask = v1::Exec { command: Some(command), ..v1::Exec::default() };
        ensure!(self.mesh.wait(self.client.exec(&self.id, &ask))?.stdout == "on\n", "it doesn't listen");
        Ok(())
    }
}
