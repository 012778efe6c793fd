//! The store: what goes in comes out, what is damaged doesn't, and what is killed half way does no harm.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fabric_types::{Digest, Generation, Shape, UnixMillis};
use node_snapshot::{DiskInput, FileName, Kind, SandboxInput, SnapshotStore, StoreError};
use proptest::prelude::*;
use support::{Guest, PAGE, chunk_files, lay_over, noise, open, private_pages, sparse_file};

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    UnixMillis(u64::try_from(since.as_millis()).expect("fits"))
}

/// A disk that shares most of the template's pages, has new ones, and has cleared some.
fn changed_disk(guest: &Guest) -> BTreeMap<u64, [u8; PAGE]> {
    let mut disk = guest.template_disk.clone();
    disk.insert(0, noise(77));
    disk.insert(1, noise(78));
    disk.insert(3, [0; PAGE]);
    disk.remove(&6);
    disk
}

#[tokio::test]
async fn a_sandbox_comes_back_as_it_was_by_each_way_to_its_template() {
    let guest = Guest::new(3000, 900);
    let store = open(&guest.path("store")).await;
    let template = store.ingest_template(guest.template_input()).await.expect("stores the template");
    let private = private_pages(&guest, 800);
    let disk = changed_disk(&guest);
    for with_template_files in [true, false] {
        let input = guest.sandbox_input(template.manifest, &private, &disk, with_template_files);
        let ingested = store.ingest_sandbox(input.clone()).await.expect("stores the sandbox");
        assert!(ingested.chunk_bytes < template.chunk_bytes);
        for template_disk in [Some(guest.path("template/disk")), None] {
            let into = guest.path("resumed");
            let made = store.materialize_sandbox(ingested.manifest, template_disk, into.clone()).await.expect("makes");
            assert!(lay_over(&guest.path("template/memory"), &made.pages, &made.runs) == guest.memory(&private));
            assert!(fs::read(&made.disk).expect("reads") == fs::read(&input.disk).expect("reads"));
            assert!(fs::read(&made.device_state).expect("reads") == fs::read(&input.device_state).expect("reads"));
            assert_eq!(made.manifest.header().meta, input.meta);
            assert_eq!(made.manifest.header().parent, Some(template.manifest));
            fs::remove_dir_all(into).expect("removes");
        }
    }
}

#[tokio::test]
async fn a_disk_comes_back_whole_without_its_template_and_half_of_it_never() {
    let guest = Guest::new(300, 900);
    let store = open(&guest.path("store")).await;
    let disk = guest.path("own-disk");
    sparse_file(&disk, guest.disk_length, &changed_disk(&guest));
    let input = DiskInput {
        fit: support::fit(),
        shape: Shape::DEFAULT,
        generation: Generation(3),
        meta: serde_json::json!({ "schema": 1 }),
        disk: disk.clone(),
    };
    let stored = store.ingest_disk(input.clone()).await.expect("stores the disk");
    assert_eq!(store.ingest_disk(input).await.expect("again").manifest, stored.manifest);
    let manifest = store.manifest(stored.manifest).await.expect("is there");
    assert_eq!((manifest.header().kind, manifest.header().parent), (Kind::Disk, None));
    let (into, partial) = (guest.path("back/disk"), guest.path("back/disk.partial"));
    fs::create_dir(guest.path("back")).expect("a folder");
    fs::write(&partial, b"an earlier attempt's").expect("writes");
    store.materialize_file(stored.manifest, FileName::DISK, into.clone()).await.expect("comes back");
    assert!(fs::read(&into).expect("reads") == fs::read(&disk).expect("reads"));
    assert!(!partial.exists());
    fs::remove_file(&into).expect("removes");

    let chunk = chunk_files(&guest.path("store")).pop().expect("it has a chunk");
    fs::write(&chunk, b"something else").expect("damages it");
    store.materialize_file(stored.manifest, FileName::DISK, into.clone()).await.expect_err("damaged");
    assert!(!into.exists() && !partial.exists(), "nothing of it is left");
}

#[tokio::test]
async fn pages_equal_to_the_templates_are_left_out_and_cleared_ones_are_not() {
    let guest = Guest::new(300, 30);
    let store = open(&guest.path("store")).await;
    let template = store.ingest_template(guest.template_input()).await.expect("stores").manifest;
    let equal = guest.template_memory[&3];
    let private = BTreeMap::from([(1, [0; PAGE]), (3, equal), (6, [0; PAGE]), (7, noise(1))]);
    let input = guest.sandbox_input(template, &private, &guest.template_disk, true);
    let ingested = store.ingest_sandbox(input).await.expect("stores").manifest;
    let made = store.materialize_sandbox(ingested, None, guest.path("resumed")).await.expect("makes");
    let page = PAGE as u64;
    assert_eq!(made.runs, vec![(6 * page, 2 * page)]);
    let disk = &made.manifest.files()[&node_snapshot::FileName::DISK];
    assert!(disk.extents.is_empty(), "an unchanged disk takes nothing: {:?}", disk.extents);
}

