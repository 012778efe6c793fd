//! The manifest's bytes: a contract. Each schema is in `golden/`; what reads it today has to read it for ever.

mod support;

use std::collections::BTreeMap;

use fabric_types::{Digest, Generation, Shape};
use node_snapshot::{Base, ChunkRef, Content, Extent, FileMap, FileName, Header, Kind, Manifest, ManifestError};
use proptest::prelude::*;

const GOLDEN_2: &[u8] = include_bytes!("golden/manifest-2.bin");
const GOLDEN_1: &[u8] = include_bytes!("golden/manifest-1.bin");

fn header(parent: Option<Digest>) -> Header {
    Header {
        kind: Kind::Sandbox,
        parent,
        fit: support::fit(),
        shape: Shape::DEFAULT,
        generation: Some(Generation(7)),
        meta: serde_json::json!({"env": {"LANG": "C"}, "labels": {}}),
    }
}

fn chunk(byte: u8, pages: u32) -> ChunkRef {
    ChunkRef { digest: Digest::from_bytes([byte; 32]), pages, stored_bytes: pages * 1000 + 1 }
}

fn extent(page: u64, pages: u32, content: Content) -> Extent {
    Extent { page, pages, content }
}

fn filled(chunk: u32, at_page: u32) -> Content {
    Content::Chunk { chunk, at_page }
}

fn parts() -> (Header, Vec<ChunkRef>, BTreeMap<FileName, FileMap>) {
    let memory = FileMap {
        length: 1 << 30,
        base: Base::Parent,
        extents: vec![
            extent(3, 2, filled(1, 0)),
            extent(5, 1, Content::Zeros),
            extent(200_000, 198, filled(1, 2)),
            extent(200_198, 1, filled(0, 19)),
        ],
    };
    let disk = FileMap { length: 3 << 30, base: Base::Parent, extents: vec![extent(0, 4, filled(2, 0))] };
    let device_state = FileMap { length: 79_000, base: Base::Zeros, extents: vec![extent(0, 20, filled(0, 0))] };
    let files = [(FileName::MEMORY, memory), (FileName::DISK, disk), (FileName::DEVICE_STATE, device_state)].into();
    (header(Some(Digest::from_bytes([0xaa; 32]))), vec![chunk(1, 20), chunk(2, 200), chunk(3, 4)], files)
}

fn manifest() -> Manifest {
    let (header, chunks, files) = parts();
    Manifest::new(header, chunks, files).expect("holds together")
}

#[test]
fn schema_1_is_written_and_read_as_it_always_was() {
    let (digest, bytes) = manifest().encode().expect("encodes");
    if std::env::var_os("ATOLL_WRITE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/manifest-1.bin");
        std::fs::write(path, &bytes).expect("writes");
    }
    assert!(bytes == GOLDEN_1, "the bytes of schema 1 have changed: that takes a schema 2");
    assert_eq!(Manifest::parse(GOLDEN_1).expect("parses"), manifest());
    assert_eq!(digest.as_bytes(), blake3_of(GOLDEN_1).as_bytes());
}

#[test]
fn schema_2_is_written_for_a_disk_alone_and_read_as_it_always_was() {
    let (_, chunks, _) = parts();
    let disk = FileMap { length: 3 << 30, base: Base::Zeros, extents: vec![extent(0, 4, filled(2, 0))] };
    let header = Header { kind: Kind::Disk, ..header(None) };
    let archive = Manifest::new(header, chunks, [(FileName::DISK, disk)].into()).expect("holds together");
    let (_, bytes) = archive.encode().expect("encodes");
    if std::env::var_os("ATOLL_WRITE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/manifest-2.bin");
        std::fs::write(path, &bytes).expect("writes");
    }
    assert!(bytes == GOLDEN_2, "the bytes of schema 2 have changed: that takes a schema 3");
    assert_eq!(Manifest::parse(GOLDEN_2).expect("parses"), archive);
    // The same parts have one name, so one way to be written.
    for (golden, other) in [(GOLDEN_1, 2), (GOLDEN_2, 1)] {
        let mut bytes = golden.to_vec();
        bytes[8] = other;
        assert!(matches!(Manifest::parse(&bytes), Err(ManifestError::Contradiction(_))), "schema {other}");
    }
}

/// The name of bytes by way of the store, which is how everybody else sees it.
fn blake3_of(bytes: &[u8]) -> Digest {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let dir = tempfile::tempdir().expect("a folder");
        let store = support::open(dir.path()).await;
        store.put_chunk(bytes.to_vec().into()).await.expect("stores")
    })
}

#[test]
fn bytes_cut_anywhere_are_no_manifest() {
    for cut in 0..GOLDEN_1.len() {
        assert!(Manifest::parse(&GOLDEN_1[..cut]).is_err(), "cut at {cut}");
    }
    let longer = [GOLDEN_1, b"\0"].concat();
    assert!(matches!(Manifest::parse(&longer), Err(ManifestError::Malformed { .. })));
}

