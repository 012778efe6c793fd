//! Limits of a cluster and the settings of the failure detector: pure.

use std::time::Duration;

use chitchat::FailureDetectorConfig;

/// Live members of one cluster. A digest lists every member and must fit a message of 65,507 bytes: chitchat 0.11
/// underflows somewhere past 1,000. Dead members count against that too until they are forgotten, hence the margin.
pub const MEMBERS_MAX: usize = 500;

/// Interval of a small mesh: a change is seen everywhere after 0.2 s (measured with 5 nodes).
const SMALL_INTERVAL: Duration = Duration::from_millis(200);
/// Interval of a larger one: costs grow with members over interval, and 200 nodes at 200 ms fill two cores (measured).
const LARGE_INTERVAL: Duration = Duration::from_secs(1);
/// Members up to which a mesh is small.
const SMALL_MEMBERS: usize = 50;
/// Dead after so many mean intervals of silence. Chitchat's default of 8 declares nodes dead whose host is merely busy
/// for a second; with this a dead node is noticed after 2 to 4 s in a small mesh.
const PHI_THRESHOLD: f64 = 16.0;
/// Heartbeats that the mean is taken over. The default of 1,000 reserves 8 kB for each peer.
const SAMPLES: usize = 100;
/// Intervals longer than so many of ours say nothing about a peer's rhythm.
const MAX_INTERVALS: u32 = 20;
/// A dead member is forgotten after this: a node that restarts every 30 s leaves ten dead selves behind, no more.
const DEAD_GRACE: Duration = Duration::from_secs(300);

/// The gossip interval for a mesh of so many nodes.
pub fn interval_for(nodes: usize) -> Duration {
    if nodes <= SMALL_MEMBERS { SMALL_INTERVAL } else { LARGE_INTERVAL }
}

pub(crate) fn failure_detector(interval: Duration) -> FailureDetectorConfig {
    FailureDetectorConfig::new(PHI_THRESHOLD, SAMPLES, interval * MAX_INTERVALS, interval, DEAD_GRACE)
}

/// Whether a member has to leave a cluster that is too large. The youngest leave, so that a running mesh stays as it is
/// and all members agree on who is too many. Members are given as incarnation and id.
pub(crate) fn must_leave<'id>(live: impl Iterator<Item = (u64, &'id str)>, me: (u64, &str)) -> bool {
    live.filter(|member| *member < me).count() >= MEMBERS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_youngest_members_over_the_limit_leave() {
        let members: Vec<(u64, String)> =
            (0..MEMBERS_MAX as u64 + 3).map(|number| (number / 2, format!("n-{number}"))).collect();
        let live = || members.iter().map(|(incarnation, id)| (*incarnation, id.as_str()));
        let mut leaving: Vec<&str> = live().filter(|me| must_leave(live(), *me)).map(|(_, id)| id).collect();
        leaving.sort_unstable();
        assert_eq!(leaving, ["n-500", "n-501", "n-502"]);
    }

    #[test]
    fn a_mesh_at_the_limit_stays_whole() {
        let ids: Vec<String> = (0..MEMBERS_MAX).map(|number| format!("n-{number}")).collect();
        let live = || ids.iter().map(|id| (7, id.as_str()));
        assert!(live().all(|me| !must_leave(live(), me)));
    }

    #[test]
    fn larger_meshes_gossip_slower() {
        assert_eq!(interval_for(3), Duration::from_millis(200));
        assert_eq!(interval_for(200), Duration::from_secs(1));
    }
}
