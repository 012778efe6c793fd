//! Tests of a running mesh: restart, failover, snapshots across regions, leaks.