#[tokio::test]
async fn a_sandbox_without_a_template_is_stored_whole() {
    let guest = Guest::new(300, 30);
    let store = open(&guest.path("store")).await;
    let private = private_pages(&guest, 100);
    let input = guest.sandbox_input(Digest::from_bytes([0; 32]), &private, &guest.template_disk, false);
    let refused = store.ingest_sandbox(input.clone()).await.expect_err("a template that is nowhere");
    assert!(matches!(refused, StoreError::NoManifest(_)), "{refused}");
    let ingested = store.ingest_sandbox(SandboxInput { template: None, ..input.clone() }).await.expect("stores");
    let made = store.materialize_sandbox(ingested.manifest, None, guest.path("resumed")).await.expect("makes");
    assert!(fs::read(&made.pages).expect("reads") == fs::read(&input.pages).expect("reads"));
    assert!(fs::read(&made.disk).expect("reads") == fs::read(&input.disk).expect("reads"));
}

#[tokio::test]
async fn a_template_comes_back_whole_and_its_identity_does_not_depend_on_where_it_lay() {
    let (guest, elsewhere) = (Guest::new(2000, 400), Guest::new(2000, 400));
    let store = open(&guest.path("store")).await;
    let first = store.ingest_template(guest.template_input()).await.expect("stores");
    let again = store.ingest_template(elsewhere.template_input()).await.expect("stores");
    assert_eq!(first.manifest, again.manifest);
    assert!(first.stored_bytes > 0 && again.stored_bytes == 0);
    assert_eq!(store.manifests().await.expect("lists"), vec![first.manifest]);

    let into = guest.path("made");
    // What an earlier attempt left is no obstacle.
    fs::create_dir(guest.path("made.partial")).expect("a folder");
    fs::write(guest.path("made.partial/memory"), b"half").expect("writes");
    store.materialize_folder(first.manifest, into.clone()).await.expect("makes");
    for name in ["memory", "disk", "device_state", "template.json"] {
        let (made, was) = (into.join(name), guest.path("template").join(name));
        assert!(fs::read(&made).expect("reads") == fs::read(&was).expect("reads"), "{name}");
    }
    assert!(!guest.path("made.partial").exists());
    let refused = store.materialize_folder(first.manifest, into).await.expect_err("it is there already");
    assert!(matches!(refused, StoreError::Input { .. }), "{refused}");
}

#[tokio::test]
async fn a_damaged_chunk_is_never_used_and_is_set_aside() {
    let guest = Guest::new(3000, 300);
    let dir = guest.path("store");
    let store = open(&dir).await;
    let template = store.ingest_template(guest.template_input()).await.expect("stores").manifest;
    let chunks = chunk_files(&dir);
    let damaged = chunks.iter().max_by_key(|path| fs::metadata(path).expect("looks").len()).expect("a chunk");
    let digest: Digest = damaged.file_name().and_then(|name| name.to_str()).expect("a name").parse().expect("a digest");
    let file = File::options().read(true).write(true).open(damaged).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1000).expect("reads");
    file.write_all_at(&[byte[0] ^ 1], 1000).expect("writes");

    let failed = store.materialize_folder(template, guest.path("made")).await.expect_err("a damaged chunk");
    assert!(matches!(failed, StoreError::Damaged { digest: found, .. } if found == digest), "{failed}");
    assert!(!guest.path("made").exists() && !guest.path("made.partial").exists());
    assert!(matches!(store.get_chunk(digest).await, Err(StoreError::NoChunk(_))));
    assert_eq!(store.missing(template).await.expect("looks").chunks, 1);
    // Stored again, all is well.
    let again = store.ingest_template(guest.template_input()).await.expect("stores");
    assert!(again.stored_bytes > 0 && again.manifest == template);
    assert_eq!(store.missing(template).await.expect("looks").chunks, 0);
    store.materialize_folder(template, guest.path("made")).await.expect("makes");
}

#[tokio::test]
async fn damaged_manifests_and_impossible_chunks_are_refused() {
    let guest = Guest::new(30, 10);
    let dir = guest.path("store");
    let store = open(&dir).await;
    let template = store.ingest_template(guest.template_input()).await.expect("stores").manifest;
    let path = dir.join("manifests").join(template.to_string());
    let mut bytes = fs::read(&path).expect("reads");
    *bytes.last_mut().expect("bytes") ^= 1;
    fs::write(&path, bytes).expect("writes");
    assert!(matches!(store.manifest(template).await, Err(StoreError::Damaged { what: "manifest", .. })));
    assert!(matches!(store.manifest(template).await, Err(StoreError::NoManifest(_))));
    for bytes in [0, node_snapshot::CHUNK_STORED_BYTES_MAX + 1] {
        let refused = store.put_chunk(Bytes::from(vec![1; bytes])).await.expect_err("too many or none");
        assert!(matches!(refused, StoreError::ChunkSize { .. }), "{refused}");
    }
    let digest = store.put_chunk(Bytes::from_static(b"any bytes")).await.expect("stores");
    assert_eq!(store.get_chunk(digest).await.expect("reads"), &b"any bytes"[..]);
    assert!(store.has_chunk(digest).await.expect("looks"));
}

