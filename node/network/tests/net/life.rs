//! Ports come and go, and outlive the process that made them.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use fabric_types::{GuestNetwork, NetworkPolicy};
use node_network::{NetworkConfig, NetworkFault, Networks, Port};

use crate::guest::{Guest, Said, is_dead, lives};
use crate::lab::{Lab, OTHER, PUBLIC, eventually};

fn policy(text: &str) -> NetworkPolicy {
    serde_json::from_str(text).expect("a policy")
}

fn number(port: &Port) -> u16 {
    let Port::Tap { number, .. } = port else { panic!("a tap") };
    *number
}

fn rules(lab: &Lab) -> String {
    lab.node().run(&["nft", "list", "ruleset"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_port_leaves_nothing() {
    let Some(mut lab) = Lab::new() else { return };
    let networks = lab.networks().await;
    assert_eq!(networks.kind(), GuestNetwork::Tap);
    let port = networks.take().await.expect("taken").expect("a port");
    let lists = r#"{"blockAll":false,"allow":["9.9.9.0/24"],"deny":["8.0.0.0/8"],"allowDomains":["good.test"]}"#;
    networks.apply(&port, &policy(lists)).await.expect("applied");
    let guest = Guest::plug(&mut lab, port.clone());
    assert!(matches!(guest.resolve("good.test."), Said::Addresses(..)));
    let mut stream = guest.connect(PUBLIC, 80).expect("a connection");
    assert!(guest.reaches(OTHER) && lives(&mut stream));
    let at = number(&port);
    networks.release(port.clone()).await;
    assert!(is_dead(&mut stream) && guest.misses(PUBLIC));
    let (device, suffix) = (format!("tap{at}"), format!("_{at} "));
    // A guest still holds the tap, so it is no use for another, and goes.
    eventually("the rules are gone", || !rules(&lab).contains(&suffix) && !rules(&lab).contains(&device));
    assert!(!lab.node().ip(&["link"]).contains(&format!("{device}:")));
    assert!(!lab.node().ip(&["route"]).contains(&guest.card().address.to_string()));
    assert_eq!(lab.node().run(&["cat", "/proc/sys/net/netfilter/nf_conntrack_count"]).trim(), "0");
    // What is gone can't be opened again, and releasing it twice does no harm.
    assert!(networks.apply(&port, &NetworkPolicy::default()).await.is_err());
    networks.release(port).await;
    networks.stop(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tap_that_is_used_again_has_nothing_of_its_last_guest() {
    let Some(mut lab) = Lab::new() else { return };
    let mut config = lab.config();
    config.ports_ahead = 1;
    let networks = Networks::start(config).await.expect("a network");
    let first = networks.take().await.expect("taken").expect("a port");
    let lists = r#"{"blockAll":false,"allow":["9.9.9.0/24"],"allowDomains":["good.test"]}"#;
    networks.apply(&first, &policy(lists)).await.expect("applied");
    networks.release(first.clone()).await;
    let mut others = Vec::new();
    let again = loop {
        let port = networks.take().await.expect("taken").expect("a port");
        if number(&port) == number(&first) {
            break port;
        }
        others.push(port);
        assert!(others.len() < 8, "the port comes back");
    };
    // Whoever still holds the old port can do nothing to the new one.
    assert!(networks.apply(&first, &NetworkPolicy::default()).await.is_err());
    networks.release(first.clone()).await;
    assert_ne!(again.guest().mac, first.guest().mac);
    assert!(!rules(&lab).contains(&first.guest().mac) && rules(&lab).contains(&again.guest().mac));
    assert!(!rules(&lab).contains("allow_") && !rules(&lab).contains("pins_"));
    let guest = Guest::plug(&mut lab, again.clone());
    assert!(guest.misses(PUBLIC), "shut until its own policy");
    networks.apply(&again, &NetworkPolicy::default()).await.expect("applied");
    eventually("the new guest is heard", || guest.reaches(PUBLIC));
    networks.stop(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_guests_and_their_connections_and_removes_the_rest() {
    let Some(mut lab) = Lab::new() else { return };
    let networks = lab.networks().await;
    let (kept, lost) = {
        let kept = networks.take().await.expect("taken").expect("a port");
        (kept, networks.take().await.expect("taken").expect("a port"))
    };
    let names = policy(r#"{"blockAll":false,"allowDomains":["good.test"],"allow":["9.9.9.9/32"]}"#);
    networks.apply(&kept, &names).await.expect("applied");
    networks.apply(&lost, &NetworkPolicy::default()).await.expect("applied");
    let guest = Guest::plug(&mut lab, kept.clone());
    assert!(matches!(guest.resolve("good.test."), Said::Addresses(..)));
    let mut pinned = guest.connect(PUBLIC, 80).expect("a connection");
    let mut listed = guest.connect(OTHER, 80).expect("a connection");
    networks.stop(false).await;
    assert!(networks.take().await.is_err(), "the owner has ended");
    assert!(lives(&mut pinned) && lives(&mut listed), "guests go on");
    assert!(guest.misses("10.1.2.3"), "and stay filtered");
    // The owner's thread ends a little later than the owner, and with it its sockets.
    let sockets = || lab.node().run(&["cat", "/proc/net/udp", "/proc/net/tcp"]);
    eventually("the first resolver is gone", || !sockets().contains("00000000:0035 "));

    let networks = lab.networks().await;
    assert!(lives(&mut pinned) && lives(&mut listed));
    networks.retain(std::slice::from_ref(&kept)).await.expect("retained");
    networks.apply(&kept, &names).await.expect("applied");
    assert!(lives(&mut pinned) && lives(&mut listed) && guest.reaches(PUBLIC));
    assert!(matches!(guest.resolve("good.test."), Said::Addresses(..)));
    // A later policy still knows the addresses of the name.
    let more = policy(r#"{"blockAll":false,"allowDomains":["good.test","else.test"]}"#);
    networks.apply(&kept, &more).await.expect("applied");
    assert!(lives(&mut pinned) && is_dead(&mut listed));
    eventually("nothing of the other port is left", || !rules(&lab).contains(&lost.guest().mac));
    let absent = networks.retain(&[lost]).await;
    assert!(matches!(absent, Err(NetworkFault::System { .. })), "{absent:?}");
    let another = networks.take().await.expect("taken").expect("a port");
    assert_ne!(number(&another), number(&kept));
    networks.stop(true).await;

    let uplink = lab.host.ip(&["link"]);
    assert!(!uplink.contains("atoll-"), "{uplink}");
    assert!(!lab.host.run(&["nft", "list", "tables"]).contains("atoll"));
    assert!(!Path::new("/run/netns").join(format!("atoll-{}", lab.tag)).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ports_are_made_and_one_costs_little() {
    let Some(lab) = Lab::new() else { return };
    let mut config = lab.config();
    config.ports_ahead = 100;
    let networks = Networks::start(config).await.expect("a network");
    let taps = || lab.node().ip(&["-br", "link"]).lines().filter(|line| line.starts_with("tap")).count();
    eventually("the ports are made ahead", || taps() == 100);
    let timed = |began: Instant| began.elapsed().as_micros();
    let (mut takes, mut opens, mut lists, mut changes, mut ports) = (vec![], vec![], vec![], vec![], vec![]);
    let closed = policy(r#"{"blockAll":false,"allow":["1.0.0.0/8","2.2.2.2/32"],"allowDomains":["a.com"]}"#);
    let open = NetworkPolicy::default();
    for at in 0..60 {
        let began = Instant::now();
        let port = networks.take().await.expect("taken").expect("a port");
        takes.push(timed(began));
        let began = Instant::now();
        networks.apply(&port, if at < 30 { &open } else { &closed }).await.expect("applied");
        if at < 30 {
            opens.push(timed(began))
        } else {
            lists.push(timed(began))
        }
        let began = Instant::now();
        networks.apply(&port, &policy(r#"{"blockAll":true}"#)).await.expect("applied");
        changes.push(timed(began));
        ports.push(port);
    }
    let mut macs: Vec<_> = ports.iter().map(|port| port.guest().mac.clone()).collect();
    macs.sort();
    macs.dedup();
    assert_eq!(macs.len(), ports.len());
    for (what, mut times) in [("take", takes), ("default policy", opens), ("lists", lists), ("change", changes)] {
        times.sort_unstable();
        println!("{what}: median {} us, most {} us", times[times.len() / 2], times[times.len() - 1]);
    }
    let began = Instant::now();
    for port in ports {
        networks.release(port).await;
    }
    let (mut beside, mut releases) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let port = networks.take().await.expect("taken").expect("a port");
        let began = Instant::now();
        networks.apply(&port, &open).await.expect("applied");
        beside.push(timed(began));
        let began = Instant::now();
        networks.release(port).await;
        releases.push(timed(began));
    }
    for (what, mut times) in [("default policy beside releases", beside), ("release", releases)] {
        times.sort_unstable();
        println!("{what}: median {} us, most {} us", times[times.len() / 2], times[times.len() - 1]);
    }
    eventually("as many are ahead as before", || (100..=200).contains(&taps()) && !rules(&lab).contains("allow_"));
    println!("60 ports released and replaced within {:?}", began.elapsed());
    networks.stop(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_make_taps_guests_have_none_and_the_reason_is_said() {
    let Some(lab) = Lab::new() else { return };
    let mut config = lab.config();
    config.choice = node_network::NetworkChoice::Auto;
    config.uplink = Some("/nowhere".into());
    let networks = Networks::start(config.clone()).await.expect("a network");
    assert_eq!(networks.kind(), GuestNetwork::None);
    assert!(networks.reason().contains("/nowhere"), "{}", networks.reason());
    assert_eq!(networks.take().await.expect("taken"), None);
    config.choice = node_network::NetworkChoice::Tap;
    assert!(Networks::start(config).await.is_err());
    let left = Command::new("ip").args(["netns", "list"]).output().expect("listed");
    assert!(!String::from_utf8_lossy(&left.stdout).contains(&format!("atoll-{}", lab.tag)));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_one_host_start_at_the_same_moment() {
    let Some(lab) = Lab::new() else { return };
    let tags: Vec<String> = (0..6).map(|number| format!("{}{number}", &lab.tag[..lab.tag.len().min(7)])).collect();
    let starts = tags.iter().map(|tag| Networks::start(NetworkConfig { tag: tag.clone(), ..lab.config() }));
    let started = futures::future::join_all(starts).await;
    let reasons: Vec<String> = started
        .iter()
        .map(|started| match started {
            Ok(networks) if networks.kind() == GuestNetwork::Tap => String::new(),
            Ok(networks) => networks.reason().to_owned(),
            Err(error) => error.to_string(),
        })
        .collect();
    for networks in started.into_iter().flatten() {
        networks.stop(true).await;
    }
    assert!(reasons.iter().all(String::is_empty), "{reasons:?}");
}