#[test]
fn a_newer_schema_is_refused_with_a_sentence() {
    let mut newer = GOLDEN_1.to_vec();
    newer[8] = 3;
    let error = Manifest::parse(&newer).expect_err("newer");
    assert_eq!(error.to_string(), "the manifest has schema version 3; this version reads up to 2");
    assert!(matches!(Manifest::parse(b"not a manifest"), Err(ManifestError::Magic)));
}

#[test]
fn counts_beyond_the_bytes_make_no_room() {
    // The header ends where the chunks' count is; a count within the limit but beyond the bytes is refused at once.
    let header_end = 16 + u32::from_le_bytes(GOLDEN_1[12..16].try_into().expect("four bytes")) as usize;
    let mut bytes = GOLDEN_1[..header_end].to_vec();
    bytes.extend_from_slice(&[0xff, 0xff, 0x1f]);
    assert!(matches!(Manifest::parse(&bytes), Err(ManifestError::Malformed { .. })));
    bytes.truncate(header_end);
    bytes.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(matches!(Manifest::parse(&bytes), Err(ManifestError::TooMany { what: "chunks", .. })));
    let mut long_header = GOLDEN_1.to_vec();
    long_header[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(Manifest::parse(&long_header), Err(ManifestError::TooMany { .. })));
}

#[test]
fn parts_that_contradict_each_other_are_refused() {
    let with_extents = |extents: Vec<Extent>| {
        let (header, chunks, mut files) = parts();
        files.insert(FileName::MEMORY, FileMap { length: 10 * 4096, base: Base::Zeros, extents });
        Manifest::new(header, chunks, files)
    };
    assert!(with_extents(vec![extent(0, 10, Content::Zeros)]).is_ok());
    for (what, extents) in [
        ("past the file's end", vec![extent(9, 2, Content::Zeros)]),
        ("overlap", vec![extent(0, 2, Content::Zeros), extent(1, 1, Content::Zeros)]),
        ("descend", vec![extent(5, 1, Content::Zeros), extent(1, 1, Content::Zeros)]),
        ("empty", vec![extent(5, 0, Content::Zeros)]),
        ("no such chunk", vec![extent(0, 1, filled(3, 0))]),
        ("past the chunk's end", vec![extent(0, 2, filled(2, 3))]),
        ("past everything", vec![extent(u64::MAX, u32::MAX, filled(2, u32::MAX))]),
    ] {
        assert!(with_extents(extents).is_err(), "{what}");
    }
    let (_, chunks, files) = parts();
    assert!(Manifest::new(header(None), chunks, files).is_err(), "differences from no parent");
    let (header, _, _) = parts();
    for bad in [chunk(1, 0), chunk(1, 257), ChunkRef { stored_bytes: 0, ..chunk(1, 1) }] {
        assert!(Manifest::new(header.clone(), vec![bad], BTreeMap::new()).is_err(), "{bad:?}");
    }
    for name in ["", ".", "..", ".x", "a/b", "a b", "ä", &"a".repeat(65)] {
        assert!(name.parse::<FileName>().is_err(), "{name}");
    }
}

proptest! {
    /// Bytes from anyone: no panic, and what is accepted is what it would be written as.
    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = GOLDEN_1.to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(manifest) = Manifest::parse(&bytes) {
            let (_, written) = manifest.encode().expect("encodes");
            prop_assert_eq!(Manifest::parse(&written).expect("parses"), manifest);
        }
    }

    #[test]
    fn any_tail_after_a_header_never_panics(tail in prop::collection::vec(any::<u8>(), 0..400)) {
        let header_end = 16 + u32::from_le_bytes(GOLDEN_1[12..16].try_into().expect("four bytes")) as usize;
        let _ = Manifest::parse(&[&GOLDEN_1[..header_end], &tail].concat());
    }

    /// Any extents that hold together read back as written.
    #[test]
    fn manifests_read_back_as_written(runs in prop::collection::vec((0u64..1000, 1u32..9, any::<bool>()), 0..50)) {
        let mut next = 0;
        let extents: Vec<Extent> = runs
            .into_iter()
            .map(|(gap, pages, zeros)| {
                let content = if zeros { Content::Zeros } else { filled(1, pages * 3) };
                let extent = extent(next + gap, pages, content);
                next = extent.end_page();
                extent
            })
            .collect();
        let (header, chunks, mut files) = parts();
        files.insert(FileName::DISK, FileMap { length: next * 4096, base: Base::Zeros, extents });
        let manifest = Manifest::new(header, chunks, files).expect("holds together");
        let (_, bytes) = manifest.encode().expect("encodes");
        prop_assert_eq!(Manifest::parse(&bytes).expect("parses"), manifest);
    }
}
