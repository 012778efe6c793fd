//! Snapshots: manifests, chunks, the local store, and pulling what is missing from peers.