#[tokio::test]
async fn the_folder_is_held_by_one_and_a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = open(dir.path()).await;
    let locked = SnapshotStore::open(dir.path()).await.err().expect("held");
    assert!(matches!(locked, StoreError::Locked { .. }), "{locked}");
    drop(store);
    drop(open(dir.path()).await);
    fs::write(dir.path().join("schema"), "2\n").expect("writes");
    let newer = SnapshotStore::open(dir.path()).await.err().expect("newer");
    assert!(newer.to_string().ends_with("has schema version 2; this version reads up to 1"), "{newer}");
    fs::remove_file(dir.path().join("schema")).expect("removes");
    assert!(SnapshotStore::open(dir.path()).await.is_err(), "a store that lost its schema is not taken for a new one");
}

#[tokio::test]
async fn what_a_killed_process_left_is_cleaned_up_and_the_work_can_be_done_again() {
    let guest = Guest::new(3000, 300);
    let dir = guest.path("store");
    let store = open(&dir).await;
    let whole = store.ingest_template(guest.template_input()).await.expect("stores");
    drop(store);
    // As if it had been killed: no manifest yet, one chunk not named yet, another still being written.
    fs::remove_file(dir.join("manifests").join(whole.manifest.to_string())).expect("removes");
    let chunks = chunk_files(&dir);
    fs::rename(&chunks[0], dir.join("tmp/0")).expect("moves");
    fs::write(dir.join("tmp/1"), b"half a chunk").expect("writes");
    fs::remove_file(&chunks[1]).expect("removes");

    let store = open(&dir).await;
    assert_eq!(fs::read_dir(dir.join("tmp")).expect("lists").count(), 0);
    assert_eq!(store.manifests().await.expect("lists"), vec![]);
    let again = store.ingest_template(guest.template_input()).await.expect("stores");
    assert_eq!(again.manifest, whole.manifest);
    assert!(again.stored_bytes > 0 && again.stored_bytes < whole.stored_bytes, "only what is lacking is written");
    store.materialize_folder(again.manifest, guest.path("made")).await.expect("makes");
}

#[tokio::test]
async fn a_dropped_ingest_leaves_a_store_that_goes_on() {
    let guest = Guest::new(6000, 300);
    let store = open(&guest.path("store")).await;
    let mut dropped = 0;
    for wait_ms in [0, 1, 5, 20] {
        let ingest = store.ingest_template(guest.template_input());
        // One that is done when this thread comes to look is not dropped.
        dropped += u32::from(tokio::time::timeout(Duration::from_millis(wait_ms), ingest).await.is_err());
    }
    assert!(dropped > 0, "none was dropped");
    let template = store.ingest_template(guest.template_input()).await.expect("stores").manifest;
    store.materialize_folder(template, guest.path("made")).await.expect("makes");
}

