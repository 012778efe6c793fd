//! A disk that fills up: a clear error, and a store that is whole. The disk is a tmpfs of some MiB in a mount
//! namespace of its own, so that nothing of it is left whatever happens.
#![allow(clippy::print_stderr, reason = "a test that can't run here says so loudly")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use node_snapshot::StoreError;
use support::{Guest, open};

const INSIDE: &str = "ATOLL_TEST_SMALL_DISK";

#[test]
fn a_full_disk_is_a_clear_error_and_the_store_stays_whole() {
    if let Some(disk) = std::env::var_os(INSIDE) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(fill(PathBuf::from(disk)));
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(dir.path());
        command
    };
    let mount = "mount -t tmpfs -o size=12m,mode=700 tmpfs \"$1\"";
    if !unshare(mount).output().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: this host lets nobody mount a tmpfs in a namespace of one's own");
        return;
    }
    let this = std::env::current_exe().expect("this test's path");
    let test = "a_full_disk_is_a_clear_error_and_the_store_stays_whole";
    let output = unshare(&format!("{mount} && exec \"$2\" --exact {test} --nocapture"))
        .arg(this)
        .env(INSIDE, dir.path())
        .output()
        .expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn fill(disk: PathBuf) {
    let dir = disk.join("store");
    let store = open(&dir).await;
    // Some 1.5 MiB compressed, then some 20 MiB.
    let small = Guest::new(2000, 30);
    let kept = store.ingest_template(small.template_input()).await.expect("fits").manifest;
    let large = Guest::new(30_000, 30);
    let full = store.ingest_template(large.template_input()).await.expect_err("doesn't fit");
    assert!(matches!(full, StoreError::Full { .. }), "{full}");
    assert!(full.to_string().ends_with("the disk is full; nothing in the store has changed"), "{full}");
    assert_eq!(fs::read_dir(dir.join("tmp")).expect("lists").count(), 0, "what was being written is gone");
    let filler = disk.join("filler");
    let filled = fs::write(&filler, vec![1; 12 << 20]).expect_err("fills the disk");
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    let full = store.materialize_folder(kept, disk.join("made")).await.expect_err("doesn't fit");
    assert!(matches!(full, StoreError::Full { .. }), "{full}");
    let full = store.put_chunk(b"one more".to_vec().into()).await.expect_err("doesn't fit");
    assert!(matches!(full, StoreError::Full { .. }), "{full}");
    drop(store);
    fs::remove_file(filler).expect("removes");

    let store = open(&dir).await;
    assert_eq!(store.manifests().await.expect("lists"), vec![kept]);
    assert_eq!(store.missing(kept).await.expect("looks").chunks, 0);
    assert!(!disk.join("made.partial").exists());
    store.materialize_folder(kept, disk.join("made")).await.expect("fits now");
    let made = fs::read(disk.join("made/memory")).expect("reads");
    assert!(made == fs::read(small.path("template/memory")).expect("reads"));
}
