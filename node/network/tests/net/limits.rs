//! What one guest may take.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use fabric_types::NetworkPolicy;

use crate::far::{SINK, SOURCE};
use crate::guest::Guest;
use crate::lab::{Lab, PATIENCE, PUBLIC, eventually};

/// Sixteen million bits a second: slow enough for a busy machine to be faster.
const BITS: u64 = 16_000_000;
/// How long the rate is watched, and longer where a pause of the machine has made it too small.
const WATCHED: Duration = Duration::from_secs(3);
/// The least part of the limit that a guest gets.
const LEAST: f64 = 0.2;

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_its_bandwidth_and_no_more() {
    let Some(mut lab) = Lab::new() else { return };
    let mut config = lab.config();
    config.bits_per_second = BITS;
    let networks = node_network::Networks::start(config).await.expect("a network");
    let port = networks.take().await.expect("taken").expect("a port");
    networks.apply(&port, &NetworkPolicy::default()).await.expect("applied");
    let guest = Guest::plug(&mut lab, port);
    eventually("the guest is heard", || guest.reaches(PUBLIC));
    let limit = BITS as f64 / 8.0;

    let mut stream = guest.connect(PUBLIC, SOURCE).expect("a connection");
    let goes_on = |began: Instant, part: f64| {
        let watched = began.elapsed();
        watched < WATCHED || (part < LEAST && watched < PATIENCE)
    };
    let (mut bytes, mut got, mut down, began) = (vec![0u8; 65536], 0usize, 0.0, Instant::now());
    while goes_on(began, down) {
        got += stream.read(&mut bytes).expect("read");
        down = got as f64 / began.elapsed().as_secs_f64() / limit;
    }
    drop(stream);
    // What arrives counts, not what the sender's buffers took.
    let mut stream = guest.connect(PUBLIC, SINK).expect("a connection");
    stream.set_write_timeout(Some(Duration::from_secs(1))).expect("set");
    let (before, mut up, began) = (lab.far.sunk(), 0.0, Instant::now());
    while goes_on(began, up) {
        // A full buffer is no error: the rate is what is watched.
        let _ = stream.write(&bytes);
        up = (lab.far.sunk() - before) as f64 / began.elapsed().as_secs_f64() / limit;
    }
    println!("down {down:.2} and up {up:.2} of the limit");
    for part in [down, up] {
        assert!((LEAST..1.5).contains(&part), "{part}");
    }
    networks.stop(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_holds_so_many_connections_and_no_more() {
    let Some(mut lab) = Lab::new() else { return };
    let mut config = lab.config();
    config.connections = 8;
    let networks = node_network::Networks::start(config).await.expect("a network");
    let mut guests = Vec::new();
    for _ in 0..2 {
        let port = networks.take().await.expect("taken").expect("a port");
        networks.apply(&port, &NetworkPolicy::default()).await.expect("applied");
        guests.push(Guest::plug(&mut lab, port));
    }
    let held: Vec<_> = (0..8).map(|_| guests[0].connect(PUBLIC, 80).expect("a connection")).collect();
    assert!(guests[0].connect(PUBLIC, 80).is_none());
    assert!(guests[1].connect(PUBLIC, 80).is_some(), "another guest has its own count");
    drop(held);
    eventually("room again", || guests[0].connect(PUBLIC, 80).is_some());
    networks.stop(true).await;
}