#[tokio::test]
async fn what_nothing_refers_to_goes_after_its_grace_and_nothing_else() {
    let guest = Guest::new(3000, 300);
    let dir = guest.path("store");
    let store = open(&dir).await;
    let grace = Duration::from_secs(600);
    let template = store.ingest_template(guest.template_input()).await.expect("stores").manifest;
    let input = guest.sandbox_input(template, &private_pages(&guest, 300), &guest.template_disk, true);
    let sandbox = store.ingest_sandbox(input).await.expect("stores").manifest;
    let loose = store.put_chunk(Bytes::from_static(b"nobody's")).await.expect("stores");
    let all = chunk_files(&dir).len();
    let later = |seconds: u64| UnixMillis(now().0 + seconds * 1000);

    assert_eq!(store.collect(later(0), grace).await.expect("collects").chunks, 0, "all is in its grace");
    let collected = store.collect(later(601), grace).await.expect("collects");
    assert_eq!((collected.chunks, collected.manifests), (1, 0), "only what no manifest refers to");
    assert!(!store.has_chunk(loose).await.expect("looks"));

    // A removed template stays while a snapshot refers to it, however long.
    store.remove(template, now()).await.expect("removes");
    store.remove(template, now()).await.expect("removing is idempotent");
    assert_eq!(store.manifests().await.expect("lists"), vec![sandbox]);
    assert_eq!(store.collect(later(6000), grace).await.expect("collects").manifests, 0);
    store.materialize_sandbox(sandbox, None, guest.path("resumed")).await.expect("makes, from a removed parent");
    assert_eq!(store.missing(template).await.expect("looks").chunks, 0);
    let input = guest.sandbox_input(template, &private_pages(&guest, 300), &guest.template_disk, true);
    assert_eq!(store.ingest_sandbox(input).await.expect("stores over a removed parent").manifest, sandbox);

    store.remove(sandbox, now()).await.expect("removes");
    assert_eq!(store.collect(later(1), grace).await.expect("collects").chunks, 0, "its grace begins at its removal");
    assert!(matches!(store.manifest(sandbox).await, Err(StoreError::NoManifest(_))));
    let collected = store.collect(later(601), grace).await.expect("collects");
    assert_eq!((collected.chunks as usize, collected.manifests), (all - 1, 2));
    assert_eq!(chunk_files(&dir), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn collecting_with_no_grace_never_takes_what_is_being_stored() {
    let guest = Guest::new(2000, 300);
    let store = open(&guest.path("store")).await;
    let far = UnixMillis(now().0 + 1_000_000_000);
    let collector = tokio::spawn({
        let store = store.clone();
        async move {
            loop {
                store.collect(far, Duration::ZERO).await.expect("collects");
            }
        }
    });
    for round in 0..8 {
        let template = store.ingest_template(guest.template_input()).await.expect("stores").manifest;
        assert_eq!(store.missing(template).await.expect("looks").chunks, 0, "round {round}");
        store.materialize_folder(template, guest.path(&format!("made-{round}"))).await.expect("makes");
        store.remove(template, UnixMillis(0)).await.expect("removes");
    }
    collector.abort();
}

#[tokio::test]
async fn what_a_driver_must_not_give_is_refused() {
    let guest = Guest::new(30, 10);
    let store = open(&guest.path("store")).await;
    let template = store.ingest_template(guest.template_input()).await.expect("stores").manifest;
    let input = guest.sandbox_input(template, &private_pages(&guest, 3), &guest.template_disk, true);
    for runs in [
        vec![(100, 4096)],
        vec![(0, 100)],
        vec![(0, 0)],
        vec![(4096, 4096), (0, 4096)],
        vec![(0, 8192), (4096, 4096)],
        vec![(29 * 4096, 8192)],
        vec![(u64::MAX - 4095, 4096)],
    ] {
        let refused = store.ingest_sandbox(SandboxInput { runs: runs.clone(), ..input.clone() }).await;
        assert!(matches!(refused, Err(StoreError::Input { .. })), "{runs:?}");
    }
    let no_file = SandboxInput { disk: guest.path("template"), ..input };
    assert!(matches!(store.ingest_sandbox(no_file).await, Err(StoreError::Input { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Any private pages and any disk over any template come back as they were.
    #[test]
    fn any_sandbox_comes_back_as_it_was(
        memory in prop::collection::btree_map(0u64..400, 0u64..6, 0..120),
        disk in prop::collection::btree_map(0u64..120, 0u64..6, 0..60),
        with_template_files in any::<bool>(),
        with_template_disk in any::<bool>(),
    ) {
        let guest = Guest::new(400, 120);
        let content = |base: &BTreeMap<u64, [u8; PAGE]>, page: u64, choice: u64| match choice {
            0 => [0; PAGE],
            1 => base.get(&page).copied().unwrap_or([0; PAGE]),
            // The same page again, somewhere else.
            2 => noise(42),
            _ => noise(page * 10 + choice),
        };
        let private: BTreeMap<u64, [u8; PAGE]> = memory
            .into_iter()
            .map(|(page, choice)| (page, content(&guest.template_memory, page, choice)))
            .collect();
        let mut whole_disk = guest.template_disk.clone();
        for (page, choice) in disk {
            match choice {
                5 => drop(whole_disk.remove(&page)),
                _ => drop(whole_disk.insert(page, content(&guest.template_disk, page, choice))),
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let store = open(&guest.path("store")).await;
            let template = store.ingest_template(guest.template_input()).await.expect("stores").manifest;
            let input = guest.sandbox_input(template, &private, &whole_disk, with_template_files);
            let ingested = store.ingest_sandbox(input.clone()).await.expect("stores");
            let template_disk = with_template_disk.then(|| guest.path("template/disk"));
            let into = guest.path("resumed");
            let made = store.materialize_sandbox(ingested.manifest, template_disk, into).await.expect("makes");
            let memory = lay_over(&guest.path("template/memory"), &made.pages, &made.runs);
            assert!(memory == guest.memory(&private), "memory");
            assert!(fs::read(&made.disk).expect("reads") == fs::read(&input.disk).expect("reads"), "disk");
        });
    }
}
