//! The stock clients against a running mesh.
