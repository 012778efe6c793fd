//! PID 1 of every guest: mounts, reaps, and serves the host over one channel.
fn main() {}
