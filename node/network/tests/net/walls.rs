//! What every guest is held to, whatever its policy says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fabric_types::NetworkPolicy;
use node_network::Port;

use crate::guest::{Frame, Guest, Said, is_dead, lives, mac, open};
use crate::lab::{DECOYS, FORGED, HOST, Lab, OTHER, PUBLIC, Space, eventually, packets};

fn policy(text: &str) -> NetworkPolicy {
    serde_json::from_str(text).expect("a policy")
}

/// The card at the other end of a guest's cable.
fn gateway_mac(node: &Space, port: &Port) -> [u8; 6] {
    let Port::Tap { device, .. } = port else { panic!("a tap") };
    let shown = node.ip(&["-br", "link", "show", device]);
    mac(shown.split_whitespace().nth(2).expect("an address"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reaches_the_public_and_none_of_the_decoys() {
    let Some(mut lab) = Lab::new() else { return };
    let networks = lab.networks().await;
    let open_policy = NetworkPolicy::default();
    let mut guests = Vec::new();
    for _ in 0..2 {
        let port = networks.take().await.expect("taken").expect("a port");
        networks.apply(&port, &open_policy).await.expect("applied");
        guests.push(Guest::plug(&mut lab, port));
    }
    let (guest, peer) = (&guests[0], &guests[1]);
    lab.host.go(|| {
        let listener = std::net::TcpListener::bind("0.0.0.0:80").expect("bound");
        listener.incoming().for_each(drop);
    });
    assert!(guest.reaches(PUBLIC) && guest.reaches(OTHER) && peer.reaches(PUBLIC));
    assert!(matches!(guest.resolve("good.test."), Said::Addresses(..)));

    // An explicit allowance of everything opens none of it either.
    networks.apply(&guest.port, &policy(r#"{"blockAll":false,"allow":["0.0.0.0/0","::/0"]}"#)).await.expect("applied");
    assert!(guest.reaches(PUBLIC));
    let inner = lab.host.ip(&["-br", "-4", "addr", "show", &format!("atoll-{}", lab.tag)]);
    let link = inner.split_whitespace().nth(2).and_then(|text| text.split('/').next()).expect("an address").to_owned();
    let peer_address = peer.card().address.to_string();
    let hosts = [
        HOST,
        "127.0.0.1",
        "172.17.0.1",
        &link,
        &peer_address,
        &peer.card().gateway.to_string(),
        "224.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
    ]
    .map(str::to_owned);
    let from = guest.card().address;
    peer.space.run(&[
        "nft",
        &format!(
            "add table inet watch; add chain inet watch in {{ type filter hook prerouting \
        priority -400; }}; add rule inet watch in ip saddr {from} counter"
        ),
    ]);
    for decoy in DECOYS.iter().map(|&decoy| decoy.to_owned()).chain(hosts) {
        if decoy != "127.0.0.1" && decoy != "0.0.0.0" {
            assert!(guest.misses(&decoy), "{decoy}");
            guest.send_udp(&decoy, 7777);
        }
        forge_to(&lab, guest, &decoy);
    }
    forge_lies(&lab, guest, peer);
    thread::sleep(Duration::from_millis(200));
    assert!(lab.far.reached().iter().all(|&count| count == 0), "{:?}", lab.far.reached());
    assert_eq!(lab.host_took(), 0);
    assert_eq!(packets(&peer.space.run(&["nft", "list chain inet watch in"])), [0]);
    // And the wall is not simply closed: not for pieces either.
    guest.send_large_udp("1.1.1.78");
    eventually("a datagram in pieces passes", || lab.far.flooded() > 0);
    assert!(guest.reaches(PUBLIC) && peer.reaches(PUBLIC));
    networks.stop(true).await;
}

/// Right frames to a wrong place, whole, in pieces and tagged.
fn forge_to(lab: &Lab, guest: &Guest, decoy: &str) {
    let card = guest.card();
    let frame = Frame {
        to_mac: gateway_mac(&lab.node(), &guest.port),
        from_mac: mac(&card.mac),
        from: card.address,
        to: decoy.parse().expect("an address"),
    };
    guest.forge(&frame.udp());
    frame.fragments().iter().for_each(|piece| guest.forge(piece));
    guest.forge(&frame.tagged(0));
    guest.forge(&frame.tagged(7));
    guest.forge(&Frame { to_mac: [0xff; 6], ..frame }.udp());
}

/// Frames that lie about who sends them, and IPv6 ones, to a place that is open to true ones.
fn forge_lies(lab: &Lab, guest: &Guest, peer: &Guest) {
    let card = guest.card();
    let right = Frame {
        to_mac: gateway_mac(&lab.node(), &guest.port),
        from_mac: mac(&card.mac),
        from: card.address,
        to: FORGED.parse().expect("an address"),
    };
    let lies = [
        Frame { from_mac: mac(&peer.card().mac), ..right.clone() },
        Frame { from_mac: [2, 0, 0, 0, 0, 9], ..right.clone() },
        Frame { from: peer.card().address, ..right.clone() },
        Frame { from: card.gateway, ..right.clone() },
        Frame { from: "8.8.8.8".parse().expect("an address"), ..right.clone() },
        Frame { from: "127.0.0.1".parse().expect("an address"), ..right.clone() },
        Frame { from: "0.0.0.0".parse().expect("an address"), ..right.clone() },
    ];
    for lie in &lies {
        guest.forge(&lie.udp());
        lie.fragments().iter().for_each(|piece| guest.forge(piece));
        guest.forge(&lie.tagged(0));
        // The neighbour table believes none of it.
        guest.forge(&Frame { to: card.gateway, ..lie.clone() }.arp());
    }
    for (from, to) in [
        ("fe80::1", "2001:db8::1"),
        ("2001:db8::2", "2001:db8::1"),
        ("::ffff:8.8.8.8", "::ffff:1.1.1.77"),
        ("::1", "::1"),
        ("fe80::1", "ff02::1"),
        ("2002:101:14d::1", "2002:101:14d::1"),
        ("64:ff9b::1", "64:ff9b::101:14d"),
    ] {
        guest.forge(&right.udp6(from, to));
    }
    let believed = lab.node().ip(&["neigh"]);
    for line in believed.lines().filter(|line| line.contains("lladdr")) {
        let of =
            |guest: &Guest| line.starts_with(&format!("{} ", guest.card().address)) && line.contains(&guest.card().mac);
        assert!(of(guest) || of(peer) || line.contains("uplink"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_flood_passes_before_the_policy_does() {
    let Some(mut lab) = Lab::new() else { return };
    let networks = lab.networks().await;
    let port = networks.take().await.expect("taken").expect("a port");
    let card = port.guest().clone();
    let frame = Frame {
        to_mac: gateway_mac(&lab.node(), &port),
        from_mac: mac(&card.mac),
        from: card.address,
        to: "1.1.1.78".parse().expect("an address"),
    };
    let ends = Arc::new(AtomicBool::new(false));
    let flood = {
        use std::io::Write;
        let (mut tap, ends, frame) = (open(&port), ends.clone(), frame.clone());
        thread::spawn(move || {
            let question = Frame { to: card.gateway, ..frame.clone() };
            while !ends.load(Ordering::Relaxed) {
                for _ in 0..64 {
                    let _ = tap.write_all(&frame.udp());
                    let _ = tap.write_all(&question.udp());
                    let _ = tap.write_all(&Frame { from: card.address, to: card.gateway, ..frame.clone() }.arp());
                }
                thread::sleep(Duration::from_millis(1));
            }
        })
    };
    thread::sleep(Duration::from_millis(500));
    assert_eq!(lab.far.flooded(), 0);
    assert_eq!(lab.node().run(&["cat", "/proc/sys/net/netfilter/nf_conntrack_count"]).trim(), "0");
    networks.apply(&port, &policy(r#"{"blockAll":true}"#)).await.expect("applied");
    thread::sleep(Duration::from_millis(200));
    assert_eq!(lab.far.flooded(), 0);
    let began = Instant::now();
    networks.apply(&port, &NetworkPolicy::default()).await.expect("applied");
    eventually("the flood passes", || lab.far.flooded() > 0);
    println!("open after {:?}", began.elapsed());
    networks.block(&port).await.expect("blocked");
    // What passed before may still be on its way.
    let mut stood = lab.far.flooded();
    eventually("what had passed has arrived", || {
        thread::sleep(Duration::from_millis(50));
        let before = stood;
        stood = lab.far.flooded();
        stood == before
    });
    thread::sleep(Duration::from_millis(200));
    assert_eq!(lab.far.flooded(), stood);
    ends.store(true, Ordering::Relaxed);
    flood.join().expect("the flood ends");
    // The tap has been closed: another may open it, as after a restart of the machine.
    networks.apply(&port, &NetworkPolicy::default()).await.expect("applied");
    let guest = Guest::plug(&mut lab, port);
    assert!(guest.reaches(PUBLIC));
    networks.stop(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_policy_cuts_what_it_forbids_and_keeps_the_rest() {
    let Some(mut lab) = Lab::new() else { return };
    let networks = lab.networks().await;
    let port = networks.take().await.expect("taken").expect("a port");
    networks.apply(&port, &NetworkPolicy::default()).await.expect("applied");
    let guest = Guest::plug(&mut lab, port);
    let mut kept = guest.connect(PUBLIC, 80).expect("a connection");
    let mut cut = guest.connect(OTHER, 80).expect("a connection");
    assert!(lives(&mut kept) && lives(&mut cut));

    networks.apply(&guest.port, &policy(r#"{"blockAll":false,"deny":["9.9.9.0/24"]}"#)).await.expect("applied");
    assert!(lives(&mut kept));
    assert!(is_dead(&mut cut));
    assert!(guest.reaches(PUBLIC) && guest.misses(OTHER));

    let mut other = {
        networks.apply(&guest.port, &NetworkPolicy::default()).await.expect("applied");
        guest.connect(OTHER, 80).expect("a connection")
    };
    networks.apply(&guest.port, &policy(r#"{"blockAll":false,"allow":["1.1.1.0/24"]}"#)).await.expect("applied");
    assert!(lives(&mut kept) && is_dead(&mut other));
    assert!(guest.reaches(PUBLIC) && guest.misses(OTHER));

    // A denial wins over an allowance.
    let both = policy(r#"{"blockAll":false,"allow":["1.1.1.0/24"],"deny":["1.1.1.1/32"]}"#);
    networks.apply(&guest.port, &both).await.expect("applied");
    assert!(is_dead(&mut kept) && guest.misses(PUBLIC));

    networks.apply(&guest.port, &NetworkPolicy::default()).await.expect("applied");
    let mut last = guest.connect(PUBLIC, 80).expect("a connection");
    assert!(lives(&mut last));
    networks.apply(&guest.port, &policy(r#"{"blockAll":true}"#)).await.expect("applied");
    assert!(is_dead(&mut last) && guest.misses(PUBLIC) && guest.misses(OTHER));
    networks.stop(true).await;
}
