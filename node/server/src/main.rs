//! The atoll binary: configuration in, build, wiring, drain.
fn main() {}
