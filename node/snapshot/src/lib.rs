//! Snapshots: manifests, chunks, the local store, and pulling what is missing from peers.
//!
//! A sandbox that was stopped for some milliseconds, or a template, becomes a *manifest* that names *chunks*; both are
//! named by their hash, so that a copy can be checked wherever it comes from. This crate doesn't know drivers, guests
//! or the catalog: it is given files and gives files back.
//!
//! ```text
//! input        plain values at the door: what is stored, what comes back
//! manifest     which chunks make which files; codec: its bytes
//! chunk        up to 1 MiB of packed pages, compressed and named
//! sparse       holes, and which pages differ from a base;  pack: pages into frames and extents
//! folder       the store on disk: staging, durability, setting aside what is damaged;  pins: what is needed just now
//! store        the store as its users see it;  ingest, materialize, collect: its long operations
//! wire         what travels between peers;  serve: the giving side
//! pull         the taking side;  plan: what to ask of whom (pure);  ask: one question to one holder
//! ```

mod ask;
mod chunk;
mod codec;
mod collect;
mod error;
mod folder;
mod ingest;
mod input;
mod manifest;
mod materialize;
mod pack;
mod pins;
mod plan;
mod pull;
mod serve;
mod sparse;
mod store;
mod wire;

pub use ask::{Fault, HolderFault};
pub use chunk::{CHUNK_PAGES_MAX, CHUNK_STORED_BYTES_MAX, PAGE_BYTES};
pub use error::StoreError;
pub use input::{
    Collected, DiskInput, Ingested, MaterializedSandbox, Missing, SandboxInput, TemplateFiles, TemplateInput,
};
pub use manifest::{
    Base, CHUNKS_MAX, ChunkRef, Content, EXTENTS_MAX, Extent, FILE_BYTES_MAX, FILES_MAX, FileMap, FileName,
    HEADER_BYTES_MAX, Header, Kind, MANIFEST_BYTES_MAX, MANIFEST_SCHEMA, Manifest, ManifestError,
};
pub use pull::{PullError, PullProgress, PullStats, Puller};
pub use serve::ChunkServer;
pub use store::SnapshotStore;
