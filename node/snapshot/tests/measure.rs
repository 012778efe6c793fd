//! What storing, restoring and pulling cost, printed. It fails only where a number is absurd: machines differ.
#![allow(clippy::print_stderr, reason = "the numbers are what this test is for")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fabric_quic::{Fabric, MemoryNetwork, Peer, Protocol};
use node_snapshot::{ChunkServer, PullProgress, Puller};
use support::{Guest, PAGE, noise, open};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A guest of 1 GiB with 30 MiB of private pages in runs of 8, over a template with 60 MiB of its memory filled.
#[tokio::test(flavor = "multi_thread")]
async fn thirty_mebibytes_of_private_pages() {
    let mut guest = Guest::new(1, 8);
    guest.memory_length = 1 << 30;
    let pages = guest.memory_length / PAGE as u64;
    guest.template_memory = (0..15_360).map(|page| (page * 5 % pages, noise(page))).collect();
    support::sparse_file(&guest.path("template/memory"), guest.memory_length, &guest.template_memory);
    let private: BTreeMap<u64, [u8; PAGE]> =
        (0..7680_u64).map(|page| ((page / 8 * 131 + page % 8) % pages, noise(page + 9_000_000))).collect();
    let network = MemoryNetwork::new();
    let [fra, iad] = ["fra-1", "iad-1"].map(|name| network.join(name.parse().expect("a node id")));
    let (origin, replica) = (open(&guest.path("origin")).await, open(&guest.path("replica")).await);
    let server = CancellationToken::new();
    let streams = fra.accept(Protocol::Chunks).expect("first");
    tokio::spawn(ChunkServer::run(origin.clone(), streams, server.clone()));

    let began = Instant::now();
    let template = origin.ingest_template(guest.template_input()).await.expect("stores");
    let template_took = began.elapsed();
    let input = guest.sandbox_input(template.manifest, &private, &guest.template_disk, true);
    let began = Instant::now();
    let sandbox = origin.ingest_sandbox(input.clone()).await.expect("stores");
    let stored = began.elapsed();
    let began = Instant::now();
    assert_eq!(origin.ingest_sandbox(input).await.expect("stores").stored_bytes, 0);
    let stored_again = began.elapsed();
    let peer = Peer { address: fra.local_address(), node: Some(fra.node().clone()) };
    let puller = Puller::new(replica.clone(), iad);
    let progress = watch::channel(PullProgress::default()).0;
    let pulled = puller.pull(sandbox.manifest, &[peer], &progress).await.expect("pulls");
    let began = Instant::now();
    let disk = Some(guest.path("template/disk"));
    let made = replica.materialize_sandbox(sandbox.manifest, disk, guest.path("resumed")).await.expect("makes");
    let materialized = began.elapsed();
    assert_eq!(made.runs.iter().map(|(_, length)| length).sum::<u64>(), 7680 * PAGE as u64);
    let manifest_bytes = std::fs::metadata(guest.path("origin/manifests").join(sandbox.manifest.to_string()));
    eprintln!(
        "30 MiB private: stored in {} ms ({} ms again) as {} KiB in {} chunks and a manifest of {} bytes; put together \
         in {} ms. Template of 60 MiB: stored in {} ms as {} KiB. Pulled both ({} chunks, {} KiB) in {} ms.",
        stored.as_millis(),
        stored_again.as_millis(),
        sandbox.stored_bytes / 1024,
        made.manifest.chunks().len(),
        manifest_bytes.expect("looks").len(),
        materialized.as_millis(),
        template_took.as_millis(),
        template.stored_bytes / 1024,
        pulled.chunks_fetched,
        pulled.bytes_fetched / 1024,
        pulled.took_ms,
    );
    assert!(stored < Duration::from_secs(20), "30 MiB took {stored:?}");
}
