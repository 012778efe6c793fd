//! How fast a group notices a lost leader, and how often it writes a snapshot.

use openraft::{Config, ConfigError, SnapshotPolicy};

use crate::GroupName;

/// Milliseconds in which a snapshot must reach a member: the largest at 10 MB/s.
const INSTALL_SNAPSHOT_MS: u64 = 60_000;
/// Entries that one call carries at most; their bytes have a limit of their own.
const APPEND_ENTRIES_MAX: u64 = 256;

/// A group's timing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of the leader.
    pub heartbeat_ms: u64,
    /// A follower that has heard nothing waits at least this long before it asks for votes,
    pub election_min_ms: u64,
    /// and less than this long.
    pub election_max_ms: u64,
}

impl Timing {
    /// Inside a region: milliseconds of round trip, and machines that may be busy.
    pub const LAN: Self = Self { heartbeat_ms: 150, election_min_ms: 600, election_max_ms: 1200 };
    /// Between regions: up to 250 ms of round trip.
    pub const WAN: Self = Self { heartbeat_ms: 300, election_min_ms: 1500, election_max_ms: 3000 };
}

/// What may differ between groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupOptions {
    /// How fast it notices a lost leader.
    pub timing: Timing,
    /// Entries after which a new snapshot is written.
    pub snapshot_every: u64,
    /// Entries that are kept behind a snapshot, so that a member that was away for a short time needs none.
    pub entries_kept: u64,
}

impl GroupOptions {
    /// For a group inside a region.
    pub const REGION: Self = Self { timing: Timing::LAN, snapshot_every: 1000, entries_kept: 500 };
    /// For the group of the mesh.
    pub const MESH: Self = Self { timing: Timing::WAN, snapshot_every: 1000, entries_kept: 500 };

    pub(crate) fn config(&self, group: &GroupName) -> Result<Config, ConfigError> {
        let config = Config {
            cluster_name: group.to_string(),
            heartbeat_interval: self.timing.heartbeat_ms,
            election_timeout_min: self.timing.election_min_ms,
            election_timeout_max: self.timing.election_max_ms,
            install_snapshot_timeout: INSTALL_SNAPSHOT_MS,
            max_payload_entries: APPEND_ENTRIES_MAX,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.entries_kept,
            // A member cut off from the rest asks first whether it would be elected, and so doesn't push the others
            // to new terms when it comes back.
            enable_pre_vote: Some(true),
            // A follower whose log went back has lost its disk. Without this the leader would panic over it, and one
            // lost disk would end two members.
            allow_log_reversion: Some(true),
            ..Config::default()
        };
        config.validate()
    }
}
